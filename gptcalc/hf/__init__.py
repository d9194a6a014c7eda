"""The rows that transformers' own code runs, where it runs others than gptcalc's reference module.

One file for each group of families. A module here gives the rows of the input stage, of a layer, and of the head; it
was written while reading the release `READ` of transformers, whose classes are its witness. A family without one is
known in the reference alone.
"""

from collections.abc import Sequence
from importlib import import_module
from typing import Protocol, cast

from gptcalc.errors import InvalidValueError
from gptcalc.parts.block import Block
from gptcalc.spec import Spec
from gptcalc.tape.rows import Op, Setting, Tape, Tensor

#: The release of transformers that was read.
READ = "5.23"
#: The module for each family (transformers' `model_type`).
MODULES = {
    "gpt2": "gpt2",
    "llama": "llama",
    "qwen3": "llama",
    "mistral": "llama",
    "gemma2": "llama",
    "mixtral": "llama",
}
#: What the heading says of each module beside the release.
REMARKS = {
    "gpt2": "eager and sdpa attention, gelu_new in Python, a loss of fp32 logits",
    "llama": "eager and sdpa attention, norms and rotations in Python, a loss of fp32 logits",
}


class Code(Protocol):
    """What an implementation says of its passes."""

    def buffers(self, spec: Spec, at: Setting) -> tuple[Tensor, ...]:
        """What the class holds beside its weights, in its order."""

    def rank(self, name: str) -> int:
        """Of a layer's weights those of the lowest rank are made first; within a rank they come as in the inventory."""

    def input_rows(self, spec: Spec, at: Setting) -> Tape:
        """Token IDs to the first layer's input; what lives on until the last layer is made by `shared` ops."""

    def block_arguments(self, at: Setting) -> tuple[Tensor, ...]:
        """What a layer may be given beside `at.x`, and not by keyword: under a checkpoint autograd keeps it."""

    def block_keywords(self, at: Setting) -> tuple[Tensor, ...]:
        """What it is given by keyword and does not read: under a checkpoint it is held for the second run."""

    def layer_rows(self, at: Setting, block: Block) -> tuple[Op, ...]:
        """`at.x` to the same shape."""

    def head_rows(
        self, spec: Spec, at: Setting, targets: Tensor | None, shared: Sequence[Tensor], *, last: bool
    ) -> tuple[Op, ...]:
        """The last layer's output to logits, or in training to the loss; the `shared` values end with the trunk."""


def code_of(family: str) -> Code:
    """The module for a family, or an error that says which families have one."""
    if family not in MODULES:
        raise InvalidValueError(
            f"implementation: read 'transformers' for the family {family!r}, of which only the reference is modelled;"
            f" allowed: reference, or a family of {', '.join(MODULES)}"
        )
    return cast(Code, import_module(f"gptcalc.hf.{MODULES[family]}"))
