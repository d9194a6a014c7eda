"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023): attention and MLP side by side, a quarter rotated."""

from gptcalc.families.family import Family, Layer, Layout
from gptcalc.parts.block import Block
from gptcalc.parts.norm import LayerNorm
from gptcalc.spec import Flag


class GPTNeoX(Family):
    """transformers' `GPTNeoXForCausalLM`; query, key and value lie together for each head."""

    model_type = "gpt_neox"
    huggingface = {
        "vocab_size": ("n_vocab",),
        "max_position_embeddings": ("n_ctx",),
        "hidden_size": ("d_model",),
        "num_hidden_layers": ("n_layers",),
        "num_attention_heads": ("n_heads",),
        "intermediate_size": ("d_ff",),
        "hidden_act": ("activation",),
        "layer_norm_eps": ("norm_eps",),
        "tie_word_embeddings": ("tied",),
        "attention_bias": ("qkv_bias", "out_bias"),
        "use_parallel_residual": ("use_parallel_residual",),
        "attention_dropout": ("attention_dropout",),
        "hidden_dropout": ("embedding_dropout", "residual_dropout"),
        "rotary_emb_base": ("rope_theta",),
        "rotary_pct": ("rotary_fraction",),
    }
    nested = ("rope_parameters", "rope_scaling")
    ignored = frozenset({"attention_probs_dropout_prob", "hidden_dropout_prob"})
    layout = Layout(
        trunk="gpt_neox",
        layers="layers",
        tokens="embed_in",
        positions="embed_positions",
        final_norm="final_layer_norm",
    )
    defaults = {
        "n_vocab": 50432,
        "n_ctx": 2048,
        "d_model": 6144,
        "n_layers": 44,
        "n_heads": 64,
        "d_ff": 24576,
        "activation": "gelu",
        "tied": False,
        "positions": "rotary",
        "bias": True,
        "norm_eps": 1e-5,
        "rotary_fraction": 0.25,
        "use_parallel_residual": True,
    }

    use_parallel_residual: Flag

    def norm(self, name: str) -> LayerNorm:
        """A LayerNorm."""
        return self.layer_norm(name)

    def block(self, layer: Layer) -> Block:
        """Both halves have their own norm, in parallel or one after the other."""
        return Block(
            order="parallel" if self.use_parallel_residual else "pre",
            attention_norm=self.norm("input_layernorm"),
            attention=self.attention(
                "attention", layer, qkv_names=("query_key_value",), out_name="dense", fused_by="groups"
            ),
            mlp_norm=self.norm("post_attention_layernorm"),
            mlp=self.dense_mlp("mlp", "dense_h_to_4h", "dense_4h_to_h"),
        )
