"""How the input learns where it stands: a table, or sinusoids that store nothing."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from gptcalc.formula import Dim
from gptcalc.inventory import Slice, Weight, Weighted
from gptcalc.spec import Record, Spec

if TYPE_CHECKING:
    from gptcalc.tape import Op, Rows, Setting, Tensor


class LearnedPositions(Weighted):
    """A row of width D for each of C positions (Radford et al. 2018, §4.1).

    The first `offset` rows of the table belong to no position (OPT: 2, for padding).
    """

    without_ops = ("offset",)
    kind: Literal["learned"] = "learned"
    offset: Annotated[int, Field(strict=True, ge=0, le=16)] = 0

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """The position table (C, D), with `offset` rows more."""
        rows = Dim(f"(C+{self.offset})", spec.n_ctx + self.offset) if self.offset else Dim("C", spec.n_ctx)
        yield Weight("weight", "lookup", (Slice("positions", ((rows,), (Dim("D", spec.d_model),))),))

    def ops(self, setting: "Setting") -> "tuple[Op, ...]":
        """0 … T−1, and their rows of the table: (T, D)."""
        from gptcalc import tape

        rows = tape.Rows(setting)
        table = setting.weight("position table", "weight", setting.n_ctx, setting.width)
        count = rows(tape.whole("aten::arange", (), tape.Tensor("positions", (setting.seq,), "int64")))
        rows(tape.embedding(count, table, setting.seq, "position rows"))
        rows.drop(count)
        return tuple(rows)


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
        out = tape.all_of(made("position rows", seq, width, dtype=setting.dtype))
        rows = tape.Rows(setting)
        rows(tape.whole("aten::arange", (), evens))
        rows(tape.whole("aten::arange", (), positions))
        rows(tape.whole("aten::neg", (evens,), negated))
        rows(tape.whole("aten::div", (negated,), exponents))
        rows.drop(negated)
        rows(tape.whole("aten::pow", (exponents,), frequencies))
        rows.drop(exponents)
        rows(tape.whole("aten::mul", (positions, frequencies), angles))
        rows.drop(frequencies)
        rows(tape.whole("aten::sin", (angles,), sines))
        rows(tape.whole("aten::cos", (angles,), cosines))
        rows(tape.whole("aten::stack", (sines, cosines), waves))
        rows.drop(sines, cosines)
        rows(tape.Op("aten::_to_copy", (used,), (out,)))
        rows.drop(evens, positions, angles, waves)
        return tuple(rows)


class Rotary(Record):
    """Rotations of query and key inside attention (Su et al. 2021): no parameters.

    `fraction` of the head size is rotated; `scaling` names a long-context rule, `None` the plain angles. A feature is
    paired with the one half a head further, or, where they are `interleaved`, with its neighbour (GPT-J).
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: str | None = None
    interleaved: bool = False

    def tables(self, setting: "Setting", d_head: int) -> "tuple[tuple[Op, ...], Tensor, Tensor]":
        """Cosines and sines (T, H) in the compute dtype, made in fp32 by the first layer of a pass for all of them."""
        from gptcalc import tape

        seq, size = setting.seq, Dim("H", d_head)
        half = Dim("H/2", size.size // 2)

        def fp32(label: str, *dims: Dim) -> tape.Tensor:
            return tape.Tensor(label, dims, "fp32")

        evens, exponents, positions = fp32("even features", half), fp32("exponents", half), fp32("positions", seq)
        powers, inverse, scaled = fp32("powers of θ", half), fp32("inverse powers", half), fp32("frequencies", half)
        angles, both = fp32("half the angles", seq, half), fp32("angles", seq, size)
        rows = tape.Rows(setting)
        rows(tape.whole("aten::arange", (), evens))
        rows(tape.whole("aten::div", (evens,), exponents))
        rows.drop(evens)
        rows(tape.whole("aten::arange", (), positions))
        rows(tape.whole("aten::pow", (exponents,), powers))
        rows(tape.whole("aten::reciprocal", (powers,), inverse))
        rows(tape.whole("aten::mul", (inverse,), scaled))
        rows.drop(inverse, powers)
        rows(tape.whole("aten::mul", (positions, scaled), angles))
        rows.drop(scaled)
        rows(tape.whole("aten::cat", (angles,), both))
        cos = self._wave(rows, "cos", both, setting.dtype)
        sin = self._wave(rows, "sin", both, setting.dtype)
        rows.drop(exponents, positions, angles, both)
        return tuple(op._replace(shared=True) for op in rows), cos, sin

    @staticmethod
    def _wave(rows: "Rows", name: str, angles: "Tensor", dtype: str) -> "Tensor":
        from gptcalc import tape

        label = {"cos": "cosines", "sin": "sines"}[name]
        wave = rows(tape.whole(f"aten::{name}", (angles,), angles._replace(label=label)))
        if dtype == angles.dtype:
            return wave
        made = rows(tape.cast(wave, dtype, label))
        rows.drop(wave)
        return made

    def rotate(self, setting: "Setting", x: "Tensor", cos: "Tensor", sin: "Tensor") -> "tuple[Op, ...]":
        """x·cos + rotated(x)·sin, by transformers' convention of halves: (B, T, heads, H) to the same."""
        from gptcalc import tape

        rows, label = tape.Rows(setting), x.label
        half = (*x.dims[:-1], Dim("H/2", x.dims[-1].size // 2))
        halves = [tape.Tensor(f"{which} half of {label}", half, x.dtype) for which in ("first", "second")]
        cut = tape.split(x, *halves)
        rows(cut)
        first, second = (access.tensor for access in cut.writes)
        along = rows(tape.multiply(x, cos, f"{label}·cos", constant=True))
        negated = rows(tape.whole("aten::neg", (second,), tape.made(second, f"negated {label}")))
        turned = rows(tape.whole("aten::cat", (negated, first), tape.made(x, f"turned {label}")))
        rows.drop(negated)
        across = rows(tape.multiply(turned, sin, f"{label}·sin", constant=True))
        rows.drop(turned)
        rows(tape.add(along, across, f"rotated {label}"))
        rows.drop(along, across, first, second)
        return tuple(rows)
