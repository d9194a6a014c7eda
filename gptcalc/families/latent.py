"""What families with latent attention share (DeepSeek-AI 2024, DeepSeek-V2, §2.1)."""

from collections.abc import Mapping
from math import log
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field

from gptcalc.families.family import ROPE, Layer, without
from gptcalc.families.llama import Llama
from gptcalc.parts.latent import LatentAttention
from gptcalc.parts.positions import Rotary
from gptcalc.spec import AnyPart, Size, shared


class Latent(Llama):
    """A stack whose attention keeps a latent vector of width `kv_rank` and one rotated key of `d_rope` for a token."""

    huggingface = without(Llama.huggingface, "head_dim", "partial_rotary_factor", "mlp_bias") | {
        "kv_lora_rank": ("kv_rank",),
        "q_lora_rank": ("q_rank",),
        "qk_nope_head_dim": ("d_nope",),
        "qk_rope_head_dim": ("d_rope",),
        "v_head_dim": ("d_value",),
        "attention_bias": ("qkv_bias", "out_bias"),
    }
    #: The class computes both from the sizes above.
    ignored: ClassVar[frozenset[str]] = frozenset({"head_dim", "qk_head_dim"})

    kv_rank: Size
    q_rank: Size | None = None
    d_nope: Size
    d_rope: Size
    #: D/N where it is not given.
    d_value: Size | None = None
    rope_interleaved: Annotated[bool, Field(strict=True)] = True
    #: What YaRN multiplies the scores by (Peng et al. 2024, §3.4, with DeepSeek's `mscale_all_dim`).
    yarn_scale: Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] = 1.0

    @classmethod
    def translate(cls, values: Mapping[str, object], where: str) -> dict[str, object]:
        """As every family's, with the scale that YaRN's parameters stand for."""
        own = super().translate(values, where)
        rope = next((rope for key in reversed(ROPE) if isinstance(rope := values.get(key), Mapping)), {})
        strength, factor = rope.get("mscale_all_dim"), rope.get("factor")
        if not (isinstance(strength, int | float) and isinstance(factor, int | float)):
            return own
        if own.get("rope_scaling") and strength and factor > 1:
            own["yarn_scale"] = (0.1 * strength * log(factor) + 1.0) ** 2
        return own

    @property
    def heads(self) -> tuple[int, int, int]:
        """(N, N, Hn+Hr): every head has a key of its own, made from what all share."""
        return self.n_heads, self.n_heads, self.d_nope + self.d_rope

    def override(self, changes: Mapping[str, object], where: str) -> Self:
        """As every family's; heads do not follow `d_model`, from which their size does not come."""
        kept = {"n_heads": self.n_heads} if "d_model" in changes else {}
        return super().override(kept | dict(changes), where)

    def rotary(self, layer: Layer) -> Rotary | None:
        """Rotations of the part of query and key that has positions."""
        return Rotary(theta=self.rope_theta, scaling=self.rope_scaling, interleaved=self.rope_interleaved)

    def mixer(self, layer: Layer) -> AnyPart:
        """Latent attention."""
        return self.latent(layer)

    def latent(self, layer: Layer, **published: Any) -> LatentAttention:
        """Attention over what the latent vectors are widened to."""
        size = self.d_nope + self.d_rope
        return LatentAttention(
            name="self_attn",
            n_heads=self.n_heads,
            kv_rank=self.kv_rank,
            q_rank=self.q_rank,
            d_nope=self.d_nope,
            d_rope=self.d_rope,
            d_value=self.d_value or shared(self.d_model, self.n_heads, "n_heads", "d_model"),
            bias=self.has_bias("out_bias"),
            rotary=self.rotary(layer),
            scale=None if self.yarn_scale == 1 else self.yarn_scale * size**-0.5,
            dropout=self.attention_dropout,
            **published,
        )
