"""BLOOM (BigScience 2022): a norm on the token rows, and scores that fall with the distance (ALiBi)."""

from gptcalc.families.family import Family, Layer, Layout
from gptcalc.parts.block import Block
from gptcalc.parts.norm import LayerNorm
from gptcalc.spec import AnyPart


class Bloom(Family):
    """transformers' `BloomForCausalLM`; its GELU is the tanh approximation, its MLP always 4·D wide.

    The class has no context length: `seq_length` is what the published models were trained on.
    """

    model_type = "bloom"
    huggingface = {
        "vocab_size": ("n_vocab",),
        "seq_length": ("n_ctx",),
        "hidden_size": ("d_model",),
        "n_layer": ("n_layers",),
        "num_hidden_layers": ("n_layers",),
        "n_head": ("n_heads",),
        "num_attention_heads": ("n_heads",),
        "layer_norm_epsilon": ("norm_eps",),
        "tie_word_embeddings": ("tied",),
        "hidden_dropout": ("residual_dropout",),
        "attention_dropout": ("attention_dropout",),
    }
    old_names = {"n_embed": "hidden_size"}
    ignored = frozenset(
        """
        attention_softmax_in_fp32 bias_dropout_fusion masked_softmax_fusion n_inner offset_alibi skip_bias_add
        skip_bias_add_qkv unk_token_id
        """.split()
    )
    plain = {"apply_residual_connection_post_layernorm": (False,), "slow_but_exact": (False,)}
    ff_ratio = 4
    layout = Layout(
        trunk="transformer", layers="h", tokens="word_embeddings", positions="position_embeddings", final_norm="ln_f"
    )
    defaults = {
        "n_vocab": 250880,
        "n_ctx": 2048,
        "d_model": 64,
        "n_layers": 2,
        "n_heads": 8,
        "activation": "gelu_pytorch_tanh",
        "tied": True,
        "positions": "alibi",
        "bias": True,
        "norm_eps": 1e-5,
    }

    def norm(self, name: str) -> LayerNorm:
        """A LayerNorm."""
        return self.layer_norm(name)

    def block(self, layer: Layer) -> Block:
        """Norm, fused attention, add; norm, MLP, add."""
        return Block(
            attention_norm=self.norm("input_layernorm"),
            attention=self.attention(
                "self_attention", layer, qkv_names=("query_key_value",), out_name="dense", fused_by="groups"
            ),
            mlp_norm=self.norm("post_attention_layernorm"),
            mlp=self.dense_mlp("mlp", "dense_h_to_4h", "dense_4h_to_h"),
        )

    def parts(self) -> dict[str, AnyPart | None]:
        """A norm on the token rows."""
        return {"embedding_norm": self.norm("word_embeddings_layernorm")}
