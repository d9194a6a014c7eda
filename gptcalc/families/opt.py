"""OPT (Zhang et al. 2022): GPT-3's sizes; the 350M model has norms after the adds, and narrower token rows."""

from collections.abc import Mapping
from typing import Self

from gptcalc.families.family import Family, Layer, Layout
from gptcalc.parts.block import Block
from gptcalc.parts.embedding import Projection, TokenEmbedding, Unembedding
from gptcalc.parts.norm import LayerNorm
from gptcalc.parts.positions import LearnedPositions
from gptcalc.spec import AnyPart, Flag, Size


class OPT(Family):
    """transformers' `OPTForCausalLM`; the first two rows of the position table belong to padding."""

    model_type = "opt"
    huggingface = {
        "vocab_size": ("n_vocab",),
        "max_position_embeddings": ("n_ctx",),
        "hidden_size": ("d_model",),
        "num_hidden_layers": ("n_layers",),
        "num_attention_heads": ("n_heads",),
        "ffn_dim": ("d_ff",),
        "word_embed_proj_dim": ("d_embed",),
        "activation_function": ("activation",),
        "tie_word_embeddings": ("tied",),
        "do_layer_norm_before": ("do_layer_norm_before",),
        "_remove_final_layer_norm": ("remove_final_layer_norm",),
        "layer_norm_elementwise_affine": ("learned_norms",),
        "enable_bias": ("qkv_bias", "out_bias", "mlp_bias"),
        "dropout": ("residual_dropout",),
        "attention_dropout": ("attention_dropout",),
    }
    ignored = frozenset({"activation_dropout"})
    plain = {"layerdrop": (0,)}
    layout = Layout(
        trunk="model.decoder",
        layers="layers",
        tokens="embed_tokens",
        positions="embed_positions",
        final_norm="final_layer_norm",
    )
    defaults = {
        "n_vocab": 50272,
        "n_ctx": 2048,
        "d_model": 768,
        "n_layers": 12,
        "n_heads": 12,
        "d_ff": 3072,
        "activation": "relu",
        "tied": True,
        "positions": "learned",
        "bias": True,
        "norm_eps": 1e-5,
        "residual_dropout": 0.1,
        "do_layer_norm_before": True,
        "remove_final_layer_norm": False,
        "learned_norms": True,
    }

    d_embed: Size | None = None
    do_layer_norm_before: Flag
    remove_final_layer_norm: Flag
    learned_norms: Flag

    @property
    def narrow(self) -> int | None:
        """The width of the token table, where it is not D."""
        return None if self.d_embed == self.d_model else self.d_embed

    def override(self, changes: Mapping[str, object], where: str) -> Self:
        """As every family's; a token table as wide as the model stays so."""
        follows = {"d_embed": changes["d_model"]} if self.narrow is None and changes.get("d_model") else {}
        return super().override(follows | dict(changes), where)

    def norm(self, name: str) -> LayerNorm:
        """A LayerNorm."""
        return self.layer_norm(name).model_copy(update={"learned": self.learned_norms})

    def block(self, layer: Layer) -> Block:
        """Norms before the parts, or after the adds; the MLP's layers stand in the block itself."""
        return Block(
            order="pre" if self.do_layer_norm_before else "post",
            attention_norm=self.norm("self_attn_layer_norm"),
            attention=self.attention("self_attn", layer, out_name="out_proj"),
            mlp_norm=self.norm("final_layer_norm"),
            mlp=self.dense_mlp("", "fc1", "fc2"),
        )

    def parts(self) -> dict[str, AnyPart | None]:
        """Projections to and from narrower token rows; no last norm where the layers end with one."""
        names, narrow = self.layout, self.narrow
        found: dict[str, AnyPart | None] = {
            "embedding": TokenEmbedding(name=names.tokens, dropout=self.embedding_dropout, d_embed=narrow),
            "unembedding": Unembedding(
                name=names.unembedding, tied=self.tied, bias=self.unembedding_bias, d_embed=narrow
            ),
        }
        if narrow is not None:
            found["embedding_projection"] = Projection(name="project_in", d_embed=narrow, widens=True)
            found["output_projection"] = Projection(name="project_out", d_embed=narrow, widens=False)
        if self.positions == "learned":
            found["positions"] = LearnedPositions(name=names.positions, offset=2)
        if self.remove_final_layer_norm or not self.do_layer_norm_before:
            found["final_norm"] = None
        return found
