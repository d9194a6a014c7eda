"""How the input learns where it stands: a table, or sinusoids that store nothing."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from gptcalc.formula import Dim
from gptcalc.inventory import Slice, Weight, Weighted
from gptcalc.spec import Record, Spec

if TYPE_CHECKING:
    from gptcalc.tape import Op, Setting


class LearnedPositions(Weighted):
    """A row of width D for each of C positions (Radford et al. 2018, §4.1)."""

    kind: Literal["learned"] = "learned"

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """The position table (C, D)."""
        table = ((Dim("C", spec.n_ctx),), (Dim("D", spec.d_model),))
        yield Weight("weight", "lookup", (Slice("positions", table),))

    def ops(self, setting: "Setting") -> "tuple[Op, ...]":
        """0 … T−1, and their rows of the table: (T, D)."""
        from gptcalc import tape

        table = tape.Tensor("position table", (setting.n_ctx, setting.width), setting.dtype)
        count = tape.whole("aten::arange", (), tape.Tensor("positions", (setting.seq,), "int64"))
        return count, tape.embedding(count.output, table, setting.seq, "position rows")


class SinusoidalPositions(Weighted):
    """Fixed sinusoids of any length (Vaswani et al. 2017, §3.5): no parameters."""

    kind: Literal["sinusoidal"] = "sinusoidal"

    def weights(self, spec: Spec) -> Iterator[Weight]:  # noqa: ARG002  the signature is every part's
        """Nothing is stored."""
        yield from ()

    def ops(self, setting: "Setting") -> "tuple[Op, ...]":
        """The sinusoids of T positions, computed anew on every pass, in fp64 (on MPS in fp32): (T, D)."""
        from gptcalc import tape

        seq, width = setting.seq, setting.width
        half = Dim("⌈D/2⌉", (width.size + 1) // 2)

        def made(label: str, *dims: Dim, dtype: str = "fp64") -> tape.Tensor:
            return tape.Tensor(label, dims, dtype)

        evens, negated, exponents = made("even axes", half), made("negated axes", half), made("exponents", half)
        frequencies, positions = made("frequencies", half), made("positions", seq)
        angles, sines, cosines = made("angles", seq, half), made("sines", seq, half), made("cosines", seq, half)
        waves = made("waves", seq, Dim("2", 2), half)
        # An odd D leaves out the last cosine.
        used = tape.Access(waves, (seq, width), "waves")
        rows = tape.all_of(made("position rows", seq, width, dtype=setting.dtype))
        return (
            tape.whole("aten::arange", (), evens),
            tape.whole("aten::arange", (), positions),
            tape.whole("aten::neg", (evens,), negated),
            tape.whole("aten::div", (negated,), exponents),
            tape.whole("aten::pow", (exponents,), frequencies),
            tape.whole("aten::mul", (positions, frequencies), angles),
            tape.whole("aten::sin", (angles,), sines),
            tape.whole("aten::cos", (angles,), cosines),
            tape.whole("aten::stack", (sines, cosines), waves),
            tape.Op("aten::_to_copy", (used,), (rows,)),
        )


class Rotary(Record):
    """Rotations of query and key inside attention (Su et al. 2021): no parameters.

    `fraction` of the head size is rotated; `scaling` names a long-context rule, `None` the plain angles.
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: str | None = None
