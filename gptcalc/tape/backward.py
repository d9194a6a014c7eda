"""The gradients: one rule for each kind of op.

A rule is given the op and the gradients of its outputs. It returns the rows that autograd runs, in their order, and the
gradient that each input gets. Gradients of one value that come from several ops are added in place into the first.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from gptcalc.formula import Dim, product_size
from gptcalc.tape.rows import Access, Op, Tape, Tensor, all_of, made, whole
from gptcalc.units import ceil_div

#: More IDs than this, and torch sorts them before it adds up their rows [aten/src/ATen/native/cuda/Embedding.cu].
SORTED_ABOVE = 3072
#: Rows of one ID that torch adds up in one partial sum [EmbeddingBackwardKernel.cu, NROWS_PER_THREAD].
ROWS_PER_PARTIAL = 10

_NOT_DIFFERENTIABLE = ("int64", "int32", "bool")


class Found(NamedTuple):
    """The rows of a rule, and the gradient of each input, in the order of the inputs.

    What the engine does with its results (`validate_outputs`) is `fitted`: it runs when the rule has returned.
    """

    rows: tuple[Op, ...]
    grads: dict[Tensor, Tensor]
    fitted: tuple[Op, ...] = ()


#: Gradients of an op's outputs, those that there are.
Incoming = Mapping[Tensor, Tensor]
#: What makes the gradients of an op's inputs of those of its outputs.
Rule = Callable[[Op, Incoming], Found]


def gradient(tensor: Tensor) -> Tensor:
    """The gradient of a tensor: of its shape, in its dtype."""
    return Tensor(f"gradient of {tensor.label}", tensor.dims, tensor.dtype, tensor.name, copy_of=tensor.copy_of)


def differentiable(tensor: Tensor) -> bool:
    """Whether it holds numbers that can have a gradient."""
    return tensor.dtype not in _NOT_DIFFERENTIABLE


def backward(tape: Tape) -> Tape:
    """The gradients of all that was given, from that of the results: the rows in reverse, each by its rule.

    Raises a `TypeError` for an op without a rule.
    """
    needs = _needing_gradients(tape)
    grads = {result: gradient(result) for result in tape.results if result in needs}
    ops: list[Op] = []
    for op in reversed(tape.ops):
        dys = {access.tensor: grads[access.tensor] for access in op.writes if access.tensor in grads}
        if not dys:
            continue
        rows, found, fitted = gradients(op, dys, needs)
        ops += (*rows, *fitted)
        for tensor, grad in found.items():
            if tensor in grads:
                ops.append(whole("aten::add_", (grads[tensor], grad), grads[tensor]))
            grads.setdefault(tensor, grad)
    given = needs - {access.tensor for op in tape.ops for access in op.writes}
    return Tape(tuple(ops), tuple(grad for tensor, grad in _in_order(tape, grads) if tensor in given))


def gradients(op: Op, dys: Incoming, needs: "set[Tensor] | frozenset[Tensor]") -> Found:
    """What the rule of `op` says, less what no input of `needs` wants."""
    if op.name not in _RULES:
        raise TypeError(f"{op.name} has no backward rule")
    rows, found, fitted = _in_own_dtypes(_RULES[op.name](op, dys), needs)
    kept = {
        tensor: grad._replace(base=grad) if tensor in op.viewed else grad
        for tensor, grad in found.items()
        if tensor in needs
    }
    unwanted = {grad.owner for tensor, grad in found.items() if tensor not in needs} - {g.owner for g in kept.values()}
    rows, fitted = (tuple(row for row in some if row.output.owner not in unwanted) for some in (rows, fitted))
    return Found(rows, kept, fitted)


def _in_own_dtypes(found: Found, needs: "set[Tensor] | frozenset[Tensor]") -> Found:
    """What the engine does once a formula is through: a gradient of another dtype is cast, where one is wanted."""
    fitted, grads = list(found.fitted), dict(found.grads)
    made = {row.output for row in (*found.rows, *fitted)}
    for tensor, grad in found.grads.items():
        if grad.dtype != tensor.dtype and tensor in needs:
            row = whole("aten::_to_copy", (grad,), gradient(tensor))
            fitted.append(row._replace(drops=(grad,) if grad in made else ()))
            grads[tensor] = row.output
    return Found(found.rows, grads, tuple(fitted))


def _needing_gradients(tape: Tape) -> set[Tensor]:
    """Numbers that were given, and the outputs that were made of them."""
    born = {access.tensor for op in tape.ops for access in op.writes}
    needs: set[Tensor] = set()
    for op in tape.ops:
        read = {access.tensor for access in op.reads}
        needs |= {tensor for tensor in read - born if differentiable(tensor)}
        if read & needs and not op.unrecorded:
            needs.add(op.output)
    return needs


def _in_order(tape: Tape, grads: dict[Tensor, Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Gradients in the order in which the forward pass first reads their tensors."""
    read = dict.fromkeys(access.tensor for op in tape.ops for access in op.reads)
    return [(tensor, grads[tensor]) for tensor in read if tensor in grads]


def _inputs(op: Op) -> list[Tensor]:
    return [access.tensor for access in op.reads]


def _embedding_backward(op: Op, dys: Incoming) -> Found:
    ids, touched = op.reads
    table, dy = gradient(touched.tensor), dys[op.output]
    again, why = _adding_rows(ids.tensor, touched, table)
    row = Op("aten::embedding_dense_backward", (all_of(dy), ids), (all_of(table),), again, why)
    return Found((row,), {touched.tensor: table})


def _adding_rows(ids: Tensor, touched: Access, table: Tensor) -> tuple[tuple[Access, ...], str]:
    """What follows the zero fill of the dense gradient: the rows that IDs name are added up into it."""
    n_ids, (unique, width) = product_size(ids.dims), touched.touched
    rows = Access(table, touched.touched, f"distinct rows of the {table.label}")
    if n_ids <= SORTED_ABOVE:
        return (rows, rows), (
            "torch fills the dense gradient with zeros, then reads and writes the rows that IDs name"
            f" (up to {SORTED_ABOVE:,} IDs; Embedding.cu)."
        )
    # A token that is named n times has ⌈n/10⌉ partial sums.
    partial = Dim("P", unique.size + (n_ids - unique.size) // ROWS_PER_PARTIAL)
    sums = all_of(Tensor("partial sums", (partial, width), "fp32"))
    # cub's radix sort reads and writes key and value once for each 8 bits of the largest ID.
    passes = max(ceil_div((table.dims[0].size - 1).bit_length(), 8), 1)
    order = Tensor("sorted IDs and their order", ids.dims, "int64")
    return (rows, sums, sums, *[all_of(order)] * (4 * passes)), (
        "torch fills the dense gradient with zeros, sorts the IDs, writes partial sums of at most 10 rows in fp32,"
        f" reads them, and writes the rows that IDs name (above {SORTED_ABOVE:,} IDs; EmbeddingBackwardKernel.cu);"
        " the partial sums are counted at most."
    )


def _add_backward(op: Op, dys: Incoming) -> Found:
    """The gradient goes to both as it is; it is summed for a row that all share. A number gets none."""
    (x, *others), dy = _inputs(op), dys[op.output]
    if not others:
        return Found((), {x: dy})
    (other,) = others
    if other.dims == x.dims:
        return Found((), {x: dy, other: dy})
    total = gradient(other)._replace(dtype=dy.dtype)
    return Found((whole("aten::sum", (dy,), total),), {x: dy, other: total})


def _multiply_backward(op: Op, dys: Incoming) -> Found:
    """The gradient of `other` is computed first; each has the output's shape and dtype until it is fitted."""
    (x, *others), dy = _inputs(op), dys[op.output]
    if x not in op.saves:
        wider = gradient(x)._replace(dtype=op.output.dtype)
        return Found((whole("aten::mul", (dy, *others), wider),), {x: wider})
    (other,) = others
    wide = {tensor: _unfitted(op, tensor) for tensor in (x, other)}
    rows = (whole("aten::mul", (dy, x), wide[other]), whole("aten::mul", (dy, other), wide[x]))
    fitted = tuple(row for tensor in (x, other) for row in _fit(wide[tensor], tensor))
    return Found(rows, {tensor: gradient(tensor) for tensor in (x, other)}, fitted)


def _unfitted(op: Op, tensor: Tensor) -> Tensor:
    """The gradient of an input as a formula computes it: of the output's shape, in its dtype."""
    if tensor.bytes == op.output.bytes and tensor.dtype == op.output.dtype and not _lacks_axes(tensor, op.output):
        return gradient(tensor)
    return Tensor(f"gradient of {tensor.label}, as computed", op.output.dims, op.output.dtype)


def _lacks_axes(tensor: Tensor, wide: Tensor) -> bool:
    """Whether a tensor is spread over the first axes of another: they are summed over, were they of one element."""
    return len(tensor.dims) < len(wide.dims) and wide.dims[-len(tensor.dims) :] == tensor.dims


def _fit(wide: Tensor, tensor: Tensor) -> tuple[Op, ...]:
    """What the engine does then: sum over what was spread, cast to the input's dtype (`validate_outputs`)."""
    rows: list[Op] = []
    if product_size(wide.dims) != product_size(tensor.dims) or _lacks_axes(tensor, wide):
        rows.append(whole("aten::sum", (wide,), gradient(tensor)._replace(dtype=wide.dtype))._replace(drops=(wide,)))
        wide = rows[-1].output
    if wide.dtype != tensor.dtype:
        rows.append(whole("aten::_to_copy", (wide,), gradient(tensor))._replace(drops=(wide,)))
    return tuple(rows)


def _dropout_backward(op: Op, dys: Incoming) -> Found:
    x, mask, dy = op.reads[0].tensor, op.writes[1].tensor, dys[op.output]
    return Found((whole("aten::native_dropout_backward", (dy, mask), gradient(x)),), {x: gradient(x)})


def _norm_backward(op: Op, dys: Incoming) -> Found:
    """One kernel for the gradient of x, a second one for those of weight and bias, where there are any."""
    (x, *learned), dy = _inputs(op), dys[op.output]
    stats = [access.tensor for access in op.writes[1:]]
    grads = {tensor: gradient(tensor) for tensor in (x, *learned)}
    row = whole(f"{op.name}_backward", (dy, x, *stats, *learned[:1]), *grads.values())
    if not learned:
        return Found((row,), grads)
    why = "torch's norms sum the gradient of their weights in a second kernel, which reads dy and x again."
    return Found((row._replace(again=tuple(map(all_of, (dy, x, *stats))), why=why),), grads)


def _mm_backward(op: Op, dys: Incoming) -> Found:
    """`mm` computes the weight's gradient first."""
    (x, weight), dy = _inputs(op), dys[op.output]
    rows = (whole("aten::mm", (x, dy), gradient(weight)), whole("aten::mm", (dy, weight), gradient(x)))
    return Found(rows, {x: gradient(x), weight: gradient(weight)})


def _addmm_backward(op: Op, dys: Incoming) -> Found:
    """`addmm` computes the input's gradient first, the bias's last: a sum, seen without the axis that it had summed.

    [ExpandUtils.h, sum_to]
    """
    (x, weight, bias), dy = _inputs(op), dys[op.output]
    rows = (
        whole("aten::mm", (dy, weight), gradient(x)),
        whole("aten::mm", (x, dy), gradient(weight)),
    )
    summed = gradient(bias)
    grads = {bias: summed._replace(base=summed), x: gradient(x), weight: gradient(weight)}
    return Found(rows, grads, (whole("aten::sum", (dy,), summed),))


def _elementwise_backward(op: Op, dys: Incoming) -> Found:
    """One kernel, from the gradient and what was kept."""
    x = op.reads[0].tensor
    name = {"aten::relu": "aten::threshold"}.get(op.name, op.name)
    return Found((whole(f"{name}_backward", (dys[op.output], *op.saves), gradient(x)),), {x: gradient(x)})


def _square_backward(op: Op, dys: Incoming) -> Found:
    """Dy · (2 · x¹), op by op (`pow_backward`)."""
    x, dy = op.reads[0].tensor, dys[op.output]
    same, twice = (made(x, f"{what} {x.label}") for what in ("copy of", "twice"))
    rows = (
        whole("aten::pow", (x,), same),
        whole("aten::mul", (same,), twice),
        whole("aten::mul", (dy, twice), gradient(x))._replace(drops=(same, twice)),
    )
    return Found(rows, {x: gradient(x)})


def _clamp_backward(op: Op, dys: Incoming) -> Found:
    """Zeros where x is beyond a bound (`clamp_backward`)."""
    x, dy = op.reads[0].tensor, dys[op.output]
    zero = Tensor("zero", (), x.dtype)
    inside = [made(x, f"where {x.label} is {end}", dtype="bool") for end in ("high enough", "low enough")]
    inside = inside if op.name == "aten::clamp" else inside[1:]
    rows = (
        whole("aten::scalar_tensor", (), zero),
        *(whole("aten::compare", (x,), mask) for mask in inside),
        whole("aten::where", (dy, *inside, zero), gradient(x))._replace(drops=(zero, *inside)),
    )
    return Found(rows, {x: gradient(x)})


def _kept_output_backward(op: Op, dys: Incoming) -> Found:
    """One kernel, from the gradient and the output."""
    x = op.reads[0].tensor
    return Found((whole(f"{op.name}_backward_data", (dys[op.output], *op.saves), gradient(x)),), {x: gradient(x)})


def _nll_loss_backward(op: Op, dys: Incoming) -> Found:
    scores = op.reads[0].tensor
    return Found(
        (whole("aten::nll_loss_backward", (dys[op.output], *op.saves), gradient(scores)),), {scores: gradient(scores)}
    )


def _by(name: str) -> Rule:
    """One kernel, from the gradients alone: of a cut one filled up with zeros, of parts one of all side by side."""

    def rule(op: Op, dys: Incoming) -> Found:
        x = op.reads[0].tensor
        return Found((whole(name, dys.values(), gradient(x)),), {x: gradient(x)})

    return rule


def _join_backward(op: Op, dys: Incoming) -> Found:
    """Each input's gradient is a view of the output's."""
    dy = dys[op.output]
    return Found((), {x: gradient(x)._replace(base=dy, dtype=dy.dtype) for x in _inputs(op)})


def _attention_backward(op: Op, dys: Incoming) -> Found:
    query, key, value = _inputs(op)[:3]
    grads = {tensor: gradient(tensor) for tensor in (query, key, value)}
    return Found((whole(f"{op.name}_backward", (dys[op.output], *op.saves), *grads.values()),), grads)


def _divide_backward(op: Op, dys: Incoming) -> Found:
    """−dy · ((x / other) / other) for `other`, where it is no number, then dy / other for x."""
    (x, *others), dy = _inputs(op), dys[op.output]
    if x not in op.saves:
        return Found((whole("aten::div", (dy, *others), gradient(x)),), {x: gradient(x)})
    (other,) = others
    wide = _unfitted(op, other)
    labels = (f"{op.output.label} again", f"{op.output.label}, divided again", f"negated {dy.label}")
    once, twice, negated = (made(op.output, label) for label in labels)
    product = whole("aten::mul", (negated, twice), wide)._replace(drops=(negated, twice, once))
    rows = (
        whole("aten::div", (x, other), once),
        whole("aten::div", (once, other), twice),
        whole("aten::neg", (dy,), negated),
        product,
        whole("aten::div", (dy, other), gradient(x)),
    )
    return Found(rows, {x: gradient(x), other: gradient(other)}, _fit(wide, other))


def _spread_backward(op: Op, dys: Incoming) -> Found:
    """The gradient of a sum or of a view is a view."""
    x = op.reads[0].tensor
    return Found((), {x: gradient(x)._replace(base=dys[op.output])})


def _mean_backward(op: Op, dys: Incoming) -> Found:
    """Each element's share of the gradient, in the shape of x."""
    x = op.reads[0].tensor
    return Found((whole("aten::div", (dys[op.output],), gradient(x)),), {x: gradient(x)})


def _rsqrt_backward(op: Op, dys: Incoming) -> Found:
    """Dy · (−½ · output³), op by op (`rsqrt_backward`)."""
    x, dy = op.reads[0].tensor, dys[op.output]
    cubed, halved = (made(op.output, f"{op.output.label}, {what}") for what in ("cubed", "cubed and halved"))
    rows = (
        whole("aten::pow", (op.output,), cubed),
        whole("aten::mul", (cubed,), halved),
        whole("aten::mul", (dy, halved), gradient(x))._replace(drops=(cubed, halved)),
    )
    return Found(rows, {x: gradient(x)})


def _topk_backward(op: Op, dys: Incoming) -> Found:
    """Zeros, into which the gradients of the chosen are written."""
    x, places = op.reads[0].tensor, op.saves[0]
    return Found((whole("aten::scatter_", (dys[op.output], places), gradient(x)),), {x: gradient(x)})


def _index_backward(op: Op, dys: Incoming) -> Found:
    """Zeros, to which the rows of the gradient are added in place."""
    x, places = _inputs(op)
    return Found((whole("aten::_index_put_impl_", (places, dys[op.output]), gradient(x)),), {x: gradient(x)})


def _gather_backward(op: Op, dys: Incoming) -> Found:
    """Zeros, to which the gradients of the taken are added in place."""
    x, places = _inputs(op)
    return Found((whole("aten::scatter_add_", (dys[op.output], places), gradient(x)),), {x: gradient(x)})


def _heun_backward(op: Op, dys: Incoming) -> Found:
    """The gradient of a softmax's scores, of which one share was drawn, in place once it is made; others get none."""
    (scores, *_), (share, chosen, shares), dy = _inputs(op), op.saves, dys[op.output]
    own, negated = (made(share, f"{what} {dy.label}") for what in ("weighted", "negated"))
    rows = (
        whole("aten::mul", (dy, share), own),
        whole("aten::neg", (own,), negated),
        whole("aten::mul", (shares, negated, chosen, own), gradient(scores))._replace(drops=(negated,)),
    )
    return Found(rows, {scores: gradient(scores)})


def _index_add_backward(op: Op, dys: Incoming) -> Found:
    """The rows of the gradient that were added to; the gradient itself for what they were added to."""
    onto, places, x = _inputs(op)
    dy = dys[op.output]
    return Found((whole("aten::index_select", (dy, places), gradient(x)),), {onto: dy, x: gradient(x)})


def _unbind_backward(op: Op, dys: Incoming) -> Found:
    x = op.reads[0].tensor
    return Found((whole("aten::stack", dys.values(), gradient(x)),), {x: gradient(x)})


def _copy_back(op: Op, dys: Incoming) -> Found:
    """The gradient, copied into the order of x."""
    x = op.reads[0].tensor
    return Found((whole("aten::clone", (dys[op.output],), gradient(x)),), {x: gradient(x)})


def _clone_backward(op: Op, dys: Incoming) -> Found:
    """The gradient as it is."""
    return Found((), {op.reads[0].tensor: dys[op.output]})


def _repeat_backward(op: Op, dys: Incoming) -> Found:
    """The gradients of the repeated heads are summed."""
    x = op.reads[0].tensor
    return Found((whole("aten::sum", (dys[op.output],), gradient(x)),), {x: gradient(x)})


def _expand_backward(op: Op, dys: Incoming) -> Found:
    """The gradients of an element that was seen several times are summed; of one seen once, it is a view.

    A parameter takes no view: its gradient is copied.
    """
    x = op.reads[0].tensor
    once = _by("aten::clone") if x.name else _spread_backward
    rule = once if op.output.bytes == x.bytes else _by("aten::sum")
    return rule(op, dys)


def _bmm_backward(op: Op, dys: Incoming) -> Found:
    """The second factor's gradient comes first."""
    (x, other), dy = _inputs(op), dys[op.output]
    rows = (whole("aten::bmm", (x, dy), gradient(other)), whole("aten::bmm", (dy, other), gradient(x)))
    return Found(rows, {other: gradient(other), x: gradient(x)})


def _grouped_backward(op: Op, dys: Incoming) -> Found:
    """The matrices' gradient comes first."""
    (x, weights, ends), dy = _inputs(op), dys[op.output]
    rows = (
        whole(op.name, (dy, x, ends), gradient(weights)),
        whole(op.name, (dy, weights, ends), gradient(x)),
    )
    return Found(rows, {x: gradient(x), weights: gradient(weights)})


def _exp_backward(op: Op, dys: Incoming) -> Found:
    x = op.reads[0].tensor
    return Found((whole("aten::mul", (dys[op.output], op.output), gradient(x)),), {x: gradient(x)})


def _erf_backward(op: Op, dys: Incoming) -> Found:
    """2/√π · exp(−x²) · dy, op by op, each of which lives until the formula is done (derivatives.yaml)."""
    x, dy = op.reads[0].tensor, dys[op.output]
    steps = [made(x, f"{what} of {x.label}") for what in ("square", "negated square", "bell", "scaled bell")]
    names = ("pow", "neg", "exp", "mul")
    rows = [whole(f"aten::{name}", (x,), step) for name, step in zip(names, steps, strict=True)]
    rows.append(whole("aten::mul", (steps[-1], dy), gradient(x))._replace(drops=tuple(steps)))
    return Found(tuple(rows), {x: gradient(x)})


def _subtract_backward(op: Op, dys: Incoming) -> Found:
    """The gradient as it is, and negated; each is then summed over what was spread."""
    (x, other), dy = _inputs(op), dys[op.output]
    wide = _unfitted(op, other)
    rows = [whole("aten::neg", (dy,), wide)]
    grads = {x: dy, other: gradient(other)}
    if product_size(x.dims) != product_size(op.output.dims):
        rows.append(whole("aten::sum", (dy,), gradient(x)))
        grads[x] = gradient(x)
    return Found((*rows, *_fit(wide, other)), grads)


def _masked_backward(op: Op, dys: Incoming) -> Found:
    """Zeros where the mask says so."""
    x, mask = _inputs(op)
    return Found((whole("aten::masked_fill", (dys[op.output], mask), gradient(x)),), {x: gradient(x)})


def _cumsum_backward(op: Op, dys: Incoming) -> Found:
    """The sums from the other end: turned round, summed up, turned round."""
    x, dy = op.reads[0].tensor, dys[op.output]
    back, sums = made(op.output, f"{dy.label}, from the end"), made(op.output, f"{dy.label}, summed up")
    rows = (
        whole("aten::flip", (dy,), back),
        whole("aten::cumsum", (back,), sums),
        whole("aten::flip", (sums,), gradient(x))._replace(drops=(back, sums)),
    )
    return Found(rows, {x: gradient(x)})


def _convolution_backward(op: Op, dys: Incoming) -> Found:
    """Both gradients by one op."""
    x, weight = _inputs(op)
    row = whole("aten::convolution_backward", (dys[op.output], x, weight), gradient(x), gradient(weight))
    return Found((row,), {x: gradient(x), weight: gradient(weight)})


def _scan_backward(op: Op, dys: Incoming) -> Found:
    """Room for every gradient, for that of the state, and for what it is multiplied by."""
    steps, dy, states = _inputs(op), dys[op.output], op.saves[-1]
    state = Tensor("gradient of the state", states.dims[1:], states.dtype)
    product = state._replace(label="state times its gradient")
    rows = [whole("aten::bmm", (dy, *op.saves), gradient(step)) for step in steps]
    last = whole("aten::mul", (states,), product)._replace(drops=(state, product))
    return Found((*rows, whole("aten::zeros_like", (), state), last), {step: gradient(step) for step in steps})


def _inverse_backward(op: Op, dys: Incoming) -> Found:
    """Inverse · dx · inverse, all turned, less what is not below the diagonal."""
    (x, _), dy = _inputs(op), dys[op.output]
    half = made(x, f"{dy.label}, half way")
    rows = (
        whole("aten::bmm", (op.output, dy), half),
        whole("aten::bmm", (half, op.output), gradient(x))._replace(drops=(half,)),
    )
    return Found(rows, {x: gradient(x)})


_RULES: dict[str, Rule] = {
    "aten::embedding": _embedding_backward,
    "aten::add": _add_backward,
    "aten::mul": _multiply_backward,
    "aten::native_dropout": _dropout_backward,
    "aten::native_layer_norm": _norm_backward,
    "aten::_fused_rms_norm": _norm_backward,
    "aten::mm": _mm_backward,
    "aten::addmm": _addmm_backward,
    "aten::gelu": _elementwise_backward,
    "aten::silu": _elementwise_backward,
    "aten::hardtanh": _elementwise_backward,
    "aten::leaky_relu": _elementwise_backward,
    "aten::mish": _elementwise_backward,
    "aten::pow": _square_backward,
    "aten::relu": _elementwise_backward,
    "aten::sigmoid": _elementwise_backward,
    "aten::tanh": _elementwise_backward,
    "aten::clamp": _clamp_backward,
    "aten::clamp_max": _clamp_backward,
    "aten::_log_softmax": _kept_output_backward,
    "aten::nll_loss_forward": _nll_loss_backward,
    "aten::neg": _by("aten::neg"),
    "aten::cat": _join_backward,
    "aten::stack": _join_backward,
    "aten::slice": _by("aten::slice_backward"),
    "aten::constant_pad_nd": _by("aten::constant_pad_nd"),
    "aten::_to_copy": _by("aten::_to_copy"),
    "aten::split_with_sizes": _by("aten::cat"),
    "aten::view": _spread_backward,
    "aten::sum": _spread_backward,
    "aten::_softmax": _kept_output_backward,
    "aten::mean": _mean_backward,
    "aten::rsqrt": _rsqrt_backward,
    "aten::_grouped_mm": _grouped_backward,
    "aten::div_": _divide_backward,
    "aten::div": _divide_backward,
    "aten::topk": _topk_backward,
    "aten::gather": _gather_backward,
    "sparsemixer": _heun_backward,
    "aten::index": _index_backward,
    "aten::index_add": _index_add_backward,
    "aten::unbind": _unbind_backward,
    "aten::transpose": _copy_back,
    "aten::clone": _clone_backward,
    "aten::expand": _expand_backward,
    "aten::repeat_interleave": _repeat_backward,
    "aten::bmm": _bmm_backward,
    "aten::add_": _add_backward,
    "aten::softplus": _elementwise_backward,
    "aten::exp": _exp_backward,
    "aten::erf": _erf_backward,
    "aten::sub": _subtract_backward,
    "aten::masked_fill": _masked_backward,
    "aten::cumsum": _cumsum_backward,
    "aten::convolution": _convolution_backward,
    "aten::permute": _spread_backward,
    "delta scan": _scan_backward,
    "inverse": _inverse_backward,
    "aten::_safe_softmax": _kept_output_backward,
    "aten::_scaled_dot_product_flash_attention": _attention_backward,
    "aten::_scaled_dot_product_cudnn_attention": _attention_backward,
    "aten::_scaled_dot_product_efficient_attention": _attention_backward,
}
