"""Gemma 1 (Gemma Team 2024): Llama's stack with wide heads, scaled token rows, and norms that gain 1 + weight."""

from collections.abc import Mapping
from typing import ClassVar

from gptcalc.families.family import without
from gptcalc.families.llama import Llama
from gptcalc.parts.embedding import TokenEmbedding
from gptcalc.parts.norm import RMSNorm
from gptcalc.spec import AnyPart


class Gemma(Llama):
    """transformers' `GemmaForCausalLM`, which reads the activation `gelu` as its tanh approximation."""

    model_type = "gemma"
    huggingface = without(Llama.huggingface, "mlp_bias")
    ignored: ClassVar[frozenset[str]] = frozenset({"hidden_activation"})
    plain: ClassVar[Mapping[str, tuple[object, ...]]] = {"use_bidirectional_attention": (None, False)}
    defaults = {
        **Llama.defaults,
        "n_vocab": 256000,
        "n_ctx": 8192,
        "d_model": 3072,
        "n_layers": 28,
        "n_heads": 16,
        "n_kv_heads": 16,
        "d_head": 256,
        "d_ff": 24576,
        "activation": "gelu_pytorch_tanh",
        "tied": True,
    }

    @classmethod
    def translate(cls, values: Mapping[str, object], where: str) -> dict[str, object]:
        """As every family's, with the activation that the class takes for `gelu`."""
        own = super().translate(values, where)
        return own | {"activation": "gelu_pytorch_tanh"} if own.get("activation") == "gelu" else own

    def norm(self, name: str) -> RMSNorm:
        """An RMSNorm whose weight is what its gain adds to 1."""
        return RMSNorm(name=name, eps=self.norm_eps, unit_offset=True)

    def parts(self) -> dict[str, AnyPart | None]:
        """Token rows times √D."""
        return {"embedding": TokenEmbedding(name=self.layout.tokens, dropout=self.embedding_dropout, scaled=True)}
