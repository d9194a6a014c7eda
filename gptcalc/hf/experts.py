"""A mixture as transformers runs it by default: `grouped_mm_experts_forward` [integrations/moe.py], Mixtral's router.

Every expert's rows go through one grouped product, so that no size hangs on the routing. What CUDA's grouped product
takes for itself is not known, nor what it runs of fp32 weights, which autocast leaves as they are.
"""

from gptcalc import tape
from gptcalc.errors import InvalidValueError
from gptcalc.formula import Dim
from gptcalc.parts.activation import activate
from gptcalc.parts.mlp import MixtureMLP
from gptcalc.tape import Rows, Setting, Tensor

#: Rows of a grouped product's factors are multiples of 16 bytes.
ROW_ALIGNMENT = 8


def mixture(rows: Rows, at: Setting, part: MixtureMLP, x: Tensor) -> Tensor:
    """`MixtralSparseMoeBlock`: (B, T, D) to the same; the router's scores live until it returns.

    Raises an `InvalidValueError` for what torch's grouped product does not take, or of which its steps are not known.
    """
    if at.dtype != "bf16":
        read = f"autocast-{at.autocast}" if at.autocast else at.dtype
        raise InvalidValueError(
            f"precision: read {read!r} with transformers' experts, whose grouped product is known in bf16 alone;"
            " allowed: bf16"
        )
    for name, size in (("d_model", x.dims[-1].size), ("d_ff", part.d_ff)):
        if size % ROW_ALIGNMENT:
            raise InvalidValueError(
                f"{name}: read {size}, which torch's grouped product does not take; allowed: multiples of"
                f" {ROW_ALIGNMENT}"
            )
    inside = at.within(part.name)
    own = Rows(inside)
    flat = own(tape.view(x, "rows of x", at.rows, x.dims[-1]))
    scores, shares, chosen = _route(own, inside, part, flat)
    out = _compute(own, inside.within(part.experts_name), part, flat, shares, chosen)
    seen = own(tape.view(out, "MLP output", *x.dims))
    own.drop(out, flat, scores, shares, chosen)
    rows += own
    return seen


def _route(rows: Rows, at: Setting, part: MixtureMLP, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`MixtralTopKRouter`: scores (M, E), the shares of the chosen (M, k) in fp32, and which they are.

    The largest are divided in place, for which autograd keeps a copy of them.
    """
    experts = Dim("E", part.n_experts)
    weight = at.within(part.router_name).weight("router weight", "weight", experts, x.dims[-1])
    scores = rows(tape.linear(x, weight, None, tape.made(x, "router scores", at.rows, experts)))
    wide = scores if scores.dtype == "fp32" else rows(tape.cast(scores, "fp32", "router scores in fp32"))
    every = rows(tape.softmax(wide, "router probabilities"))
    rows.drop(*(() if wide is scores else (wide,)))
    largest = rows(tape.topk(every, Dim("k", part.n_active), "largest probabilities", "chosen experts"))
    (chosen,) = rows[-1].handed
    total = rows(tape.total(largest, "sum of the largest probabilities"))
    before = rows(tape.clone(largest, "largest probabilities before they are divided", *largest.dims))
    shares = Tensor("shares of the chosen experts", largest.dims, largest.dtype, base=largest)
    rows(tape.whole("aten::div_", (before, total), shares)._replace(saves=(total, before)))
    rows.drop(largest, total, before, every)
    return scores, shares, chosen


def _compute(rows: Rows, at: Setting, part: MixtureMLP, x: Tensor, shares: Tensor, chosen: Tensor) -> Tensor:  # noqa: PLR0913, PLR0917  what experts read
    """Rows by expert, gate and up, down, each row by its share, back in the order of the tokens, and summed: (M, D)."""
    width, inner, experts = x.dims[-1], Dim("Fe", part.d_ff), Dim("E", part.n_experts)
    count = Dim("M·k", at.rows.size * part.n_active)
    own = Rows(at)
    weights = own(tape.view(shares, "shares in a row", count))
    order = Tensor("order of the rows by expert", (count,), "int64")
    ids = own(
        tape.whole("aten::sort", (chosen,), tape.made(order, "experts in order"), order)._replace(handed=(order,))
    )
    tokens = own(tape.whole("aten::floor_divide", (order,), tape.made(order, "tokens of the rows")))
    taken = own(tape.gather(x, tokens, tape.made(x, "rows by expert", count, width)))
    own.drop(tokens)
    sorted_shares = own(tape.gather(weights, order, tape.made(weights, "shares by expert", count, Dim("1", 1))))
    numbers = own(tape.cast(ids, "int32", "experts in order, in 32 bits"))
    load = own(tape.whole("aten::histc", (numbers,), tape.made(numbers, "rows of each expert", experts)))
    ends = own(tape.whole("aten::cumsum", (load,), tape.made(load, "where each expert's rows end")))
    gate_up = at.weight("gate and up of all experts", part.expert_names[0], experts, Dim("2Fe", 2 * part.d_ff), width)
    both = own(tape.grouped(taken, gate_up, ends, tape.made(x, "gate and up", count, Dim("2Fe", 2 * part.d_ff))))
    cut = tape.split(both, *(tape.made(both, label, count, inner) for label in ("gate", "up-projection")))
    own(cut)
    gate, up = (access.tensor for access in cut.writes)
    active = activate(own, part.activation, gate, "activated gate")
    gated = own(tape.multiply(active, up, "gated"))
    own.drop(both, gate, up, *(() if active is gate else (active,)))
    down = at.weight("down of all experts", part.expert_names[-1], experts, width, inner)
    computed = own(tape.grouped(gated, down, ends, tape.made(x, "rows of all experts", count, width)))
    own.drop(gated)
    weighted = own(tape.multiply(computed, sorted_shares, "weighted rows"))
    back = own(tape.whole("aten::empty_like", (order,), tape.made(order, "places of the rows")))
    own.drop(own(tape.whole("aten::arange", (), tape.made(order, "rows"))))
    said = own(tape.gather(weighted, back, tape.made(weighted, "weighted rows by token")))
    own.drop(weighted)
    spread = (at.rows, Dim("k", part.n_active), width)
    # The gradient of a sum is spread over its terms: seen as rows, it is copied, but for a single token.
    view = tape.view(said, "what each token's experts say", *spread)
    seen = own(view._replace(name="aten::transpose") if min(part.n_active, at.rows.size) > 1 else view)
    total = own(tape.whole("aten::sum", (seen,), tape.made(weighted, "sum of what they say", at.rows, width)))
    out = total if total.dtype == x.dtype else own(tape.cast(total, x.dtype, "rounded sum of what they say"))
    own.drop(ids, order, taken, sorted_shares, numbers, load, ends, computed, back, said, seen, weights)
    own.drop(*(() if out is total else (total,)))
    rows += own
    return out
