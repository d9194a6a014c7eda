"""IQuest-Coder (IQuest Lab 2026): Llama's stack."""

from gptcalc.families.llama import Llama


class IQuestCoder(Llama):
    """transformers' `LlamaForCausalLM`, by the config of IQuest-Coder."""

    model_type = "iquestcoder"
    plain = {"clip_qkv": (None,), "use_sliding_window": (False,)}
    defaults = {
        **Llama.defaults,
        "n_vocab": 76800,
        "n_ctx": 131072,
        "d_model": 5120,
        "n_layers": 80,
        "n_heads": 40,
        "n_kv_heads": 8,
        "d_head": 128,
        "d_ff": 27648,
        "norm_eps": 1e-5,
    }
