"""What all families share: the field names, their checks, and what follows from a changed field."""

import re
from abc import abstractmethod
from collections.abc import Mapping
from math import gcd
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import Field, ValidationError

from gptcalc.errors import GptcalcError, InvalidValueError, UnknownNameError, shown
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.embedding import TokenEmbedding, Unembedding
from gptcalc.parts.positions import LearnedPositions, Rotary, SinusoidalPositions
from gptcalc.spec import (
    MOST,
    MOST_LAYERS,
    Activation,
    AnyPart,
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
    chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype
    early_stopping encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task
    forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label initializer_range is_decoder
    label2id length_penalty max_length min_length model_type n_ctx n_special no_repeat_ngram_size
    num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states output_router_logits
    output_scores pad_token_id predict_special_tokens prefix pretraining_tp problem_type pruned_heads
    quantization_config remove_invalid_values repetition_penalty return_dict return_dict_in_generate
    router_aux_loss_coef sep_token_id summary_activation summary_first_dropout summary_proj_to_labels
    summary_type summary_use_proj suppress_tokens task_specific_params temperature tf_legacy_loss
    tie_encoder_decoder tokenizer_class top_k top_p torch_dtype torchscript transformers_version typical_p
    use_bfloat16 use_cache use_return_dict
    """.split()
)
#: Fields that change how a decoder computes but not what it stores, and the values under which the parts model them.
PLAIN = {
    "partial_rotary_factor": (1, None),
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
)
#: Fields that add weights which no part has when they are set.
REFUSED = ("add_cross_attention", "is_encoder_decoder")


class Layout(NamedTuple):
    """What published checkpoints call the modules of a stack; no `final_norm` where there is none."""

    trunk: str
    layers: str
    tokens: str
    positions: str
    final_norm: str
    unembedding: str = "lm_head"


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
    #: d_ff in widths where it is not given; 0 where it must be.
    ff_ratio: ClassVar[int] = 0

    n_vocab: Size
    n_ctx: Size
    d_model: Size
    n_layers: Layers
    n_heads: Size
    n_kv_heads: Size | None = None
    d_head: Size | None = None
    d_ff: Size | None = None
    activation: Activation
    tied: Annotated[bool, Field(strict=True)]
    positions: PositionKind
    bias: Annotated[bool, Field(strict=True)]
    qkv_bias: Annotated[bool | None, Field(strict=True)] = None
    out_bias: Annotated[bool | None, Field(strict=True)] = None
    mlp_bias: Annotated[bool | None, Field(strict=True)] = None
    norm_bias: Annotated[bool | None, Field(strict=True)] = None
    unembedding_bias: Annotated[bool, Field(strict=True)] = False
    norm_eps: Annotated[float, Field(strict=True, gt=0, lt=1, allow_inf_nan=False)]
    embedding_dropout: Probability = 0.0
    attention_dropout: Probability = 0.0
    residual_dropout: Probability = 0.0
    rope_theta: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 10_000.0
    rope_scaling: RopeScaling | None = None

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        """Register the family under its `model_type`."""
        super().__pydantic_init_subclass__(**kwargs)
        Family.registered[cls.model_type] = cls

    @classmethod
    def names(cls) -> dict[str, tuple[str, ...]]:
        """Every accepted field name, Hugging Face's and gptcalc's own, with the own fields that it sets."""
        return {field: (field,) for field in (*cls.model_fields, *cls.nested)} | dict(cls.huggingface)

    @classmethod
    def translate(cls, values: Mapping[str, object], where: str) -> dict[str, object]:
        """`values` under gptcalc's own names; an unknown name is an error that names the nearest one."""
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

        A new `d_model` alone keeps `d_head`, sets `n_heads` = D/`d_head` and keeps the ratio of `d_ff`. Where N·H was D
        or K was N, it stays so. What is given explicitly wins.
        """
        given = dict(changes)
        if "bias" in given:
            given = dict.fromkeys(BIASES) | given
        changed = self.load(self.model_dump() | given, where)
        follows: dict[str, object] = {}
        n_heads, n_kv_heads, d_head = self.heads
        if "d_model" in given and "d_ff" not in given:
            follows["d_ff"] = _same_ratio(self.width_ff, self.d_model, changed.d_model)
        if "d_model" in given and "n_heads" not in given:
            head = changed.d_head if "d_head" in given and changed.d_head else d_head
            follows["n_heads"] = whole(changed.d_model, head, "d_model", "d_head =")
            follows["d_head"] = head
        elif "n_heads" in given and "d_head" not in given and n_heads * d_head == self.d_model:
            follows["d_head"] = shared(changed.d_model, changed.n_heads, "n_heads", "d_model")
        if "n_kv_heads" not in given and n_kv_heads == n_heads:
            follows["n_kv_heads"] = follows.get("n_heads", changed.n_heads)
        return self.load(changed.model_dump() | follows, where)

    def rotary(self) -> Rotary | None:
        """Rotations inside attention, where positions are rotary."""
        if self.positions != "rotary":
            return None
        if self.heads[2] % 2:
            raise InvalidValueError(f"d_head: read {self.heads[2]}; allowed with rotary positions: an even size")
        return Rotary(theta=self.rope_theta, scaling=self.rope_scaling)

    def attention(self, name: str, **published: Any) -> MultiHeadAttention:
        """Attention under the names, and in the orientation, in which its tensors are `published`."""
        n_heads, n_kv_heads, d_head = self.heads
        return MultiHeadAttention(
            name=name,
            n_heads=n_heads,
            n_kv_heads=n_kv_heads,
            d_head=d_head,
            qkv_bias=self.has_bias("qkv_bias"),
            out_bias=self.has_bias("out_bias"),
            rotary=self.rotary(),
            dropout=self.attention_dropout,
            residual_dropout=self.residual_dropout,
            **published,
        )

    @abstractmethod
    def norm(self, name: str) -> AnyPart:
        """A norm of the family."""

    @abstractmethod
    def block(self) -> AnyPart:
        """One layer."""

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
            embedding=TokenEmbedding(name=names.tokens, dropout=self.embedding_dropout),
            positions=positions(name=names.positions) if positions else None,
            layers=(LayerGroup(n_layers=self.n_layers, block=self.block()),),
            final_norm=self.norm(names.final_norm) if names.final_norm else None,
            unembedding=Unembedding(name=names.unembedding, tied=self.tied, bias=self.unembedding_bias),
        )


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
