"""What a mixture runs, dropless and grouped: a router's choice, then each expert over the rows that are routed to it.

Every token has `k` rows, one for each expert that it uses; sorted by expert, the rows of one expert lie together.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from gptcalc import tape
from gptcalc.formula import Dim, Product, product_size
from gptcalc.parts.activation import activate
from gptcalc.tape import Op, Rows, Setting, Tensor

if TYPE_CHECKING:
    from gptcalc.parts.mlp import MixtureMLP


class Routed(NamedTuple):
    """The router's scores (…, E); the experts of each token and their shares (…, k), which sum to one in fp32."""

    scores: Tensor
    chosen: Tensor
    shares: Tensor


def mixture(part: "MixtureMLP", setting: Setting, x: Tensor) -> tuple[Op, ...]:
    """(…, D) to the same: the shares' sum of what each token's experts compute."""
    rows = Rows(setting)
    flat = rows(tape.view(x, "rows of x"))
    routed = _route(part, setting, rows, flat)
    rows += _compute(part, setting.within(part.experts_name), flat, routed)
    out = rows[-1].output
    if setting.training and part.dropout:
        rows(tape.dropout(out, "dropped MLP output"))
        rows.drop(out)
    rows.drop(flat, *routed)
    return tuple(rows)


def load(setting: Setting, n_experts: int, n_active: int) -> Iterator[Product]:
    """How many rows each expert gets: as even as can be; with the worst routing the first `n_active` get every token.

    That is the worst for what is alive at once: an expert's own values are largest, and as gradients are computed from
    the last expert to the first, the weights' gradients of all idle experts are there before anything kept is let go.
    """
    if setting.worst_routing:
        yield from [setting.tokens] * n_active
        yield from [(Dim("0", 0),)] * (n_experts - n_active)
        return
    least, rest = divmod(product_size(setting.tokens) * n_active, n_experts)
    share = "·".join([*(dim.letter for dim in setting.tokens if dim.letter != "1"), "k/E"])
    left, right = "⌊⌋" if rest else "()"
    yield from [(Dim(f"⌈{share}⌉", least + 1),)] * rest
    yield from [(Dim(f"{left}{share}{right}", least),)] * (n_experts - rest)


def _route(part: "MixtureMLP", setting: Setting, rows: Rows, x: Tensor) -> Routed:
    """Softmax over all experts, the largest `k`, scaled to sum to one."""
    out = tape.made(x, "router scores", *setting.tokens, Dim("E", part.n_experts))
    scores = wide = tape.project(setting, rows, part.router_name, x, out, bias=False)
    if scores.dtype != "fp32":
        wide = rows(tape.cast(scores, "fp32", "router scores in fp32"))
    all_shares = rows(tape.softmax(wide, "router probabilities"))
    if wide is not scores:
        rows.drop(wide)
    largest = rows(tape.topk(all_shares, Dim("k", part.n_active), "largest probabilities", "chosen experts"))
    (chosen,) = rows[-1].handed
    rows.drop(all_shares)
    total = rows(tape.total(largest, "sum of the largest probabilities"))
    shares = rows(tape.divide(largest, total, "shares of the chosen experts"))
    rows.drop(total, largest)
    return Routed(scores, chosen, shares)


def _compute(part: "MixtureMLP", setting: Setting, x: Tensor, routed: Routed) -> Rows:
    """The experts' module: rows sorted by expert, each expert's network, and what a token's experts say, summed."""
    rows = Rows(setting)
    order = rows(tape.argsort(routed.chosen, "order of the rows by expert"))
    tokens = rows(tape.whole("aten::floor_divide", (order,), tape.made(order, "tokens of the rows")))
    wide = (*order.dims, setting.width)
    taken = rows(tape.gather(x, tokens, tape.made(x, "rows by expert", *wide)))
    computed = _experts(part, setting, rows, taken)
    shares = rows(tape.gather(routed.shares, order, tape.made(routed.shares, "shares by expert")))
    weighted = narrow = rows(tape.multiply(computed, shares, "weighted outputs"))
    rows.drop(shares)
    zeros = rows(tape.whole("aten::zeros_like", (), tape.made(x, "zeros")))
    if weighted.dtype != x.dtype:
        narrow = rows(tape.cast(weighted, x.dtype, f"weighted outputs in {x.dtype}"))
    rows(tape.scatter_add(zeros, tokens, narrow, "MLP output"))
    if narrow is not weighted:
        rows.drop(narrow)
    rows.drop(zeros, order, tokens, taken, computed, weighted)
    return rows


def _experts(part: "MixtureMLP", setting: Setting, rows: Rows, x: Tensor) -> Tensor:
    """Each expert over its rows of x, (rows of all experts, D) to the same; it runs even without rows."""
    loads = list(load(setting, part.n_experts, part.n_active))
    experts, inner, width = Dim("E", part.n_experts), Dim("Fe", part.d_ff), setting.width
    both = Dim("(2×F)", 2 * inner.size)
    gate_up = setting.weight("gate and up weights", "gate_up_proj", experts, both, width)
    down = setting.weight("down weights", "down_proj", experts, width, inner)
    numbers = range(part.n_experts)
    cuts = (
        tape.split(x, *(tape.made(x, f"rows of expert {n}", *loads[n], width) for n in numbers)),
        tape.unbind(gate_up, *(tape.made(x, f"gate and up weight of expert {n}", both, width) for n in numbers)),
        tape.unbind(down, *(tape.made(x, f"down weight of expert {n}", width, inner) for n in numbers)),
    )
    rows += cuts
    views = [[access.tensor for access in cut.writes] for cut in cuts]
    outs = [_expert(part, rows, n, loads[n], *own) for n, own in enumerate(zip(*views, strict=True))]
    out = rows(tape.join(outs, tape.made(x, "outputs by expert")))
    rows.drop(*outs, *(view for of_all in views for view in of_all))
    return out


def _expert(  # noqa: PLR0913, PLR0917  what one expert has
    part: "MixtureMLP", rows: Rows, number: int, n_rows: Product, x: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """activation(gate) · up, then down, over the rows of one expert: (rows, D) to the same."""

    def named(label: str, *dims: Dim) -> Tensor:
        return tape.made(x, f"{label} of expert {number}", *n_rows, *dims)

    inner = down.dims[-1]
    fused = rows(tape.linear(x, gate_up, None, named("gate and up", gate_up.dims[0])))
    cut = tape.split(fused, named("gate", inner), named("up", inner))
    rows(cut)
    gate, up = (access.tensor for access in cut.writes)
    active = activate(rows, part.activation, gate, f"activated gate of expert {number}")
    gated = rows(tape.multiply(active, up, f"gated rows of expert {number}"))
    rows.drop(*(() if active is gate else (active,)))
    out = rows(tape.linear(gated, down, None, named("output", x.dims[-1])))
    rows.drop(gated, up, gate, fused)
    return out
