"""CodeGen (Nijkamp et al. 2022): GPT-J with one layer for query, key and value."""

from gptcalc.families.family import Layer
from gptcalc.families.gptj import GPTJ
from gptcalc.parts.block import Block
from gptcalc.spec import whole


class CodeGen(GPTJ):
    """transformers' `CodeGenForCausalLM`; the fused layer was cut for four TPU cores."""

    model_type = "codegen"

    def block(self, layer: Layer) -> Block:
        """GPT-J's layer with a fused projection."""
        whole(self.n_heads, 4, "n_heads", "the cores that the fused layer was cut for,")
        attention = self.attention("attn", layer, qkv_names=("qkv_proj",), out_name="out_proj", fused_by="quarters")
        return super().block(layer).model_copy(update={"attention": attention})
