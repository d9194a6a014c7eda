"""InternLM 3 (Shanghai AI Laboratory 2025): Llama's stack under a few names of its own."""

from gptcalc.families.llama import Llama


class InternLM3(Llama):
    """transformers' `LlamaForCausalLM`, by the config of InternLM 3."""

    model_type = "internlm3"
    huggingface = dict(Llama.huggingface) | {"qkv_bias": ("qkv_bias", "out_bias"), "bias": ("mlp_bias",)}
    defaults = {
        **Llama.defaults,
        "n_vocab": 128512,
        "n_ctx": 32768,
        "n_layers": 48,
        "n_kv_heads": 2,
        "d_head": 128,
        "d_ff": 10240,
        "norm_eps": 1e-5,
    }
