"""The words of the memory ledger: why a tensor is alive, and who says so."""

from collections.abc import Sequence

from gptcalc.optimizers.base import WHERE
from gptcalc.parts.block import Block
from gptcalc.parts.delta import GatedDeltaNet
from gptcalc.parts.norm import RMSNorm
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.tape.record import CHECKPOINT, Slot

_ENGINE = "torch/csrc/autograd"
_DERIVATIVES = "torch's derivatives.yaml"
#: Why tensors of a kind are there.
KIND_REASONS = {
    "weights": "every weight, all the time",
    "weight_copies": "what autocast casts of weights, once in a forward pass: there while it or autograd needs it",
    "gradients": "one number for each weight, from the backward pass until they are set to None",
    "optimizer": "what the optimizer remembers of each weight, from the first step on",
    "kv_cache": "keys and values of every layer and token, allocated for the whole length before the first token",
    "inputs": "token IDs, and in training the targets",
    "activations": "values that the backward pass, or the next op, still reads",
    "logits": "a score for each token of the vocabulary, and what the loss makes of it",
    "temporary": "values on their way, which the next ops read and let go",
    "workspace": "what kernels take for themselves: no op shows it",
}
CHECKPOINT_SOURCE = "torch/utils/checkpoint.py, without reentrance"
#: What is to be known of a way of checkpointing.
CHECKPOINTING_NOTES = {
    "full": (
        "each block runs again in the backward pass, all but what follows the last value that its gradients need: that"
        " costs about one more forward pass, a third of a step's work"
    ),
    "selective": (
        "of attention query, key and value are kept; what is made of them, up to the weighted values, runs again in the"
        " backward pass (Korthikanti et al. 2022, §4.2); linear attention, which has nothing of T×T, runs once"
    ),
}
_SOURCES = {
    "weights": "the inventory of the model",
    "weight_copies": "aten/src/ATen/autocast_mode.cpp, cached_cast",
    "gradients": f"{_ENGINE}/functions/accumulate_grad.h",
    "optimizer": "torch/optim",
    "kv_cache": "2·L·K·H·T numbers for each sequence (Ainslie et al. 2023, §2)",
    "inputs": "int64, as torch wants them",
    "temporary": f"{_ENGINE}/engine.cpp",
    "workspace": "cuBLAS: torch's notes on CUDA, CUDABlas; kernels: their sources in aten/src/ATen/native",
}


#: Why what an op made is there, where that says more than its kind.
OP_REASONS = {
    "aten::nll_loss_forward": "the loss, which the caller holds",
    "aten::nll_loss_backward": "the gradient of the log-probabilities, zeros but for the targets",
    "aten::_log_softmax_backward_data": "the gradient of the logits in fp32, made while what it is made of is there",
    "aten::ones_like": "the gradient of the loss, one, which the engine holds until the end of the backward pass",
}


def op_words(op: str) -> str:
    """An op of torch as it is read: `aten::_scaled_dot_product_flash_attention` is flash attention."""
    name = op.removeprefix("aten::").strip("_")
    return name.removeprefix("native_").removeprefix("scaled_dot_product_").replace("_", " ")


#: Why what is made with the weights is there, by kind.
BUILT_REASONS = {
    "gradients": "a buffer for each weight, to which every fresh gradient is added, from the build on (--grad-dtype)",
    "optimizer": "a copy of each weight, which the optimizer updates instead, from the build on (--master-weights)",
}


def why(kind: str, slot: Slot) -> tuple[str, str]:
    """Why a tensor is alive, and the source."""
    source = _SOURCES.get(kind, _DERIVATIVES)
    if slot.op == "aten::_fused_rms_norm":
        source = f"{_DERIVATIVES}; source-derived: no GPU has confirmed what the fused kernel keeps"
    if again := [one.removeprefix(CHECKPOINT) for one in (*slot.keepers, *slot.again) if one.startswith(CHECKPOINT)]:
        return f"kept so that the{again[0]} can be computed again from it", CHECKPOINT_SOURCE
    if slot.keepers:
        return f"kept for the backward pass of {_names(slot.keepers)}", source
    if slot.again:
        return f"computed again in the backward pass, for that of {_names(slot.again)}", source
    if kind == "temporary" and slot.where == WHERE:
        return "what the optimizer computes of a weight in a step", source
    if slot.op == "build" and kind in BUILT_REASONS:
        return BUILT_REASONS[kind], source
    return OP_REASONS.get(slot.op, KIND_REASONS[kind]), source


def _names(ops: Sequence[str]) -> str:
    return ", ".join(dict.fromkeys(op.removeprefix("aten::") for op in ops))


#: What is known of compiled code: published runs that were measured both ways.
COMPILED = (
    "torch.compile is not modelled: these are eager's numbers, the bound under which the runs stay that torchtitan"
    " published both ways. The partitioner recomputes what is cheap instead of keeping it: Llama 3.1 8B with FSDP and"
    " selective checkpointing took 77.0 instead of 82.4 GiB (−6.6%) on 8 GPUs and 62.0 instead of 67.0 (−7.5%) on 128"
    " (torchtitan, benchmarks/llama3_h100_202412). CUDA graphs (reduce-overhead, max-autotune) can take more than eager"
    " code, as torch's documentation says"
)


def mode_notes(spec: Spec, backends: Sequence[str], checkpointing: str = "none", chunks: int = 1) -> tuple[str, ...]:
    """What a reader must know of the numbers."""
    notes = []
    if spec.unknown_ops:
        notes.append(
            f"weights, gradients, optimizer states and KV cache alone: the ops of {', '.join(spec.unknown_ops)} are not"
            " modelled, so what forward and backward make is not in these numbers"
        )
        return tuple(notes)
    if chunks > 1:
        notes.append(
            "logits and loss are computed chunk by chunk of the tokens, each chunk again in the backward pass: no more"
            " than one chunk's logits exist at a time, and the unembedding's product costs its time once more"
        )
    if checkpointing != "none":
        notes.append(CHECKPOINTING_NOTES[checkpointing])
    if checkpointing == "selective" and not {"eager", "math"} & set(backends):
        notes.append(
            "a fused kernel keeps nothing of T×T: here selective checkpointing saves but output and log-sum-exp, and"
            " costs the kernel's time once more"
        )
    if "cudnn" in backends:
        notes.append(
            "attention runs in cuDNN, whose workspace only cuDNN knows: it is not in these numbers"
            " (--attention flash has all its buffers)"
        )
    if has_rms_norm(spec):
        notes.append("what RMSNorm keeps is source-derived: torch's fused kernel, not confirmed on a GPU yet")
    return tuple(notes)


def optimizer_notes(plan: Plan) -> tuple[str, ...]:
    """What a reader must know of the optimizer's numbers."""
    notes = {
        "muon": "Muon takes what has two axes in the layers; tables, unembedding, norms, biases and stacked experts are"
        f" AdamW's, which is stepped after it ({plan.optimizer_impl})",
        "adamw8bit": "the states of 8-bit AdamW are derived from bitsandbytes' source (blocks of 256, from 0.44 on;"
        " fp32 for tensors below 4,096 elements): no run has confirmed them",
    }
    found = [notes[plan.optimizer]] if plan.optimizer in notes else []
    if plan.optimizer_in_backward:
        found.append(
            "each weight has an optimizer of its own, which a hook steps in the backward pass once the weight's"
            " gradient is whole, and lets go of it: gradients never exist all at once, and the optimizer has no phase"
        )
    return tuple(found)


def has_rms_norm(spec: Spec) -> bool:
    """Whether any norm of the model, in its blocks or after them, is an RMSNorm; linear attention has three."""
    parts = [part for group in spec.layers if isinstance(group.block, Block) for part in group.block.parts]
    return any(isinstance(part, RMSNorm | GatedDeltaNet) for part in (spec.final_norm, spec.embedding_norm, *parts))
