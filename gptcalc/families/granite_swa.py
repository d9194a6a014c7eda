"""Granite with windows (IBM 2026): sinks, one layer of four that sees all, angles that a layer may have of its own."""

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar

from pydantic import Field

from gptcalc.errors import InvalidValueError
from gptcalc.families.family import FULL, SLIDING, Layer, Windowed
from gptcalc.families.granite import Granite
from gptcalc.parts.attention import MultiHeadAttention

Theta = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]


class GraniteSWA(Windowed, Granite):
    """transformers' `GraniteSWAForCausalLM`."""

    model_type = "granite_swa"
    per_layer: ClassVar[tuple[str, ...]] = ("layer_types", "layer_rope_theta")
    defaults = {
        **Granite.defaults,
        "n_vocab": 100352,
        "n_ctx": 8192,
        "d_model": 2560,
        "n_layers": 24,
        "n_heads": 20,
        "n_kv_heads": 4,
        "d_ff": 8192,
        "norm_eps": 1e-5,
        "tied": True,
        "sliding_window": 128,
    }

    #: For each layer the base of its angles, 0 for a layer that does not rotate.
    layer_rope_theta: tuple[Theta, ...] | None = None

    def layer_type(self, index: int) -> str:
        """A window in all but the first layer, and every fourth from there."""
        return SLIDING if index % 4 else FULL

    def layers(self) -> Iterable[Layer]:
        """As the stack has them, with the angles of each."""
        bases = self.layer_rope_theta or (self.rope_theta,) * self.n_layers
        if len(bases) != self.n_layers:
            raise InvalidValueError(
                f"layer_rope_theta: read {len(bases)} entries; allowed: one for each of {self.n_layers} layers"
            )
        layers = zip(super().layers(), bases, strict=True)
        return (layer._replace(rotary=base > 0, theta=base or None) for layer, base in layers)

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention with sinks."""
        return super().attention(name, layer, sinks=True, **published)
