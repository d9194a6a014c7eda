"""References are counted as Python and autograd count them: small tapes with every event written out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from gptcalc import tape
from gptcalc.formula import Dim
from gptcalc.tape import Op, Tensor
from gptcalc.tape.record import Recorder

if TYPE_CHECKING:
    from collections.abc import Sequence

ROW = (Dim("M", 5), Dim("D", 3))
CUBE = (Dim("B", 2), Dim("T", 5), Dim("D", 3))
X = Tensor("x", ROW, "fp32")
X3 = Tensor("x", CUBE, "fp32")


def value(label: str, like: Tensor = X) -> Tensor:
    """Another value of the same dims."""
    return tape.made(like, label)


def square(name: str) -> Tensor:
    """A weight (3, 3)."""
    return Tensor(name, (Dim("D", 3), Dim("D", 3)), "fp32", name)


def recorder(x: Tensor = X, *weights: Tensor) -> Recorder:
    """Weights are built, and x is there, which needs a gradient and is held by one."""
    record = Recorder(None)
    record.stage("build")
    for weight in weights:
        record.parameter(weight, "module")
    record.bind(x, record.hold(record.alloc(x, "temporary", "made")), needs=True)
    record.stage("step")
    return record


def said(record: Recorder) -> list[str]:
    """The events of the last stage: `+` and `-` with what the storage is."""
    return [
        f"{'+' if event.alloc else '-'}{event.slot.tensor.label}"
        for segment in record.stages[-1].segments
        for event in segment.events
    ]


def backward(record: Recorder, ops: Sequence[Op], last: Tensor) -> list[str]:
    """What a backward pass from `last` allocates and frees, the gradient of the seed held by the engine."""
    record.stage("backward")
    seed = record.seed(last)
    for op in reversed(ops):
        record.reverse(op)
    record.release(seed)
    return said(record)


# --- Holding and letting go ------------------------------------------------------------------------------------------


def test_the_last_reference_frees() -> None:
    """A storage that two hold is freed by the second release, under the op that ran last."""
    record = recorder()
    slot = record.hold(record.hold(record.alloc(value("y"), "temporary", "aten::gelu")))
    record.release(slot)
    assert said(record) == ["+y"]
    record.release(slot)
    assert said(record) == ["+y", "-y"]
    assert [event.op for event in record.stages[-1].segments[-1].events] == ["aten::gelu"] * 2


def test_a_release_too_many_is_an_error() -> None:
    """A tape that drops a value twice is wrong, and says of which value."""
    record = recorder()
    slot = record.hold(record.alloc(value("y"), "temporary", "aten::gelu"))
    record.release(slot)
    with pytest.raises(RuntimeError, match="y is released more often than it is held"):
        record.release(slot)


def test_an_empty_tensor_is_no_event() -> None:
    """The allocator is not asked for nothing: an idle expert's rows leave no trace."""
    record = recorder()
    none = Tensor("rows", (Dim("0", 0), Dim("D", 3)), "fp32")
    record.release(record.hold(record.alloc(none, "temporary", "aten::mm")))
    assert said(record) == []


def test_outputs_beside_the_first_live_only_if_kept() -> None:
    """Statistics that autograd keeps outlive their op, in inference they are freed after it, once it has run."""
    norm = tape.layer_norm(X, square("w"), square("b"), "y", None)
    stats = ["mean of x", "1/σ of x"]
    kept, let_go = recorder(X, square("w"), square("b")), recorder(X, square("w"), square("b"))
    assert kept.run(norm, training=True)
    assert not let_go.run(norm, training=False)
    assert said(kept) == ["+y", *(f"+{stat}" for stat in stats)]
    assert said(let_go) == ["+y", *(f"+{stat}" for stat in stats), *(f"-{stat}" for stat in stats)]


def test_what_a_caller_is_handed_lives_until_it_is_dropped() -> None:
    """`topk` hands over values and places; both are held by variables."""
    record = recorder()
    top = tape.topk(X, Dim("k", 2), "largest", "places")
    record.run(top, training=False)
    assert said(record) == ["+largest", "+places"]
    record.run(tape.leave(*(access.tensor for access in top.writes)), training=False)
    assert said(record) == ["+largest", "+places", "-largest", "-places"]


def test_a_view_holds_the_storage_that_it_shows() -> None:
    """The halves of a split take no memory, and the whole lives until the last of them goes."""
    record = recorder()
    whole = tape.scale(X, "whole")
    cut = tape.split(whole.output, value("left"), value("right"))
    left, right = (access.tensor for access in cut.writes)
    record.run(whole, training=False)
    record.run(cut._replace(drops=(whole.output,)), training=False)
    record.run(tape.leave(left), training=False)
    assert said(record) == ["+whole"]
    record.run(tape.leave(right), training=False)
    assert said(record) == ["+whole", "-whole"]


def test_autograd_holds_what_it_keeps_until_its_row_is_reversed() -> None:
    """A variable's end does not free a value that the backward pass reads; the row's own reversal does."""
    record = recorder()
    first, second = tape.scale(X, "y"), tape.activation("gelu", value("y"), "z")
    for op in (first, second._replace(drops=(value("y"),))):
        record.run(op, training=True)
    assert said(record) == ["+y", "+z"]
    assert record.slot(value("y")).keepers == ["aten::gelu"]
    events = backward(record, (first, second), value("z"))
    assert events == [
        "+gradient of z",
        "+gradient of y",
        "-y",
        "+gradient of x",
        "-gradient of y",
        "-gradient of z",
    ]


def test_a_row_that_no_gradient_reaches_lets_go_all_the_same() -> None:
    """What a row kept is freed when the engine passes it, used or not."""
    record = recorder()
    unused = tape.activation("relu", X, "unused")._replace(drops=(value("unused"),))
    used = tape.scale(X, "used")
    for op in (unused, used):
        record.run(op, training=True)
    assert said(record) == ["+unused", "+used"]
    assert backward(record, (unused, used), value("used"))[-2:] == ["-unused", "-gradient of used"]


def test_nothing_is_kept_of_what_needs_no_gradient() -> None:
    """Token IDs are looked up: the table has a gradient, the sum of constants has none."""
    record = recorder()
    ids = Tensor("IDs", (Dim("M", 5),), "int64")
    record.given(ids, "inputs")
    record.run(constant := tape.scale(ids, "twice"), training=True)
    assert record.slot(constant.output).keepers == []
    assert not record.run(tape.activation("gelu", constant.output, "curve"), training=True)


# --- Gradients that meet ---------------------------------------------------------------------------------------------


def test_a_later_gradient_is_added_into_the_first() -> None:
    """Here x and gelu(x) are summed: the gradient that went to both is x's alone when the second one comes."""
    record = recorder()
    twice, curve = tape.scale(X, "w"), tape.activation("gelu", value("w"), "y")
    both = tape.add(value("w"), value("y"), "z")
    last = tape.scale(value("z"), "end")
    ops = (twice, curve, both, last)
    for op in ops:
        record.run(op, training=True)
    assert backward(record, ops, value("end")) == [
        "+gradient of end",
        "+gradient of z",
        "+gradient of w",
        "-gradient of w",
        "+gradient of x",
        "-gradient of z",
        "-gradient of end",
    ]


def test_a_gradient_that_another_holds_is_not_written_to() -> None:
    """The seed is the engine's too: the sum is a tensor of its own, and both summands go."""
    record = recorder()
    curve = tape.activation("gelu", X, "y")
    both = tape.add(X, value("y"), "z")
    for op in (curve, both):
        record.run(op, training=True)
    events = backward(record, (curve, both), value("z"))
    assert events == [
        "+gradient of z",
        "+gradient of x",
        "+sum of gradients of x",
        "-gradient of x",
        "-gradient of z",
    ]


def test_a_gradient_that_is_a_view_is_not_written_to() -> None:
    """Of three linear layers of one x (B, T, D) the first two gradients make a new sum, which takes in the third."""
    weights = [square(name) for name in ("a", "b", "c")]
    record = recorder(X3, *weights)
    outs = [value(f"y{weight.name}", X3) for weight in weights]
    layers = [tape.linear(X3, weight, None, out, transposed=True) for weight, out in zip(weights, outs, strict=True)]
    one = tape.add(outs[0], outs[1], "ab")
    two = tape.add(one.output, outs[2], "abc")
    ops = (*layers, one, two)
    for op in ops:
        record.run(op, training=True)
    gained = [event for event in backward(record, ops, two.output) if event.startswith("+")]
    assert gained == [
        "+gradient of abc",
        *("+gradient of c", "+gradient of x"),
        *("+gradient of b", "+gradient of x", "+sum of gradients of x"),
        *("+gradient of a", "+gradient of x"),
    ]


def test_a_gradient_of_two_axes_is_no_view() -> None:
    """Of x (M, D) the second gradient goes into the first: only more axes are read through a view."""
    weights = [square(name) for name in ("a", "b")]
    record = recorder(X, *weights)
    outs = [value(f"y{weight.name}") for weight in weights]
    layers = [tape.linear(X, weight, None, out, transposed=True) for weight, out in zip(weights, outs, strict=True)]
    ops = (*layers, tape.add(*outs, "sum"))
    for op in ops:
        record.run(op, training=True)
    assert "+sum of gradients of x" not in backward(record, ops, value("sum"))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_tied_table_sums_its_gradients(transposed: bool) -> None:  # noqa: FBT001  both are
    """A weight (out, in) is read transposed, so that its gradient is a view: the table's second one makes a sum."""
    table = square("table")
    record = recorder(X, table)
    ids = Tensor("IDs", (Dim("M", 5),), "int64")
    record.given(ids, "inputs")
    rows = tape.embedding(ids, table, Dim("U", 3), "rows")
    scores = tape.linear(rows.output, table, None, value("scores"), transposed=transposed)
    for op in (rows, scores):
        record.run(op, training=True)
    events = backward(record, (rows, scores), value("scores"))
    found = record.parameter_gradient("table")
    assert found is not None
    assert found.refs == 1
    assert found.kind == "gradients"
    assert ("+sum of gradients of table" in events) is not transposed
    assert events.count("+gradient of table") == 2
    assert events.count("-gradient of table") == (1 if transposed else 2)
    assert record.parameter_gradient("table") is None


def test_a_gradient_that_is_passed_through_is_the_same_storage() -> None:
    """A split's gradients are put side by side in one new tensor; a view's gradient is no new one."""
    record = recorder()
    seen = tape.view(X, "seen")
    cut = tape.split(seen.output, value("left"), value("right"))
    left, right = (access.tensor for access in cut.writes)
    ops = (seen, cut, tape.add(left, right, "z"), tape.scale(value("z"), "end"))
    for op in ops:
        record.run(op, training=True)
    gained = [event for event in backward(record, ops, value("end")) if event.startswith("+")]
    assert gained == ["+gradient of end", "+gradient of z", "+gradient of seen"]
    assert record.pop_gradient(X).viewed


def test_gradients_are_handed_from_layer_to_layer() -> None:
    """The gradient of a layer's input is that of the output of the layer before, one storage, held once."""
    record = recorder()
    record.segment("layer", 1)
    record.bind(X, record.hold(record.alloc(X, "temporary", "made")), needs=True)
    op = tape.scale(X, "y")
    record.run(op, training=True)
    record.stage("backward")
    record.segment("layer", 1)
    seed = record.seed(value("y"))
    record.reverse(op)
    handed = record.pop_gradient(X)
    assert (handed.slot.refs, handed.slot.home) == (1, 1)
    record.release(seed)
    record.segment("layer", 0)
    record.push_gradient(value("out"), handed)
    assert record.pop_gradient(value("out")) is handed


# --- Layers, steps, names --------------------------------------------------------------------------------------------


def test_each_layer_has_its_own_values_and_all_share_what_is_shared() -> None:
    """A value that the first layer makes for all is found in the next, whose own value hides none of another's."""
    record = recorder()
    mask = value("mask")
    record.segment("layer", 0)
    record.run(tape.whole("aten::full", (), mask)._replace(shared=True), training=False)
    record.run(tape.scale(X, "y"), training=False)
    first = record.slot(value("y"))
    record.segment("layer", 1)
    record.bind(X, record.hold(record.alloc(X, "temporary", "made")), needs=False)
    record.run(tape.scale(X, "y"), training=False)
    assert record.slot(mask).home is None
    assert (first.home, record.slot(value("y")).home) == (0, 1)
    assert record.slot(value("y")) is not first


def test_a_layers_weights_go_by_its_number() -> None:
    """One name with `{}` is a weight in every layer, and each has its own storage and gradient."""
    record = Recorder(None)
    record.stage("build")
    weight = square("layers.{}.weight")
    slots = []
    for layer in (0, 1):
        record.segment("layer", layer)
        slots.append(record.parameter(weight, "layers.{}"))
        assert record.slot(weight) is slots[layer]
    assert slots[0] is not slots[1]
    assert {slot.kind for slot in slots} == {"weights"}


def test_a_name_can_be_given_anew() -> None:
    """The token IDs of decoding take the place of those of prefill."""
    record = Recorder(None)
    record.stage("build")
    ids, other = value("IDs"), value("token IDs of decode")
    record.given(ids, "inputs")
    found = record.given(other, "inputs")
    record.name(ids, other)
    assert record.slot(ids) is found


def test_what_is_made_anew_has_an_address_of_its_own() -> None:
    """What one step keeps, the next one makes again beside it: two steps are replayed without confusion."""
    record = recorder()
    for step in (1, 2):
        record.new_pass()
        record.stage("forward")
        record.bind(X, record.hold(record.alloc(X, "temporary", "made")), needs=True)
        for label in ("y", "y"):
            record.run(tape.scale(X, label), training=False)
        assert record.n_indices == 1 + 3 * step


def test_a_stretch_that_goes_on_is_one_segment() -> None:
    """The same label and layer again: one segment; another layer, or another label: a new one."""
    record = Recorder(None)
    record.stage("forward")
    for label, layer in (("input", None), ("layer", 0), ("layer", 0), ("layer", 1), ("head", None)):
        record.segment(label, layer)
    assert [segment[:2] for segment in record.stages[-1].segments] == [
        ("forward", None),
        ("input", None),
        ("layer", 0),
        ("layer", 1),
        ("head", None),
    ]


# --- What no op shows ------------------------------------------------------------------------------------------------


class Hungry:
    """Kernels that take a workspace for each thread that multiplies, and eight numbers for each product."""

    def kept(self, op: Op) -> tuple[Tensor, ...]:
        return (Tensor("workspace", (Dim("32", 32),), "uint8"),) if op.name == "aten::mm" else ()

    def buffers(self, op: Op) -> tuple[Tensor, ...]:
        return (Tensor("buffer", (Dim("8", 8),), "fp32"),) if op.name == "aten::mm" else ()


def test_workspaces_are_taken_once_for_each_thread_and_buffers_given_back() -> None:
    """Forward and backward multiply in threads of their own: two workspaces, which stay; buffers follow the output."""
    record = Recorder(Hungry())
    record.stage("step")
    weights = (square("a"), square("b"))
    for weight in weights:
        record.parameter(weight, "module")
    record.bind(X, record.hold(record.alloc(X, "temporary", "made")), needs=False)
    ops = [tape.linear(X, weights[0], None, value("y")), tape.linear(value("y"), weights[1], None, value("z"))]
    record.stage("forward")
    for op in ops:
        record.run(op, training=True)
    assert said(record) == ["+y", "+workspace (forward)", "+buffer", "-buffer", "+z", "+buffer", "-buffer"]
    gained = [event for event in backward(record, ops, value("z")) if "gradient" not in event]
    assert gained == ["+workspace (backward)", *["+buffer", "-buffer"] * 3]
    first = next(event.slot for event in record.stages[-1].segments[-1].events if "work" in event.slot.tensor.label)
    assert (first.refs, first.kind, first.home) == (1, "workspace", None)


def test_scores_of_the_vocabulary_are_told_apart() -> None:
    """A value with an axis of V is `logits`, forward and backward; the gradient of a weight is `gradients`."""
    table = Tensor("table", (Dim("V", 7), Dim("D", 3)), "fp32", "table")
    record = recorder(X, table)
    scores = Tensor("scores", (Dim("M", 5), Dim("V", 7)), "fp32")
    ops = [tape.linear(X, table, None, scores), tape.scale(scores, "end")]
    for op in ops:
        record.run(op, training=True)
    record.stage("backward")
    record.seed(value("end", scores))
    for op in reversed(ops):
        record.reverse(op)
    kinds = {
        event.slot.tensor.label: event.slot.kind for segment in record.stages[-1].segments for event in segment.events
    }
    assert kinds["gradient of scores"] == "logits"
    assert kinds["gradient of table"] == "gradients"
    assert kinds["gradient of x"] == "temporary"
    assert record.slot(scores).kind == "logits"
