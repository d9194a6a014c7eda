"""Qwen 3.5's language model (Qwen Team 2026): three layers of linear attention for one of gated attention."""

from collections.abc import Mapping
from typing import ClassVar

from gptcalc.families.qwen3_next import Hybrid
from gptcalc.parts.delta import GatedDeltaNet

#: Fields for layers that predict further tokens, and for the dtype of states.
UNREAD = frozenset({"mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"})


class Split(Hybrid):
    """What Qwen 3.5's models share: linear attention computes each of its inputs apart."""

    ignored: ClassVar[frozenset[str]] = UNREAD
    plain: ClassVar[Mapping[str, tuple[object, ...]]] = {"attn_output_gate": (True,)}
    defaults = {**Hybrid.defaults, "n_vocab": 248320}

    def linear_attention(self) -> GatedDeltaNet:
        """A gated delta rule with more layers."""
        return super().linear_attention().model_copy(update={"apart": True})


class Qwen35(Split):
    """transformers' `Qwen3_5ForCausalLM`."""

    model_type = "qwen3_5_text"
    defaults = {**Split.defaults, "n_kv_heads": 4, "d_ff": 12288}
