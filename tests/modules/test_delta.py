"""Linear attention against transformers' class: the same numbers, in chunks and token by token."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch

from gptcalc.modules.delta import GatedDeltaNet, _Inverse, _Scan
from gptcalc.modules.itemised import Dims
from gptcalc.modules.passing import Pass

WIDTH = 24
#: Nk, Nv, Hk, Hv, kernel.
SIZES = [(2, 6, 8, 5, 4), (1, 1, 4, 3, 1), (3, 3, 7, 6, 3), (1, 2, 16, 8, 4)]
#: What autograd has the scan do.
KEEPS = True
#: Below a chunk, a chunk, one token more, two chunks and two.
LENGTHS = [1, 3, 64, 65, 130]


class Pair(NamedTuple):
    """Our module and transformers', with the same weights."""

    ours: GatedDeltaNet
    theirs: Any


def pair(sizes: tuple[int, ...]) -> Pair:
    """Both, with random weights."""
    qwen = pytest.importorskip("transformers.models.qwen3_next.modeling_qwen3_next")
    keys = ("num_key_heads", "num_value_heads", "key_head_dim", "value_head_dim", "conv_kernel_dim")
    linear = {f"linear_{key}": size for key, size in zip(keys, sizes, strict=True)}
    config = qwen.Qwen3NextConfig(hidden_size=WIDTH, num_hidden_layers=4, rms_norm_eps=1e-5, **linear)
    theirs = qwen.Qwen3NextGatedDeltaNet(config, 0).eval()
    names = ("n_key_heads", "n_value_heads", "d_key", "d_value", "kernel")
    ours = GatedDeltaNet(Dims(WIDTH, 7, 7), **dict(zip(names, sizes, strict=True)), norm_eps=1e-5).eval()
    torch.manual_seed(0)
    weights = {name: torch.randn_like(tensor) / 2 for name, tensor in theirs.state_dict().items()}
    theirs.load_state_dict(weights)
    ours.load_state_dict(weights)
    return Pair(ours, theirs)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("sizes", SIZES)
def test_outputs_and_gradients_are_those_of_the_class(sizes: tuple[int, ...], length: int) -> None:
    """Whatever the number of chunks, to fp32's rounding."""
    ours, theirs = pair(sizes)
    x, upstream = torch.randn(2, length, WIDTH), torch.randn(2, length, WIDTH)
    found = ours(x)
    torch.testing.assert_close(found, theirs(x), rtol=1e-5, atol=1e-4)
    found.backward(upstream)
    theirs(x).backward(upstream)
    expected = dict(theirs.named_parameters())
    for name, parameter in ours.named_parameters():
        scale = expected[name].grad.abs().max().clamp(min=1e-6)  # one token alone does not decay
        torch.testing.assert_close(parameter.grad / scale, expected[name].grad / scale, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("prompt", "length"), [(1, 5), (2, 6), (64, 67), (65, 70), (130, 132)])
@pytest.mark.parametrize("sizes", SIZES)
def test_token_by_token_is_as_in_one_pass(sizes: tuple[int, ...], prompt: int, length: int) -> None:
    """A prompt leaves a state and the last inputs, from which each further token goes on."""
    ours, theirs = pair(sizes)
    x = torch.randn(3, length, WIDTH)
    with torch.no_grad():
        cache = ours.make_cache(3, length, torch.float32)
        parts = [ours(x[:, :prompt], Pass(), cache)]
        parts += [ours(x[:, at : at + 1], Pass(at), cache) for at in range(prompt, length)]
        torch.testing.assert_close(torch.cat(parts, 1), theirs(x), rtol=1e-5, atol=1e-4)


def test_tokens_that_are_all_the_same_cost_no_accuracy() -> None:
    """Keys that agree fully: powers of what they change grow beyond all bounds, blocks of its inverse do not."""
    below = -torch.ones(1, 64, 64).tril(-1)
    exact = torch.linalg.inv(torch.eye(64, dtype=torch.float64) - below.double())
    torch.testing.assert_close(_Inverse.apply(below).double(), exact, rtol=0, atol=1e-6)  # type: ignore[no-untyped-call]


def test_written_gradients_are_those_that_differences_give() -> None:
    """Of the inverse (below the diagonal, which is all that it reads) and of the scan over chunks."""
    torch.manual_seed(0)

    def wide(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    assert torch.autograd.gradcheck(lambda x: _Inverse.apply(x.tril(-1)), wide(2, 8, 8))  # type: ignore[no-untyped-call]
    n, g, length, key, value = 3, 2, 4, 3, 2
    steps = (
        wide(n, g, length, value),
        wide(n, g, length, key),
        wide(n, g, length, key),
        wide(n, g, length, length),
        wide(n, g, length, key),
        wide(n, g, 1, 1),
    )
    assert torch.autograd.gradcheck(lambda *x: _Scan.apply(*x, KEEPS)[0], steps, check_undefined_grad=False)  # type: ignore[no-untyped-call]


def test_all_of_it_is_linear_attention() -> None:
    """Every number once, under one key; names and shapes are those of the class."""
    ours, theirs = pair(SIZES[0])
    assert {key for key, _ in ours.itemise()} == {"linear_attn"}
    assert sum(tensor.numel() for _, tensor in ours.itemise()) == sum(tensor.numel() for tensor in ours.parameters())
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == {
        name: tensor.shape for name, tensor in theirs.state_dict().items()
    }


def test_decays_start_within_their_bounds() -> None:
    """A state is left with e^−16 to e^−0.01 of itself at a step of one, whose bias is one."""
    ours = GatedDeltaNet(Dims(8, 7, 7), n_key_heads=2, n_value_heads=400, d_key=2, d_value=2, kernel=2)
    decays = ours.A_log.exp()
    assert 0.01 <= decays.min() < 1
    assert 15 < decays.max() <= 16
    assert set(ours.dt_bias.tolist()) == {1}
