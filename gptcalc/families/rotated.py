"""What families share of which only some layers rotate queries and keys."""

from collections.abc import Iterable
from typing import ClassVar

from gptcalc.errors import InvalidValueError
from gptcalc.families.family import Layer, Windowed
from gptcalc.families.mixtures import Count
from gptcalc.spec import Layers


class PartlyRotated(Windowed):
    """A stack of which all but every fourth layer rotates, or as `no_rope_layers` says (1: it does)."""

    per_layer: ClassVar[tuple[str, ...]] = ("layer_types", "no_rope_layers")

    no_rope_layers: tuple[Count, ...] | None = None
    no_rope_layer_interval: Layers = 4

    def rotates(self, index: int) -> bool:
        """Whether layer `index` rotates queries and keys."""
        listed = self.no_rope_layers
        return bool(listed[index]) if listed else (index + 1) % self.no_rope_layer_interval > 0

    def layers(self) -> Iterable[Layer]:
        """As the stack has them, with rotations where they are."""
        if self.no_rope_layers and len(self.no_rope_layers) != self.n_layers:
            count = len(self.no_rope_layers)
            raise InvalidValueError(
                f"no_rope_layers: read {count} entries; allowed: one for each of {self.n_layers} layers"
            )
        return (layer._replace(rotary=self.rotates(index)) for index, layer in enumerate(super().layers()))
