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

    kind: Literal["learned"] = "learned"
    offset: Annotated[int, Field(strict=True, ge=0, le=16)] = 0

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """The position table (C, D), with `offset` rows more."""
        rows = self._rows(Dim("C", spec.n_ctx))
        yield Weight("weight", "lookup", (Slice("positions", ((rows,), (Dim("D", spec.d_model),))),))

    def _rows(self, n_ctx: Dim) -> Dim:
        return Dim(f"(C+{self.offset})", n_ctx.size + self.offset) if self.offset else n_ctx

    def ops(self, setting: "Setting") -> "tuple[Op, ...]":
        """0 … T−1, or from `offset` on, and their rows of the table: (T, D)."""
        from gptcalc import tape

        rows = tape.Rows(setting)
        table = setting.weight("position table", "weight", self._rows(setting.n_ctx), setting.width)
        count = rows(tape.whole("aten::arange", (), tape.Tensor("positions", (setting.seq,), "int64")))
        rows(tape.embedding(count, table, setting.seq, "position rows"))
        rows.drop(count)
        return tuple(rows)


class SinusoidalPositions(Weighted):
    """Fixed sinusoids of any length (Vaswani et al. 2017, §3.5): no parameters.

    With `halves` all sines come first, then all cosines (tensor2tensor, fairseq). The first token is at `offset`.
    """

    kind: Literal["sinusoidal"] = "sinusoidal"
    halves: bool = False
    offset: Annotated[int, Field(strict=True, ge=0, le=16)] = 0

    def weights(self, spec: Spec) -> Iterator[Weight]:  # noqa: ARG002  the signature is every part's
        """Nothing is stored."""
        yield from ()

    def ops(self, setting: "Setting") -> "tuple[Op, ...]":
        """The sinusoids of T positions, computed anew on every pass, in fp64 (on MPS in fp32): (T, D)."""
        from gptcalc import tape

        seq, width = setting.seq, setting.width
        half = Dim("⌊D/2⌋", width.size // 2) if self.halves else Dim("⌈D/2⌉", (width.size + 1) // 2)

        def made(label: str, *dims: Dim, dtype: str = "fp64") -> tape.Tensor:
            return tape.Tensor(label, dims, dtype)

        evens, negated, exponents = made("even axes", half), made("negated axes", half), made("exponents", half)
        frequencies, positions = made("frequencies", half), made("positions", seq)
        angles, sines, cosines = made("angles", seq, half), made("sines", seq, half), made("cosines", seq, half)
        waves = made("waves", seq, Dim("2", 2), half)
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
        rows(tape.whole("aten::cat" if self.halves else "aten::stack", (sines, cosines), waves))
        rows.drop(sines, cosines)
        if self.halves and width.size % 2:
            before, waves = waves, rows(tape.whole("aten::constant_pad_nd", (waves,), made("padded waves", seq, width)))
            rows.drop(before)
        # An odd D leaves out the last cosine.
        rows(tape.Op("aten::_to_copy", (tape.Access(waves, (seq, width), "waves"),), (out,)))
        rows.drop(evens, positions, angles, waves)
        return tuple(rows)


class Rotary(Record):
    """Rotations of query and key inside attention (Su et al. 2021): no parameters.

    `fraction` of the head size is rotated; `scaling` names a long-context rule, `None` the plain angles. A feature is
    paired with the one half a head further, or, where they are `interleaved`, with its neighbour (GPT-J). Angles may
    go `backwards` (nanochat).
    """

    theta: float = 10_000.0
    fraction: float = 1.0
    scaling: str | None = None
    interleaved: bool = False
    backwards: bool = False

    def n_rotated(self, d_head: int) -> int:
        """R: the features of a head that are rotated, its first ones."""
        return int(d_head * self.fraction)

    def is_partial(self, d_head: int) -> bool:
        """Whether features of a head are left as they are."""
        return self.n_rotated(d_head) < d_head

    def _rotated(self, d_head: int) -> tuple[Dim, Dim]:
        """R and R/2."""
        rotated, letter = self.n_rotated(d_head), "R" if self.is_partial(d_head) else "H"
        return Dim(letter, rotated), Dim(f"{letter}/2", rotated // 2)

    def tables(self, setting: "Setting", d_head: int) -> "tuple[tuple[Op, ...], Tensor, Tensor]":
        """Cosines and sines (T, R) in the compute dtype, made in fp32 by the first layer that has such angles."""
        from gptcalc import tape

        seq, (size, half) = setting.seq, self._rotated(d_head)
        once = setting.once(("angles", self, d_head))

        def fp32(label: str, *dims: Dim) -> tape.Tensor:
            return tape.Tensor(label + once.suffix, dims, "fp32")

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
        rows(tape.whole("aten::stack" if self.interleaved else "aten::cat", (angles,), both))
        cos = self._wave(rows, "cos", both, setting.dtype, once.suffix)
        sin = self._wave(rows, "sin", both, setting.dtype, once.suffix)
        rows.drop(exponents, positions, angles, both)
        return tuple(op._replace(shared=True) for op in rows) if once.new else (), cos, sin

    @staticmethod
    def _wave(rows: "Rows", name: str, angles: "Tensor", dtype: str, suffix: str) -> "Tensor":
        from gptcalc import tape

        label = {"cos": "cosines", "sin": "sines"}[name] + suffix
        wave = rows(tape.whole(f"aten::{name}", (angles,), angles._replace(label=label)))
        if dtype == angles.dtype:
            return wave
        made = rows(tape.cast(wave, dtype, label))
        rows.drop(wave)
        return made

    def rotate(self, setting: "Setting", x: "Tensor", cos: "Tensor", sin: "Tensor") -> "tuple[Op, ...]":
        """x·cos + turned(x)·sin for the R features of x that are rotated: (B, T, heads, H) to the same."""
        from gptcalc import tape

        d_head = x.dims[-1]
        size, half = self._rotated(d_head.size)
        if size.size == d_head.size:
            return self._turn(setting, x, half, (cos, sin))
        rows, label, axes = tape.Rows(setting), x.label, x.dims[:-1]
        turned = tape.made(x, f"rotated features of {label}", *axes, size)
        kept = tape.made(x, f"other features of {label}", *axes, Dim("(H−R)", d_head.size - size.size))
        cut = tape.split(x, turned, kept)
        rows(cut)
        turned, kept = (access.tensor for access in cut.writes)
        rows += self._turn(setting, turned, half, (cos, sin))
        rotated = rows[-1].output
        rows(tape.join((rotated, kept), tape.made(x, f"rotated {label}")))
        rows.drop(rotated, turned, kept)
        return tuple(rows)

    def _turn(
        self, setting: "Setting", x: "Tensor", half_size: Dim, waves: "tuple[Tensor, Tensor]"
    ) -> "tuple[Op, ...]":
        """All features: of x seen as two halves, or as pairs of neighbours."""
        from gptcalc import tape

        rows, label, (cos, sin) = tape.Rows(setting), x.label, waves
        half = (*x.dims[:-1], half_size)
        which = ("even", "odd") if self.interleaved else ("first", "second")
        halves = [tape.made(x, f"{one} half of {label}", *half) for one in which]
        cut = tape.unbind(x, *halves) if self.interleaved else tape.split(x, *halves)
        rows(cut)
        first, second = (access.tensor for access in cut.writes)
        along = rows(tape.multiply(x, cos, f"{label}·cos", constant=True))
        negated = rows(tape.whole("aten::neg", (second,), tape.made(second, f"negated {label}")))
        joining = "aten::stack" if self.interleaved else "aten::cat"
        turned = rows(tape.whole(joining, (negated, first), tape.made(x, f"turned {label}")))
        rows.drop(negated)
        across = rows(tape.multiply(turned, sin, f"{label}·sin", constant=True))
        rows.drop(turned)
        rows(tape.add(along, across, f"rotated {label}"))
        rows.drop(along, across, first, second)
        return tuple(rows)
