"""XGLM (Lin et al. 2022): BioGPT's stack with fixed sinusoids for positions."""

from gptcalc.families.biogpt import BioGPT
from gptcalc.parts.positions import SinusoidalPositions
from gptcalc.spec import AnyPart


class XGLM(BioGPT):
    """transformers' `XGLMForCausalLM`."""

    model_type = "xglm"
    huggingface = {
        "vocab_size": ("n_vocab",),
        "max_position_embeddings": ("n_ctx",),
        "d_model": ("d_model",),
        "hidden_size": ("d_model",),
        "num_layers": ("n_layers",),
        "num_hidden_layers": ("n_layers",),
        "attention_heads": ("n_heads",),
        "num_attention_heads": ("n_heads",),
        "ffn_dim": ("d_ff",),
        "activation_function": ("activation",),
        "tie_word_embeddings": ("tied",),
        "scale_embedding": ("scale_embedding",),
        "dropout": ("embedding_dropout", "residual_dropout"),
        "attention_dropout": ("attention_dropout",),
    }
    ignored = frozenset()
    layout = BioGPT.layout._replace(trunk="model", unembedding="lm_head")
    defaults = {**BioGPT.defaults, "n_vocab": 256008, "n_ctx": 2048, "positions": "sinusoidal"}

    def parts(self) -> dict[str, AnyPart | None]:
        """BioGPT's; the sinusoids begin at 2, too, and sines and cosines are not interleaved."""
        if self.positions != "sinusoidal":
            return super().parts()
        return {**super().parts(), "positions": SinusoidalPositions(name=self.layout.positions, halves=True, offset=2)}
