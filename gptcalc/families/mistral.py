"""Mistral (Jiang et al. 2023): Llama's stack in which attention sees a window of tokens."""

from gptcalc.families.family import Windowed, without
from gptcalc.families.llama import Llama


class Mistral(Windowed, Llama):
    """transformers' `MistralForCausalLM`, without biases; where a file is silent, its window is 4096 tokens."""

    model_type = "mistral"
    huggingface = without(Llama.huggingface, "attention_bias", "mlp_bias")
    defaults = {**Llama.defaults, "n_ctx": 131072, "n_kv_heads": 8, "d_ff": 14336, "sliding_window": 4096}
