"""What a memory figure speaks of beside the model: batch, length, precision, optimizer, attention, device, torch."""

from typing import Literal

from gptcalc.spec import Record, Size

Precision = Literal["fp32", "bf16", "fp16"]
OptimizerName = Literal["adamw", "adam", "sgd", "adafactor", "muon", "adamw8bit"]
OptimizerImpl = Literal["foreach", "fused", "for-loop"]
#: What a user may ask for; `auto` is what torch picks.
AttentionChoice = Literal["auto", "flash", "cudnn", "efficient", "math", "eager"]
#: What of a training step is computed again in its backward pass.
Checkpointing = Literal["none", "full", "selective"]
Logits = Literal["last", "all"]
#: Whose code runs.
Implementation = Literal["reference", "transformers"]


class Plan(Record):
    """One device's share of the work. `batch` (B) sequences of `seq` (T) tokens.

    `precision` is the dtype of weights and activations, `kv_dtype` that of the KV cache. In inference `seq` counts
    prompt and answer together: prefill takes T tokens, decode computes the T-th with T − 1 in the cache. With
    `checkpointing` each block (`full`), or the core of its attention (`selective`), runs again in the backward pass.
    Logits and loss of training are computed in `chunked_loss` chunks of the tokens, each again in the backward pass.
    """

    batch: Size = 1
    seq: Size
    precision: Precision = "bf16"
    optimizer: OptimizerName = "adamw"
    optimizer_impl: OptimizerImpl = "foreach"
    momentum: float = 0.0
    amsgrad: bool = False
    attention: AttentionChoice = "auto"
    checkpointing: Checkpointing = "none"
    chunked_loss: Size = 1
    kv_dtype: Precision = "bf16"
    logits: Logits = "last"
    implementation: Implementation = "reference"
    target: str = "sm90"
    torch: str = "2.13"
    expandable_segments: bool = False
    compile: bool = False
