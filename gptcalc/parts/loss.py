"""The loss: mean cross entropy of the next token, as `torch.nn.functional.cross_entropy` of fp32 logits runs it."""

from collections.abc import Callable

from gptcalc import tape
from gptcalc.formula import Dim, product_size
from gptcalc.tape import Op, Rows, Setting, Tensor
from gptcalc.units import ceil_div


def cross_entropy(setting: Setting, logits: Tensor, targets: Tensor, label: str = "loss") -> tuple[Op, ...]:
    """Logits (…, V) and targets (…) to a number; of the logits only their log-softmax is kept, in fp32."""
    rows = Rows(setting.within("loss"))
    wide = logits
    if logits.dtype != "fp32":
        wide = rows(tape.cast(logits, "fp32", "logits in fp32"))
    scores = rows(tape.log_softmax(wide, "log-probabilities"))
    rows(tape.nll_loss(scores, targets, label))
    rows.drop(scores, *([wide] if wide is not logits else []), logits)
    return tuple(rows)


def in_chunks(
    setting: Setting, x: Tensor, targets: Tensor, n_chunks: int, unembed: Callable[[Tensor], tuple[Op, ...]]
) -> tuple[Op, ...]:
    """Vectors (B, T, D) and targets (B, T) to a number, chunk by chunk of the B·T rows.

    `unembed` makes logits of a chunk; these, and what the loss makes of them, run again in the backward pass. The sums
    of the chunks are added up and divided by the number of targets. As with `torch.chunk`, all chunks but the last are
    equal, and they may be fewer than asked.
    """
    rows, at = Rows(setting), setting.within("loss")
    n_rows, n_each = product_size(targets.dims), ceil_div(product_size(targets.dims), n_chunks)
    sizes = [min(n_each, n_rows - first) for first in range(0, n_rows, n_each)]
    flat = rows(tape.view(x, "hidden states, row by row", Dim("M", n_rows), x.dims[-1]))
    wanted = rows(tape.view(targets, "targets, row by row", Dim("M", n_rows)))
    cuts = []
    for whole in (flat, wanted):
        parts = [
            Tensor(f"{whole.label}: chunk {n}", (Dim("⌈M/chunks⌉", size), *whole.dims[1:]), whole.dtype, base=whole)
            for n, size in enumerate(sizes, 1)
        ]
        rows(tape.split(whole, *parts))
        cuts.append(parts)
    losses = []
    for n, (part, aims) in enumerate(zip(*cuts, strict=True), 1):
        start = len(rows)
        rows += unembed(part)
        rows += cross_entropy(setting, rows[-1].output, aims, f"loss of chunk {n}")
        losses.append(rows[-1].output)
        rows.again(start, f"loss, chunk {n}", (part, aims))
    rows += _mean(at, losses, targets)
    rows.drop(*losses, flat, wanted, *cuts[0], *cuts[1])
    return tuple(rows)


def _mean(setting: Setting, losses: list[Tensor], targets: Tensor) -> tuple[Op, ...]:
    """The sum of the chunks' losses over the number of targets that count."""
    rows = Rows(setting)
    together = Tensor("losses of the chunks", (Dim("chunks", len(losses)),), losses[0].dtype)
    stacked = rows(tape.whole("aten::stack", losses, together))
    total = rows(tape.total(stacked, "summed loss"))
    rows.drop(stacked)
    counted = rows(tape.whole("aten::ne", (targets,), tape.made(targets, "targets that count", dtype="bool")))
    count = rows(tape.whole("aten::sum", (counted,), Tensor("number of targets", (), targets.dtype)))
    rows.drop(counted)
    rows(tape.whole("aten::div", (total, count), tape.made(total, "loss"))._replace(saves=(count,)))
    rows.drop(total, count)
    return tuple(rows)
