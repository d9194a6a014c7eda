"""A layer: the order of norms, attention, MLP and residual adds."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from gptcalc.inventory import Weight, Weighted, part_weights
from gptcalc.parts.norm import LayerNorm, RMSNorm
from gptcalc.spec import AnyPart, Spec

if TYPE_CHECKING:
    from gptcalc.tape import Op, Rows, Setting, Tensor


class Block(Weighted):
    """Attention and MLP, each with its norms and a residual add.

    `order` is `pre` (GPT-2 on: norm, part, add; Xiong et al. 2020), `post` (GPT-1: part, add, norm), or `parallel`
    (GPT-J: both read x and are added to it). A part may have no norm of its own (in parallel, the MLP then
    shares that of attention), and a second one after it, before the add (Gemma 2; OLMo 2 has that alone). What is
    added is multiplied by `residual_multiplier` (Granite).
    """

    kind: Literal["block"] = "block"
    name: str = ""
    order: Literal["pre", "post", "parallel"] = "pre"
    attention_norm: AnyPart | None
    attention: AnyPart
    attention_post_norm: AnyPart | None = None
    mlp_norm: AnyPart | None
    mlp: AnyPart
    mlp_post_norm: AnyPart | None = None
    residual_multiplier: float = 1.0

    @property
    def parts(self) -> tuple[AnyPart, ...]:
        """Its parts in the order in which they run."""
        return tuple(part for half in self._halves for part in half if part is not None)

    @property
    def _halves(self) -> tuple[tuple[AnyPart | None, ...], ...]:
        if self.order == "post":
            return (
                (self.attention, self.attention_post_norm, self.attention_norm),
                (self.mlp, self.mlp_post_norm, self.mlp_norm),
            )
        return (
            (self.attention_norm, self.attention, self.attention_post_norm),
            (self.mlp_norm, self.mlp, self.mlp_post_norm),
        )

    def path_of(self, part: AnyPart) -> str:
        """Where attention or MLP is in the block: under its name, or if it has none under what it is."""
        return part.name or ("attention" if part is self.attention else "mlp")

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """The rows of its parts, in the order in which they run."""
        for part in self.parts:
            yield from part_weights(part, spec)

    def ops(self, setting: "Setting", x: "Tensor") -> "tuple[Op, ...]":
        """(B, T, D) to the same; the caller holds x until the block returns."""
        from gptcalc import tape

        rows = tape.Rows(setting)
        if self.order == "parallel":
            self._in_parallel(rows, setting, x)
        else:
            self._in_turn(rows, setting, x)
        rows.drop(x)
        return tuple(rows)

    def _in_turn(self, rows: "Rows", setting: "Setting", x: "Tensor") -> None:
        from gptcalc import tape

        held = x
        for norm, part, post_norm, label in (
            (self.attention_norm, self.attention, self.attention_post_norm, "x after attention"),
            (self.mlp_norm, self.mlp, self.mlp_post_norm, "x after MLP"),
        ):
            before = x
            read = self._normalised(rows, setting, norm, x) if self.order == "pre" else x
            out = self._said(rows, setting, part, post_norm, read, ends=read is not x)
            x = rows(tape.add(x, out, label))
            rows.drop(out)
            if self.order == "post":
                total, x = x, self._normalised(rows, setting, norm, x)
                rows.drop(*(() if x is total else (total,)))
            if before is not held:
                rows.drop(before)

    def _in_parallel(self, rows: "Rows", setting: "Setting", x: "Tensor") -> None:
        """What is normalised for attention lives until the end, or until the MLP has its own."""
        from gptcalc import tape

        read = self._normalised(rows, setting, self.attention_norm, x)
        attention = self._said(rows, setting, self.attention, self.attention_post_norm, read)
        if self.mlp_norm is not None:
            before, read = read, self._normalised(rows, setting, self.mlp_norm, x, apart=" for the MLP")
            rows.drop(*(() if before is x else (before,)))
        mlp = self._said(rows, setting, self.mlp, self.mlp_post_norm, read)
        both = rows(tape.add(attention, mlp, "attention and MLP"))
        rows.drop(mlp, attention)
        rows(tape.add(x, both, "x after both"))
        rows.drop(both, *(() if read is x else (read,)))

    @staticmethod
    def _normalised(rows: "Rows", setting: "Setting", norm: AnyPart | None, x: "Tensor", apart: str = "") -> "Tensor":
        """X itself where there is no norm."""
        if norm is None:
            return x
        if not isinstance(norm, LayerNorm | RMSNorm):
            raise TypeError(f"a {type(norm).__name__} is no norm")
        rows += norm.normalise(setting.within(norm.name), x, setting.width, apart=apart)
        return rows[-1].output

    def _said(  # noqa: PLR0913  what runs
        self,
        rows: "Rows",
        setting: "Setting",
        part: AnyPart,
        post_norm: AnyPart | None,
        x: "Tensor",
        *,
        ends: bool = False,
    ) -> "Tensor":
        """What is added of a part's output; with the part its input `ends`."""
        from gptcalc import tape

        where = setting.where if part.name else f"{setting.where}.{self.path_of(part)}"
        rows += (op._replace(where=where) if op.where == setting.where else op for op in tape.ops_of(part, setting, x))
        out = rows[-1].output
        rows.drop(*((x,) if ends else ()))
        normalised = self._normalised(rows, setting, post_norm, out)
        rows.drop(*(() if normalised is out else (out,)))
        if self.residual_multiplier == 1.0:
            return normalised
        scaled = rows(tape.scale(normalised, f"scaled {normalised.label}"))
        rows.drop(normalised)
        return scaled
