"""GPT-2 (Radford et al. 2019) and GPT-3 (Brown et al. 2020: "the same model and architecture as GPT-2")."""

from gptcalc.families.family import Family, Layer, Layout
from gptcalc.parts.block import Block
from gptcalc.parts.norm import LayerNorm


class GPT2(Family):
    """transformers' `GPT2LMHeadModel`, with what nanoGPT and LLMs-from-scratch vary: biases, ties, positions."""

    model_type = "gpt2"
    ff_ratio = 4
    huggingface = {
        "vocab_size": ("n_vocab",),
        "n_positions": ("n_ctx",),
        "max_position_embeddings": ("n_ctx",),
        "n_embd": ("d_model",),
        "hidden_size": ("d_model",),
        "n_layer": ("n_layers",),
        "num_hidden_layers": ("n_layers",),
        "n_head": ("n_heads",),
        "num_attention_heads": ("n_heads",),
        "n_inner": ("d_ff",),
        "activation_function": ("activation",),
        "layer_norm_epsilon": ("norm_eps",),
        "tie_word_embeddings": ("tied",),
        "embd_pdrop": ("embedding_dropout",),
        "attn_pdrop": ("attention_dropout",),
        "resid_pdrop": ("residual_dropout",),
    }
    layout = Layout(trunk="transformer", layers="h", tokens="wte", positions="wpe", final_norm="ln_f")
    defaults = {
        "n_vocab": 50257,
        "n_ctx": 1024,
        "d_model": 768,
        "n_layers": 12,
        "n_heads": 12,
        "activation": "gelu_new",
        "tied": True,
        "positions": "learned",
        "bias": True,
        "norm_eps": 1e-5,
        "embedding_dropout": 0.1,
        "attention_dropout": 0.1,
        "residual_dropout": 0.1,
    }

    def norm(self, name: str) -> LayerNorm:
        """A LayerNorm."""
        return self.layer_norm(name)

    def block(self, layer: Layer) -> Block:
        """Norm, fused attention, add; norm, MLP, add. Weights are kept as (in, out)."""
        return Block(
            attention_norm=self.norm("ln_1"),
            attention=self.attention("attn", layer, qkv_names=("c_attn",), out_name="c_proj", transposed=True),
            mlp_norm=self.norm("ln_2"),
            mlp=self.dense_mlp("mlp", "c_fc", "c_proj", transposed=True),
        )
