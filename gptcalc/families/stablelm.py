"""StableLM (Bellagente et al. 2024): Llama's stack with LayerNorms, a quarter of each head rotated."""

from gptcalc.families.family import Layer
from gptcalc.families.llama import Llama
from gptcalc.parts.attention import MultiHeadAttention
from gptcalc.parts.block import Block
from gptcalc.parts.norm import LayerNorm
from gptcalc.spec import AnyPart, Flag


class StableLM(Llama):
    """transformers' `StableLmForCausalLM`; a norm for each head of query and key where `qk_layernorm` says so."""

    model_type = "stablelm"
    huggingface = {
        **{key: fields for key, fields in Llama.huggingface.items() if not key.endswith(("_bias", "_eps", "head_dim"))},
        "layer_norm_eps": ("norm_eps",),
        "use_qkv_bias": ("qkv_bias",),
        "hidden_dropout": ("residual_dropout",),
        "partial_rotary_factor": ("rotary_fraction",),
        "qk_layernorm": ("qk_layernorm",),
        "use_parallel_residual": ("use_parallel_residual",),
    }
    old_names = {
        "norm_eps": "layer_norm_eps",
        "num_heads": "num_attention_heads",
        "rope_pct": "partial_rotary_factor",
    }
    ignored = frozenset({"rotary_scaling_factor"})
    defaults = {
        **Llama.defaults,
        "n_vocab": 50304,
        "n_ctx": 4096,
        "d_model": 2560,
        "n_kv_heads": 32,
        "d_ff": 6912,
        "norm_bias": True,
        "norm_eps": 1e-5,
        "rotary_fraction": 0.25,
        "qk_layernorm": False,
        "use_parallel_residual": False,
    }

    qk_layernorm: Flag
    use_parallel_residual: Flag

    def norm(self, name: str) -> AnyPart:
        """A LayerNorm."""
        return self.layer_norm(name)

    def head_norms(self) -> dict[str, object]:
        """A norm without bias for each head of query and key."""
        if not self.qk_layernorm:
            return {}
        norms = (LayerNorm(name=f"{letter}_layernorm", eps=self.norm_eps, bias=False) for letter in "qk")
        return {**dict(zip(("q_norm", "k_norm"), norms, strict=True)), "norm_over": "list"}

    def block(self, layer: Layer) -> Block:
        """Llama's order, or both parts side by side after one norm; dropout is on the MLP alone."""
        attention: MultiHeadAttention = self.attention("self_attn", layer, **self.head_norms())
        parallel = self.use_parallel_residual
        return Block(
            order="parallel" if parallel else "pre",
            attention_norm=self.norm("input_layernorm"),
            attention=attention.model_copy(update={"residual_dropout": 0.0}),
            mlp_norm=None if parallel else self.norm("post_attention_layernorm"),
            mlp=self.mlp(layer),
        )
