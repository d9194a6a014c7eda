"""GPT-Neo (Black et al. 2021): GPT-2's stack, every other layer of which sees a window."""

from collections.abc import Mapping

from gptcalc.errors import InvalidValueError, UnknownNameError, shown
from gptcalc.families.family import FULL, MOST_MIXED, SLIDING, Layer, Layout, Windowed
from gptcalc.parts.block import Block
from gptcalc.parts.norm import LayerNorm

#: What the family calls the kinds of attention.
KINDS = {"global": FULL, "local": SLIDING}


class GPTNeo(Windowed):
    """transformers' `GPTNeoForCausalLM`; scores are not scaled, and query, key and value have no biases."""

    model_type = "gpt_neo"
    huggingface = {
        "vocab_size": ("n_vocab",),
        "max_position_embeddings": ("n_ctx",),
        "hidden_size": ("d_model",),
        "num_layers": ("n_layers",),
        "num_hidden_layers": ("n_layers",),
        "num_heads": ("n_heads",),
        "num_attention_heads": ("n_heads",),
        "intermediate_size": ("d_ff",),
        "window_size": ("sliding_window",),
        "activation_function": ("activation",),
        "layer_norm_epsilon": ("norm_eps",),
        "tie_word_embeddings": ("tied",),
        "embed_dropout": ("embedding_dropout",),
        "attention_dropout": ("attention_dropout",),
        "resid_dropout": ("residual_dropout",),
    }
    nested = ("attention_types", "attention_layers")
    ff_ratio = 4
    layout = Layout(trunk="transformer", layers="h", tokens="wte", positions="wpe", final_norm="ln_f")
    defaults = {
        "n_vocab": 50257,
        "n_ctx": 2048,
        "d_model": 2048,
        "n_layers": 24,
        "n_heads": 16,
        "activation": "gelu_new",
        "tied": True,
        "positions": "learned",
        "bias": True,
        "qkv_bias": False,
        "norm_eps": 1e-5,
        "sliding_window": 256,
    }

    @classmethod
    def translate(cls, values: Mapping[str, object], where: str) -> dict[str, object]:
        """The kinds of layers come as a list, or as patterns that are repeated."""
        own = super().translate(values, where)
        listed, patterns = values.get("attention_layers"), values.get("attention_types")
        kinds = list(listed) if isinstance(listed, list | tuple) else None
        if patterns is not None:
            expanded = _expanded(patterns, f"{where}: attention_types")
            if kinds not in (None, expanded):
                raise InvalidValueError(f"{where}: attention_types and attention_layers disagree; give one of them")
            kinds = expanded
        if kinds is not None:
            for kind in kinds:
                if kind not in KINDS:
                    raise UnknownNameError.near(f"{where}: attention_types", str(kind), KINDS)
            own["layer_types"] = tuple(KINDS[kind] for kind in kinds)
        return own

    def layer_type(self, index: int) -> str:
        """Global and local layers alternate."""
        return SLIDING if index % 2 else FULL

    def norm(self, name: str) -> LayerNorm:
        """A LayerNorm."""
        return self.layer_norm(name)

    def block(self, layer: Layer) -> Block:
        """GPT-2's order, with a layer each for query, key and value."""
        names = ("attention.q_proj", "attention.k_proj", "attention.v_proj")
        return Block(
            attention_norm=self.norm("ln_1"),
            attention=self.attention("attn", layer, qkv_names=names, out_name="attention.out_proj", scale=1.0),
            mlp_norm=self.norm("ln_2"),
            mlp=self.dense_mlp("mlp", "c_fc", "c_proj"),
        )


def _expanded(patterns: object, where: str) -> list[str]:
    """`[[["global", "local"], 2]]` written out: global, local, global, local."""
    found: list[str] = []
    for entry in patterns if isinstance(patterns, list | tuple) else (None,):
        match entry:
            case [[*kinds], int(count)] if 0 < count <= MOST_MIXED:
                found += kinds * count
            case _:
                example = '[[["global", "local"], 6]]'
                raise InvalidValueError(
                    f"{where}: read {shown(patterns)}; allowed: patterns and how often each is repeated: {example}"
                )
    return found
