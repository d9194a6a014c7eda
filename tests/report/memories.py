"""Ledgers of memory made up for tests: GPT-2's kinds of tensors in their usual sizes, without an allocator behind them.

What is alive at the peak is counted tensor by tensor from the dims; the other figures follow from it by rules of thumb.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gptcalc.allocator import Figures
from gptcalc.formula import Dim, Formula
from gptcalc.ledger.alive import BY_OP, Held
from gptcalc.ledger.memory import Memory, Mode, Phase, Point
from gptcalc.ledger.parameters import parameters
from gptcalc.units import ceil_div

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from gptcalc.formula import Product
    from gptcalc.ledger.alive import Kind
    from gptcalc.ledger.memory import ModeName
    from gptcalc.plan import Plan
    from gptcalc.spec import Spec

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2, "int64": 8}
WORKSPACE = 32 << 20
MIB, GIB = 1 << 20, 1 << 30

#: Saved by each layer: label, component, op, elements as letters after B and T, dtype (None is the plan's), count.
SAVED = (
    ("input of the norm", "norm_weight", "aten::native_layer_norm", "D", None),
    ("mean and rstd", "norm_weight", "aten::native_layer_norm", "", "fp32"),
    ("input of the query, key and value projection", "attn_q", "aten::addmm", "D", None),
    ("query, key and value", "attention", "aten::_scaled_dot_product_flash_attention", "3D", None),
    ("logsumexp", "attention", "aten::_scaled_dot_product_flash_attention", "N", "fp32"),
    ("attention output", "attn_o", "aten::_scaled_dot_product_flash_attention", "D", None),
    ("input of the up-projection", "mlp_up", "aten::native_layer_norm", "D", None),
    ("input of GELU", "mlp", "aten::gelu", "F", None),
    ("input of the down-projection", "mlp_down", "aten::gelu", "F", None),
)


def of(factor: int, *dims: Dim) -> Formula:
    """`factor` times the product of dims."""
    return Formula(((factor, dims),))


def held(  # noqa: PLR0913  a tensor has as many properties
    kind: Kind, key: str, label: str, component: str, formula: Formula, *, op: str, dtype: str, count: int = 1
) -> Held:
    """A tensor with made-up words."""
    why = f"{label} is there until something has used it"
    return Held(f"{kind}.{key}", label, kind, component, op, dtype, formula, count, why, "torch 2.13, derivatives.yaml")


class Made:
    """The tensors of one model under one plan."""

    def __init__(self, spec: Spec, plan: Plan) -> None:
        self.spec, self.plan = spec, plan
        self.counted = parameters(spec)
        sizes = {dim.letter: dim for dim in self.counted.dims}
        sizes.setdefault("F", sizes.get("Fe", sizes["D"]))
        self.batch, self.seq, self.layers = Dim("B", plan.batch), Dim("T", plan.seq), sizes["L"]
        self.sizes = sizes
        self.width = BYTES[plan.precision]

    def per_parameter(self, kind: Kind, copies: int, op: str) -> list[Held]:
        """Tensors as large as the weights, one row a component."""
        found = []
        for line in self.counted.lines:
            if not line.tied:
                terms = tuple((count * copies * self.width, dims) for count, dims in line.formula.terms)
                n_layers = self.spec.n_layers if any(d.letter == "L" for dims in line.products for d in dims) else 1
                row = held(kind, line.key, line.label, line.key, Formula(terms), op=op, dtype=self.plan.precision)
                found.append(row._replace(tensors=copies * n_layers))
        return found

    def inputs(self) -> list[Held]:
        """Token IDs."""
        return [held("inputs", "ids", "token IDs", "input", of(8, self.batch, self.seq), op="input", dtype="int64")]

    def saved(self) -> list[Held]:
        """What each layer keeps for backward."""
        found = []
        for label, component, op, letters, dtype in SAVED:
            factor = BYTES[dtype or self.plan.precision] * (3 if letters.startswith("3") else 1)
            dims: Product = (self.layers, self.batch, self.seq)
            dims += (self.sizes[letters[-1]],) if letters else ()
            key = f"layers.{component}.{label.replace(' ', '_')}"
            row = held("activations", key, label, component, of(factor, *dims), op=op, dtype=dtype or "bf16")
            found.append(row._replace(tensors=self.spec.n_layers))
        return found

    def logits(self) -> list[Held]:
        """The loss head at the start of backward: three tensors in fp32."""
        dims = (self.batch, self.seq, self.sizes["V"])
        names = ("log-probabilities", "gradient of the log-probabilities", "gradient of the logits")
        ops = ("aten::_log_softmax", "aten::nll_loss_backward", "aten::_log_softmax_backward_data")
        return [
            held("logits", name.replace(" ", "_"), name, "loss", of(4, *dims), op=op, dtype="fp32")
            for name, op in zip(names, ops, strict=True)
        ]

    def workspaces(self, count: int) -> list[Held]:
        """What cuBLAS keeps, a piece for each thread."""
        size = of(WORKSPACE)
        return [
            held(
                "workspace", f"cublas.{thread}", f"cuBLAS, {thread}", "cublas", size, op="cublasSetWorkspace", dtype=""
            )
            for thread in ("forward", "backward")[:count]
        ]

    def cache(self) -> list[Held]:
        """Keys and values of every token."""
        dims = (self.layers, self.batch, self.seq, self.sizes["K"], self.sizes["H"])
        size = of(2 * BYTES[self.plan.kv_dtype], *dims)
        row = held("kv_cache", "kv", "keys and values", "attention", size, op="cache", dtype=self.plan.kv_dtype)
        return [row._replace(tensors=2 * self.spec.n_layers)]


def lines_of(rows: Iterable[Held]) -> tuple[Held, ...]:
    """The rows by kind and component, and some by op."""
    groups: dict[tuple[Kind, str, str], list[Held]] = {}
    for row in rows:
        groups.setdefault((row.kind, row.component, row.op if row.kind in BY_OP else ""), []).append(row)
    return tuple(
        Held(
            key=".".join(filter(None, (kind, component, op))),
            label=group[0].label if len(group) == 1 else component,
            kind=kind,
            component=component,
            op=op,
            dtype="",
            formula=Formula.sum(row.formula for row in group),
            tensors=sum(row.tensors for row in group),
            why=group[0].why,
            source=group[0].source,
        )
        for (kind, component, op), group in groups.items()
    )


def figures(requested: int) -> Figures:
    """The four figures for so many bytes asked for."""
    rounded = ceil_div(requested, 512) * 512
    allocated = ceil_div(rounded, MIB) * MIB
    return Figures(requested, rounded, allocated, ceil_div(allocated, 20 * MIB) * 20 * MIB)


def total(rows: Iterable[Held]) -> int:
    """Bytes of the rows."""
    return sum(row.amount for row in rows)


def by_kind(rows: Iterable[Held]) -> dict[Kind, int]:
    """Bytes of the rows by kind."""
    found: dict[Kind, int] = {}
    for row in rows:
        found[row.kind] = found.get(row.kind, 0) + row.amount
    return found


def timeline(made: Made, always: dict[Kind, int], saved: int, logits: int) -> tuple[Point, ...]:
    """Saved activations grow layer by layer and go again, while gradients come."""
    n_layers, weights = made.spec.n_layers, always["weights"]
    points = [Point("forward", "embedding", dict(always))]
    points += [
        Point("forward", f"layer {n}", {**always, "activations": saved * (n + 1) // n_layers}) for n in range(n_layers)
    ]
    points.append(Point("forward", "loss", {**always, "activations": saved, "logits": 2 * logits}))
    points.append(Point("backward", "loss", {**always, "activations": saved, "logits": 3 * logits}))
    points += [
        Point(
            "backward",
            f"layer {n}",
            {**always, "activations": saved * (n + 1) // n_layers, "gradients": weights * (n_layers - n) // n_layers},
        )
        for n in reversed(range(n_layers))
    ]
    return (*points, Point("optimizer", "step", {**always, "gradients": weights, "temporary": weights}))


def training(spec: Spec, plan: Plan) -> Mode:
    """A step that is highest where backward begins, and whose segments are most in the optimizer."""
    made = Made(spec, plan)
    always = [*made.per_parameter("weights", 1, "module"), *made.per_parameter("optimizer", 2, "aten::_foreach_lerp_")]
    always += [*made.inputs(), *made.workspaces(2)]
    rows = [*always, *made.saved(), *made.logits()]
    peak, weights = total(rows), by_kind(always)["weights"]
    logits = made.logits()[0].amount
    phases = (
        Phase("forward", figures(peak - logits), "loss: _log_softmax"),
        Phase("backward", figures(peak), "loss: _log_softmax_backward_data"),
        Phase("optimizer", figures(total(always) + 2 * weights)._replace(reserved=peak + GIB), "step: _foreach_sqrt"),
    )
    return Mode(
        name="training",
        totals=figures(peak)._replace(reserved=peak + GIB),
        phase="backward",
        moment="loss: _log_softmax_backward_data",
        phases=phases,
        persistent=figures(total(always)),
        lines=lines_of(rows),
        held=tuple(rows),
        timeline=timeline(made, by_kind(always), total(made.saved()), logits),
        tokens=plan.batch * plan.seq,
        device=(peak + GIB + 460 * MIB, peak + GIB + 620 * MIB),
        attention=("flash", f"{plan.precision} and a head size of 64, which flash takes"),
        notes=("mixture: sized for balanced routing.",) if "E" in made.sizes else (),
    )


def inference(spec: Spec, plan: Plan) -> Mode:
    """Weights and cache, highest where the last row of logits is there."""
    made = Made(spec, plan)
    always = [*made.per_parameter("weights", 1, "module"), *made.cache(), *made.inputs(), *made.workspaces(1)]
    dims = [made.batch, made.sizes["V"]] + ([made.seq] if plan.logits == "all" else [])
    logits = held("logits", "last", "scores", "unembedding", of(made.width, *dims), op="aten::mm", dtype="bf16")
    rows = [*always, logits]
    peak = total(rows)
    return Mode(
        name="inference",
        totals=figures(peak),
        phase="prefill",
        moment="unembedding: mm",
        phases=(
            Phase("prefill", figures(peak), "unembedding: mm"),
            Phase("decode", figures(total(always)), "layer 0: mm"),
        ),
        persistent=figures(total(always)),
        lines=lines_of(rows),
        held=tuple(rows),
        timeline=(
            Point("prefill", "layer 0", by_kind(always)),
            Point("prefill", "unembedding", by_kind(rows)),
            Point("decode", "layer 0", by_kind(always)),
        ),
        tokens=plan.batch * plan.seq,
        device=(peak + 460 * MIB, peak + 620 * MIB),
        attention=("flash", f"{plan.precision} and a head size of 64, which flash takes"),
        notes=(),
    )


MADE = {"training": training, "inference": inference}


def engine(spec: Spec, plan: Plan, modes: Sequence[ModeName], **_: object) -> Memory:
    """In place of the real one."""
    return Memory(spec, plan, tuple(MADE[mode](spec, plan) for mode in modes))
