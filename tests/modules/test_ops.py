"""The switches between devices: what is written for meta is, op by op, what torch runs elsewhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from gptcalc.errors import GptcalcError
from gptcalc.modules import build, ops

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from conftest import Toy

HEADS = {"equal": (4, 4), "grouped": (4, 2)}
#: Names of what other ops make up, and of empty memory.
WHOLES = {
    *("aten::scaled_dot_product_attention", "aten::_scaled_dot_product_attention_math", "aten::_safe_softmax"),
    *("aten::dropout", "aten::empty"),
}


def _projected(heads: tuple[int, int], dtype: torch.dtype = torch.float32, device: str = "cpu") -> list[torch.Tensor]:
    """Query, key and value as attention has them: views of (B, T, heads, H)."""
    torch.manual_seed(0)
    sizes = [(2, 7, n_heads, 8) for n_heads in (heads[0], heads[1], heads[1])]
    made = [torch.randn(size, device=device, dtype=dtype) for size in sizes]
    return [x.requires_grad_().transpose(1, 2) for x in made]


def _ops_of(run: Callable[[], torch.Tensor], inputs: list[torch.Tensor]) -> list[str]:
    """What torch's profiler sees of the forward and the backward pass, without the names of wholes."""
    with torch.autograd.profiler.profile(use_kineto=False) as profile:
        torch.autograd.grad(run().sum(), inputs)
    names = [event.name for event in profile.function_events]
    return [name for name in names if name.startswith("aten::") and name not in WHOLES]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dropout_p", [0.0, 0.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_math_is_torchs_own_op_by_op(
    heads: tuple[int, int], dtype: torch.dtype, dropout_p: float, *, causal: bool
) -> None:
    """Attention written out for meta gives, on a CPU, what torch's math kernel gives, by the same ops in order."""
    inputs = _projected(heads, dtype)

    def theirs() -> torch.Tensor:
        torch.manual_seed(3)
        with sdpa_kernel(SDPBackend.MATH):
            return functional.scaled_dot_product_attention(
                *inputs, dropout_p=dropout_p, is_causal=causal, enable_gqa=heads[0] != heads[1]
            )

    def ours() -> torch.Tensor:
        torch.manual_seed(3)
        return ops._math(*inputs, dropout_p, causal)

    assert torch.equal(ours(), theirs())
    assert _ops_of(ours, inputs) == _ops_of(theirs, inputs)


@pytest.mark.parametrize("heads", HEADS.values(), ids=HEADS)
def test_eager_equals_torchs_attention(heads: tuple[int, int]) -> None:
    """Products, softmax and a mask that is added give what torch's fused attention gives."""
    inputs = _projected(heads)
    mask = ops.mask(inputs[0].transpose(1, 2), 0, ops.Sight())
    ours = ops.attention(*inputs, backend="eager", causal=True, mask=mask)
    torch.testing.assert_close(ours, ops.attention(*inputs, causal=True), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["flash", "cudnn", "efficient", "math", "eager"])
@pytest.mark.parametrize("size", [8, 10])
def test_every_backend_has_its_shape_on_meta(backend: str, size: int) -> None:
    """On meta each backend gives (B, N, T, H), and gradients of the shapes of query, key and value."""
    inputs = [torch.empty(2, 7, 4, size, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(3)]
    views = [x.transpose(1, 2) for x in inputs]
    joined = ops.attention(*views, backend=backend, dropout_p=0.1, causal=backend != "eager")
    assert joined.shape == (2, 4, 7, size)
    joined.sum().backward()
    assert [x.grad.shape for x in inputs] == [x.shape for x in inputs]


def test_flash_pads_odd_head_sizes() -> None:
    """Flash keeps heads of a multiple of eight: of size 10 it keeps padded copies of 16, as CUDA does."""
    kept: list[tuple[int, ...]] = []
    inputs = [torch.empty(2, 4, 7, 10, dtype=torch.bfloat16, device="meta", requires_grad=True) for _ in range(3)]
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)), lambda x: x):
        ops.attention(*inputs, backend="flash", causal=True)
    assert kept.count((2, 4, 7, 16)) == 4
    assert (2, 4, 7, 10) not in kept


@pytest.mark.parametrize(
    ("backend", "dtype", "heads", "words"),
    [
        ("auto", torch.bfloat16, "equal", "read 'auto' on the meta device"),
        ("flash", torch.float32, "equal", "read 'flash' with torch.float32"),
        ("cudnn", torch.float32, "equal", "read 'cudnn' with torch.float32"),
        ("efficient", torch.float32, "grouped", "read 'efficient' with grouped heads"),
        ("flish", torch.float32, "equal", "read 'flish'; nearest: flash"),
    ],
)
def test_impossible_attention_is_refused(backend: str, dtype: torch.dtype, heads: str, words: str) -> None:
    """What CUDA has no kernel for is an error, never traced as something else."""
    with pytest.raises(GptcalcError, match=words):
        ops.attention(*_projected(HEADS[heads], dtype, "meta"), backend=backend, causal=True)


def test_unknown_attention_is_refused_when_built(gpt2_toy: Toy) -> None:
    """A decoder is not built with an attention that does not exist."""
    with pytest.raises(GptcalcError, match="attention: read 'flush'; nearest: flash"):
        build(gpt2_toy.spec, attention="flush")


@pytest.mark.parametrize("attention", ["math", "eager"])
@pytest.mark.parametrize("name", ["gpt2", "llama-grouped"])
def test_decoder_uses_the_attention_it_is_given(toys: Mapping[str, Toy], name: str, attention: str) -> None:
    """With math or eager attention, logits equal those of what torch picks; the eager mask is made once a pass."""
    toy, made = toys[name], []
    decoder, other = toy.decoder().eval(), build(toy.spec, attention=attention).eval()
    other.load_state_dict(decoder.state_dict())
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(ops, "mask", lambda *how, make=ops.mask: made.append(how) or make(*how))
        torch.testing.assert_close(other(toy.tokens()).logits, decoder(toy.tokens()).logits, rtol=1e-5, atol=1e-5)
    assert len(made) == (attention == "eager")


def test_dropout_keeps_a_mask_of_bool_on_meta() -> None:
    """On meta, dropout keeps one byte an element, as on CUDA; at probability zero and in evaluation it is nothing."""
    kept: list[torch.Tensor] = []
    x = torch.empty(5, 3, device="meta", requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda t: t):
        dropped = ops.dropout(x, 0.1, training=True)
        assert ops.dropout(x, 0.0, training=True) is x
        assert ops.dropout(x, 0.1, training=False) is x
    assert dropped.shape == x.shape
    assert [(tensor.dtype, tensor.shape) for tensor in kept] == [(torch.bool, (5, 3))]


def test_rms_norm_is_the_formula() -> None:
    """RMSNorm is x / √(mean(x²) + ε) · weight, computed in fp32 for bf16."""
    torch.manual_seed(0)
    x, weight = torch.randn(3, 11, dtype=torch.float64), torch.randn(11, dtype=torch.float64)
    expected = x / (x.pow(2).mean(-1, keepdim=True) + 0.1).sqrt() * weight
    torch.testing.assert_close(ops.rms_norm(x, weight, 0.1), expected)
    half = ops.rms_norm(x.bfloat16(), weight.bfloat16(), 0.1)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rms_norm_on_meta_keeps_what_the_fused_kernel_keeps(dtype: torch.dtype) -> None:
    """On meta, RMSNorm keeps x, the weight and 1/rms of each row in fp32, and gives both gradients."""
    kept: list[torch.Tensor] = []
    x = torch.empty(2, 3, 8, dtype=dtype, device="meta", requires_grad=True)
    weight = torch.empty(8, dtype=dtype, device="meta", requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        ops.rms_norm(x, weight, 1e-5).sum().backward()
    shapes = [(tensor.dtype, tuple(tensor.shape)) for tensor in kept]
    assert shapes == [(dtype, (2, 3, 8)), (dtype, (8,)), (torch.float32, (2, 3, 1))]
    assert [(grad.dtype, grad.shape) for grad in (x.grad, weight.grad)] == [(dtype, x.shape), (dtype, weight.shape)]
