"""What the kernels must compute, from the formulas, in float64, a chunk at a time.

Nothing here is shared with what is measured: no functional of torch's for the op itself, no module of ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import inf, sqrt
from typing import NamedTuple

import torch
from torch import Tensor

from gptcalc.errors import GptcalcError

#: Elements of a chunk: 8 MiB in float64, of which a reference holds up to a dozen at a time.
CHUNK = 1 << 20
#: Memory that a check takes at most beside the inputs and outputs that it compares: the chunks, and what is kept of
#: each row or column.
REFERENCE_BYTES = 128 << 20

#: ‖out − ref‖/‖ref‖ that rounding explains. A result rounded once to fp16 or bf16 is off by at most 2⁻¹¹ or 2⁻⁹ of
#: itself: these leave room for four and eight such steps, since some kernels round between steps. fp32 kernels round
#: to 2⁻²⁴ in each step, and sum a row in an order of their own. Kernels for all three compute in fp32.
TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


class WrongResultError(GptcalcError):
    """A kernel that computes something else than its formula: its time means nothing."""


class Finding(NamedTuple):
    """How far a result is from what it should be, and how far rounding may take it."""

    what: str
    found: float
    allowed: float

    @property
    def is_wrong(self) -> bool:
        """Whether it is too far; NaN always is."""
        return not self.found <= self.allowed


def wide(tensor: Tensor) -> Tensor:
    """In float64, on the CPU where the device has none."""
    return tensor.detach().to("cpu" if tensor.device.type == "mps" else tensor.device).double()


def chunks(n_rows: int, width: int) -> Iterator[slice]:
    """Slices of rows that hold at most `CHUNK` elements, or one row."""
    step = max(1, CHUNK // max(width, 1))
    return (slice(start, min(start + step, n_rows)) for start in range(0, n_rows, step))


def drift(adds_in: torch.dtype, n_terms: Tensor | int) -> Tensor:
    """What rounding adds to sums of `n_terms` that are added one by one in `adds_in`: each step by chance, so √n."""
    return torch.finfo(adds_in).eps * torch.as_tensor(n_terms, dtype=torch.float64).sqrt()


class Distance:
    """Errors row by row, each against the size of what the row is computed from, so that no row hides another."""

    def __init__(self) -> None:
        """Nothing was compared yet."""
        self.error, self.size = 0.0, 0.0
        self.worst, self.worst_allowed, self.allowed = 0.0, 1.0, 0.0

    def add(self, error: Tensor, size: Tensor, allowed: float, drifts: Tensor | float = 0.0) -> None:
        """Errors and sizes of rows (m), as norms; what is allowed of one result, and beyond it where sums drift."""
        relative = torch.where(error == 0, 0.0, error / size)
        limits = (allowed + torch.as_tensor(drifts, dtype=torch.float64, device=error.device)).expand_as(relative)
        row = int((relative / limits).argmax())
        found, limit = float(relative[row]), float(limits[row])
        if found / limit > self.worst / self.worst_allowed:
            self.worst, self.worst_allowed = found, limit
        # Of many sums few drift far: the whole may be off by a third of what the worst may.
        self.allowed = max(self.allowed, allowed + (float(limits.max()) - allowed) / 3)
        self.error += float(error.square().sum())
        self.size += float(size.square().sum())

    def findings(self, what: str) -> list[Finding]:
        """The error of the whole and of the worst row."""
        size = self.size if self.error else 1.0
        whole = sqrt(self.error / size) if size else inf
        return [
            Finding(f"{what}: relative error", whole, self.allowed),
            Finding("worst row", self.worst, self.worst_allowed),
        ]


# --- Tables ----------------------------------------------------------------------------------------------------------


def looked_up(out: Tensor, ids: Tensor, table: Tensor) -> list[Finding]:
    """`out` (M, D) must be the very rows of `table` (V, D) that `ids` (M) name, bit for bit."""
    wrong = 0
    for rows in chunks(len(ids), out.shape[1]):
        wrong += int((out[rows] != table[ids[rows]]).any(dim=1).sum())
    return [Finding("rows that differ", wrong, 0)]


def table_gradient(what: str, grad: Tensor, ids: Tensor, dy: Tensor) -> list[Finding]:
    """`grad` (V, D) must be the sum of the rows of `dy` (M, D) for each ID of `ids` (M), and zero for all others.

    Kernels may add in the dtype of the table. Columns are compared a chunk at a time.
    """
    here = wide(dy[:1]).device
    tokens, inverse, counts = torch.unique(ids.to(here), return_inverse=True, return_counts=True)
    error, size = torch.zeros(2, len(tokens), dtype=torch.float64, device=here)
    for columns in chunks(dy.shape[1], len(ids)):
        terms = wide(dy[:, columns])
        exact = torch.zeros(len(tokens), terms.shape[1], dtype=torch.float64, device=here).index_add_(0, inverse, terms)
        found = wide(grad[:, columns].index_select(0, tokens.to(grad.device)))
        error += (found - exact).square().sum(dim=1)
        size.index_add_(0, inverse, terms.square().sum(dim=1))
    distance = Distance()
    distance.add(error.sqrt(), size.sqrt(), TOLERANCE[grad.dtype], drift(grad.dtype, counts))
    return [*distance.findings(what), Finding("rows without ID that are not zero", _stray(grad, tokens), 0)]


def _stray(grad: Tensor, tokens: Tensor) -> int:
    """Rows of `grad` that are not zero, though none of `tokens` names them."""
    unnamed = torch.ones(len(grad), dtype=torch.bool, device=grad.device)
    unnamed[tokens.to(grad.device)] = False
    return sum(int(((grad[rows] != 0).any(dim=1) & unnamed[rows]).sum()) for rows in chunks(*grad.shape))


# --- Norms -----------------------------------------------------------------------------------------------------------


class Norm(NamedTuple):
    """A norm over the last axis: with a `bias` it is LayerNorm, which takes the mean away; without, RMSNorm."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    def row(self, x: Tensor) -> _Row:
        """Everything that the formulas need of rows of x, in float64."""
        mean = x.mean(dim=1, keepdim=True) if self.bias is not None else torch.zeros_like(x[:, :1])
        variance = (x - mean).square().mean(dim=1, keepdim=True)
        rstd = (variance + self.eps).rsqrt()
        # Kernels may subtract the squared mean from the mean square: roundings grow where these are nearly equal, as
        # in rows of two numbers that are close. In wide rows of random numbers this is 1.
        grown = (x.square().mean(dim=1, keepdim=True) * rstd.square()).clamp(min=1)
        return _Row((x - mean) * rstd, rstd, variance * rstd.square(), grown)


class _Row(NamedTuple):
    """Rows normalised (m, D); of each (m, 1): 1/√(σ² + ε), the variance after the norm, and the growth of errors."""

    normal: Tensor
    rstd: Tensor
    variance: Tensor
    grown: Tensor


def normalised(out: Tensor, x: Tensor, norm: Norm) -> list[Finding]:
    """`out` (M, D) must be the norm of `x`; before weight and bias, its mean is 0 and its variance σ²/(σ² + ε)."""
    weight = wide(norm.weight)
    bias = torch.zeros_like(weight) if norm.bias is None else wide(norm.bias)
    distance, mean, variance = Distance(), [0.0], [0.0]
    for rows in chunks(*x.shape):
        row, found = norm.row(wide(x[rows])), wide(out[rows])
        exact = row.normal * weight + bias
        size = exact.norm(dim=1) * row.grown[:, 0]
        distance.add((found - exact).norm(dim=1), size, TOLERANCE[out.dtype])
        plain = (found - bias) / weight
        centre = plain.mean(dim=1, keepdim=True) if norm.bias is not None else torch.zeros_like(row.rstd)
        mean.append(_largest(centre / row.grown))
        variance.append(_largest(((plain - centre).square().mean(dim=1, keepdim=True) - row.variance) / row.grown))
    allowed = TOLERANCE[out.dtype]
    what = "variance σ²" if norm.bias is not None else "mean square σ²"
    findings = [*distance.findings("output"), Finding(f"{what}/(σ²+ε) within", _most(variance), allowed)]
    return findings if norm.bias is None else [*findings, Finding("mean 0 within", _most(mean), allowed)]


def _largest(values: Tensor) -> float:
    return float(values.abs().max())


def _most(values: list[float]) -> float:
    """The largest; `max` alone would pass over NaN."""
    return max(values, key=lambda value: torch.inf if value != value else value)  # noqa: PLR0124  NaN


def norm_gradients(grads: tuple[Tensor, ...], x: Tensor, dy: Tensor, norm: Norm, adds_in: torch.dtype) -> list[Finding]:
    """`grads` of x (M, D), weight (D) and bias (D), by the closed form.

    dx = (g − mean(g) − x̂·mean(g·x̂))/√(σ² + ε) with g = dy·weight, without mean(g) for RMSNorm; dweight = Σ dy·x̂;
    dbias = Σ dy. The kernel sums over rows in `adds_in`.
    """
    weight, dx = wide(norm.weight), Distance()
    exact, size = torch.zeros(2, 2, x.shape[1], dtype=torch.float64, device=weight.device)
    for rows in chunks(*x.shape):
        row, rise = norm.row(wide(x[rows])), wide(dy[rows])
        g = rise * weight
        mean = g.mean(dim=1, keepdim=True) if norm.bias is not None else 0
        want = row.rstd * (g - mean - row.normal * (g * row.normal).mean(dim=1, keepdim=True))
        scale = (row.rstd * g).norm(dim=1) * row.grown[:, 0]
        dx.add((wide(grads[0][rows]) - want).norm(dim=1), scale, TOLERANCE[x.dtype])
        exact += torch.stack(((rise * row.normal).sum(dim=0), rise.sum(dim=0)))
        spread = rise.square()
        size += torch.stack(((spread * (row.normal.square() + row.grown.square())).sum(dim=0), spread.sum(dim=0)))
    findings = dx.findings("gradient of x")
    for what, grad, sums, squares in zip(("weight", "bias"), grads[1:], exact, size, strict=False):
        distance = Distance()
        distance.add((wide(grad) - sums).abs(), squares.sqrt(), TOLERANCE[x.dtype], drift(adds_in, len(x)))
        findings += distance.findings(f"gradient of {what}")
    return findings


# --- The input stage -------------------------------------------------------------------------------------------------


def stage(out: Tensor, ids: Tensor, tokens: Tensor, positions: Tensor) -> list[Finding]:
    """`out` (B, T, D) must be token row plus position row, of the tables (V, D) and (C, D), by `ids` (B, T)."""
    seq, width = out.shape[1:]
    flat, names = out.flatten(0, 1), ids.flatten()
    distance = Distance()
    for rows in chunks(len(names), width):
        places = torch.arange(rows.start, rows.stop, device=ids.device) % seq
        token, position = wide(tokens[names[rows]]), wide(positions[places])
        error = wide(flat[rows]) - (token + position)
        size = (token.square() + position.square()).sum(dim=1).sqrt()
        distance.add(error.norm(dim=1), size, TOLERANCE[out.dtype])
    return distance.findings("output")


def stage_gradients(grads: tuple[Tensor, ...], ids: Tensor, dy: Tensor) -> list[Finding]:
    """Gradients of the token table (V, D) and the position table (C, D) from `dy` (B, T, D)."""
    rise = dy.flatten(0, 1)
    places = torch.arange(ids.shape[1], device=ids.device).repeat(ids.shape[0])
    return [
        *table_gradient("token table", grads[0], ids.flatten(), rise),
        *table_gradient("position table", grads[1], places, rise),
    ]
