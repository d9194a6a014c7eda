"""What `torch.autocast` does with an op: the dtype in which it reads, and that in which it gives.

Source: aten/src/ATen/autocast_mode.h; what is in none of its lists runs in the dtypes that it is given.
"""

from collections.abc import Iterable

from gptcalc.errors import InvalidValueError
from gptcalc.units import bytes_of

#: The dtypes that autocast casts; doubles are left alone.
_CAST = ("fp32", "bf16", "fp16")
#: AT_FORALL_LOWER_PRECISION_FP: products of matrices, and what is made of them.
LOWER = frozenset(
    {
        "aten::mm",
        "aten::addmm",
        "aten::bmm",
        "aten::convolution",
        "aten::_scaled_dot_product_flash_attention",
        "aten::_scaled_dot_product_cudnn_attention",
        "aten::_scaled_dot_product_efficient_attention",
    }
)
#: AT_FORALL_FP32.
FP32 = frozenset(
    {
        "aten::native_layer_norm",
        "aten::_fused_rms_norm",
        "aten::nll_loss_forward",
        "aten::pow",
        "aten::exp",
        "aten::log",
        "aten::log1p",
        "aten::reciprocal",
        "aten::rsqrt",
        "aten::softplus",
    }
)
#: AT_FORALL_FP32_SET_OPT_DTYPE: the dtype is an argument; softmaxes of bf16 are cast first, of fp16 they are not.
_SOFTMAXES = frozenset({"aten::_softmax", "aten::_log_softmax"})
_SUMS = frozenset({"aten::sum", "aten::cumsum"})
#: Of several dtypes the widest: plain arithmetic, and AT_FORALL_PROMOTE.
WIDEST = frozenset({f"aten::{name}" for name in ("add", "sub", "mul", "div", "cat", "stack", "where", "clamp")})
#: In the dtype of the first number that is read.
AS_READ = frozenset(
    f"aten::{name}"
    for name in (
        "abs add_ clamp_max clone constant_pad_nd cos embedding erf expand floor gather gelu hardtanh index index_add"
        " leaky_relu masked_fill max mean mish mul_ native_dropout neg permute relu repeat_interleave scatter select"
        " sigmoid silu sin slice sort split_with_sizes tanh tanh_ topk transpose tril triu unbind view"
    ).split()
)
#: Made in a dtype that is said outright, or of no number's kind.
AS_SAID = frozenset(
    f"aten::{name}"
    for name in (
        "_to_copy all arange bitwise_or empty_like eq floor_divide full gt isneginf ne ones ones_like rand_like"
        " scalar_tensor zeros zeros_like"
    ).split()
) | {"return"}


def reads(name: str, dtype: str, lower: str) -> str:
    """The dtype in which an op reads a tensor of `dtype` under autocast to `lower`; raises for one not in any list."""
    if dtype not in _CAST:
        return dtype
    if name in LOWER:
        return lower
    if name in FP32 or (name in _SOFTMAXES and dtype == "bf16"):
        return "fp32"
    if name not in _SOFTMAXES | _SUMS | WIDEST | AS_READ | AS_SAID:
        raise InvalidValueError(
            f"precision: read autocast-{lower}, of which it is not known what it does with {name}; allowed for this"
            " model: fp32, bf16, fp16"
        )
    return dtype


def gives(name: str, said: str, dtypes: Iterable[str], lower: str) -> str:
    """The dtype of an op's output, `said` to be of another, that reads tensors of `dtypes`."""
    numbers = [dtype for dtype in dtypes if dtype in (*_CAST, "fp64")]
    if said not in _CAST or name in AS_SAID or not numbers:
        return said
    if name in LOWER:
        return lower
    if name in FP32 or name in _SOFTMAXES | _SUMS:
        return "fp32" if numbers[0] != "fp64" else said
    return max(numbers, key=lambda dtype: bytes_of(1, dtype)) if name in WIDEST else numbers[0]
