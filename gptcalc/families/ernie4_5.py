"""ERNIE 4.5 (Baidu 2025): Llama's stack, rotated in pairs, with biases everywhere or nowhere."""

from gptcalc.families.family import without
from gptcalc.families.llama import Llama


class Ernie45(Llama):
    """transformers' `Ernie4_5ForCausalLM`."""

    model_type = "ernie4_5"
    interleaved = True
    huggingface = without(Llama.huggingface, "attention_bias", "mlp_bias", "attention_dropout") | {
        "use_bias": ("qkv_bias", "out_bias", "mlp_bias")
    }
    defaults = {
        **Llama.defaults,
        "n_vocab": 103424,
        "n_ctx": 131072,
        "d_model": 1024,
        "n_layers": 18,
        "n_heads": 16,
        "n_kv_heads": 2,
        "d_head": 128,
        "d_ff": 3072,
        "norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tied": True,
    }
