"""Latent attention: keys and values are kept as one short vector for each token."""

from collections.abc import Iterator
from typing import Literal

from gptcalc.formula import Dim, Product
from gptcalc.inventory import Weight, Weighted, linear
from gptcalc.parts.norm import RMSNorm
from gptcalc.parts.positions import Rotary
from gptcalc.parts.remembered import Remembered
from gptcalc.spec import Probability, Size, Spec


class LatentAttention(Weighted):
    """N heads whose keys and values come from a latent vector of width R (DeepSeek-AI 2024, DeepSeek-V2, §2.1).

    A head's query and key are a part without positions (size Hn) and a rotated one (size Hr), which all heads share on
    the key's side; its value has size Hv. The query comes from a latent vector of width Rq, or straight from D where
    there is no `q_rank`.
    """

    without_ops = None
    kind: Literal["latent"] = "latent"
    n_heads: Size
    kv_rank: Size
    q_rank: Size | None = None
    d_nope: Size
    d_rope: Size
    d_value: Size
    bias: bool = False
    norm_eps: float = 1e-6
    rotary: Rotary
    scale: float | None = None
    dropout: Probability = 0.0

    def weights(self, spec: Spec) -> Iterator[Weight]:
        """Down to the latents (Rq, D) and (R+Hr, D), their norms, up to the heads, and the output (D, N·Hv)."""
        width, heads = (Dim("D", spec.d_model),), Dim("N", self.n_heads)
        plain, rotated = Dim("Hn", self.d_nope), Dim("Hr", self.d_rope)

        def query(key: str) -> list[tuple[str, Product]]:
            return [(key, (heads, plain)), (key, (heads, rotated))]

        if self.q_rank is None:
            yield from linear("q_proj", query("attn_q"), width, bias=False)
        else:
            rank = (Dim("Rq", self.q_rank),)
            yield from linear("q_a_proj", [("mla_q_a", rank)], width, bias=self.bias)
            yield from self._norm("q_a_layernorm", rank)
            yield from linear("q_b_proj", query("mla_q_b"), rank, bias=False)
        rank = (Dim("R", self.kv_rank),)
        both = [("mla_kv_a", rank), ("mla_kv_a", (rotated,))]
        yield from linear("kv_a_proj_with_mqa", both, width, bias=self.bias)
        yield from self._norm("kv_a_layernorm", rank)
        value = (heads, Dim("Hv", self.d_value))
        yield from linear("kv_b_proj", [("mla_kv_b", (heads, plain)), ("mla_kv_b", value)], rank, bias=False)
        yield from linear("o_proj", [("attn_o", width)], value, bias=self.bias)

    def remembered(self) -> Remembered:
        """The latent vector of each token, and the rotated key that all heads share."""
        return Remembered("latent", ((Dim("R", self.kv_rank),), (Dim("Hr", self.d_rope),)))

    def _norm(self, name: str, rank: Product) -> Iterator[Weight]:
        for row in RMSNorm(name=name, eps=self.norm_eps).over("qk_norm", rank):
            yield row._replace(name=f"{name}.{row.name}")
