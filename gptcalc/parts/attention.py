"""Attention: who looks at whom."""

from collections.abc import Iterator
from typing import Literal

from gptcalc.formula import Dim
from gptcalc.inventory import Weight, Weighted, linear
from gptcalc.parts.positions import Rotary
from gptcalc.spec import Probability, Size, Spec


class MultiHeadAttention(Weighted):
    """N query heads of size H over K key/value heads (K = N: Vaswani et al. 2017; K < N: Ainslie et al. 2023).

    Three `qkv_names` are three layers, one name is a fused layer whose rows are query, key and value in this order.
    `transposed` keeps weights as (in, out).
    """

    kind: Literal["multi_head"] = "multi_head"
    n_heads: Size
    n_kv_heads: Size
    d_head: Size
    qkv_bias: bool
    out_bias: bool
    qkv_names: tuple[str] | tuple[str, str, str] = ("q_proj", "k_proj", "v_proj")
    out_name: str = "o_proj"
    transposed: bool = False
    rotary: Rotary | None = None
    dropout: Probability = 0.0
    residual_dropout: Probability = 0.0

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """Query (N·H, D), key and value (K·H, D), output (D, N·H), and their biases."""
        width, size = (Dim("D", spec.d_model),), Dim("H", self.d_head)
        query, shared = (Dim("N", self.n_heads), size), (Dim("K", self.n_kv_heads), size)
        outputs = [("attn_q", query), ("attn_k", shared), ("attn_v", shared)]
        layers = [outputs] if len(self.qkv_names) == 1 else [[output] for output in outputs]
        for name, computed in zip(self.qkv_names, layers, strict=True):
            yield from linear(name, computed, width, bias=self.qkv_bias, transposed=self.transposed)
        output = [("attn_o", width)]
        yield from linear(self.out_name, output, query, bias=self.out_bias, transposed=self.transposed)
