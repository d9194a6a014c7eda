"""The input stage: token IDs to the vectors that the first block reads.

    input IDs ──► token rows ──┐
                               ├─► add ──► LayerNorm (optional) ──► dropout ──► (B, T, D)
    0 … T−1 ──► position rows ─┘

Radford et al. 2018 (§3.1: h₀ = U·Wₑ + Wₚ) and 2019; Vaswani et al. 2017 (§3.4 scaling, §3.5 sinusoids).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field, ValidationError
from torch import Tensor, nn
from torch.nn import functional

from gptcalc.errors import UnknownNameError, shown
from gptcalc.modules import ops
from gptcalc.modules.checks import InputValueError, check_tokens
from gptcalc.modules.itemised import Dims, Itemised, empty, init_normal, make, register
from gptcalc.modules.linear import Linear
from gptcalc.modules.norm import LayerNorm
from gptcalc.modules.positions import PositionalEmbedding, SinusoidalPositionalEmbedding
from gptcalc.spec import Probability, Record, Size

__all__ = [
    "GPTEmbedding",
    "GPTEmbeddingConfig",
    "PositionalEmbedding",
    "SinusoidalPositionalEmbedding",
    "TokenEmbedding",
    "UnknownFieldError",
]

Positions = Literal["learned", "sinusoidal", "none"]
Flag = Annotated[bool, Field(strict=True)]

#: The names that other code gives to the sizes.
_OTHER_NAMES = {"vocab_size": "n_vocab", "embed_dim": "d_model", "max_seq_len": "n_ctx"}


class UnknownFieldError(UnknownNameError, ValueError):
    """A hyperparameter that the input stage does not have."""


class GPTEmbeddingConfig(Record):
    """The hyperparameters of an input stage; the defaults are GPT-2's (Radford et al. 2019).

    Sizes are whole numbers from 1: `n_vocab` (V), `d_model` (D), `n_ctx` (C). `dropout` is a probability, 0 ≤ p < 1.
    `scaled` multiplies token rows by √D; `layer_norm` adds a LayerNorm with learned weights (2·D parameters).
    `vocab_size`, `embed_dim`, `max_seq_len` and `use_sinusoidal` may be given and read instead.
    A name or value that is not allowed raises a `ValueError` (and `GptcalcError`) that says what is.
    """

    n_vocab: Size = 50257
    d_model: Size = 768
    n_ctx: Size = 1024
    dropout: Probability = 0.1
    positions: Positions = "learned"
    scaled: Flag = False
    layer_norm: Flag = False

    def __init__(self, **fields: Any) -> None:
        """Check `fields`, under either kind of name."""
        try:
            super().__init__(**self._own(fields))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            where, reason = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Input should be ")
            raise InputValueError(f"{where}: read {shown(first['input'])}; allowed: {reason}") from None

    @classmethod
    def _own(cls, fields: dict[str, Any]) -> dict[str, Any]:
        """`fields` under their own names."""
        own: dict[str, Any] = {}
        for key, value in fields.items():
            name, read = _OTHER_NAMES.get(key, key), value
            if key == "use_sinusoidal":
                name, read = "positions", _positions(value)
            if name not in cls.model_fields:
                allowed = [*cls.model_fields, *_OTHER_NAMES, "use_sinusoidal"]
                raise UnknownFieldError.near("field of GPTEmbeddingConfig", key, allowed)
            if name in own and own[name] != read:
                raise InputValueError(
                    f"{name}: read {shown(own[name])} and {shown(read)} ({key}); allowed: one of them"
                )
            own[name] = read
        return own

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.n_vocab

    @property
    def embed_dim(self) -> int:
        """D."""
        return self.d_model

    @property
    def max_seq_len(self) -> int:
        """C."""
        return self.n_ctx

    @property
    def use_sinusoidal(self) -> bool:
        """Whether positions are sinusoids."""
        return self.positions == "sinusoidal"


def _positions(use_sinusoidal: object) -> Positions:
    if not isinstance(use_sinusoidal, bool):
        raise InputValueError(f"use_sinusoidal: read {shown(use_sinusoidal)}; allowed: True or False")
    return "sinusoidal" if use_sinusoidal else "learned"


class TokenEmbedding(Itemised):
    """A row of width D for each of V tokens: V·D parameters, from N(0, 0.02²) (Radford et al. 2018, §4.1).

    `scaled` multiplies the rows by √D on the way out (Vaswani et al. 2017, §3.4), else `multiplier` does;
    GPT-1 to GPT-3 have neither.
    """

    def __init__(
        self, vocab_size: int, embed_dim: int, *, scaled: bool = False, multiplier: float | None = None
    ) -> None:
        """Allocate `weight` (V, D) and draw it."""
        super().__init__()
        self.vocab_size = vocab_size
        self.scale = sqrt(embed_dim) if scaled else multiplier
        self.weight = empty(vocab_size, embed_dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Rows from N(0, 0.02²)."""
        init_normal(self.weight)

    def forward(self, input_ids: Tensor) -> Tensor:
        """The rows of the tokens: IDs (B, T) to (B, T, D).

        Raises a `ValueError` where IDs are not int64 or int32 or not of two axes, an `IndexError` where V is exceeded.
        """
        check_tokens(input_ids, self.vocab_size)
        rows = functional.embedding(input_ids, self.weight)
        return rows if self.scale is None else rows * self.scale

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """The table."""
        yield "embedding", self.weight


@register("token_embedding")
def _token_embedding(
    dims: Dims, *, scaled: bool = False, multiplier: float = 1.0, d_embed: int | None = None
) -> TokenEmbedding:
    """Rows may be narrower than D (W = `d_embed`), whose root it is all the same."""
    width = dims.d_model if d_embed is None else d_embed
    factor = sqrt(dims.d_model) if scaled else None if multiplier == 1.0 else multiplier
    return TokenEmbedding(vocab_size=dims.n_vocab, embed_dim=width, multiplier=factor)


@register("projection")
def _projection(dims: Dims, *, d_embed: int, widens: bool) -> Linear:
    """From token rows of width W to D, or back before the unembedding (Zhang et al. 2022)."""
    ins, out = (d_embed, dims.d_model) if widens else (dims.d_model, d_embed)
    return Linear(ins, [("embedding_proj", out)])


class Beside(NamedTuple):
    """What only some decoders have at the input: fields of the tables, and parts between token rows and the sum."""

    token: Mapping[str, Any] = {}
    position: Mapping[str, Any] = {}
    between: Sequence[Mapping[str, Any]] = ()


_NOTHING = Beside()


class GPTEmbedding(Itemised):
    """Token and position rows, added; then an optional LayerNorm, then dropout: V·D + C·D parameters with GPT-2's form.

    Give a `GPTEmbeddingConfig`, or its fields by keyword. The children are `wte` and `wpe`, as in GPT-2's checkpoints,
    unless `names` says otherwise. What a decoder has `beside` is added by its trunk.
    """

    def __init__(
        self,
        config: GPTEmbeddingConfig | None = None,
        *,
        names: tuple[str, str] = ("wte", "wpe"),
        beside: Beside = _NOTHING,
        **fields: Any,
    ) -> None:
        """Build the tables on the default device."""
        super().__init__()
        self.config = config = _one_config(config, fields)
        dims = Dims(config.d_model, config.n_vocab, config.n_ctx)
        self.dropout = config.dropout
        self.token_name, self.position_name = names[0], names[1] if config.positions != "none" else None
        self.attach(self.token_name, make({"kind": "token_embedding", "scaled": config.scaled, **beside.token}, dims))
        self.between = tuple(str(part["name"]) for part in beside.between)
        for part in beside.between:
            self.attach(str(part["name"]), make(part, dims))
        if self.position_name is not None:
            self.attach(self.position_name, make({"kind": config.positions, **beside.position}, dims))
        # Without learned weights it has nothing to name, and a trunk may call its final norm as it likes.
        self.input_norm = LayerNorm(dims, learned=config.layer_norm)
        self.always_normalised = config.layer_norm

    @classmethod
    def from_config(cls, config: GPTEmbeddingConfig) -> GPTEmbedding:
        """The stage that `config` describes."""
        return GPTEmbedding(config)

    @property
    def token_weight(self) -> nn.Parameter:
        """The token table (V, D), which a tied unembedding shares."""
        weight = self.child(self.token_name).weight
        if not isinstance(weight, nn.Parameter):
            raise TypeError(f"{self.token_name}.weight is a {type(weight).__name__}, not a parameter")
        return weight

    def forward(self, input_ids: Tensor, use_layer_norm: bool = False, *, start: int = 0) -> Tensor:  # noqa: FBT001, FBT002  the notes' signature
        """Token IDs (B, T) to vectors (B, T, D), on the device and in the dtype of the tables.

        `use_layer_norm` normalises the sum: without parameters, or with learned ones where the config has `layer_norm`
        (then always). `start` is the position of the first token. Raises a `ValueError` where IDs are not int64 or
        int32, not of two axes, or longer than a learned table (T > C); an `IndexError` where one is no token.
        """
        x: Tensor = self.child(self.token_name)(input_ids)
        for name in self.between:
            x = self.child(name)(x)
        if self.position_name is not None:
            x = x + self.child(self.position_name)(x, start)
        if use_layer_norm or self.always_normalised:
            x = self.input_norm(x)
        return ops.dropout(x, self.dropout, self.training)

    def itemise(self) -> Iterator[tuple[str, Tensor]]:
        """Tokens, what stands between, positions, and the norm's weights where they are learned."""
        for name in (self.token_name, *self.between):
            yield from self.child(name).itemise()
        if self.position_name is not None:
            yield from self.child(self.position_name).itemise()
        yield from self.input_norm.itemise()


def _one_config(config: GPTEmbeddingConfig | None, fields: dict[str, Any]) -> GPTEmbeddingConfig:
    if config is None:
        return GPTEmbeddingConfig(**fields)
    if fields:
        raise InputValueError(f"GPTEmbedding: read a config and {', '.join(fields)}; allowed: a config, or fields")
    if not isinstance(config, GPTEmbeddingConfig):
        raise InputValueError(
            f"GPTEmbedding: read {shown(config)}; allowed: a GPTEmbeddingConfig, or its fields by keyword"
        )
    return config
