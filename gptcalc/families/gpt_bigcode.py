"""StarCoder (Li et al. 2023): GPT-2's stack with one key and value for all query heads (Shazeer 2019)."""

from collections.abc import Mapping
from typing import Self

from gptcalc.errors import InvalidValueError
from gptcalc.families.family import Family, Layer
from gptcalc.families.gpt2 import GPT2
from gptcalc.parts.block import Block
from gptcalc.spec import Flag, shared


class MultiQuery(Family):
    """A family whose heads share one key and value (`multi_query`), or none."""

    multi_query: Flag

    @property
    def heads(self) -> tuple[int, int, int]:
        """(N, K, H): K is 1 or N."""
        n_kv_heads = 1 if self.multi_query else self.n_heads
        return self.n_heads, n_kv_heads, self.d_head or shared(self.d_model, self.n_heads, "n_heads", "d_model")

    def override(self, changes: Mapping[str, object], where: str) -> Self:
        """As every family's; a new `n_kv_heads` is one, or all."""
        given, wanted = dict(changes), changes.get("n_kv_heads")
        n_heads = changes.get("n_heads", self.n_heads)
        if wanted is not None and "multi_query" not in given and wanted in (1, n_heads):
            given["multi_query"] = wanted == 1
        changed = super().override(given, where)
        if wanted not in (None, changed.heads[1]):
            raise InvalidValueError(
                f"n_kv_heads: read {wanted}; allowed: 1 (multi_query), or n_heads = {changed.n_heads}"
            )
        return changed


class GPTBigCode(MultiQuery, GPT2):
    """transformers' `GPTBigCodeForCausalLM`."""

    model_type = "gpt_bigcode"
    huggingface = {
        **GPT2.huggingface,
        "multi_query": ("multi_query",),
        "num_key_value_heads": ("n_kv_heads",),
    }
    ignored = frozenset(
        """
        attention_softmax_in_fp32 inference_runner max_batch_size max_sequence_length pad_key_length
        pre_allocate_kv_cache scale_attention_softmax_in_fp32 validate_runner_input
        """.split()
    )
    defaults = {**GPT2.defaults, "activation": "gelu_pytorch_tanh", "multi_query": True}

    def block(self, layer: Layer) -> Block:
        """GPT-2's layer, weights kept as (out, in)."""
        return Block(
            attention_norm=self.norm("ln_1"),
            attention=self.attention(
                "attn",
                layer,
                qkv_names=("c_attn",),
                out_name="c_proj",
                fused_by="parts" if self.multi_query else "groups",
            ),
            mlp_norm=self.norm("ln_2"),
            mlp=self.dense_mlp("mlp", "c_fc", "c_proj"),
        )
