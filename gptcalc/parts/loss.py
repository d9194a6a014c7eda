"""The loss: mean cross entropy of the next token, as `torch.nn.functional.cross_entropy` of fp32 logits runs it."""

from gptcalc import tape
from gptcalc.tape import Op, Rows, Setting, Tensor


def cross_entropy(setting: Setting, logits: Tensor, targets: Tensor) -> tuple[Op, ...]:
    """Logits (B, T, V) and targets (B, T) to a number; of the logits only their log-softmax is kept, in fp32."""
    rows = Rows(setting.within("loss"))
    wide = logits
    if logits.dtype != "fp32":
        wide = rows(tape.cast(logits, "fp32", "logits in fp32"))
    scores = rows(tape.log_softmax(wide, "log-probabilities"))
    rows(tape.nll_loss(scores, targets, "loss"))
    rows.drop(scores, *([wide] if wide is not logits else []), logits)
    return tuple(rows)
