"""The reference decoder says what each of its numbers belongs to, and says it of the numbers that forward uses."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from gptcalc.modules import build

if TYPE_CHECKING:
    from conftest import Toy


def test_every_number_is_itemised_once(toy: Toy) -> None:
    """Numbered through, every element is yielded exactly once; a tied unembedding is the table again."""
    decoder = build(toy.spec).double()
    first = 0
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.arange(first, first + parameter.numel()).view_as(parameter))
            first += parameter.numel()
    tied = toy.spec.unembedding.tied
    items = [(key, tensor) for key, tensor in decoder.itemise() if not (tied and key == "unembedding")]
    numbers = torch.cat([tensor.detach().flatten() for _, tensor in items]).sort().values
    assert torch.equal(numbers, torch.arange(first, dtype=torch.float64))
    if tied:
        (shared,) = [tensor for key, tensor in decoder.itemise() if key == "unembedding"]
        assert shared is decoder.trunk.token_weight


def test_components_of_gpt2(gpt2_toy: Toy) -> None:
    """GPT-2's fused layer counts as query, key and value; nothing but the known components is yielded."""
    with torch.device("meta"):
        counted = _by_component(build(gpt2_toy.spec).itemise())
    d, f, v, c, layers = 30, 71, 67, 19, 2
    assert counted == {
        "embedding": v * d,
        "positions": c * d,
        **dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_o"), layers * d * d),
        **dict.fromkeys(("attn_q_bias", "attn_k_bias", "attn_v_bias", "attn_o_bias"), layers * d),
        "mlp_up": layers * d * f,
        "mlp_up_bias": layers * f,
        "mlp_down": layers * d * f,
        "mlp_down_bias": layers * d,
        "norm_weight": (2 * layers + 1) * d,
        "norm_bias": (2 * layers + 1) * d,
        "unembedding": v * d,
    }


def test_components_of_mixtral(mixtral_toy: Toy) -> None:
    """Mixtral's fused experts count as gate, up and down; one token uses two experts of five."""
    decoder = build(mixtral_toy.spec)
    counted = _by_component(decoder.itemise())
    d, f, v, n, k, h, e, layers = 33, 35, 71, 6, 3, 10, 5, 2
    assert counted == {
        "embedding": v * d,
        **dict.fromkeys(("attn_q", "attn_o"), layers * n * h * d),
        **dict.fromkeys(("attn_k", "attn_v"), layers * k * h * d),
        "router": layers * e * d,
        **dict.fromkeys(("experts_gate", "experts_up", "experts_down"), layers * e * f * d),
        "norm_weight": (2 * layers + 1) * d,
        "unembedding": v * d,
    }
    assert decoder.active_elements() == sum(counted.values()) - 3 * layers * 3 * f * d


def test_active_is_all_without_experts(gpt2_toy: Toy) -> None:
    """Without experts a token uses every parameter, a tied table once."""
    decoder = build(gpt2_toy.spec)
    assert decoder.active_elements() == sum(parameter.numel() for parameter in decoder.parameters())


def _by_component(items) -> dict[str, int]:  # noqa: ANN001  (component, tensor) pairs
    counted: Counter[str] = Counter()
    for key, tensor in items:
        counted[key] += tensor.numel()
    return dict(counted)


def _slices(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {key: tensor.detach() for key, tensor in module.itemise()}


def test_attention_slices_are_those_of_forward(grouped_fused_toy: Toy) -> None:
    """With the query slice zero, keys do not matter; with the value slice zero, nothing comes out."""
    attention = grouped_fused_toy.decoder().eval().trunk.list_of_layers[0].attn
    slices, x = _slices(attention), torch.randn(2, 7, grouped_fused_toy.spec.d_model)
    assert {key: tuple(tensor.shape) for key, tensor in slices.items()} == {
        "attn_q": (30, 48),
        "attn_k": (30, 16),
        "attn_v": (30, 16),
        "attn_o": (48, 30),
    }
    with torch.no_grad():
        before = attention(x)
        slices["attn_q"].zero_()
        uniform = attention(x)
        slices["attn_k"].normal_()
        assert torch.equal(attention(x), uniform)
        assert not torch.allclose(before, uniform)
        slices["attn_v"].zero_()
        assert not attention(x).any()


def test_expert_slices_are_those_of_forward(mixtral_toy: Toy) -> None:
    """Doubling the up slice doubles what the experts give; doubling the gate slice does not."""
    mlp = mixtral_toy.decoder().eval().trunk.list_of_layers[0].mlp
    slices, x = _slices(mlp), torch.randn(2, 7, mixtral_toy.spec.d_model)
    with torch.no_grad():
        before = mlp(x)
        slices["experts_up"].mul_(2)
        doubled = mlp(x)
        torch.testing.assert_close(doubled, 2 * before)
        slices["experts_gate"].mul_(2)
        assert not torch.allclose(mlp(x), 2 * doubled)


def test_gated_slices_are_those_of_forward(llama_toy: Toy) -> None:
    """Doubling the up layer doubles what a gated MLP gives; doubling the gate does not."""
    mlp = llama_toy.decoder().eval().trunk.list_of_layers[0].mlp
    slices, x = _slices(mlp), torch.randn(2, 7, llama_toy.spec.d_model)
    with torch.no_grad():
        before = mlp(x)
        slices["mlp_up"].mul_(2)
        doubled = mlp(x)
        torch.testing.assert_close(doubled, 2 * before)
        slices["mlp_gate"].mul_(2)
        assert not torch.allclose(mlp(x), 2 * doubled)
