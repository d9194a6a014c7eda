"""What all families share: the field names, their checks, and what follows from a changed field."""

import re
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby, repeat
from math import gcd
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, ValidationError

from gptcalc.errors import GptcalcError, InvalidValueError, UnknownNameError, shown
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.embedding import TokenEmbedding, Unembedding
from gptcalc.parts.mlp import DenseMLP
from gptcalc.parts.norm import LayerNorm
from gptcalc.parts.positions import LearnedPositions, Rotary, SinusoidalPositions
from gptcalc.spec import (
    MOST,
    MOST_LAYERS,
    Activation,
    AnyPart,
    Flag,
    LayerGroup,
    Layers,
    PositionKind,
    Probability,
    Record,
    RopeScaling,
    Size,
    Spec,
    shared,
    whole,
)

#: Fields of a config.json that change no weight of a decoder.
IRRELEVANT = frozenset(
    """
    architectures attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id
    chunk_size_feed_forward classifier_dropout cross_attention_hidden_size decoder_start_token_id
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size eos_token_id
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id
    gradient_checkpointing id2label init_std initializer_range is_decoder label2id length_penalty max_length
    min_length model_type n_ctx n_special no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_attentions output_hidden_states output_router_logits output_scores pad_token_id
    predict_special_tokens prefix pretraining_tp problem_type pruned_heads quantization_config
    remove_invalid_values repetition_penalty return_dict return_dict_in_generate router_aux_loss_coef
    sep_token_id summary_activation summary_first_dropout summary_proj_to_labels summary_type summary_use_proj
    suppress_tokens task_specific_params temperature tf_legacy_loss tie_encoder_decoder tokenizer_class top_k
    top_p torch_dtype torchscript transformers_version typical_p use_bfloat16 use_cache use_return_dict
    """.split()
)
#: Fields that change how a decoder computes but not what it stores, and the values under which the parts model them.
PLAIN = {
    "reorder_and_upcast_attn": (False,),
    "router_jitter_noise": (0,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
    "sliding_window": (None,),
}
#: The fields that follow `bias` where they are not given themselves.
BIASES = ("qkv_bias", "out_bias", "mlp_bias", "norm_bias")
#: Fields that no count depends on.
UNCOUNTED = (
    "activation",
    "norm_eps",
    "embedding_dropout",
    "attention_dropout",
    "residual_dropout",
    "rope_theta",
    "rope_scaling",
    "rotary_fraction",
)
#: Fields that add weights which no part has when they are set.
REFUSED = ("add_cross_attention", "is_encoder_decoder")


#: Kinds of attention, as transformers calls them in `layer_types`.
FULL, SLIDING, CHUNKED, LINEAR = "full_attention", "sliding_attention", "chunked_attention", "linear_attention"
#: The most layers of a model whose layers differ.
MOST_MIXED = 10_000
#: The fields that may hold an object of rotary parameters.
ROPE = ("rope_parameters", "rope_scaling")


def without(names: Mapping[str, tuple[str, ...]], *left_out: str) -> dict[str, tuple[str, ...]]:
    """Field names of a config, but for some that a class does not read."""
    return {key: fields for key, fields in names.items() if key not in left_out}


class Layout(NamedTuple):
    """What published checkpoints call the modules of a stack; no `final_norm` where there is none."""

    trunk: str
    layers: str
    tokens: str
    positions: str
    final_norm: str
    unembedding: str = "lm_head"


class Layer(NamedTuple):
    """What sets a layer apart from others of its model: how far its attention looks, its MLP, whether it rotates.

    `theta` is the base of its angles, where that is not the model's.
    """

    attention: str = FULL
    mlp: Literal["dense", "mixture"] = "dense"
    rotary: bool = True
    theta: float | None = None


class Family(Record):
    """Hyperparameters under gptcalc's own names; `huggingface` maps Hugging Face's names to them.

    A field left out (`None`) follows from the others: `d_head` = D/N, `n_kv_heads` = N, `d_ff` = `ff_ratio`·D, each
    bias from `bias`.
    """

    registered: ClassVar[dict[str, type["Family"]]] = {}
    model_type: ClassVar[str]
    huggingface: ClassVar[Mapping[str, tuple[str, ...]]]
    layout: ClassVar[Layout]
    #: What transformers' config class takes where a file is silent, under gptcalc's own names.
    defaults: ClassVar[Mapping[str, object]]
    #: Names of objects in a config that a family takes apart in `translate`.
    nested: ClassVar[tuple[str, ...]] = ()
    #: Fields of its configs that change neither what is stored nor how a decoder computes.
    ignored: ClassVar[frozenset[str]] = frozenset()
    #: Fields that change how it computes, and the values under which the parts model them; `PLAIN` holds for all.
    plain: ClassVar[Mapping[str, tuple[object, ...]]] = {}
    #: Names that fields had in files written before transformers had the class, and what they are called now.
    old_names: ClassVar[Mapping[str, str]] = {}
    #: d_ff in widths where it is not given; 0 where it must be.
    ff_ratio: ClassVar[int] = 0
    #: Whether rotations pair neighbouring features (GPT-J) or the two halves of a head (GPT-NeoX, Llama).
    interleaved: ClassVar[bool] = False
    #: Whether angles grow the other way.
    backwards: ClassVar[bool] = False

    n_vocab: Size
    n_ctx: Size
    d_model: Size
    n_layers: Layers
    n_heads: Size
    n_kv_heads: Size | None = None
    d_head: Size | None = None
    d_ff: Size | None = None
    activation: Activation
    tied: Flag
    positions: PositionKind
    bias: Flag
    qkv_bias: Flag | None = None
    out_bias: Flag | None = None
    mlp_bias: Flag | None = None
    norm_bias: Flag | None = None
    unembedding_bias: Flag = False
    norm_eps: Annotated[float, Field(strict=True, gt=0, lt=1, allow_inf_nan=False)]
    embedding_dropout: Probability = 0.0
    attention_dropout: Probability = 0.0
    residual_dropout: Probability = 0.0
    rope_theta: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 10_000.0
    rope_scaling: RopeScaling | None = None
    rotary_fraction: Annotated[float, Field(strict=True, ge=0, le=1)] = 1.0

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Register the family under its `model_type`; a base of several has none."""
        super().__pydantic_init_subclass__(**kwargs)
        if "model_type" in cls.__dict__:
            Family.registered[cls.model_type] = cls

    @classmethod
    def names(cls) -> dict[str, tuple[str, ...]]:
        """Every accepted field name, Hugging Face's and gptcalc's own, with the own fields that it sets."""
        names = {field: (field,) for field in (*cls.model_fields, *cls.nested)} | dict(cls.huggingface)
        return names | {old: names[new] for old, new in cls.old_names.items()}

    @classmethod
    def modern(cls, config: Mapping[str, object]) -> dict[str, object]:
        """`config` with the names that transformers' class reads; two names that disagree are left for `translate`."""
        found = dict(config)
        for old, new in cls.old_names.items():
            if old in found and found.get(new, found[old]) == found[old]:
                found[new] = found.pop(old)
        return found

    @classmethod
    def remarks(cls, given: Mapping[str, object]) -> Iterator[str]:  # noqa: ARG003  for families that have some
        """What must be said of a config beside the fields that nobody reads."""
        yield from ()

    @classmethod
    def published(cls) -> dict[str, tuple[str, ...]]:
        """Hugging Face's names with the own fields that each sets; a family's further fields may have the same name."""
        mapped = {field for fields in cls.huggingface.values() for field in fields}
        further = cls.model_fields.keys() - Family.model_fields.keys() - mapped
        return {field: (field,) for field in sorted(further)} | dict(cls.huggingface)

    @classmethod
    def translate(cls, values: Mapping[str, object], where: str) -> dict[str, object]:
        """`values` under gptcalc's own names; an unknown name is an error that names the nearest one.

        Rotary parameters come as fields (transformers 4), or in an object (transformers 5), which some models have for
        each kind of attention.
        """
        own = cls._renamed({key: value for key, value in values.items() if key not in cls.nested}, where)
        usual = cls.defaults.get("rope_scaling")
        if isinstance(values.get("rope_parameters"), Mapping) or ("rope_scaling" in values and not usual):
            own |= {"rope_scaling": None} if "rope_scaling" in cls.nested else {}
        for key in (key for key in cls.nested if key in ROPE and values.get(key) is not None):
            for field, value in _rope(values[key], cls.names(), f"{where}: {key}").items():
                if own.get(field) not in (None, value):
                    raise InvalidValueError(
                        f"{where}: read {field}={shown(own[field])} and {shown(value)} in {key}; give it once"
                    )
                own[field] = value
        return own

    @classmethod
    def _renamed(cls, values: Mapping[str, object], where: str) -> dict[str, object]:
        names, own, read = cls.names(), dict[str, object](), dict[str, str]()
        for key, value in values.items():
            if key not in names:
                what = f"{where}: field of {cls.model_type}"
                raise UnknownNameError.near(what, key, names, listed=cls.model_fields)
            for field in names[key]:
                if field in own and own[field] != value:
                    raise InvalidValueError(
                        f"{where}: read {read[field]}={shown(own[field])} and {key}={shown(value)};"
                        f" both set {field}: give one of them"
                    )
                own[field], read[field] = value, key
        return own

    @classmethod
    def given(cls, own: Mapping[str, object]) -> dict[str, object]:
        """What a file says: a null says nothing where a field cannot be one."""
        return {key: value for key, value in own.items() if value is not None or cls.model_fields[key].default is None}

    @classmethod
    def load(cls, own: Mapping[str, object], where: str) -> Self:
        """The checked record; the first bad value is an error that says what is allowed."""
        try:
            return cls.model_validate({**cls.defaults, **own})
        except ValidationError as error:
            raise invalid_value(error, where) from None

    @property
    def heads(self) -> tuple[int, int, int]:
        """(N, K, H): query heads, key/value heads, head size; checked against each other."""
        n_heads, n_kv_heads = self.n_heads, self.n_kv_heads or self.n_heads
        shared(n_heads, n_kv_heads, "n_kv_heads", "n_heads")
        return n_heads, n_kv_heads, self.d_head or shared(self.d_model, n_heads, "n_heads", "d_model")

    @property
    def width_ff(self) -> int:
        """F: the width inside the MLP."""
        if not (self.d_ff or self.ff_ratio):
            raise InvalidValueError("d_ff: read None; allowed: a whole number (this family has no rule for it)")
        return self.d_ff or self.ff_ratio * self.d_model

    def has_bias(self, field: str) -> bool:
        """Whether the layers that `field` speaks of have biases: its own word, else that of `bias`."""
        own: bool | None = getattr(self, field)
        return self.bias if own is None else own

    def resolved(self) -> dict[str, object]:
        """Every field with its value, those that follow from others included."""
        n_heads, n_kv_heads, d_head = self.heads
        biases = {key: self.has_bias(key) for key in BIASES}
        follows = {"n_heads": n_heads, "n_kv_heads": n_kv_heads, "d_head": d_head, "d_ff": self.width_ff}
        return self.model_dump() | follows | biases

    def override(self, changes: Mapping[str, object], where: str) -> Self:
        """The record with `changes` (own names) and with what follows from them.

        A new `d_model` alone keeps `d_head` and the ratio of `d_ff`, and where N·H was D sets `n_heads` = D/`d_head`.
        Where N·H was D or K was N, it stays so. What is given explicitly wins.
        """
        given = dict(changes)
        if "bias" in given:
            given = dict.fromkeys(BIASES) | given
        if given.get("d_model") == self.d_model:
            del given["d_model"]
        changed = self.load(self.model_dump() | given, where)
        follows: dict[str, object] = {}
        n_heads, n_kv_heads, d_head = self.heads
        if "d_model" in given and "d_ff" not in given:
            follows["d_ff"] = _same_ratio(self.width_ff, self.d_model, changed.d_model)
        if "d_model" in given and "n_heads" not in given and n_heads * d_head == self.d_model:
            head = changed.d_head if "d_head" in given and changed.d_head else d_head
            follows["n_heads"] = whole(changed.d_model, head, "d_model", "d_head =")
            follows["d_head"] = head
        elif "n_heads" in given and "d_head" not in given and n_heads * d_head == self.d_model:
            follows["d_head"] = shared(changed.d_model, changed.n_heads, "n_heads", "d_model")
        if "n_kv_heads" not in given and n_kv_heads == n_heads:
            follows["n_kv_heads"] = follows.get("n_heads", changed.n_heads)
        return self.load(changed.model_dump() | follows, where)

    def rotary(self, layer: Layer) -> Rotary | None:
        """Rotations inside attention, where positions are rotary."""
        rotated = int(self.heads[2] * self.rotary_fraction)
        if self.positions != "rotary" or not layer.rotary or not rotated:
            return None
        if rotated % 2:
            raise InvalidValueError(f"d_head: read {self.heads[2]}; allowed with rotary positions: an even size")
        return Rotary(
            theta=layer.theta or self.rope_theta,
            fraction=self.rotary_fraction,
            scaling=self.rope_scaling,
            interleaved=self.interleaved,
            backwards=self.backwards,
        )

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention under the names, and in the orientation, in which its tensors are `published`."""
        n_heads, n_kv_heads, d_head = self.heads
        return MultiHeadAttention(
            name=name,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            d_head=d_head,
            qkv_bias=self.has_bias("qkv_bias"),
            out_bias=self.has_bias("out_bias"),
            rotary=self.rotary(layer),
            alibi=self.positions == "alibi",
            dropout=self.attention_dropout,
            residual_dropout=self.residual_dropout,
            **published,
        )

    def layer_norm(self, name: str) -> LayerNorm:
        """A LayerNorm with the family's ε, and a bias where its norms have one."""
        return LayerNorm(name=name, eps=self.norm_eps, bias=self.has_bias("norm_bias"))

    def dense_mlp(self, name: str, up_name: str, down_name: str, **published: Any) -> DenseMLP:
        """An MLP of two layers under the names, and in the orientation, in which its tensors are `published`."""
        return DenseMLP(
            name=name,
            d_ff=self.width_ff,
            activation=self.activation,
            bias=self.has_bias("mlp_bias"),
            up_name=up_name,
            down_name=down_name,
            dropout=self.residual_dropout,
            **published,
        )

    @abstractmethod
    def norm(self, name: str) -> AnyPart:
        """A norm of the family."""

    @abstractmethod
    def block(self, layer: Layer) -> AnyPart:
        """One layer."""

    def layers(self) -> Iterable[Layer]:
        """Every layer, first to last; a family whose layers differ says how."""
        return repeat(Layer(), self.n_layers)

    def stack(self) -> tuple[LayerGroup, ...]:
        """Equal layers in a row, group by group."""
        layers = self.layers()
        if isinstance(layers, repeat):
            return (LayerGroup(n_layers=self.n_layers, block=self.block(next(layers))),)
        if self.n_layers > MOST_MIXED:
            raise InvalidValueError(
                f"n_layers: read {self.n_layers:,}; allowed where layers differ: at most {MOST_MIXED:,}"
            )
        runs = [(layer, sum(1 for _ in run)) for layer, run in groupby(layers)]
        blocks = {layer: self.block(layer) for layer in dict.fromkeys(layer for layer, _ in runs)}
        return tuple(LayerGroup(n_layers=count, block=blocks[layer]) for layer, count in runs)

    def parts(self) -> Mapping[str, AnyPart | None]:
        """Parts of the stack that only some families have, by the field of `Spec`."""
        return {}

    def spec(self) -> Spec:
        """The model as a stack of parts: input, equal layers, a final norm where there is one, unembedding."""
        names = self.layout
        positions = {"learned": LearnedPositions, "sinusoidal": SinusoidalPositions}.get(self.positions)
        return Spec(
            family=self.model_type,
            d_model=self.d_model,
            n_vocab=self.n_vocab,
            n_ctx=self.n_ctx,
            trunk=names.trunk,
            layers_name=names.layers,
            layers=self.stack(),
            **{
                "embedding": TokenEmbedding(name=names.tokens, dropout=self.embedding_dropout),
                "positions": positions(name=names.positions) if positions else None,
                "final_norm": self.norm(names.final_norm) if names.final_norm else None,
                "unembedding": Unembedding(name=names.unembedding, tied=self.tied, bias=self.unembedding_bias),
                **self.parts(),
            },
        )


class Windowed(Family):
    """A family of which some layers see a window of tokens, the others all: `layer_types`, or the family's rule."""

    sliding_window: Size | None = None
    layer_types: tuple[str, ...] | None = None

    def layer_type(self, index: int) -> str:
        """How far layer `index` looks, where the file does not say: no further than a window that is given."""
        return SLIDING if self.sliding_window else FULL

    def attention_kinds(self) -> tuple[str, ...]:
        """For each layer, what it looks at."""
        if self.layer_types is None:
            return tuple(self.layer_type(index) for index in range(self.n_layers))
        if len(self.layer_types) != self.n_layers:
            raise InvalidValueError(
                f"layer_types: read {len(self.layer_types)} entries; allowed: one for each of {self.n_layers} layers"
            )
        for kind in {*self.layer_types} - {*self.kinds_allowed}:
            raise UnknownNameError.near("layer_types", kind, self.kinds_allowed)
        return self.layer_types

    kinds_allowed: ClassVar[tuple[str, ...]] = (FULL, SLIDING)

    def layers(self) -> Iterable[Layer]:
        """Full or sliding, as the types say."""
        return (Layer(attention=kind) for kind in self.attention_kinds())

    def attention(self, name: str, layer: Layer, **published: Any) -> MultiHeadAttention:
        """Attention that sees a window where the layer's type says so."""
        if layer.attention == SLIDING and self.sliding_window is None:
            raise InvalidValueError("sliding_window: read None; allowed with sliding layers: a whole number")
        seen = {"window": self.sliding_window} if layer.attention == SLIDING else {}
        return super().attention(name, layer, **seen | published)

    #: Fields that list something for every layer.
    per_layer: ClassVar[tuple[str, ...]] = ("layer_types",)

    def override(self, changes: Mapping[str, object], where: str) -> Self:
        """As every family's; a list with an entry for each layer goes on as it began where `n_layers` changes."""
        count = changes.get("n_layers", self.n_layers)
        if not isinstance(count, int) or count > MOST_MIXED:
            return super().override(changes, where)
        listed = {key: getattr(self, key) for key in self.per_layer if key not in changes}
        follows = {key: _continued(values, count) for key, values in listed.items() if values}
        return super().override(follows | dict(changes), where)


def _continued(pattern: tuple[object, ...], count: int) -> tuple[object, ...]:
    """`count` entries of a pattern that is repeated with its shortest period."""
    n = len(pattern)
    period = next(p for p in range(1, n + 1) if all(pattern[i] == pattern[i - p] for i in range(p, n)))
    return tuple(pattern[i % period] for i in range(count))


def _rope(value: object, names: Mapping[str, object], where: str) -> dict[str, object]:
    """The own fields in an object of rotary parameters, or in the name of a scaling rule."""
    rope = {"rope_type": value} if isinstance(value, str) else value
    if not isinstance(rope, Mapping):
        raise InvalidValueError(f"{where}: read {shown(value)}; allowed: an object with rope_type")
    if isinstance(rope.get(FULL), Mapping):
        inner = rope.get(SLIDING)
        local = inner.get("rope_theta") if isinstance(inner, Mapping) and "local_rope_theta" in names else None
        return _rope(rope[FULL], names, where) | ({"local_rope_theta": local} if local is not None else {})
    kind = rope.get("rope_type", rope.get("type", "default"))
    fields: dict[str, object] = {} if kind == "default" else {"rope_scaling": kind}
    for key, own in (("rope_theta", "rope_theta"), ("partial_rotary_factor", "rotary_fraction")):
        if rope.get(key) is not None:
            fields[own] = rope[key]
    return fields


def _same_ratio(amount: int, old: int, new: int) -> int:
    scaled, rest = divmod(amount * new, old)
    if not rest:
        return scaled
    step = old // gcd(amount, old)
    near = [str(n * step) for n in (new // step, new // step + 1) if n]
    raise InvalidValueError(
        f"d_model: read {new}; d_ff keeps its ratio {amount}/{old} and must be whole; nearest: {', '.join(near)};"
        " or give d_ff (--d-ff)"
    )


#: What fields may hold that are neither sizes nor words.
NUMBERS = {
    **dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), "a number from 0 to below 1"),
    "norm_eps": "a number above 0 and below 1",
    "rope_theta": "a number above 0",
}


def invalid_value(error: ValidationError, where: str) -> GptcalcError:
    """The first finding of a validation as one of our errors."""
    first = error.errors(include_url=False)[0]
    field, read = ".".join(str(step) for step in first["loc"]), first["input"]
    if first["type"] == "missing":
        return InvalidValueError(f"{where}: {field} is missing and has no default")
    if first["type"] == "literal_error":
        return UnknownNameError.near(f"{where}: {field}", str(read), re.findall(r"'([^']*)'", first["ctx"]["expected"]))
    if field.startswith(("n_", "d_")):
        allowed = f"a whole number from 1 to {MOST_LAYERS if field == 'n_layers' else MOST:,}"
    elif first["type"].startswith("bool"):
        allowed = "true or false"
    else:
        allowed = NUMBERS.get(field) or first["msg"].removeprefix("Input should be ")
    return InvalidValueError(f"{where}: {field}: read {shown(read)}; allowed: {allowed}")
