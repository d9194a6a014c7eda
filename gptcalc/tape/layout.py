"""How a value lies in memory: where torch's `reshape` is a view, and where it has to copy.

A value is dense in the order of its dims, as are the values that elementwise kernels make of it. A cut of another value
has as many axes as its base, and its strides.
"""

from itertools import accumulate, pairwise
from operator import mul

from gptcalc.formula import Dim
from gptcalc.tape.rows import Tensor


def joins(x: Tensor, *axes: Dim) -> bool:
    """Whether `axes`, the outermost first, can be read as one, by one stride [TensorUtils.cpp, computeStride].

    Of values that lie as (B, T, N, H), B and T join; B and N do not: from the last head of a sequence to the first of
    the next one is farther than from head to head. Axes of one element are in nobody's way. Of a value that is spread
    over an axis, none join.
    """
    long = [axis for axis in axes if axis.size > 1]
    if x.bytes > x.owner.bytes:
        return len(long) < 2
    strides = _strides(x)
    return all(strides[outer] == strides[inner] * inner.size for outer, inner in pairwise(long))


def is_dense(x: Tensor, *axes: Dim) -> bool:
    """Whether the elements of x lie one after the other, in the order of its axes (`Tensor.is_contiguous`).

    With `axes` it is asked of x with its axes in that order.
    """
    strides, long = _strides(x), [axis for axis in axes or x.dims if axis.size > 1]
    return joins(x, *long) and (not long or strides[long[-1]] == 1)


def _strides(x: Tensor) -> dict[Dim, int]:
    """How far apart the elements of each axis are."""
    whole = x.owner if x.base is None or len(x.owner.dims) == len(x.dims) else x.base  # which may be seen flat
    lies = x.dims if x.bytes == x.owner.bytes else whole.dims
    steps = list(accumulate((dim.size for dim in reversed(lies[1:])), mul, initial=1))[::-1]
    return dict(zip(x.dims, steps, strict=True))
