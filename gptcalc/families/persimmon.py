"""Persimmon (Elsen et al. 2023): norms on query and key, squared ReLU, half of each head rotated."""

from gptcalc.families.family import Layer
from gptcalc.families.gpt_neox import GPTNeoX
from gptcalc.parts.block import Block
from gptcalc.spec import Flag


class Persimmon(GPTNeoX):
    """transformers' `PersimmonForCausalLM`: GPT-NeoX's names in Llama's stack."""

    model_type = "persimmon"
    huggingface = {
        **{
            key: fields
            for key, fields in GPTNeoX.huggingface.items()
            if key not in ("attention_bias", "hidden_dropout", "rotary_emb_base", "rotary_pct", "use_parallel_residual")
        },
        "hidden_dropout": ("residual_dropout",),
        "rope_theta": ("rope_theta",),
        "partial_rotary_factor": ("rotary_fraction",),
        "qk_layernorm": ("qk_layernorm",),
    }
    ignored = frozenset()
    layout = GPTNeoX.layout._replace(trunk="model", tokens="embed_tokens", final_norm="final_layernorm")
    defaults = {
        **GPTNeoX.defaults,
        "n_vocab": 262144,
        "n_ctx": 16384,
        "d_model": 4096,
        "n_layers": 36,
        "d_ff": 16384,
        "activation": "relu2",
        "rotary_fraction": 0.5,
        "use_parallel_residual": False,
        "qk_layernorm": True,
    }

    qk_layernorm: Flag

    def block(self, layer: Layer) -> Block:
        """One part after the other; dropout is on the MLP alone."""
        norms = {"q_norm": self.norm("q_layernorm"), "k_norm": self.norm("k_layernorm")} if self.qk_layernorm else {}
        attention = self.attention(
            "self_attn", layer, qkv_names=("query_key_value",), out_name="dense", fused_by="groups", **norms
        )
        changed = {"attention": attention.model_copy(update={"residual_dropout": 0.0})}
        return super().block(layer).model_copy(update=changed)
