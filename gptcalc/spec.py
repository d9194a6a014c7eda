"""What a model is: a stack of parts, each a frozen record of its own hyperparameters.

A part registers by its `kind`. The model's shared dims (`d_model`, `n_vocab`, `n_ctx`) stand once, in `Spec`.
Letters used everywhere: `V` vocabulary, `C` context, `D` d_model, `F` d_ff, `N` query heads, `K` key/value heads,
`H` head size, `L` layers, `E` experts.
"""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SerializeAsAny

from gptcalc.errors import InvalidValueError, UnknownNameError, shown

#: The largest dim: two of them still make a tensor of fewer than 2^63 elements, which is torch's limit.
MOST = 2**31 - 1
#: The deepest stack: a thousand times the deepest decoder ever published.
MOST_LAYERS = 1_000_000

Size = Annotated[int, Field(strict=True, ge=1, le=MOST)]
Layers = Annotated[int, Field(strict=True, ge=1, le=MOST_LAYERS)]
Probability = Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)]
Flag = Annotated[bool, Field(strict=True)]
RopeScaling = Literal["linear", "dynamic", "yarn", "longrope", "su", "llama3", "mrope", "proportional"]
#: How far from a wrong value a better one is looked for.
SEARCHED = 100_000

PositionKind = Literal["learned", "sinusoidal", "rotary", "alibi", "none"]
#: Elementwise functions without parameters, as transformers calls them (`ACT2FN`).
Activation = Literal[
    "gelu",
    "gelu_10",
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_pytorch_tanh",
    "gelu_python_tanh",
    "leaky_relu",
    "linear",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "swish",
    "tanh",
]


class Record(BaseModel):
    """A frozen value that refuses what it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Part(Record):
    """One part of a decoder; `name` is its attribute in the module that holds it, as published checkpoints have it."""

    kinds: ClassVar[dict[str, type["Part"]]] = {}
    #: Fields whose ops are known only where they have their defaults; None: none of the part's ops are known.
    without_ops: ClassVar[tuple[str, ...] | None] = ()

    kind: str
    name: str

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Register the part under the default of its `kind`."""
        super().__pydantic_init_subclass__(**kwargs)
        kind = cls.model_fields["kind"].default
        if isinstance(kind, str):
            if kind in Part.kinds:
                raise TypeError(f"two parts of kind {kind!r}: {Part.kinds[kind].__name__} and {cls.__name__}")
            Part.kinds[kind] = cls


def _by_kind(value: object) -> object:
    """A part from its plain form: the class is found by `kind`."""
    if not isinstance(value, dict):
        return value
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in Part.kinds:
        raise UnknownNameError.near("kind of part", str(kind), Part.kinds)
    return Part.kinds[kind].model_validate(value)


AnyPart = Annotated[SerializeAsAny[Part], BeforeValidator(_by_kind)]


def unknown_ops(part: Part) -> list[str]:
    """What a part does whose ops are not known (`window=4096`), in it and in the parts that it holds."""
    if part.without_ops is None:
        return [part.kind]
    fields = type(part).model_fields
    on = [(key, value) for key in part.without_ops if (value := getattr(part, key)) != fields[key].default]
    found = [f"{key}={value.kind if isinstance(value, Part) else value}" for key, value in on]
    inner = [value for key in fields if key not in part.without_ops and isinstance(value := getattr(part, key), Part)]
    return [*found, *(what for held in inner for what in unknown_ops(held))]


class LayerGroup(Record):
    """`n_layers` equal blocks in a row."""

    n_layers: Layers
    block: AnyPart


class Spec(Record):
    """A whole decoder. `trunk` and `layers_name` are where published checkpoints keep the stack."""

    family: str
    d_model: Size
    n_vocab: Size
    n_ctx: Size
    trunk: str
    layers_name: str
    embedding: AnyPart
    #: Between the token rows and the first layer: a projection where the table is narrower than D, and a norm.
    embedding_projection: AnyPart | None = None
    embedding_norm: AnyPart | None = None
    positions: AnyPart | None
    layers: tuple[LayerGroup, ...]
    final_norm: AnyPart | None
    #: From D to the width of the unembedding, where that is narrower.
    output_projection: AnyPart | None = None
    unembedding: AnyPart

    @property
    def n_layers(self) -> int:
        """`L`: the blocks of all groups together."""
        return sum(group.n_layers for group in self.layers)

    @property
    def unknown_ops(self) -> tuple[str, ...]:
        """What the model does whose ops are not known (`latent`, `window=4096`), each once; empty where all are."""
        around = (
            self.embedding,
            self.embedding_projection,
            self.embedding_norm,
            self.positions,
            self.final_norm,
            self.output_projection,
            self.unembedding,
        )
        parts = [*around, *(group.block for group in self.layers)]
        return tuple(dict.fromkeys(what for part in parts if part is not None for what in unknown_ops(part)))


def shared(amount: int, among: int, what: str, of: str) -> int:
    """`amount / among`, or an error that names the divisors of `amount` nearest to `among`."""
    if amount % among == 0:
        return amount // among
    start = min(among, amount)
    below = next((n for n in range(start, max(start - SEARCHED, 0), -1) if amount % n == 0), 1)
    above = next((n for n in range(among + 1, min(among + SEARCHED, amount) + 1) if amount % n == 0), None)
    near = ", ".join(str(n) for n in (below, above) if n)
    raise InvalidValueError(f"{what}: read {among}; allowed: a divisor of {of} = {amount}; nearest: {near}")


def whole(dividend: int, divisor: int, what: str, unit: str) -> int:
    """`dividend / divisor`, or an error that names the nearest dividends that divide."""
    quotient, rest = divmod(dividend, divisor)
    if not rest:
        return quotient
    near = [str(n * divisor) for n in (quotient, quotient + 1) if n]
    raise InvalidValueError(
        f"{what}: read {shown(dividend)}; allowed: a multiple of {unit} {divisor}; nearest: {', '.join(near)}"
    )
