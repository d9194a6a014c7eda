"""What each token computes on its own: a dense, a gated, or a mixture of gated networks."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from gptcalc.formula import Dim, Product
from gptcalc.inventory import Slice, Weight, Weighted, linear, part_weights
from gptcalc.parts.norm import inside
from gptcalc.spec import Activation, AnyPart, Probability, Size, Spec

if TYPE_CHECKING:
    from gptcalc.tape import Op, Rows, Setting, Tensor


class DenseMLP(Weighted):
    """D up to F, an activation, F down to D (Vaswani et al. 2017, §3.3)."""

    kind: Literal["dense"] = "dense"
    d_ff: Size
    activation: Activation
    bias: bool
    up_name: str = "up_proj"
    down_name: str = "down_proj"
    transposed: bool = False
    dropout: Probability = 0.0

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """Up (F, D) and down (D, F), and their biases."""
        width, inner = (Dim("D", spec.d_model),), (Dim("F", self.d_ff),)
        yield from linear(self.up_name, [("mlp_up", inner)], width, bias=self.bias, transposed=self.transposed)
        yield from linear(self.down_name, [("mlp_down", width)], inner, bias=self.bias, transposed=self.transposed)

    def ops(self, setting: "Setting", x: "Tensor") -> "tuple[Op, ...]":
        """(…, D) to the same."""
        from gptcalc import tape
        from gptcalc.parts.activation import activate

        rows, inner = tape.Rows(setting), Dim("F", self.d_ff)

        def project(name: str, x: tape.Tensor, out: tape.Tensor) -> tape.Tensor:
            return tape.project(setting, rows, name, x, out, bias=self.bias, transposed=self.transposed)

        up = project(self.up_name, x, tape.made(x, "up-projection", *setting.tokens, inner))
        active = activate(rows, self.activation, up, "activation")
        rows.drop(*(() if active is up else (up,)))
        out = project(self.down_name, active, tape.made(x, "MLP output"))
        rows.drop(active)
        if setting.training and self.dropout:
            rows(tape.dropout(out, "dropped MLP output"))
            rows.drop(out)
        return tuple(rows)


class GatedMLP(Weighted):
    """activation(gate) · up, then down (Shazeer 2020).

    With a `fused_name` gate and up are one layer of that name, the gate's rows first. What goes down may be normalised
    (`inner_norm`). `role` is the component that its weights count for: a model's MLP, or the experts that every token
    uses (Dai et al. 2024, §3.2).
    """

    without_ops = ("inner_norm",)
    kind: Literal["gated"] = "gated"
    d_ff: Size
    activation: Activation
    bias: bool
    gate_name: str = "gate_proj"
    up_name: str = "up_proj"
    down_name: str = "down_proj"
    fused_name: str = ""
    role: Literal["mlp", "shared_experts"] = "mlp"
    inner_norm: AnyPart | None = None
    dropout: Probability = 0.0

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """Gate and up (F, D), down (D, F), and their biases."""
        letter = {"mlp": "F", "shared_experts": "Fs"}[self.role]
        width, inner = (Dim("D", spec.d_model),), (Dim(letter, self.d_ff),)
        gate, up = (f"{self.role}_gate", inner), (f"{self.role}_up", inner)
        layers = {self.fused_name: [gate, up]} if self.fused_name else {self.gate_name: [gate], self.up_name: [up]}
        for name, outputs in layers.items():
            yield from linear(name, outputs, width, bias=self.bias)
        yield from inside(self.inner_norm, inner)
        yield from linear(self.down_name, [(f"{self.role}_down", width)], inner, bias=self.bias)

    def ops(self, setting: "Setting", x: "Tensor") -> "tuple[Op, ...]":
        """(…, D) to the same."""
        from gptcalc import tape

        rows = tape.Rows(setting)
        inner = self._inner(setting, rows, x)
        out = self._project(setting, rows, self.down_name, inner, tape.made(x, "MLP output"))
        if setting.training and self.dropout:
            rows(tape.dropout(out, "dropped MLP output"))
            rows.drop(out)
        rows.drop(inner)
        return tuple(rows)

    def _project(self, setting: "Setting", rows: "Rows", name: str, x: "Tensor", out: "Tensor") -> "Tensor":
        from gptcalc import tape

        return tape.project(setting, rows, name, x, out, bias=self.bias)

    def _inner(self, setting: "Setting", rows: "Rows", x: "Tensor") -> "Tensor":
        """(…, D) to (…, F)."""
        from gptcalc import tape
        from gptcalc.parts.activation import activate

        size = Dim({"mlp": "F", "shared_experts": "Fs"}[self.role], self.d_ff)
        gate, up = (tape.made(x, label, *setting.tokens, size) for label in ("gate", "up-projection"))
        if self.fused_name:
            both = tape.made(x, "gate and up", *setting.tokens, Dim(f"(2×{size.letter})", 2 * size.size))
            fused = self._project(setting, rows, self.fused_name, x, both)
            cut = tape.split(fused, gate, up)
            rows(cut)
            rows.drop(fused)
            gate, up = (access.tensor for access in cut.writes)
            active = activate(rows, self.activation, gate, "activated gate")
        else:
            self._project(setting, rows, self.gate_name, x, gate)
            active = activate(rows, self.activation, gate, "activated gate")
            rows.drop(*(() if active is gate else (gate,)))
            self._project(setting, rows, self.up_name, x, up)
        inner = rows(tape.multiply(active, up, "gated"))
        ended = [active, up]
        if self.fused_name and active is not gate:
            ended.append(gate)
        rows.drop(*ended)
        return inner


class MixtureMLP(Weighted):
    """E gated experts of which a router picks `n_active` for each token (Jiang et al. 2024, §2.1).

    Scores are a `softmax` over all experts, or a `sigmoid` of each; those of the chosen are scaled to sum to one where
    they are `normalised`, and multiplied by `scale`. `softmax_after` chooses first, and takes the softmax over the
    chosen alone. With more groups than active ones, only experts of the best groups are chosen; a group is as good as
    its `group_top` best scores together. A `correction` of that name, E numbers or a row of them (`correction_row`), is
    added to scores for the choice alone. `order` is how the experts' weights lie: rows of outputs ("out_in", one tensor
    for gate and up), rows of inputs ("in_out"), or three matrices of all experts side by side ("stacked");
    `expert_names` are the tensors' names: gate and up, down; or gate, up, down. Experts that every token uses are
    `shared`, and with a `shared_gate_name` weighted by a sigmoid of their own; they are added to the others, or
    `averaged` with them. `clamped` is gpt-oss's SwiGLU: gate and up are bounded, interleaved, and up is shifted by one.
    A `weighted_input` is weighted before the experts, not after.
    """

    kind: Literal["mixture"] = "mixture"
    d_ff: Size
    activation: Activation
    n_experts: Size
    n_active: Size
    router_name: str = "gate"
    router_bias: bool = False
    experts_name: str = "experts"
    expert_names: tuple[str, str] | tuple[str, str, str] = ("gate_up_proj", "down_proj")
    experts_bias: bool = False
    order: Literal["out_in", "in_out", "stacked"] = "out_in"
    scores: Literal["softmax", "softmax_after", "sigmoid", "sigmoid_after", "sparsemixer"] = "softmax"
    normalised: bool = True
    scale: float = 1.0
    n_groups: Size | None = None
    n_active_groups: Size | None = None
    group_top: Size = 2
    clamped: float | None = None
    weighted_input: bool = False
    shared: AnyPart | None = None
    shared_gate_name: str = ""
    averaged: bool = False
    correction: str = ""
    correction_row: bool = False
    dropout: Probability = 0.0

    @property
    def chooses_groups(self) -> bool:
        """Whether experts are chosen from the best groups alone."""
        return None not in (self.n_groups, self.n_active_groups) and self.n_active_groups != self.n_groups

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """Router (E, D), fused gate and up (E, 2·F, D), down (E, D, F), their biases; the shared experts."""
        width, experts = (Dim("D", spec.d_model),), (Dim("E", self.n_experts),)
        yield from linear(self.router_name, [("router", experts)], width, bias=self.router_bias)
        if self.correction:
            axes: tuple[Product, ...] = ((), experts) if self.correction_row else (experts,)
            yield Weight(self.correction, "bias", (Slice("router_bias", axes),))
        active = (self.n_active, self.n_experts)
        for row in self._experts(width, (Dim("Fe", self.d_ff),), experts):
            yield row._replace(name=f"{self.experts_name}.{row.name}", active=active)
        yield from part_weights(self.shared, spec)
        if self.shared_gate_name:
            yield from linear(self.shared_gate_name, [("shared_expert_gate", ())], width, bias=False)

    def _experts(self, width: Product, inner: Product, experts: Product) -> Iterator[Weight]:
        if self.order == "stacked":
            keys, rows = ("experts_gate", "experts_up", "experts_down"), (*experts, *inner)
            for name, key in zip(self.expert_names, keys, strict=True):
                yield Weight(name, "matmul", (Slice(key, (rows, width)),))
            return
        swapped = self.order == "in_out"
        gate_up, down = self.expert_names[0], self.expert_names[-1]
        axes = (experts, width, inner) if swapped else (experts, inner, width)
        both = tuple(Slice(key, axes) for key in ("experts_gate", "experts_up"))
        yield Weight(gate_up, "matmul", both, axis=2 if swapped else 1)
        if self.experts_bias:
            halves = (Slice("experts_bias", (experts, inner)), Slice("experts_bias", (experts, inner)))
            yield Weight(f"{gate_up}_bias", "bias", halves, axis=1)
        yield Weight(down, "matmul", (Slice("experts_down", (axes[0], axes[2], axes[1])),))
        if self.experts_bias:
            yield Weight(f"{down}_bias", "bias", (Slice("experts_bias", (experts, width)),))

    def ops(self, setting: "Setting", x: "Tensor") -> "tuple[Op, ...]":
        """(…, D) to the same."""
        from gptcalc.parts import experts

        return experts.mixture(self, setting, x)
