"""What a memory figure speaks of beside the model: batch, length, precision, optimizer, attention, device, torch."""

from typing import Literal

from gptcalc.spec import Record, Size

Dtype = Literal["fp32", "bf16", "fp16"]
#: A dtype for everything, or fp32 with `torch.autocast` to a lower one.
Precision = Literal["fp32", "bf16", "fp16", "autocast-bf16", "autocast-fp16"]
OptimizerName = Literal["adamw", "adam", "sgd", "adafactor", "muon", "adamw8bit"]
OptimizerImpl = Literal["foreach", "fused", "for-loop"]
#: What a user may ask for; `auto` is what torch picks.
AttentionChoice = Literal["auto", "flash", "cudnn", "efficient", "math", "eager"]
#: What of a training step is computed again in its backward pass.
Checkpointing = Literal["none", "full", "selective"]
Logits = Literal["last", "all"]
#: Whose code runs.
Implementation = Literal["reference", "transformers"]
MasterDtype = Literal["none", "fp32"]
GradDtype = Literal["none", "fp32", "bf16", "fp16"]


class Plan(Record):
    """One device's share of the work. `batch` (B) sequences of `seq` (T) tokens.

    `precision` is the dtype of weights and activations, or says which autocast there is; `kv_dtype` is that of the KV
    cache. In inference `seq` counts prompt and answer together: prefill takes T tokens, decode computes the T-th with T
    − 1 in the cache. With `checkpointing` each block (`full`), or the core of its attention (`selective`), runs again
    in the backward pass. Logits and loss of training are computed in `chunked_loss` chunks of the tokens, each again in
    the backward pass.

    A step of training adds up the gradients of `grad_accum` such batches (each a micro-batch), and clips them where
    their norm is above `grad_clip` (0: never). With `zero_grads` they are then zeroed and stay, else they become None.
    With `keep_outputs` the logits and the loss stay until the next forward pass has made its own. `master_weights` is
    the dtype of the copies that the optimizer updates; `grad_dtype` that of buffers to which gradients are added.
    """

    batch: Size = 1
    seq: Size
    precision: Precision = "bf16"
    optimizer: OptimizerName = "adamw"
    optimizer_impl: OptimizerImpl = "foreach"
    momentum: float = 0.0
    amsgrad: bool = False
    optimizer_in_backward: bool = False
    grad_accum: Size = 1
    grad_clip: float = 0.0
    zero_grads: bool = False
    keep_outputs: bool = False
    master_weights: MasterDtype = "none"
    grad_dtype: GradDtype = "none"
    attention: AttentionChoice = "auto"
    checkpointing: Checkpointing = "none"
    chunked_loss: Size = 1
    kv_dtype: Dtype = "bf16"
    logits: Logits = "last"
    implementation: Implementation = "reference"
    target: str = "sm90"
    torch: str = "2.13"
    expandable_segments: bool = False
    compile: bool = False

    @property
    def autocast(self) -> str:
        """The dtype to which autocast casts, if it does."""
        return self.precision.partition("autocast-")[2]

    @property
    def dtype(self) -> str:
        """That of the weights."""
        return "fp32" if self.autocast else self.precision

    @property
    def compute_dtype(self) -> str:
        """That of the products of matrices."""
        return self.autocast or self.precision


def weight_dtype(plan: Plan) -> str:
    """The dtype of the model's own weights, and so of their gradients."""
    return plan.dtype
