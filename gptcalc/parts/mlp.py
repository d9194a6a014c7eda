"""What each token computes on its own: a dense, a gated, or a mixture of gated networks."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from gptcalc.formula import Dim
from gptcalc.inventory import Slice, Weight, Weighted, linear
from gptcalc.spec import Activation, Probability, Size, Spec

if TYPE_CHECKING:
    from gptcalc.tape import Op, Setting, Tensor

#: The kernel of each activation: both forms of GELU are one fused kernel in the reference module.
KERNELS = {"gelu": "gelu", "gelu_new": "gelu", "gelu_pytorch_tanh": "gelu", "relu": "relu", "silu": "silu"}


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

        rows, inner = tape.Rows(setting), Dim("F", self.d_ff)

        def project(name: str, x: tape.Tensor, out: tape.Tensor) -> tape.Tensor:
            return tape.project(setting, rows, name, x, out, bias=self.bias, transposed=self.transposed)

        up = project(self.up_name, x, tape.made(x, "up-projection", *setting.tokens, inner))
        active = rows(tape.activation(KERNELS[self.activation], up, "activation"))
        rows.drop(up)
        out = project(self.down_name, active, tape.made(x, "MLP output"))
        rows.drop(active)
        if setting.training and self.dropout:
            rows(tape.dropout(out, "dropped MLP output"))
            rows.drop(out)
        return tuple(rows)


class GatedMLP(Weighted):
    """activation(gate) · up, then down (Shazeer 2020)."""

    kind: Literal["gated"] = "gated"
    d_ff: Size
    activation: Activation
    bias: bool
    gate_name: str = "gate_proj"
    up_name: str = "up_proj"
    down_name: str = "down_proj"
    dropout: Probability = 0.0

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """Gate and up (F, D), down (D, F), and their biases."""
        width, inner = (Dim("D", spec.d_model),), (Dim("F", self.d_ff),)
        yield from linear(self.gate_name, [("mlp_gate", inner)], width, bias=self.bias)
        yield from linear(self.up_name, [("mlp_up", inner)], width, bias=self.bias)
        yield from linear(self.down_name, [("mlp_down", width)], inner, bias=self.bias)

    def ops(self, setting: "Setting", x: "Tensor") -> "tuple[Op, ...]":
        """(…, D) to the same."""
        from gptcalc import tape

        rows, wide = tape.Rows(setting), (*setting.tokens, Dim("F", self.d_ff))

        def project(name: str, x: tape.Tensor, out: tape.Tensor) -> tape.Tensor:
            return tape.project(setting, rows, name, x, out, bias=self.bias)

        gate = project(self.gate_name, x, tape.made(x, "gate", *wide))
        active = rows(tape.activation(KERNELS[self.activation], gate, "activated gate"))
        rows.drop(gate)
        up = project(self.up_name, x, tape.made(x, "up-projection", *wide))
        inner = rows(tape.multiply(active, up, "gated"))
        rows.drop(active, up)
        out = project(self.down_name, inner, tape.made(x, "MLP output"))
        if setting.training and self.dropout:
            rows(tape.dropout(out, "dropped MLP output"))
            rows.drop(out)
        rows.drop(inner)
        return tuple(rows)


class MixtureMLP(Weighted):
    """E gated experts of which a router picks `n_active` for each token (Jiang et al. 2024, §2.1)."""

    kind: Literal["mixture"] = "mixture"
    d_ff: Size
    activation: Activation
    n_experts: Size
    n_active: Size
    router_name: str = "gate"
    experts_name: str = "experts"
    dropout: Probability = 0.0

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """Router (E, D), fused gate and up (E, 2·F, D), down (E, D, F)."""
        width, inner = (Dim("D", spec.d_model),), (Dim("F", self.d_ff),)
        experts = (Dim("E", self.n_experts),)
        active = (self.n_active, self.n_experts)
        yield from linear(self.router_name, [("router", experts)], width, bias=False)
        gate_up = tuple(Slice(key, (experts, inner, width)) for key in ("experts_gate", "experts_up"))
        yield Weight(f"{self.experts_name}.gate_up_proj", "matmul", gate_up, axis=1, active=active)
        down = (Slice("experts_down", (experts, width, inner)),)
        yield Weight(f"{self.experts_name}.down_proj", "matmul", down, active=active)

    def ops(self, setting: "Setting", x: "Tensor") -> "tuple[Op, ...]":
        """(…, D) to the same."""
        from gptcalc.parts import experts

        return experts.mixture(self, setting, x)
