"""Youtu-LLM (Tencent 2025): latent attention with a dense gated MLP."""

from gptcalc.families.latent import Latent


class Youtu(Latent):
    """transformers' `YoutuForCausalLM`."""

    model_type = "youtu"
    huggingface = Latent.huggingface | {"rope_interleave": ("rope_interleaved",)}
    ignored = Latent.ignored | {"embedding_initializer_range"}
    defaults = {
        **Latent.defaults,
        "n_vocab": 128256,
        "n_ctx": 131072,
        "d_model": 2048,
        "n_heads": 16,
        "n_kv_heads": 16,
        "d_ff": 6144,
        "tied": True,
        "kv_rank": 512,
        "q_rank": 1536,
        "d_nope": 128,
        "d_rope": 64,
        "d_value": 128,
    }
