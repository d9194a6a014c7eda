"""What a mixture runs, dropless and grouped: a router's choice, then each expert over the rows that are routed to it.

Every token has `k` rows, one for each expert that it uses; sorted by expert, the rows of one expert lie together.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from gptcalc import tape
from gptcalc.errors import InvalidValueError
from gptcalc.formula import Dim, Product, product_size
from gptcalc.parts.activation import activate
from gptcalc.parts.sparsemixer import sparsemixer
from gptcalc.tape import Op, Rows, Setting, Tensor, turns

if TYPE_CHECKING:
    from gptcalc.parts.mlp import MixtureMLP


class Routed(NamedTuple):
    """The router's scores (…, E); the experts of each token and their shares (…, k) in fp32."""

    scores: Tensor
    chosen: Tensor
    shares: Tensor


#: The kernel that makes shares of scores.
SQUASH: dict[str, Callable[[Tensor, str], Op]] = {
    "softmax": tape.softmax,
    "sigmoid": partial(tape.activation, "sigmoid"),
}


def mixture(part: "MixtureMLP", setting: Setting, x: Tensor) -> tuple[Op, ...]:
    """(…, D) to the same: the shares' sum of what each token's experts compute, and what those of all tokens do."""
    rows = Rows(setting)
    flat = rows(tape.view(x, "rows of x"))
    routed = _route(part, setting, rows, flat)
    rows += _compute(part, setting.within(part.experts_name), flat, routed)
    out = rows[-1].output
    if part.shared is not None:
        own, of_all = out, _of_all(part, setting, rows, x)
        out = rows(tape.add(own, of_all, "output of all experts"))
        rows.drop(own, of_all)
    if part.averaged:
        added = out
        out = rows(tape.scale(added, "average of all experts"))
        rows.drop(added)
    if setting.training and part.dropout:
        rows(tape.dropout(out, "dropped MLP output"))
        rows.drop(out)
    rows.drop(flat, *routed)
    return tuple(rows)


def _of_all(part: "MixtureMLP", setting: Setting, rows: Rows, x: Tensor) -> Tensor:
    """What the experts that all tokens use say, where there is a gate weighted by it."""
    rows += tape.ops_of(part.shared, setting, x)
    said = tape.result(rows)
    if not part.shared_gate_name:
        return said
    out = tape.made(x, "score of the shared experts", *setting.tokens, Dim("1", 1))
    score = tape.project(setting, rows, part.shared_gate_name, x, out, bias=False)
    share = rows(tape.activation("sigmoid", score, "share of the shared experts"))
    rows.drop(score)
    weighted = rows(tape.multiply(said, share, "weighted output of the shared experts"))
    rows.drop(said, share)
    return weighted


def load(setting: Setting, n_experts: int, n_active: int) -> Iterator[Product]:
    """How many rows each expert gets: as even as can be; with the worst routing the first `n_active` get every token.

    That is the worst for what is alive at once: an expert's own values are largest, and as gradients are computed from
    the last expert to the first, the weights' gradients of all idle experts are there before anything kept is let go.
    """
    if setting.worst_routing:
        every = Dim("·".join(dim.letter for dim in setting.tokens), product_size(setting.tokens))
        yield from [(every,)] * n_active
        yield from [(Dim("0", 0),)] * (n_experts - n_active)
        return
    least, rest = divmod(product_size(setting.tokens) * n_active, n_experts)
    share = "·".join([*(dim.letter for dim in setting.tokens if dim.letter != "1"), "k/E"])
    left, right = "⌊⌋" if rest else "()"
    yield from [(Dim(f"⌈{share}⌉", least + 1),)] * rest
    yield from [(Dim(f"{left}{share}{right}", least),)] * (n_experts - rest)


def _route(part: "MixtureMLP", setting: Setting, rows: Rows, x: Tensor) -> Routed:
    """Each token's experts and their shares, in fp32."""
    out = tape.made(x, "router scores", *setting.tokens, Dim("E", part.n_experts))
    scores = wide = tape.project(setting, rows, part.router_name, x, out, bias=part.router_bias)
    if scores.dtype != "fp32":
        wide = rows(tape.cast(scores, "fp32", "router scores in fp32"))
    spare = () if wide is scores else (wide,)
    if part.scores == "sparsemixer":
        shares, chosen = sparsemixer(setting, rows, wide)
        rows.drop(*spare)
    elif part.scores.endswith("_after"):
        shares, chosen = _largest_then_shares(part, rows, wide, spare)
    else:
        shares, chosen = _shares_then_largest(part, setting, rows, wide, spare)
    if part.normalised and part.scores != "softmax_after":
        largest = shares
        total = rows(tape.total(largest, "sum of the largest probabilities"))
        shares = rows(tape.divide(largest, total, "shares of the chosen experts"))
        rows.drop(total, largest)
    if part.scale != 1:
        unscaled = shares
        shares = rows(tape.scale(unscaled, "scaled shares"))
        rows.drop(unscaled)
    return Routed(scores, chosen, shares)


def _largest_then_shares(
    part: "MixtureMLP", rows: Rows, scores: Tensor, spare: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """The `k` largest scores, and what they are as shares."""
    largest = rows(tape.topk(scores, Dim("k", part.n_active), "largest scores", "chosen experts"))
    (chosen,) = rows[-1].handed
    rows.drop(*spare)
    shares = rows(SQUASH[part.scores.removesuffix("_after")](largest, "shares of the largest"))
    rows.drop(largest)
    return shares, chosen


def _shares_then_largest(
    part: "MixtureMLP", setting: Setting, rows: Rows, scores: Tensor, spare: tuple[Tensor, ...]
) -> tuple[Tensor, Tensor]:
    """All scores as shares, and the `k` largest of them, be it in the best groups alone."""
    n_active, label = Dim("k", part.n_active), "largest probabilities"
    every = rows(SQUASH[part.scores](scores, "router probabilities"))
    rows.drop(*spare)
    if part.correction or part.chooses_groups:
        chosen = _best(part, setting, rows, every)
        largest = rows(tape.take(every, chosen, label))
    else:
        largest = rows(tape.topk(every, n_active, label, "chosen experts"))
        (chosen,) = rows[-1].handed
    rows.drop(every)
    return largest, chosen


def _unseen(rows: Rows, op: Op) -> Tensor:
    """The output of what autograd does not see."""
    return rows(op._replace(unrecorded=True))


def _best(part: "MixtureMLP", setting: Setting, rows: Rows, every: Tensor) -> Tensor:
    """Which experts have the largest probabilities, once corrected, in the best groups; autograd does not see it."""
    left, ended = every, []
    if part.correction:
        correction = setting.weight("correction", part.correction, Dim("E", part.n_experts))
        left = _unseen(rows, tape.add(every, correction, "corrected probabilities"))
        ended.append(left)
    if part.chooses_groups:
        left = _in_best_groups(part, rows, left)
        rows.drop(*ended)
        ended = [left]
    largest = _unseen(rows, tape.topk(left, Dim("k", part.n_active), "largest of the best", "chosen experts"))
    (chosen,) = rows[-1].handed
    rows.drop(largest, *ended)
    return chosen


def _in_best_groups(part: "MixtureMLP", rows: Rows, every: Tensor) -> Tensor:
    """The probabilities of experts in the best groups."""
    n_groups, n_active_groups = part.n_groups or 1, part.n_active_groups or 1
    if part.n_experts % n_groups:
        raise InvalidValueError(f"n_experts: read {part.n_experts}; allowed: a multiple of n_groups={n_groups}")
    groups, size = Dim("G", n_groups), Dim("(E/G)", part.n_experts // n_groups)
    tokens = every.dims[:-1]
    by_group = _unseen(rows, tape.view(every, "probabilities by group", *tokens, groups, size))
    best = tape.topk(by_group, Dim("g", part.group_top), "best of each group", "places of the best")
    top = _unseen(rows, best._replace(handed=()))
    rated = _unseen(rows, tape.total(top, "ratings of the groups"))
    rows.drop(top)
    ratings = _unseen(rows, tape.topk(rated, Dim("k/G", n_active_groups), "best ratings", "best groups"))
    (places,) = rows[-1].handed
    rows.drop(ratings)
    mask = tape.made(rated, "groups that are not chosen", dtype="bool")
    closed = _unseen(rows, tape.whole("aten::ones_like", (), mask))
    open_groups = _unseen(rows, tape.masked_fill(by_group, closed, "probabilities in the best groups"))
    flat = _unseen(rows, tape.view(open_groups, open_groups.label, *every.dims))
    rows.drop(open_groups, closed, places, rated, by_group)
    return flat


def _compute(part: "MixtureMLP", setting: Setting, x: Tensor, routed: Routed) -> Rows:
    """The experts' module: rows sorted by expert, each expert's network, and what a token's experts say, summed."""
    rows = Rows(setting)
    order = rows(tape.argsort(routed.chosen, "order of the rows by expert"))
    tokens = rows(tape.whole("aten::floor_divide", (order,), tape.made(order, "tokens of the rows")))
    wide = (*order.dims, setting.width)
    taken = rows(tape.gather(x, tokens, tape.made(x, "rows by expert", *wide)))
    if part.weighted_input:
        taken = _weigh_input(rows, taken, order, routed.shares)
    computed = weighted = narrow = _experts(part, setting, rows, taken)
    if not part.weighted_input:
        shares = rows(tape.gather(routed.shares, order, tape.made(routed.shares, "shares by expert")))
        weighted = narrow = rows(tape.multiply(computed, shares, "weighted outputs"))
        rows.drop(shares)
    zeros = rows(tape.whole("aten::zeros_like", (), tape.made(x, "zeros")))
    if weighted.dtype != x.dtype:
        narrow = rows(tape.cast(weighted, x.dtype, f"weighted outputs in {x.dtype}"))
    rows(
        tape.scatter_add(zeros, tokens, narrow, "MLP output" if part.shared is None else "output of the chosen experts")
    )
    rows.drop(zeros, order, tokens, taken, *dict.fromkeys((computed, weighted, narrow)))
    return rows


def _weigh_input(rows: Rows, taken: Tensor, order: Tensor, shares: Tensor) -> Tensor:
    """The experts' rows, each multiplied by its share."""
    narrow = shares
    if shares.dtype != taken.dtype:
        narrow = rows(tape.cast(shares, taken.dtype, f"shares in {taken.dtype}"))
    by_row = rows(tape.gather(narrow, order, tape.made(narrow, "shares by expert")))
    rows.drop(*(() if narrow is shares else (narrow,)))
    weighted = rows(tape.multiply(taken, by_row, "weighted rows by expert"))
    rows.drop(by_row, taken)
    return weighted


def _experts(part: "MixtureMLP", setting: Setting, rows: Rows, x: Tensor) -> Tensor:
    """Each expert over its rows of x, (rows of all experts, D) to the same; it runs even without rows.

    Of experts with as many rows the first one, one of those between and the last one are listed.
    """
    loads = list(load(setting, part.n_experts, part.n_active))
    experts = list(turns("expert", loads))
    numbers = [turn.numbers[0] for turn in experts]
    cuts = [
        tape.split(x, *(tape.made(x, f"rows of expert {n}", *loads[n], setting.width) for n in numbers)),
        *(_cut(part, whole, label, own, numbers) for whole, label, own in _held(part, setting)),
    ]
    views = []
    for cut in cuts:
        rows(cut)
        views.append([access.tensor for access in rows[-1].writes])
    run = _stacked if part.order == "stacked" else _fused
    outs = []
    for turn, own in zip(experts, zip(*views, strict=True), strict=True):
        rows.turn = turn
        outs.append(run(part, rows, turn.numbers[0], loads[turn.numbers[0]], *own))
    rows.turn = None
    out = rows(tape.join(outs, tape.made(x, "outputs by expert")))
    rows.drop(*outs, *(view for of_all in views for view in of_all))
    return out


def _held(part: "MixtureMLP", setting: Setting) -> Iterator[tuple[Tensor, str, Product]]:
    """What the experts hold: a parameter, the label of one expert's share of it, and the share's dims."""
    experts, inner, width = Dim("E", part.n_experts), Dim("Fe", part.d_ff), setting.width
    both = Dim("(2×F)", 2 * inner.size)
    if part.order == "stacked":
        for name, label in zip(part.expert_names, ("gate", "up", "down"), strict=True):
            yield setting.weight(f"{label} weights", name, experts, inner, width), f"{label} weight", (inner, width)
        return
    layers = (("gate and up", part.expert_names[0], width, both), ("down", part.expert_names[-1], inner, width))
    for label, name, ins, outs in layers:
        own = (ins, outs) if part.order == "in_out" else (outs, ins)
        yield setting.weight(f"{label} weights", name, experts, *own), f"{label} weight", own
    if part.experts_bias:
        for label, name, _, outs in layers:
            yield setting.weight(f"{label} biases", f"{name}_bias", experts, outs), f"{label} bias", (outs,)


def _cut(part: "MixtureMLP", held: Tensor, label: str, dims: Product, numbers: list[int]) -> Op:
    """A parameter of all experts, cut into views, of which those of `numbers` are listed."""
    views = (tape.made(held, f"{label} of expert {n}", *dims) for n in numbers)
    return (tape.split if part.order == "stacked" else tape.unbind)(held, *views)


def _fused(  # noqa: PLR0913, PLR0917  what one expert has
    part: "MixtureMLP",
    rows: Rows,
    number: int,
    n_rows: Product,
    x: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *biases: Tensor,
) -> Tensor:
    """activation(gate) · up, then down, over the rows of one expert: (rows, D) to the same."""
    swapped = part.order == "in_out"
    inner = Dim("Fe", part.d_ff)

    def named(label: str, *dims: Dim) -> Tensor:
        return tape.made(x, f"{label} of expert {number}", *n_rows, *dims)

    gate_up_bias, down_bias = biases or (None, None)
    outs = gate_up.dims[-1 if swapped else 0]
    fused = rows(tape.linear(x, gate_up, gate_up_bias, named("gate and up", outs), transposed=swapped))
    gate, up = (named(label, inner) for label in ("gate", "up"))
    if part.clamped is None:
        cut = tape.split(fused, gate, up)
        rows(cut)
        gate, up = (access.tensor for access in cut.writes)
        gated = _gate(part, rows, gate, up, number)
        rows.drop(fused)
    else:
        gate, up = _bounded(rows, fused, gate, up)
        gated = _swiglu(rows, gate, up, number)
    out = rows(tape.linear(gated, down, down_bias, named("output", x.dims[-1]), transposed=swapped))
    rows.drop(gated, up, gate)
    return out


def _gate(part: "MixtureMLP", rows: Rows, gate: Tensor, up: Tensor, number: int) -> Tensor:
    """activation(gate) · up."""
    active = activate(rows, part.activation, gate, f"activated gate of expert {number}")
    gated = rows(tape.multiply(active, up, f"gated rows of expert {number}"))
    rows.drop(*(() if active is gate else (active,)))
    return gated


def _bounded(rows: Rows, fused: Tensor, *halves: Tensor) -> tuple[Tensor, ...]:
    """Every other number of a layer's output, bounded: the gate from above, up on both sides."""
    found: list[Tensor] = []
    for n_bounds, half in enumerate(halves, start=1):
        view = rows(tape.cut(fused, half.label, *half.dims))
        found.append(rows(tape.clamp(view, f"bounded {half.label}", n_bounds)))
        rows.drop(view)
    rows.drop(fused)
    return tuple(found)


def _swiglu(rows: Rows, gate: Tensor, up: Tensor, number: int) -> Tensor:
    """(up + 1) · gate · sigmoid(α · gate)."""
    steep = rows(tape.scale(gate, f"scaled {gate.label}"))
    share = rows(tape.activation("sigmoid", steep, f"share of {gate.label}"))
    rows.drop(steep)
    active = rows(tape.multiply(gate, share, f"activated gate of expert {number}"))
    rows.drop(share)
    shifted = rows(tape.shift(up, f"{up.label}, plus one"))
    gated = rows(tape.multiply(shifted, active, f"gated rows of expert {number}"))
    rows.drop(shifted, active)
    return gated


def _stacked(part: "MixtureMLP", rows: Rows, number: int, n_rows: Product, x: Tensor, *weights: Tensor) -> Tensor:
    """activation(gate) · up, then down, over the rows of one expert: (rows, D) to the same."""
    gate_weight, up_weight, down_weight = weights
    inner, width = down_weight.dims

    def named(label: str, dim: Dim) -> Tensor:
        return tape.made(x, f"{label} of expert {number}", *n_rows, dim)

    gate = rows(tape.linear(x, gate_weight, None, named("gate", inner)))
    active = activate(rows, part.activation, gate, f"activated gate of expert {number}")
    rows.drop(*(() if active is gate else (gate,)))
    up = rows(tape.linear(x, up_weight, None, named("up", inner)))
    gated = rows(tape.multiply(active, up, f"gated rows of expert {number}"))
    rows.drop(active, up)
    out = rows(tape.linear(gated, down_weight, None, named("output", width), transposed=True))
    rows.drop(gated)
    return out
