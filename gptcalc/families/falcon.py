"""Falcon (Almazrouei et al. 2023): attention and MLP side by side, one key for all heads or for groups."""

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field

from gptcalc.errors import InvalidValueError
from gptcalc.families.family import Family, Layer, Layout
from gptcalc.families.gpt_bigcode import MultiQuery
from gptcalc.parts.block import Block
from gptcalc.parts.norm import LayerNorm
from gptcalc.spec import Flag


class Falcon(MultiQuery):
    """transformers' `FalconForCausalLM`.

    `new_decoder_architecture` (40B, 180B) has groups of heads that share a key, and a norm each for attention and MLP;
    the older one has `multi_query`, and one norm for both, or, not `parallel_attn`, two in a row. `alibi` replaces
    rotations (RefinedWeb models).
    """

    model_type = "falcon"
    huggingface = {
        "vocab_size": ("n_vocab",),
        "max_position_embeddings": ("n_ctx",),
        "hidden_size": ("d_model",),
        "num_hidden_layers": ("n_layers",),
        "num_attention_heads": ("n_heads",),
        "num_kv_heads": ("n_kv_heads",),
        "ffn_hidden_size": ("d_ff",),
        "activation": ("activation",),
        "layer_norm_epsilon": ("norm_eps",),
        "tie_word_embeddings": ("tied",),
        "bias": ("qkv_bias", "out_bias", "mlp_bias"),
        "multi_query": ("multi_query",),
        "parallel_attn": ("parallel_attn",),
        "new_decoder_architecture": ("new_decoder_architecture",),
        "num_ln_in_parallel_attn": ("parallel_norms",),
        "attention_dropout": ("attention_dropout",),
        "hidden_dropout": ("residual_dropout",),
        "rope_theta": ("rope_theta",),
    }
    old_names = {
        "n_embed": "hidden_size",
        "n_head": "num_attention_heads",
        "n_head_kv": "num_kv_heads",
        "n_layer": "num_hidden_layers",
    }
    nested = ("alibi", "rope_parameters", "rope_scaling")
    ignored = frozenset({"apply_residual_connection_post_layernorm"})
    ff_ratio = 4
    layout = Layout(
        trunk="transformer", layers="h", tokens="word_embeddings", positions="position_embeddings", final_norm="ln_f"
    )
    defaults = {
        "n_vocab": 65024,
        "n_ctx": 2048,
        "d_model": 4544,
        "n_layers": 32,
        "n_heads": 71,
        "activation": "gelu",
        "tied": True,
        "positions": "rotary",
        "bias": False,
        "norm_bias": True,
        "norm_eps": 1e-5,
        "multi_query": True,
        "parallel_attn": True,
        "new_decoder_architecture": False,
    }

    parallel_attn: Flag
    new_decoder_architecture: Flag
    parallel_norms: Annotated[int, Field(strict=True, ge=1, le=2)] | None = None

    @classmethod
    def translate(cls, values: Mapping[str, object], where: str) -> dict[str, object]:
        """`alibi` says what positions there are."""
        own = super().translate(values, where)
        if values.get("alibi") is not None and "positions" not in own:
            own["positions"] = "alibi" if values["alibi"] else "rotary"
        return own

    @property
    def heads(self) -> tuple[int, int, int]:
        """(N, K, H): K is what the file says in the new architecture alone."""
        return Family.heads.__get__(self) if self.new_decoder_architecture else super().heads

    def override(self, changes: Mapping[str, object], where: str) -> Self:
        """As every family's; only the new architecture has any number of key heads."""
        new = changes.get("new_decoder_architecture", self.new_decoder_architecture)
        return Family.override(self, changes, where) if new else super().override(changes, where)

    def norm(self, name: str) -> LayerNorm:
        """A LayerNorm."""
        return self.layer_norm(name)

    @property
    def _norms(self) -> tuple[str, str]:
        """The norms before attention and MLP; no second name where the MLP shares the first."""
        count = self.parallel_norms or (2 if self.new_decoder_architecture else 1)
        if self.new_decoder_architecture and not self.parallel_attn:
            raise InvalidValueError("parallel_attn: read False; allowed: true (the new architecture knows no other)")
        if not self.parallel_attn:
            return "input_layernorm", "post_attention_layernorm"
        if count == 2 and not self.new_decoder_architecture:
            raise InvalidValueError("num_ln_in_parallel_attn: read 2; allowed without new_decoder_architecture: 1")
        return ("ln_attn", "ln_mlp") if count == 2 else ("input_layernorm", "")

    def block(self, layer: Layer) -> Block:
        """In parallel one dropout is on the sum of both parts; in a row each has its own."""
        first, second = self._norms
        steepness = self.heads[2] ** -0.5 if self.positions == "alibi" else 1.0  # added before the scores are scaled
        dropout = 0.0 if self.parallel_attn else self.attention_dropout
        attention = self.attention(
            "self_attention", layer, qkv_names=("query_key_value",), out_name="dense", fused_by="groups"
        )
        return Block(
            order="parallel" if self.parallel_attn else "pre",
            attention_norm=self.norm(first),
            attention=attention.model_copy(update={"residual_dropout": dropout, "alibi_steepness": steepness}),
            mlp_norm=self.norm(second) if second else None,
            mlp=self.dense_mlp("mlp", "dense_h_to_4h", "dense_4h_to_h"),
        )
