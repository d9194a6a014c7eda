"""GLM 4 0414: GLM 4's stack with norms before and after each part."""

from gptcalc.families.family import Layer
from gptcalc.families.glm import GLM
from gptcalc.parts.block import Block


class GLM4(GLM):
    """transformers' `Glm4ForCausalLM`."""

    model_type = "glm4"

    def block(self, layer: Layer) -> Block:
        """Norm, attention, norm, add; norm, MLP, norm, add."""
        return Block(
            attention_norm=self.norm("input_layernorm"),
            attention=self.mixer(layer),
            attention_post_norm=self.norm("post_self_attn_layernorm"),
            mlp_norm=self.norm("post_attention_layernorm"),
            mlp=self.mlp(layer),
            mlp_post_norm=self.norm("post_mlp_layernorm"),
        )
