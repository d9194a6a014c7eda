"""BioGPT (Luo et al. 2022): GPT-2's stack under fairseq's names, token rows scaled by √D."""

from gptcalc.families.family import Family, Layer, Layout
from gptcalc.parts.block import Block
from gptcalc.parts.embedding import TokenEmbedding
from gptcalc.parts.norm import LayerNorm
from gptcalc.parts.positions import LearnedPositions
from gptcalc.spec import AnyPart, Flag


class BioGPT(Family):
    """transformers' `BioGptForCausalLM`; its ε is always 1e-5, whatever `layer_norm_eps` says."""

    model_type = "biogpt"
    huggingface = {
        "vocab_size": ("n_vocab",),
        "max_position_embeddings": ("n_ctx",),
        "hidden_size": ("d_model",),
        "num_hidden_layers": ("n_layers",),
        "num_attention_heads": ("n_heads",),
        "intermediate_size": ("d_ff",),
        "hidden_act": ("activation",),
        "tie_word_embeddings": ("tied",),
        "scale_embedding": ("scale_embedding",),
        "hidden_dropout_prob": ("embedding_dropout", "residual_dropout"),
        "attention_probs_dropout_prob": ("attention_dropout",),
    }
    ignored = frozenset({"layer_norm_eps"})
    plain = {"activation_dropout": (0,), "layerdrop": (0,)}
    layout = Layout(
        trunk="biogpt",
        layers="layers",
        tokens="embed_tokens",
        positions="embed_positions",
        final_norm="layer_norm",
        unembedding="output_projection",
    )
    defaults = {
        "n_vocab": 42384,
        "n_ctx": 1024,
        "d_model": 1024,
        "n_layers": 24,
        "n_heads": 16,
        "d_ff": 4096,
        "activation": "gelu",
        "tied": True,
        "positions": "learned",
        "bias": True,
        "norm_eps": 1e-5,
        "embedding_dropout": 0.1,
        "attention_dropout": 0.1,
        "residual_dropout": 0.1,
        "scale_embedding": True,
    }

    scale_embedding: Flag

    def norm(self, name: str) -> LayerNorm:
        """A LayerNorm."""
        return self.layer_norm(name)

    def block(self, layer: Layer) -> Block:
        """Norm, attention, add; norm, MLP, whose layers stand in the block itself, add."""
        return Block(
            attention_norm=self.norm("self_attn_layer_norm"),
            attention=self.attention("self_attn", layer, out_name="out_proj"),
            mlp_norm=self.norm("final_layer_norm"),
            mlp=self.dense_mlp("", "fc1", "fc2"),
        )

    def parts(self) -> dict[str, AnyPart | None]:
        """Scaled token rows, and a position table of which two rows belong to padding."""
        names = self.layout
        embedding = TokenEmbedding(name=names.tokens, dropout=self.embedding_dropout, scaled=self.scale_embedding)
        if self.positions != "learned":
            return {"embedding": embedding}
        return {"embedding": embedding, "positions": LearnedPositions(name=names.positions, offset=2)}
