"""Names that people's own code gives to hyperparameters, translated to Hugging Face's, with that code's defaults.

Each dialect names the fields that it has. One that it does not have is left for the catalog to mention, unless its name
says that it may change the weights: then the dictionary belongs to some other code, and is refused.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

from gptcalc.errors import InvalidValueError, shown
from gptcalc.reading.record import Unread

#: A field whose name has one of these words, and that is set, may change which weights there are.
SUSPECT = re.compile(
    r"expert|moe|latent|lora|layer_types|norm|bias|conv|linear|svd|cross|vision|glu"
    r"|(?:^|_)(?:tie|tied|tying|heads?|dims?|shared?|rotary|rope|alibi|pos)(?:_|$)"
)
#: Names that have such a word and change no weight.
HARMLESS = re.compile(r"(?:grad|clip|max)\w*norm|norm\w*eps|norm_topk_prob")


class Translated(NamedTuple):
    """Fields under Hugging Face's names, and how they were read."""

    fields: dict[str, object]
    note: str


class Dialect(NamedTuple):
    """One code's names: those by which it is known, and the function that reads it."""

    name: str
    marks: frozenset[str]
    without: frozenset[str]
    read: Callable[["_Taker"], Translated]

    def speaks(self, fields: Mapping[str, object]) -> bool:
        """Whether `fields` are this dialect's."""
        return self.marks <= fields.keys() and not self.without & fields.keys()


def dialect_of(fields: Mapping[str, object]) -> Dialect | None:
    """The dialect of a dictionary that names no `model_type`."""
    if fields.get("model_type") is not None:
        return None
    return next((dialect for dialect in DIALECTS if dialect.speaks(fields)), None)


def translated(dialect: Dialect, fields: Mapping[str, object], where: str, *, whole_file: bool = False) -> Translated:
    """The dictionary under Hugging Face's names; for a file's own assignments, names of other things are no fields."""
    taker = _Taker(dict(fields), where, dialect.name)
    done = dialect.read(taker)
    rest = taker.rest()
    if whole_file:
        rest = {}
    return Translated({**done.fields, **rest}, done.note)


class _Taker:
    """Takes fields out of a dictionary by name; what nobody took is the rest."""

    def __init__(self, fields: dict[str, object], where: str, dialect: str) -> None:
        self.fields, self.where, self.dialect = fields, where, dialect

    def need(self, key: str) -> object:
        """The value of a field that the code has no default for."""
        value = self.get(key)
        if value is None:
            raise InvalidValueError(f"{self.where}: {key} is missing; {self.dialect} has no default for it")
        return value

    def get(self, key: str, default: object = None) -> object:
        """The value of a field, or the code's default."""
        value = self.fields.pop(key, None)
        if isinstance(value, Unread):
            raise InvalidValueError(
                f"{self.where}: {key} (line {value.line}): read an expression; allowed: a literal"
                " (the file is parsed, never run)"
            )
        return default if value is None else value

    def optional(self, names: Mapping[str, str]) -> dict[str, object]:
        """The fields of `names` that are given, under their other names; one that is no literal changes no count."""
        given = {key: self.fields.pop(key, None) for key in names}
        return {
            names[key]: value for key, value in given.items() if value is not None and not isinstance(value, Unread)
        }

    def rest(self) -> dict[str, object]:
        """What is not the dialect's; refused where it may change the weights."""
        for key, value in self.fields.items():
            if value and SUSPECT.search(key.lower()) and not HARMLESS.search(key.lower()):
                read = "an expression" if isinstance(value, Unread) else shown(value)
                raise InvalidValueError(
                    f"{self.where}: {key}: read {read}; {self.dialect} has no such field, and its name says that it may"
                    " change the weights"
                )
        return {key: value for key, value in self.fields.items() if not isinstance(value, Unread) and key != "dtype"}


def _nanogpt(take: _Taker) -> Translated:
    """karpathy/nanoGPT, model.py: `GPTConfig`."""
    bias = take.get("bias", default=True)
    return Translated(
        {**_nanogpt_sizes(take), "bias": bias},
        f"read as nanoGPT's GPTConfig: tied, {_biases(bias)}; what it leaves out has GPTConfig's defaults",
    )


def _nanogpt_train(take: _Taker) -> Translated:
    """karpathy/nanoGPT, train.py: the file's assignments replace train.py's own, whose `bias` is False."""
    start = take.get("init_from", default="scratch")
    if start not in ("scratch", "resume"):
        raise InvalidValueError(
            f"{take.where}: init_from: read {shown(start)}; the model is that checkpoint's: count it by its name"
        )
    bias = take.get("bias", default=False)
    vocabulary = (
        ""
        if take.fields.get("vocab_size") is not None
        else "; vocab_size is not in it: 50,304 as train.py has it, unless the data set has a meta.pkl (--vocab)"
    )
    return Translated(
        {**_nanogpt_sizes(take), "bias": bias},
        f"read as settings of nanoGPT's train.py: tied, {_biases(bias)}{vocabulary}",
    )


def _nanogpt_sizes(take: _Taker) -> dict[str, object]:
    dropout = take.get("dropout", default=0.0)
    return {
        "model_type": "gpt2",
        "vocab_size": take.get("vocab_size", default=50304),
        "n_positions": take.get("block_size", default=1024),
        "n_layer": take.get("n_layer", default=12),
        "n_head": take.get("n_head", default=12),
        "n_embd": take.get("n_embd", default=768),
        "activation_function": "gelu",
        "layer_norm_epsilon": 1e-5,
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), dropout),
        "tie_word_embeddings": True,
    }


def _biases(bias: object) -> str:
    return f"bias {str(bias).lower()} (linear layers and norms)"


def _llms_from_scratch(take: _Taker) -> Translated:
    """rasbt/LLMs-from-scratch: `GPTModel` where it has GPT-2's switches, else Llama, Qwen3 and Gemma of chapter 5."""
    if {"hidden_dim", "rope_base", "qk_norm"} & take.fields.keys() and not {
        "qkv_bias",
        "drop_rate",
    } & take.fields.keys():
        return _llms_from_scratch_llama(take)
    drop = take.optional(
        {"drop_rate_emb": "embd_pdrop", "drop_rate_attn": "attn_pdrop", "drop_rate_shortcut": "resid_pdrop"}
    )
    rate = take.get("drop_rate", default=0.0)
    qkv_bias = take.need("qkv_bias")
    groups = take.optional({"n_kv_groups": "n_kv_heads"})
    return Translated(
        {
            "model_type": "gpt2",
            **_llms_from_scratch_sizes(take, "n_positions", "n_embd", "n_layer", "n_head"),
            **groups,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": 1e-5,
            **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), rate),
            **drop,
            "tie_word_embeddings": False,
            "qkv_bias": qkv_bias,
        },
        f"read as an LLMs-from-scratch GPT dictionary: untied, qkv_bias {str(qkv_bias).lower()}, all other biases",
    )


def _llms_from_scratch_sizes(take: _Taker, *names: str) -> dict[str, object]:
    keys = ("context_length", "emb_dim", "n_layers", "n_heads")
    return {"vocab_size": take.need("vocab_size")} | {
        name: take.need(key) for key, name in zip(keys, names, strict=True)
    }


def _llms_from_scratch_llama(take: _Taker) -> Translated:
    """Llama2Model, Llama3Model, Qwen3Model, Gemma3Model: `out_head` is a matrix of its own until weights are loaded."""
    fields = {
        **_llms_from_scratch_sizes(
            take, "max_position_embeddings", "hidden_size", "num_hidden_layers", "num_attention_heads"
        ),
        "tie_word_embeddings": False,
        **take.optional({"rope_base": "rope_theta", "norm_eps": "rms_norm_eps"}),
    }
    fields["num_key_value_heads"] = take.get("n_kv_groups", default=fields["num_attention_heads"])
    qk_norm, head_dim = take.get("qk_norm", default=False), take.get("head_dim")
    if head_dim is None and isinstance(heads := fields["num_attention_heads"], int) and heads > 0:
        head_dim = _quotient(fields["hidden_size"], heads)
    fields["head_dim"] = head_dim
    take.optional(dict.fromkeys(("orig_context_length", "rope_freq", "window_size", "dtype"), ""))
    experts = take.get("num_experts", default=0)
    fields["intermediate_size"] = take.get("hidden_dim") if experts else take.need("hidden_dim")
    if "query_pre_attn_scalar" in take.fields:
        if not qk_norm or experts:
            raise InvalidValueError(
                f"{take.where}: qk_norm: read {shown(qk_norm)}; Gemma 3 is read with its norms alone"
            )
        fields |= take.optional(
            {
                "query_pre_attn_scalar": "query_pre_attn_scalar",
                "rope_local_base": "rope_local_base_freq",
                "sliding_window": "sliding_window",
            }
        )
        types = take.get("layer_types")
        fields |= {} if types is None else {"layer_types": types}
        kind = "gemma3_text"
    elif experts:
        if not qk_norm:
            raise InvalidValueError(
                f"{take.where}: qk_norm: read {shown(qk_norm)}; allowed with num_experts: true (Qwen3)"
            )
        own = ("num_experts_per_tok", "moe_intermediate_size")
        fields |= {"num_experts": experts, "norm_topk_prob": True} | {key: take.need(key) for key in own}
        kind = "qwen3_moe"
    else:
        kind = "qwen3" if qk_norm else "llama"
    if kind == "llama":
        fields.setdefault("rms_norm_eps", 1e-5)
        fields |= {"attention_bias": False, "mlp_bias": False}
    fields = {key: value for key, value in fields.items() if value is not None}
    return Translated(
        {"model_type": kind, **fields},
        f"read as an LLMs-from-scratch dictionary of {kind}: no biases, untied as its class is built"
        " (weights that are loaded into it may tie it: --tied)",
    )


def _quotient(width: object, heads: int) -> object:
    return width // heads if isinstance(width, int) and width % heads == 0 else None


def _llama(take: _Taker) -> Translated:
    """meta-llama/llama, model.py: `ModelArgs` and `FeedForward`; Mistral's params.json, which gives `hidden_dim`."""
    width, heads = take.need("dim"), take.need("n_heads")
    vocabulary = take.need("vocab_size")
    if isinstance(vocabulary, int) and vocabulary < 1:
        raise InvalidValueError(
            f"{take.where}: vocab_size: read {vocabulary}, which stands for the tokenizer's; put its size into the file"
            " (Llama 1 and 2: 32000)"
        )
    of, factor = take.get("multiple_of", default=256), take.get("ffn_dim_multiplier")
    inner = take.get("hidden_dim")
    scratch = "dropout" in take.fields
    dropout = take.get("dropout", default=0.0)
    mixture = take.get("moe")
    fields = {
        "model_type": "llama",
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": _feed_forward(width, of, factor, take.where) if inner is None else inner,
        "num_hidden_layers": take.need("n_layers"),
        "num_attention_heads": heads,
        "num_key_value_heads": take.get("n_kv_heads", default=heads),
        "head_dim": take.get("head_dim"),
        "max_position_embeddings": take.get("max_seq_len", default=2048),
        "rms_norm_eps": take.get("norm_eps", default=1e-5),
        "tie_word_embeddings": scratch,
        **take.optional({"rope_theta": "rope_theta", "sliding_window": "sliding_window"}),
    }
    take.optional(dict.fromkeys(("use_scaled_rope", "max_batch_size"), ""))
    if isinstance(mixture, Mapping):
        fields |= {"num_local_experts": mixture.get("num_experts"), "model_type": "mixtral"}
        fields |= {"num_experts_per_tok": mixture.get("num_experts_per_tok")}
    else:
        fields |= {"attention_bias": False, "mlp_bias": False, "attention_dropout": dropout}
    rule = (
        "hidden_dim as given"
        if inner is not None
        else f"the MLP's width {fields['intermediate_size']} from multiple_of"
    )
    tied = "tied as llama2.c ties" if scratch else "untied"
    fields = {key: value for key, value in fields.items() if value is not None}
    return Translated(fields, f"read as Llama's own params.json: {tied}, {rule}")


def _feed_forward(width: object, multiple: object, factor: object, where: str) -> int:
    """The width inside the MLP: two thirds of 4·D, times `ffn_dim_multiplier`, up to the next multiple."""
    given = {"dim": width, "multiple_of": multiple, "ffn_dim_multiplier": 1.0 if factor is None else factor}
    for key, value in given.items():
        right = isinstance(value, int | float if key == "ffn_dim_multiplier" else int) and not isinstance(value, bool)
        if not right or not isinstance(value, int | float) or not 0 < value < 2**31:
            raise InvalidValueError(
                f"{where}: {key}: read {shown(value)}; allowed: a number above 0 and below 2,147,483,648"
            )
    if not isinstance(width, int) or not isinstance(multiple, int):
        raise TypeError(width, multiple)
    inner = int(2 * (4 * width) / 3)
    if isinstance(factor, int | float):
        inner = int(factor * inner)
    return multiple * -(-inner // multiple)


_ELSEWHERE = frozenset({"n_positions", "n_ctx", "architectures", "hidden_size", "d_model"})
NANOGPT_TRAIN = Dialect("nanoGPT's train.py", frozenset({"block_size", "batch_size"}), _ELSEWHERE, _nanogpt_train)
DIALECTS = (
    Dialect("LLMs-from-scratch", frozenset({"emb_dim", "vocab_size"}), frozenset(), _llms_from_scratch),
    Dialect("Llama's ModelArgs", frozenset({"dim", "n_layers", "n_heads"}), frozenset(), _llama),
    NANOGPT_TRAIN,
    Dialect("nanoGPT's GPTConfig", frozenset({"n_layer", "n_head", "n_embd"}), _ELSEWHERE, _nanogpt),
)
#: What makes a file's own assignments settings of nanoGPT's train.py.
NANOGPT_NAMES = frozenset({"n_layer", "n_head", "n_embd", "block_size", "init_from"})
