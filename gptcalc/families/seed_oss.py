"""Seed-OSS (ByteDance 2025): Llama's stack with biases on query, key and value, and dropout."""

from gptcalc.families.llama import Llama


class SeedOSS(Llama):
    """transformers' `SeedOssForCausalLM`."""

    model_type = "seed_oss"
    huggingface = dict(Llama.huggingface) | {
        "attention_bias": ("qkv_bias",),
        "attention_out_bias": ("out_bias",),
        "residual_dropout": ("residual_dropout",),
    }
    defaults = {
        **Llama.defaults,
        "n_vocab": 155136,
        "n_ctx": 524288,
        "n_layers": 64,
        "n_heads": 80,
        "n_kv_heads": 8,
        "d_head": 128,
        "d_ff": 27648,
        "qkv_bias": True,
        "attention_dropout": 0.1,
        "residual_dropout": 0.1,
    }
