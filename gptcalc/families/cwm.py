"""Code World Model (Meta 2025): Llama's stack, one layer that sees all for three with a window."""

from gptcalc.families.family import FULL, SLIDING, Windowed, without
from gptcalc.families.llama import Llama


class CWM(Windowed, Llama):
    """transformers' `CwmForCausalLM`."""

    model_type = "cwm"
    huggingface = without(Llama.huggingface, "attention_bias")
    defaults = {
        **Llama.defaults,
        "n_vocab": 128256,
        "n_ctx": 131072,
        "d_model": 6144,
        "n_layers": 64,
        "n_heads": 48,
        "n_kv_heads": 8,
        "d_head": 128,
        "d_ff": 21504,
        "norm_eps": 1e-5,
        "rope_theta": 1_000_000.0,
        "rope_scaling": "llama3",
        "sliding_window": 8192,
    }

    def layer_type(self, index: int) -> str:
        """A window in all but the first of every four layers."""
        return SLIDING if index % 4 else FULL
