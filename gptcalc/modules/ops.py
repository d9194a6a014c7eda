"""What differs between devices, in one place: attention, dropout, RMSNorm and Mish.

On a real device torch chooses kernels by itself. On the meta device there are none to choose, and torch falls back on
what CUDA does not run: attention is written out, dropout keeps a mask of numbers, RMSNorm is decomposed. So for meta
tensors these functions name the op that CUDA runs, or make the allocations that its kernel makes, in its order.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from math import log2, sqrt
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from gptcalc.errors import InvalidValueError, UnknownNameError
from gptcalc.modules.checks import is_hollow

Backend = Literal["auto", "flash", "cudnn", "efficient", "math", "eager"]

_aten = torch.ops.aten
_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
BACKENDS = ("auto", *_KERNELS, "eager")
_HALF = (torch.float16, torch.bfloat16)
#: Rows of a mask whose numbers mem-efficient attention takes as they are are so far apart [sdp, preprocess_mask].
_MASK_ALIGNMENT = 8
#: The flash kernels want head sizes that are a multiple of this.
_FLASH_ALIGNMENT = 8


# --- Attention -------------------------------------------------------------------------------------------------------


def attention(  # noqa: PLR0913  what attention can be
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    backend: str = "auto",
    dropout_p: float = 0.0,
    causal: bool,
    mask: Tensor | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Query (B, N, T, H) over key and value (B, K, S, H), multiplied by `scale` (else 1/√H): (B, N, T, H).

    `backend` is a kernel of torch's `scaled_dot_product_attention`, or `auto` to let it pick, or `eager`: plain
    products, softmax and dropout, as transformers' GPT-2 has them. A kernel is told that it is `causal`, or is given a
    `mask` (…, T, S) that is added to the scores; eager always adds one. Only eager bounds scores by `softcap` and
    knows `sinks` (N), a score of nothing for each head. Which kernel torch picks is not known on meta: there `auto` is
    an error.
    """
    grouped = key.shape[1] < query.shape[1]
    _check(backend, query, value, grouped=grouped, masked=mask is not None)
    if backend == "eager":
        return _eager(query, key, value, dropout_p, mask, scale, softcap, sinks)
    if softcap is not None or sinks is not None:
        raise InvalidValueError(f"attention: read {backend!r} with softcap or sinks; allowed: eager")
    if is_hollow(query):
        return _without_kernels(backend, (query, key, value), dropout_p, causal=causal, mask=mask)
    with nullcontext() if backend == "auto" else sdpa_kernel(_KERNELS[backend]):
        return functional.scaled_dot_product_attention(
            query,
            key,
            value,
            attn_mask=mask,
            dropout_p=dropout_p,
            is_causal=causal and mask is None,
            scale=scale,
            enable_gqa=grouped,
        )


# --- Masks: what is added to the scores ------------------------------------------------------------------------------


class Sight(NamedTuple):
    """Who sees whom: a `window` of tokens, or `chunked` all since its last multiple; `alibi` is a number of heads.

    Their slopes are multiplied by `steepness`. For a kernel rows of a mask are `aligned`, else torch copies it for
    every layer (`preprocess_mask`).
    """

    window: int | None = None
    chunked: bool = False
    alibi: int = 0
    steepness: float = 1.0
    aligned: bool = False


def mask(like: Tensor, start: int, sight: Sight) -> Tensor:
    """What is added to the scores of the T tokens of `like` (B, T, …): (T, T), or (1, N, T, T) by heads.

    From `start` on there is one token that sees all that it is given, and only its distance to them may count.
    """
    seen = start + like.shape[1]
    width = -(-seen // _MASK_ALIGNMENT) * _MASK_ALIGNMENT if sight.aligned else seen
    if not sight.alibi:
        return _hidden(like, width, sight)[:, :seen]
    shift = _distances(like, width, sight.alibi, sight.steepness)
    if not start:
        shift = shift + _hidden(like, width, sight)
    return shift[None, :, :, :seen]


def _hidden(like: Tensor, width: int, sight: Sight) -> Tensor:
    """(T, width): −∞ for what is later, or too far back."""
    length = like.shape[1]
    hidden = torch.full((length, width), -torch.inf, dtype=like.dtype, device=like.device)
    if sight.window is None:
        return hidden.triu(1)
    if not sight.chunked:
        return hidden.triu(1) + hidden.tril(-sight.window)
    chunk = torch.arange(width, device=like.device) // sight.window
    return hidden.triu(1).masked_fill(chunk[:length, None] != chunk, -torch.inf)


def _distances(like: Tensor, width: int, n_heads: int, steepness: float) -> Tensor:
    """ALiBi (Press et al. 2022): (N, 1, width), for each head its slope times the position of the key.

    The slopes are powers of 2^(−8/N); where N is no power of two, those of the next one, every second one first.
    """
    power = 1 << (n_heads - 1).bit_length()
    first = 1 - log2(steepness) * power / 8  # 2^(−8·i/N) times the steepness
    last = first + power - 0.5
    slopes = 2.0 ** (torch.arange(first, last, dtype=torch.float32, device=like.device) * (-8 / power))
    if power > n_heads:
        slopes = torch.cat((slopes[1::2], slopes[::2]))[:n_heads]
    positions = torch.arange(width, dtype=torch.float32, device=like.device)
    return (slopes[:, None, None] * positions).to(like.dtype)


def check_backend(backend: str) -> None:
    """A name that `attention` knows."""
    if backend not in BACKENDS:
        raise UnknownNameError.near("attention", str(backend), BACKENDS)


def _check(backend: str, query: Tensor, value: Tensor, *, grouped: bool, masked: bool) -> None:
    check_backend(backend)
    if backend == "flash" and masked:
        raise InvalidValueError("attention: read 'flash' with a mask; allowed: cudnn, efficient, math, eager")
    if backend == "auto" and is_hollow(query):
        raise InvalidValueError("attention: read 'auto' on the meta device; allowed: the name of a kernel")
    if backend == "efficient" and grouped:
        raise InvalidValueError("attention: read 'efficient' with grouped heads; allowed: flash, cudnn, math, eager")
    if backend == "flash" and value.shape[-1] != query.shape[-1]:
        raise InvalidValueError(
            "attention: read 'flash' with values of another size than keys; allowed: cudnn, math, eager"
        )
    device = query.device.type
    dtype = (
        query.dtype if device == "meta" or not torch.is_autocast_enabled(device) else torch.get_autocast_dtype(device)
    )
    if backend in ("flash", "cudnn") and dtype not in _HALF:
        raise InvalidValueError(f"attention: read {backend!r} with {dtype}; allowed: torch.bfloat16, torch.float16")


def _eager(  # noqa: PLR0913, PLR0917  what attention takes
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float,
    mask: Tensor | None,
    scale: float | None,
    softcap: float | None,
    sinks: Tensor | None,
) -> Tensor:
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if softcap is not None:
        scores = (scores / softcap).tanh() * softcap
    if mask is not None:
        scores = scores + mask
    if sinks is not None:
        scores = torch.cat((scores, sinks.view(-1, 1, 1).expand(*scores.shape[:-1], 1)), dim=-1)
    scores = scores.softmax(dim=-1)
    if sinks is not None:
        scores = scores[..., :-1]
    scores = dropout(scores, dropout_p, training=True)
    return scores @ value


def _without_kernels(
    backend: str, given: tuple[Tensor, Tensor, Tensor], dropout_p: float, *, causal: bool, mask: Tensor | None
) -> Tensor:
    """The op that CUDA runs, by its own name, as under `torch.autocast`: what it reads is cast, and none of its steps.

    [autocast_mode.h, lower_precision_fp: scaled_dot_product_attention]
    """
    with ExitStack() as stack:
        if given[0].is_cuda and torch.is_autocast_enabled("cuda"):
            lower = torch.get_autocast_dtype("cuda")
            mask = None if mask is None else mask.to(lower)
            value, key, query = (x.to(lower) for x in reversed(given))
            given = query, key, value
            stack.enter_context(torch.autocast("cuda", enabled=False))
        return _BY_NAME[backend](*given, dropout_p, causal and mask is None, mask)


def _flash(  # noqa: PLR0913, PLR0917  what a kernel takes
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float,
    causal: bool,  # noqa: FBT001
    mask: Tensor | None,  # noqa: ARG001  it takes none
) -> Tensor:
    """`scaled_dot_product_attention` pads the head size, and cuts the output back."""
    size = query.shape[-1]
    if missing := -size % _FLASH_ALIGNMENT:
        query, key, value = (functional.pad(x, (0, missing)) for x in (query, key, value))
    padded: Tensor = _aten._scaled_dot_product_flash_attention(  # noqa: SLF001
        query, key, value, dropout_p, causal, scale=size**-0.5
    )[0]
    return padded[..., :size] if missing else padded


def _by_head(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor | None:
    """The mask as kernels want it, (B, N, T, S): seen so, not copied."""
    return None if mask is None else mask.expand(*query.shape[:-1], key.shape[-2])


def _with_mask(  # noqa: PLR0913, PLR0917  what a kernel takes
    op: Callable[..., tuple[Tensor, ...]],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float,
    causal: bool,  # noqa: FBT001
    mask: Tensor | None,
) -> Tensor:
    """The fused kernels that take a mask, and are told whether gradients will be wanted."""
    keeps = torch.is_grad_enabled() and query.requires_grad
    return op(query, key, value, _by_head(mask, query, key), keeps, dropout_p, causal)[0]


def _math(  # noqa: PLR0913, PLR0917  what a kernel takes
    query: Tensor,
    key: Tensor,
    value: Tensor,
    dropout_p: float,
    causal: bool,  # noqa: FBT001
    mask: Tensor | None = None,
) -> Tensor:
    """`_scaled_dot_product_attention_math` of torch's attention.cpp, op by op and name by name.

    Called on meta it would add the mask out of place (torch takes meta tensors for subclasses), and hide what
    `_safe_softmax` allocates. Half precision is computed in fp32; √scale goes to query and key each.
    """
    given = query.dtype
    wide = [x.float() if given in _HALF else x for x in (query, key, value)]
    factor = sqrt(query.shape[-1] ** -0.5)
    query = _aten.mul.Scalar(wide[0], factor)
    mask = _mask_of_math(query, wide[1]) if causal else mask
    groups = query.shape[1] // key.shape[1]
    key, value = wide[1:] if groups == 1 else [x.repeat_interleave(groups, dim=-3) for x in wide[1:]]
    scores = query @ _aten.mul.Scalar(key.transpose(-2, -1), factor)
    if mask is not None:
        scores.add_(mask)
    scores = cast(Tensor, _SafeSoftmax.apply(scores))  # type: ignore[no-untyped-call]
    scores = dropout(scores, dropout_p, training=True)
    returned = scores.to(given)  # the op's second output, which nobody reads
    joined = (scores @ value).to(given)
    del returned
    return joined


def _mask_of_math(query: Tensor, key: Tensor) -> Tensor:
    seen = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    return torch.where(seen, 0.0, torch.scalar_tensor(-torch.inf, dtype=query.dtype, device=query.device))


class _SafeSoftmax(torch.autograd.Function):
    """`aten._safe_softmax`: a row of −∞ gives zeros. The result alone is kept."""

    @staticmethod
    def forward(ctx: FunctionCtx, scores: Tensor) -> Tensor:
        """What the op runs, each with its allocation."""
        shares = scores.softmax(dim=-1)
        masked = scores.isneginf()
        rows = masked.all(dim=-1, keepdim=True)
        zero = torch.scalar_tensor(0.0, dtype=shares.dtype, device=shares.device)
        result = torch.where(rows, zero, shares)
        ctx.save_for_backward(result)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """As the derivative of `_safe_softmax`."""
        (result,) = ctx.saved_tensors
        return _aten._softmax_backward_data(grad, result, -1, grad.dtype)  # noqa: SLF001


_BY_NAME: dict[str, Callable[..., Tensor]] = {
    "flash": _flash,
    "cudnn": partial(_with_mask, _aten._scaled_dot_product_cudnn_attention),  # noqa: SLF001
    "efficient": partial(_with_mask, _aten._scaled_dot_product_efficient_attention),  # noqa: SLF001
    "math": _math,
}


class _DenseGradient(torch.autograd.Function):
    """The identity, whose gradient is copied where its rows do not lie side by side."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:  # noqa: ARG004  nothing is kept
        """X itself, seen anew."""
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # noqa: ARG004  nothing was kept
        """The gradient, dense."""
        return grad.contiguous()


def dense_gradient(x: Tensor) -> Tensor:
    """X, whose gradient will be dense: kernels that need it so would copy it for themselves, unseen."""
    return cast(Tensor, _DenseGradient.apply(x))  # type: ignore[no-untyped-call]


# --- Dropout ---------------------------------------------------------------------------------------------------------


def dropout(x: Tensor, p: float, training: bool) -> Tensor:  # noqa: FBT001  torch's signature
    """Zero elements with probability `p` in training; on meta, as on CUDA, the mask is kept as bool."""
    if not (x.is_meta and training and p):
        return functional.dropout(x, p, training)
    return cast(Tensor, _aten.native_dropout(x, p, True)[0])  # noqa: FBT003


# --- RMSNorm ---------------------------------------------------------------------------------------------------------


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """Scale x by weight / √(mean(x²) + ε), the mean being over the last axis: one kernel on CUDA, its like on meta."""
    if x.is_meta:
        return cast(Tensor, _FusedRMSNorm.apply(x, weight))  # type: ignore[no-untyped-call]
    return functional.rms_norm(x, x.shape[-1:], weight, eps)


class _FusedRMSNorm(torch.autograd.Function):
    """The allocations of `aten._fused_rms_norm` on CUDA and of its derivative, without numbers.

    torch ≥ 2.9 runs it for `rms_norm` of CUDA tensors (derivatives.yaml: input, weight and 1/rms are kept).
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor | None) -> Tensor:
        """The output, and 1/rms of each row in fp32."""
        result = torch.empty_like(x)
        scales = torch.empty(*x.shape[:-1], 1, dtype=torch.float32, device=x.device)
        ctx.save_for_backward(x, weight, scales)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # noqa: ARG004  it has no numbers
        """The gradients of x and of the weight, where there is one."""
        x, weight, _ = ctx.saved_tensors
        return torch.empty_like(x), None if weight is None else torch.empty_like(weight)


# --- Mish ------------------------------------------------------------------------------------------------------------


def mish(x: Tensor) -> Tensor:
    """X · tanh(softplus(x)): one kernel, whose derivative is one too; on meta torch writes that out."""
    return cast(Tensor, _Mish.apply(x)) if x.is_meta else functional.mish(x)  # type: ignore[no-untyped-call]


class _Mish(torch.autograd.Function):
    """The allocations of `aten.mish` and of `aten.mish_backward` on CUDA, without numbers; the input is kept."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor) -> Tensor:
        """The output."""
        ctx.save_for_backward(x)
        return torch.empty_like(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:  # noqa: ARG004  it has no numbers
        """The gradient of x."""
        return torch.empty_like(ctx.saved_tensors[0])
