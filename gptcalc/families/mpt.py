"""MPT (MosaicML 2023): scores that fall with the distance (ALiBi), and no biases anywhere."""

from collections.abc import Iterator, Mapping
from typing import Annotated

from pydantic import Field

from gptcalc.errors import InvalidValueError, shown
from gptcalc.families.family import Family, Layer, Layout
from gptcalc.parts.block import Block
from gptcalc.parts.norm import LayerNorm

#: What MosaicML's own code reads and transformers' class does not, and the values under which both are one model.
UNREAD = {
    "embedding_fraction": (1,),
    "expansion_ratio": (4,),
    "logit_scale": (None,),
    "no_bias": (True,),
    "norm_type": ("low_precision_layernorm",),
    "resid_pdrop": (0, None),
    "emb_pdrop": (0, None),
}
#: The same inside `attn_config`.
UNREAD_IN_ATTENTION = {
    "alibi": (True,),
    "alibi_bias_max": (8,),
    "attn_type": ("multihead_attention",),
    "attn_uses_sequence_id": (False,),
    "prefix_lm": (False,),
    "qk_ln": (False,),
}


class MPT(Family):
    """transformers' `MptForCausalLM`: whatever a config says, ALiBi, no biases, and an MLP that is 4·D wide."""

    model_type = "mpt"
    huggingface = {
        "vocab_size": ("n_vocab",),
        "max_seq_len": ("n_ctx",),
        "d_model": ("d_model",),
        "hidden_size": ("d_model",),
        "n_layers": ("n_layers",),
        "num_hidden_layers": ("n_layers",),
        "n_heads": ("n_heads",),
        "num_attention_heads": ("n_heads",),
        "layer_norm_epsilon": ("norm_eps",),
        "tie_word_embeddings": ("tied",),
    }
    nested = ("attn_config",)
    ignored = frozenset({*UNREAD, "init_config", "init_device", "learned_pos_emb", "tokenizer_name", "verbose"})
    ff_ratio = 4
    layout = Layout(trunk="transformer", layers="blocks", tokens="wte", positions="wpe", final_norm="norm_f")
    defaults = {
        "n_vocab": 50368,
        "n_ctx": 2048,
        "d_model": 2048,
        "n_layers": 24,
        "n_heads": 16,
        "activation": "gelu",
        "tied": True,
        "positions": "alibi",
        "bias": False,
        "norm_eps": 1e-5,
    }

    clip_qkv: Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)] | None = None
    softmax_scale: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] | None = None

    @classmethod
    def translate(cls, values: Mapping[str, object], where: str) -> dict[str, object]:
        """What the class reads of `attn_config`; its one dropout is on the scores and on what both parts add."""
        own = super().translate(values, where)
        inner = values.get("attn_config")
        if inner is None:
            return own
        if not isinstance(inner, Mapping):
            raise InvalidValueError(f"{where}: attn_config: read {shown(inner)}; allowed: an object")
        found = {
            "clip_qkv": inner.get("clip_qkv"),
            "softmax_scale": inner.get("softmax_scale"),
            "attention_dropout": inner.get("attn_pdrop"),
            "residual_dropout": inner.get("attn_pdrop"),
        }
        return {key: value for key, value in found.items() if value is not None} | own

    @classmethod
    def remarks(cls, given: Mapping[str, object]) -> Iterator[str]:
        """What MosaicML's own code would do otherwise."""
        inner = given.get("attn_config")
        for where, fields, values in (
            ("", given, UNREAD),
            ("attn_config.", inner if isinstance(inner, Mapping) else {}, UNREAD_IN_ATTENTION),
        ):
            for key in values:
                if key in fields and fields[key] not in values[key]:
                    known = shown(values[key][0])
                    yield f"{where}{key} = {shown(fields[key])} was not read: transformers' class has {known} alone"

    def norm(self, name: str) -> LayerNorm:
        """A LayerNorm without bias."""
        return self.layer_norm(name)

    def block(self, layer: Layer) -> Block:
        """Norm, fused attention, add; norm, MLP, add."""
        return Block(
            attention_norm=self.norm("norm_1"),
            attention=self.attention(
                "attn",
                layer,
                qkv_names=("Wqkv",),
                out_name="out_proj",
                clip=self.clip_qkv or None,
                scale=self.softmax_scale,
            ),
            mlp_norm=self.norm("norm_2"),
            mlp=self.dense_mlp("ffn", "up_proj", "down_proj"),
        )
