"""VaultGemma (Google 2025): Gemma 2's stack without norms after its parts."""

from gptcalc.families.family import Layer
from gptcalc.families.gemma2 import Gemma2
from gptcalc.parts.block import Block


class VaultGemma(Gemma2):
    """transformers' `VaultGemmaForCausalLM`."""

    model_type = "vaultgemma"

    def block(self, layer: Layer) -> Block:
        """Norm, attention, add; norm, MLP, add."""
        return Block(
            attention_norm=self.norm("input_layernorm"),
            attention=self.mixer(layer),
            mlp_norm=self.norm("pre_feedforward_layernorm"),
            mlp=self.mlp(layer),
        )
