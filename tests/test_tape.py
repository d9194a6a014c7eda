from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from gptcalc import tape
from gptcalc.formula import Dim
from gptcalc.parts.embedding import TokenEmbedding
from gptcalc.parts.norm import LayerNorm, RMSNorm
from gptcalc.parts.positions import LearnedPositions, SinusoidalPositions
from gptcalc.parts.stage import input_stage

SIZES = {"fp32": 4, "bf16": 2, "fp16": 2}
#: Rows, sequence, width, vocabulary, context, distinct tokens.
SHAPES = [(1, 1, 1, 1, 1, 1), (21, 7, 13, 29, 9, 15), (4096, 512, 769, 50257, 1024, 3941)]
TOKENS, POSITIONS, LAYER_NORM = TokenEmbedding(name="wte"), LearnedPositions(name="wpe"), LayerNorm(name="norm")


def setting(shape: tuple[int, ...], dtype: str = "fp32", chip: tape.Chip | None = None) -> tape.Setting:
    """What the tape speaks of, from bare numbers."""
    dims = [Dim(letter, size) for letter, size in zip("MTDVCU", shape, strict=True)]
    return tape.Setting(*dims, dtype, chip)


def kernel(ops: tuple[tape.Op, ...]) -> tape.Tape:
    """The tape of one op, all that it writes being wanted."""
    return tape.Tape(ops, tuple(access.tensor for access in ops[-1].writes))


def total(terms: tuple[tape.Traffic, ...]) -> int:
    """Bytes of all terms."""
    return sum(term.bytes for term in terms)


def over_all(function: Any) -> Any:
    """A test of every shape and dtype."""
    return pytest.mark.parametrize("shape", SHAPES)(pytest.mark.parametrize("dtype", SIZES)(function))


@over_all
def test_a_lookup_moves_ids_distinct_rows_and_its_output(shape: tuple[int, ...], dtype: str) -> None:
    """8·M + s·U·D + s·M·D, and torch's kernel no more than that."""
    m, _, d, _, _, u = shape
    at = setting(shape, dtype)
    forward = kernel(TOKENS.ops(at, at.ids))

    assert total(tape.must_move(forward)) == 8 * m + SIZES[dtype] * (u * d + m * d)
    assert total(tape.moves(forward)) == total(tape.must_move(forward))


def test_a_term_reads_as_bytes_times_dims() -> None:
    """The coefficient is the size of an element, the dims are those of the tensor."""
    at = setting(SHAPES[1])

    assert [(term.label, term.formula.letters) for term in tape.must_move(kernel(TOKENS.ops(at, at.ids)))] == [
        ("read token IDs", "8×M"),
        ("read distinct rows of the token table", "4×U×D"),
        ("write token rows", "4×M×D"),
    ]


@over_all
def test_a_layer_norm_reads_its_input_once_or_twice(shape: tuple[int, ...], dtype: str) -> None:
    """2·M·D·s + 2·D·s + 8·M of statistics in fp32; M·D·s more where its rows in flight leave the cache."""
    m, d, s = shape[0], shape[2], SIZES[dtype]
    in_flight = min(m, 132 * 16) * d * s
    least = 2 * m * d * s + 2 * d * s + 8 * m

    def moved(chip: tape.Chip | None) -> int:
        at = setting(shape, dtype, chip)
        forward = kernel(LAYER_NORM.ops(at, at.x))
        assert total(tape.must_move(forward)) == least
        return total(tape.moves(forward))

    assert moved(tape.Chip(2 * in_flight, 132)) == least
    assert moved(tape.Chip(2 * in_flight - 1, 132)) == least + m * d * s
    assert moved(None) == least + m * d * s


@over_all
def test_the_gradients_of_a_layer_norm_take_two_kernels(shape: tuple[int, ...], dtype: str) -> None:
    """3·M·D·s must move; torch's second kernel reads dy and x again: 5·M·D·s."""
    m, d, s = shape[0], shape[2], SIZES[dtype]
    at = setting(shape, dtype)
    grads = tape.backward(kernel(LAYER_NORM.ops(at, at.x)))

    assert total(tape.must_move(grads)) == 3 * m * d * s + 3 * d * s + 8 * m
    assert total(tape.moves(grads)) == 5 * m * d * s + 3 * d * s + 16 * m
    assert "second kernel" in tape.reasons(grads)


@over_all
def test_an_rms_norm_has_no_mean_and_no_bias(shape: tuple[int, ...], dtype: str) -> None:
    """Forward 2·M·D·s + D·s + 4·M, backward 3·M·D·s + 2·D·s + 4·M."""
    m, d, s = shape[0], shape[2], SIZES[dtype]
    at = setting(shape, dtype)
    forward = kernel(RMSNorm(name="norm").ops(at, at.x))

    assert total(tape.must_move(forward)) == 2 * m * d * s + d * s + 4 * m
    assert total(tape.must_move(tape.backward(forward))) == 3 * m * d * s + 2 * d * s + 4 * m


@over_all
def test_a_dense_gradient_must_be_written_once(shape: tuple[int, ...], dtype: str) -> None:
    """IDs and dy are read, the whole table is written: 8·M + M·D·s + V·D·s."""
    m, _, d, v, _, _ = shape
    at = setting(shape, dtype)

    grads = tape.backward(kernel(TOKENS.ops(at, at.ids)))

    assert total(tape.must_move(grads)) == 8 * m + SIZES[dtype] * (m * d + v * d)


def test_few_ids_are_added_into_the_zeros() -> None:
    """Up to 3,072 IDs, the rows that they name are read and written after the zero fill: 2·U·D·s more."""
    at = setting((3072, 1024, 5, 40_000, 1024, 3000), "bf16")
    grads = tape.backward(kernel(TOKENS.ops(at, at.ids)))

    assert total(tape.moves(grads)) - total(tape.must_move(grads)) == 2 * 3000 * 5 * 2


def test_more_ids_are_sorted_and_added_up_in_fp32() -> None:
    """From 3,073 IDs: named rows written, ⌈n/10⌉ partial sums of each written and read, two passes over 16-bit IDs."""
    at = setting((3073, 1, 5, 65_536, 1024, 1000), "bf16")
    grads = tape.backward(kernel(TOKENS.ops(at, at.ids)))
    named, partial, order = 1000 * 5 * 2, (1000 + (3073 - 1000) // 10) * 5 * 4, 8 * 3073

    assert total(tape.moves(grads)) - total(tape.must_move(grads)) == named + 2 * partial + 8 * order


def test_partial_sums_are_never_fewer_than_torch_makes() -> None:
    """However the IDs repeat, U + (M − U)/10 bounds the sum of ⌈n/10⌉ over the tokens, and is reached."""
    for counts in ([1] * 50, [3073], [11, 21, 1, 10, 19], [10, 20, 30]):
        bound = len(counts) + (sum(counts) - len(counts)) // tape.ROWS_PER_PARTIAL
        assert sum(-(-n // 10) for n in counts) <= bound
    assert 2 + (11 + 11 - 2) // tape.ROWS_PER_PARTIAL == 2 * 2


def test_a_stage_must_move_what_one_fused_kernel_would() -> None:
    """IDs, distinct token rows, T position rows, the output; torch writes and reads every sum in between."""
    m, t, d, _, _, u = 21, 7, 13, 29, 9, 15
    stage = input_stage(setting(SHAPES[1]), TOKENS, POSITIONS)
    least = 8 * m + 4 * (u * d + t * d + m * d)
    between = 2 * 8 * t + 2 * 4 * t * d + 2 * 4 * m * d

    assert total(tape.must_move(stage)) == least
    assert total(tape.moves(stage)) == least + between


def test_the_gradient_of_position_rows_is_a_sum_over_sequences() -> None:
    """A fused kernel reads dy once, torch twice; both tables' gradients are dense."""
    m, t, d, v, c, u = 21, 7, 13, 29, 9, 15
    grads = tape.backward(input_stage(setting(SHAPES[1]), TOKENS, POSITIONS))
    least = 8 * m + 8 * t + 4 * (m * d + v * d + c * d)

    assert total(tape.must_move(grads)) == least
    assert total(tape.moves(grads)) == least + 4 * (m * d + 2 * t * d + 2 * t * d + 2 * u * d)
    assert [result.label for result in grads.results] == ["gradient of token table", "gradient of position table"]


def test_gradients_have_the_dtype_of_their_tensors_and_statistics_fp32() -> None:
    """In bf16 all gradients are bf16; mean and 1/σ stay fp32."""
    at = setting(SHAPES[1], "bf16")
    grads = tape.backward(kernel(LAYER_NORM.ops(at, at.x)))

    assert [(result.label, result.dtype) for result in grads.results] == [
        ("gradient of x", "bf16"),
        ("gradient of norm weight", "bf16"),
        ("gradient of norm bias", "bf16"),
    ]
    assert {access.tensor.dtype for access in grads.ops[0].reads if "of x" in access.label} == {"fp32"}


def test_dropout_keeps_a_byte_for_each_element() -> None:
    """The CUDA kernel writes a bool mask, and its backward reads dy and the mask alone."""
    import torch

    at = setting(SHAPES[1], "bf16")
    forward = kernel((tape.dropout(at.x, "dropped"),))
    x = torch.empty(21, 13, dtype=torch.bfloat16, device="meta")
    out, mask = torch.ops.aten.native_dropout(x, 0.1, train=True)

    assert [access.formula().value for access in forward.ops[0].writes] == [out.nbytes, mask.nbytes]
    assert total(tape.must_move(tape.backward(forward))) == 2 * out.nbytes + mask.nbytes


def test_a_copy_reads_and_writes() -> None:
    """The ceiling counts both."""
    source, target = (tape.Tensor(label, (Dim("M", 1000),), "fp32") for label in ("source", "copy"))

    assert total(tape.must_move(kernel((tape.whole("aten::copy_", (source,), target),)))) == 8000


def test_an_op_without_a_rule_is_named() -> None:
    """A gradient through an op that no rule knows is an error, not a hole."""
    x = tape.Tensor("x", (Dim("M", 3),), "fp32")

    with pytest.raises(TypeError, match="aten::sin has no backward rule"):
        tape.backward(kernel((tape.whole("aten::sin", (x,), x._replace(label="y")),)))


def test_whole_numbers_get_no_gradient() -> None:
    """Of x and a mask that is added to it, x alone has one."""
    x = tape.Tensor("x", (Dim("M", 3),), "fp32")
    mask = tape.Tensor("mask", x.dims, "bool")

    assert tape.backward(kernel((tape.add(x, mask, "sum"),))).results == (tape.gradient(tape.add(x, x, "sum").output),)


def test_gradients_that_meet_are_added_in_place() -> None:
    """2·x + x: the gradient of the sum reaches x at once, that of the product is added to it."""
    x = tape.Tensor("x", (Dim("M", 3),), "fp32")
    double = tape.scale(x, "double")

    back = tape.backward(kernel((double, tape.add(double.output, x, "triple"))))

    assert [op.name for op in back.ops] == ["aten::mul", "aten::add_"]
    assert [access.tensor.label for access in back.ops[-1].reads] == ["gradient of triple", "gradient of x"]


def test_a_layer_norm_moves_the_tensors_that_torch_has() -> None:
    """Inputs and outputs of aten::native_layer_norm and of its backward, in bytes, for an odd shape."""
    import torch

    x, weight, bias = (torch.randn(*shape) for shape in ((21, 13), (13,), (13,)))
    out, mean, rstd = torch.native_layer_norm(x, [13], weight, bias, 1e-5)
    grads = torch.ops.aten.native_layer_norm_backward(x, x, [13], mean, rstd, weight, bias, [True] * 3)
    at = setting(SHAPES[1])
    forward = kernel(LAYER_NORM.ops(at, at.x))

    assert total(tape.must_move(forward)) == sum(one.nbytes for one in (x, weight, bias, out, mean, rstd))
    assert total(tape.must_move(tape.backward(forward))) == sum(
        one.nbytes for one in (out, x, mean, rstd, weight, *grads)
    )


STAGES = {
    "learned": ({"positions": "learned"}, POSITIONS, None),
    "scaled": ({"positions": "learned", "scaled": True}, POSITIONS, None),
    "normalised": ({"positions": "learned", "layer_norm": True}, POSITIONS, LAYER_NORM),
    "sinusoidal": ({"positions": "sinusoidal", "scaled": True}, SinusoidalPositions(name="wpe"), None),
    "none": ({"positions": "none"}, None, None),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("width", [6, 7])
@pytest.mark.parametrize("name", STAGES)
def test_the_stage_runs_the_ops_that_the_tape_says(name: str, width: int, batch: int) -> None:
    """Forward and backward, in order, each with the bytes of its tensors, where IDs name every row of the tables."""
    import torch

    from gptcalc.modules import GPTEmbedding

    fields, positions, norm = STAGES[name]
    seq, n_vocab = 5, 4
    module = GPTEmbedding(n_vocab=n_vocab, d_model=width, n_ctx=seq, dropout=0.0, **fields)
    ids = (torch.arange(batch * seq) % n_vocab).view(batch, seq)
    at = setting((batch * seq, seq, width, n_vocab, seq, n_vocab))
    stage = input_stage(at, TOKENS.model_copy(update={"scaled": module.config.scaled}), positions, norm)
    learned = [tensor for _, tensor in module.itemise()]

    with recorder() as forward:
        out = module(ids)
    dy = torch.ones_like(out)
    with recorder() as backward:
        torch.autograd.grad(out, learned, dy)

    assert forward.ops == rows(stage)
    assert backward.ops == rows(tape.backward(stage))


def rows(of: tape.Tape) -> list[tuple[str, int, int]]:
    """Name, bytes read, bytes written of each op."""
    return [
        (op.name, *(sum(one.formula().value for one in accesses) for accesses in (op.reads, op.writes)))
        for op in of.ops
    ]


def recorder() -> Any:
    """A mode that records name, bytes read and bytes written of each op that is no view."""
    from torch import Tensor
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_leaves

    def size(tensors: Any) -> int:
        return sum(leaf.nbytes for leaf in tree_leaves(tensors) if isinstance(leaf, Tensor))

    class Recorder(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.ops: list[tuple[str, int, int]] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            name = func.name().split(".")[0]
            # The backward of a LayerNorm is given the bias and does not read it.
            read = args[:6] if name == "aten::native_layer_norm_backward" else args
            if not func.is_view:
                self.ops.append((name, size(read), size(out)))
            return out

    return Recorder()


def test_counting_opens_no_tape() -> None:
    """Parts open the tape when they are asked for ops, so that counting starts as fast as before."""
    code = "import sys, gptcalc; gptcalc.count('gpt2'); sys.exit('gptcalc.tape' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
