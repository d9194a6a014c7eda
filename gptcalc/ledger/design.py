"""Design: shapes near a number of parameters, the inverse of counting. Every count here is the parameter ledger's.

A shape is what is drawn: layers, d_model, heads, d_ff. All else (vocabulary, context, ties, biases, how heads are
shared, how wide the MLP is in widths) is kept from a base model. For each width the ledger itself says what layers
cost; no closed form stands in for it.
"""

import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from fractions import Fraction
from functools import cache as cache_of
from functools import partial
from itertools import pairwise
from math import log, log2
from types import MappingProxyType
from typing import NamedTuple

from gptcalc.catalog import Resolved, find_preset, preset_names, presets, resolve
from gptcalc.errors import GptcalcError, InvalidValueError, UnknownNameError, shown
from gptcalc.families import model_types
from gptcalc.ledger.cache import cache
from gptcalc.ledger.parameters import Parameters, parameters, stored
from gptcalc.spec import MOST_LAYERS
from gptcalc.units import ceil_div, format_count

#: Parameters, layers and d_model of the eight models in Brown et al. 2020, Table 2.1; its 13B is 5120 wide in truth
#: (the 5140 that is printed is no multiple of its 40 heads).
PUBLISHED = (
    (125_000_000, 12, 768),
    (350_000_000, 24, 1024),
    (760_000_000, 24, 1536),
    (1_300_000_000, 24, 2048),
    (2_700_000_000, 32, 2560),
    (6_700_000_000, 32, 4096),
    (13_000_000_000, 40, 5120),
    (175_000_000_000, 96, 12288),
)
#: Widths that are tried: up to each bound in steps, which kernels like: tiles of 64 and 128 (NVIDIA's guide to matmul).
WIDTHS = ((2_048, 64), (8_192, 128), (16_384, 256), (131_072, 1_024))
#: From this width on heads have 128 numbers, below it 64: as in GPT-3's 1.3B and later models.
WIDE = 2_048
#: Sizes that a head may have where neither divides a width that was given.
HEAD_SIZES = (16, 257)
#: d_ff is a multiple of it where its ratio to d_model is not whole: LLaMA's `multiple_of`.
FF_STEP = 256
#: How far D/L may be from the usual, as a factor, while anything nearer is there: less than Kaplan et al. 2020 tried.
FARTHEST = 4
#: What each of these costs in the order, in tolerances: a width that is no multiple of 128, an odd number of heads or
#: of key/value heads, which no two GPUs can share.
AWKWARD = 0.1
#: How far the share of key/value heads may be from the base's, as a factor.
FARTHEST_SHARE = 1.5
#: What the letter behind a number of parameters stands for.
UNITS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
MOST_PARAMETERS = 10**14
MOST_TOP = 1_000

#: The fields that make a shape; one that is given is kept.
SHAPE = ("n_layers", "d_model", "n_heads", "n_kv_heads", "d_head", "d_ff")


class Shape(NamedTuple):
    """One answer. `overrides` make it of the base model; those that follow from others are left out.

    `off` is its distance from the target as a signed share; `rank` is what the answers are sorted by, 0 if it is exact.
    """

    model: Resolved
    stored: int
    overrides: Mapping[str, object]
    off: Fraction
    rank: float

    @property
    def sizes(self) -> dict[str, int]:
        """The fields of `SHAPE`."""
        found = self.model.family.resolved()
        return {field: value for field in SHAPE if isinstance(value := found[field], int)}

    @property
    def parameters(self) -> Parameters:
        """The ledger's count, line by line."""
        return parameters(self.model.spec)

    @property
    def aspect(self) -> Fraction:
        """D/L: how wide the stack is for its depth."""
        return Fraction(self.sizes["d_model"], self.sizes["n_layers"])

    @property
    def embedding_share(self) -> Fraction:
        """The share of the tables and the unembedding, which do not compute in the layers."""
        return 1 - Fraction(self.parameters.totals.non_embedding, self.stored)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes that the KV cache takes for each token, in bf16."""
        return cache(self.model.spec).bytes_per_token


class Designs(NamedTuple):
    """Shapes in order; `usual` is the D/L that published models of the target's size have."""

    base: Resolved
    target: int
    tolerance: Fraction
    usual: float
    shapes: tuple[Shape, ...]
    found: int


class Wish(NamedTuple):
    """What is asked for: so many parameters, to a tolerance, as `base` with `overrides` of its fields.

    `what` is what errors call the number of parameters.
    """

    target: int
    tolerance: Fraction
    top: int
    base: str
    overrides: Mapping[str, object] = MappingProxyType({})
    what: str = "params"


def base_of(family: str, what: str) -> str:
    """The model that stands for a family: a preset or path as it is; of a model type its first preset."""
    stem = family.lower().replace("-", "_")
    if find_preset(family) or stem not in [name.replace("-", "_") for name in model_types()]:
        try:
            resolve(family, {})
        except UnknownNameError as error:
            if str(error).startswith("preset: "):
                raise UnknownNameError.near(what, family, [*model_types(), *preset_names()]) from None
            raise
        return family
    found = [preset for preset in presets() if str(preset.hyperparameters["model_type"]).replace("-", "_") == stem]
    if not found:
        raise InvalidValueError(f"{what}: read {shown(family)}, of which there is no preset; allowed: a preset's name")
    return min(found, key=lambda preset: preset.family != stem).name


def usual_aspect(amount: int) -> float:
    """D/L of published models of `amount` parameters: between those of GPT-3's table along logarithms."""
    points = [(log(size), log(d_model / n_layers)) for size, n_layers, d_model in PUBLISHED]
    at = min(max(log(amount), points[0][0]), points[-1][0])
    left, right = next((left, right) for left, right in pairwise(points) if at <= right[0])
    share = (at - left[0]) / (right[0] - left[0])
    return float(2.0 ** ((left[1] + share * (right[1] - left[1])) / log(2)))


def design(wish: Wish) -> Designs:
    """The shapes nearest to what was wished for. Raises `InvalidValueError` where there is none."""
    search = _Search(wish)
    search.need_room()
    usual = usual_aspect(wish.target)
    near: list[Shape] = []
    for farthest in (FARTHEST, None):
        shapes = list(search.shapes(usual, farthest))
        near = [shape for shape in shapes if abs(shape.off) <= wish.tolerance]
        if near:
            break
    else:
        raise search.nothing(shapes)
    ordered = sorted(near, key=_order)
    short = tuple(shape._replace(overrides=search.shortest(shape)) for shape in ordered[: wish.top])
    return Designs(search.base, wish.target, wish.tolerance, usual, short, len(near))


def _order(shape: Shape) -> tuple[float, Fraction, int]:
    """The nearer first; of equals the shallower."""
    return shape.rank, abs(shape.off), shape.sizes["n_layers"]


class _Search:
    """The base model, what of it is kept, and counts of shapes."""

    def __init__(self, wish: Wish) -> None:
        """Resolve the base; `pinned` are fields of the shape that were given."""
        self.wish = wish
        model = resolve(wish.base, {})
        own = model.family.translate(wish.overrides, model.name)
        self.pinned = {field: value for field, value in own.items() if field in SHAPE and value is not None}
        self.kept = {field: value for field, value in own.items() if field not in SHAPE}
        self.base = resolve(wish.base, self.kept)
        sizes = self.base.family.resolved()
        for field in SHAPE:
            if not isinstance(sizes.get(field), int):
                raise InvalidValueError(
                    f"family: read {wish.base!r}, whose {field} is {shown(sizes.get(field))}; allowed: a family in"
                    " which one number says it of all layers"
                )
        self.sizes = {field: int(str(sizes[field])) for field in SHAPE}
        self.failed: GptcalcError | None = None
        self.built = cache_of(self._built)

    def widths(self) -> Iterator[int]:
        """Every d_model that is tried."""
        pinned = self.pinned.get("d_model")
        if isinstance(pinned, int):
            yield pinned
            return
        start, base = 0, self.sizes["d_model"]
        for end, step in WIDTHS:
            found = range(start + step, end + 1, step)
            yield from found if base in found or not start < base <= end else sorted([*found, base])
            start = end

    def shape(self, d_model: int, n_layers: int) -> dict[str, object] | None:
        """All fields of the shape with these two; `None` where no whole number of heads makes the width.

        Of the base's own width the heads and d_ff are the base's own.
        """
        found: dict[str, object] = {"n_layers": n_layers, "d_model": d_model} | self.pinned
        if d_model == self.sizes["d_model"] and not found.keys() & set(SHAPE[2:]):
            return self.sizes | found
        inner = Fraction(d_model * self.sizes["n_heads"] * self.sizes["d_head"], self.sizes["d_model"])
        n_heads, d_head = found.get("n_heads"), found.get("d_head")
        if not isinstance(n_heads, int) and not isinstance(d_head, int):
            d_head = self._head_size(d_model, inner)
        if isinstance(d_head, int) and not isinstance(n_heads, int):
            n_heads = self._heads(inner / d_head)
        if isinstance(n_heads, int) and not isinstance(d_head, int):
            d_head = _whole(inner / n_heads)
        if not isinstance(n_heads, int) or not isinstance(d_head, int) or n_heads < 1:
            return None
        n_kv_heads = self._kv_heads(n_heads)
        return {"n_kv_heads": n_kv_heads, "d_ff": self._d_ff(d_model)} | found | {"n_heads": n_heads, "d_head": d_head}

    def _head_size(self, d_model: int, inner: Fraction) -> int:
        """H: 128 or 64, or the base's if that is another; of a width that was given, what divides it."""
        size = 128 if d_model >= WIDE and not inner % 128 else 64
        if self.sizes["d_head"] not in (64, 128):
            size = self.sizes["d_head"]
        elif inner % size and "d_model" in self.pinned:
            others = [other for other in range(*HEAD_SIZES) if not inner % other]
            return min(others, key=lambda other: (other % 2, abs(log(other / size))), default=size)
        return size

    def _heads(self, amount: Fraction) -> int | None:
        """N: whole where all heads together are as wide as D; else the nearest number of whole groups."""
        n_heads, n_kv_heads = self.sizes["n_heads"], self.sizes["n_kv_heads"]
        if n_heads * self.sizes["d_head"] == self.sizes["d_model"]:
            return _whole(amount)
        group = n_heads // n_kv_heads if n_kv_heads > 1 else 1
        return max(round(amount / group), 1) * group

    def _kv_heads(self, n_heads: int) -> int | None:
        """K: all of them, one, or as near to the base's share of N as divides N; `None` where that is far."""
        base, of = self.sizes["n_kv_heads"], self.sizes["n_heads"]
        if base in (of, 1) or "n_kv_heads" in self.pinned:
            return n_heads if base == of else 1
        divisors = [n for n in range(1, n_heads + 1) if not n_heads % n]
        distance = {n: abs(log(n * of / (n_heads * base))) for n in divisors}
        nearest = min(divisors, key=lambda n: (distance[n], n))
        return nearest if distance[nearest] <= log(FARTHEST_SHARE) else None

    def _d_ff(self, d_model: int) -> int:
        """F: the base's ratio to D, in multiples of 256 where that is not whole (LLaMA's own rule for its 8/3)."""
        base, of = self.sizes["d_ff"], self.sizes["d_model"]
        if not base % of:
            return base // of * d_model
        third = Fraction(8, 3)
        ratio = third if base == _stepped(third * of) else Fraction(base, of)
        return _stepped(ratio * d_model)

    def _built(self, d_model: int, n_layers: int) -> tuple[Resolved, int, dict[str, object]] | None:
        """The shape as a model, and what it stores; `None` where the family has no such model."""
        shape = self.shape(d_model, n_layers)
        if shape is None or None in shape.values():
            return None
        try:
            model = resolve(self.wish.base, self.kept | shape)
        except GptcalcError as error:
            self.failed = error
            return None
        return model, stored(model.spec), shape

    def stored(self, d_model: int, n_layers: int) -> int | None:
        """What the ledger counts for a shape."""
        found = self.built(d_model, n_layers)
        return found[1] if found else None

    def shapes(self, usual: float, farthest: float | None) -> Iterator[Shape]:
        """For every width the better depth of those on both sides of the target; both where the width is given."""
        for d_model in self._near_widths(usual, farthest):
            depths = self._depths(d_model, usual, farthest)
            found = [shape for n_layers in depths if (shape := self._ranked(d_model, n_layers, usual))]
            yield from found if "d_model" in self.pinned else sorted(found, key=_order)[:1]

    def _near_widths(self, usual: float, farthest: float | None) -> list[int]:
        """The widths that are worth counting: wider ones are shallower, so that both ends are found by halving."""
        widths = [d_model for d_model in self.widths() if None not in (self.shape(d_model, 1) or {"": None}).values()]
        if farthest is None or self.pinned.keys() & {"d_model", "n_layers"}:
            return widths
        aspect = partial(self._aspect, usual=usual, farthest=farthest)
        first = bisect_left(widths, usual / farthest, key=aspect)
        return widths[max(first - 1, 0) : bisect_left(widths, usual * farthest, key=aspect) + 1]

    def _bracket(self, d_model: int, most: int = MOST_LAYERS) -> list[int]:
        return bracket(
            lambda n_layers: self.stored(d_model, n_layers), self.wish.target, max(min(most, MOST_LAYERS), 2)
        )

    def _aspect(self, d_model: int, usual: float, farthest: float) -> float:
        """The D/L that a width has near the target; 0 where there cannot be so many layers."""
        depths = self._bracket(d_model, int(d_model / usual * farthest))
        return d_model / depths[-1] if depths else 0.0

    def _ranked(self, d_model: int, n_layers: int, usual: float) -> Shape | None:
        found = self.built(d_model, n_layers)
        if found is None:
            return None
        model, amount, shape = found
        off = Fraction(amount - self.wish.target, self.wish.target)
        rank = abs(float(off / self.wish.tolerance)) + abs(log2(d_model / n_layers / usual))
        _, n_kv_heads, _ = model.family.heads
        awkward = (d_model % 128 > 0) + (model.family.heads[0] % 2) + (n_kv_heads % 2 and n_kv_heads > 1)
        return Shape(model, amount, shape, off, rank + AWKWARD * awkward if off else 0.0)

    def _depths(self, d_model: int, usual: float, farthest: float | None) -> list[int]:
        pinned = self.pinned.get("n_layers")
        if isinstance(pinned, int):
            return [pinned]
        if farthest is None or "d_model" in self.pinned:
            return self._bracket(d_model)
        depths = self._bracket(d_model, int(d_model / usual * farthest))
        return [depth for depth in depths if usual / farthest <= d_model / depth <= usual * farthest]

    def need_room(self) -> None:
        """Refuse a target below the least model that there is."""
        for d_model in self.widths():
            pinned = self.pinned.get("n_layers")
            n_layers = pinned if isinstance(pinned, int) else 1
            least = self.stored(d_model, n_layers)
            if least is None:
                continue
            if self.wish.target * (1 + self.wish.tolerance) < least:
                sizes = self.base.family.resolved()
                kept = " and ".join(f"{key} = {format_count(int(str(sizes[key])))}" for key in ("n_vocab", "n_ctx"))
                raise InvalidValueError(
                    f"{self.wish.what}: read {format_count(self.wish.target)}; the least that is possible with {kept}:"
                    f" {format_count(least)} ({_layers(n_layers)} of d_model {d_model});"
                    " a smaller n_vocab (--vocab) allows less"
                )
            return
        raise self.nothing([])

    def nothing(self, shapes: list[Shape]) -> GptcalcError:
        """What to say where no shape is near enough."""
        if not shapes:
            return self.failed or InvalidValueError(
                f"{self.wish.what}: no width has a whole number of heads with what was given; allowed: other heads or"
                " d_model"
            )
        best = min(shapes, key=lambda shape: abs(shape.off))
        percent = ceil_div(abs(best.off.numerator) * 1000, best.off.denominator)
        return InvalidValueError(
            f"{self.wish.what}: no shape is within {float(self.wish.tolerance * 100):g}% of"
            f" {format_count(self.wish.target)}; nearest: {format_count(best.stored)}"
            f" ({_layers(best.sizes['n_layers'])} of d_model {best.sizes['d_model']}), within a tolerance of"
            f" {percent // 10}.{percent % 10}%"
        )

    def shortest(self, shape: Shape) -> Mapping[str, object]:
        """The fewest overrides that make the shape: a field that follows from the others is left out."""
        needed = self.kept | dict(shape.overrides)
        fields = shape.model.family.resolved()
        for field in ("d_head", "n_kv_heads", "d_ff", "n_heads", "d_model", "n_layers"):
            fewer = {key: value for key, value in needed.items() if key != field}
            try:
                if resolve(self.wish.base, fewer).family.resolved() == fields:
                    needed = fewer
            except GptcalcError:
                continue
        order = [*SHAPE, *self.kept]
        return MappingProxyType({key: needed[key] for key in order if key in needed})


def bracket(stored: Callable[[int], int | None], target: int, most: int = MOST_LAYERS) -> list[int]:
    """The depths on both sides of `target`, where `stored` grows with the depth and may refuse one (`None`).

    None is above `most`.

    Where layers are equal, two depths say what all cost; else what the last ones cost says where to look next.
    """
    one = stored(1)
    two = stored(2) if most > 1 else None
    if one is None or two is None or one >= target or two <= one:
        return [1]
    low, at_low, slope = 1, one, two - one
    high, at_high = most, None
    while high - low > 1:
        if at_high is None:
            guess = low + max(1, (target - at_low) // slope)
        else:
            guess = low + max(1, (target - at_low) * (high - low) // (at_high - at_low))
        guess = min(guess, high - 1)
        amount = stored(guess)
        if amount is None:
            return []
        if amount <= target:
            slope = max(1, (amount - at_low) // (guess - low))
            low, at_low = guess, amount
        else:
            high, at_high = guess, amount
    return [low, high]


def read_amount(value: object, what: str) -> int:
    """A number of parameters: 350M, 1.3B, 124439808, 1e9; letters are powers of 1,000."""
    text = str(value).strip().replace(",", "").replace("_", "") if isinstance(value, str | int | float) else ""
    found = re.fullmatch(r"([0-9]{1,30}(?:\.[0-9]{0,30})?(?:e\+?[0-9]{1,2})?) ?([kmbgt]?)", text, re.IGNORECASE)
    if isinstance(value, bool) or not found:
        raise InvalidValueError(
            f"{what}: read {shown(value)}; allowed: a number of parameters, as in 350M, 1.3B or 124439808"
        )
    amount = Fraction(Decimal(found[1])) * UNITS[found[2].upper()]
    if amount.denominator != 1 or not 1 <= amount <= MOST_PARAMETERS:
        raise InvalidValueError(f"{what}: read {shown(value)}; allowed: a whole number from 1 to {MOST_PARAMETERS:,}")
    return amount.numerator


def read_tolerance(value: object, what: str) -> Fraction:
    """A share: 5%, 0.05."""
    text = str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    found = re.fullmatch(r"([0-9]{1,30}(?:\.[0-9]{0,30})?(?:e-?[0-9]{1,2})?) ?(%?)", text, re.IGNORECASE)
    share = Fraction(Decimal(found[1])) / (100 if found[2] else 1) if found else Fraction(0)
    if not 0 < share < 1:
        raise InvalidValueError(
            f"{what}: read {shown(value)}; allowed: a share above 0% and below 100%, as in 5% or 0.05"
        )
    return share


def read_top(value: object, what: str) -> int:
    """How many answers are shown."""
    if type(value) is not int or not 1 <= value <= MOST_TOP:
        raise InvalidValueError(f"{what}: read {shown(value)}; allowed: a whole number from 1 to {MOST_TOP:,}")
    return value


def _layers(amount: int) -> str:
    return f"{amount} layer{'s' if amount > 1 else ''}"


def _whole(value: Fraction) -> int | None:
    return value.numerator if value.denominator == 1 else None


def _stepped(value: Fraction) -> int:
    return ceil_div(ceil_div(value.numerator, value.denominator), FF_STEP) * FF_STEP
