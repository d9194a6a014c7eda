"""The input stage: what runs between token IDs and the first block."""

from gptcalc.parts.embedding import TokenEmbedding
from gptcalc.parts.norm import LayerNorm
from gptcalc.parts.positions import LearnedPositions, SinusoidalPositions
from gptcalc.tape import Op, Setting, Tape, add, dropout


def input_stage(
    setting: Setting,
    embedding: TokenEmbedding,
    positions: LearnedPositions | SinusoidalPositions | None,
    norm: LayerNorm | None = None,
    *,
    training: bool = False,
) -> Tape:
    """Token rows, position rows, their sum; then a norm, where there is one, and dropout in training: (M, D)."""
    ops: list[Op] = [*embedding.ops(setting, setting.ids)]
    if positions is not None:
        rows = ops[-1].output
        ops += positions.ops(setting)
        ops.append(add(rows, ops[-1].output, "input vectors"))
    if norm is not None:
        ops += norm.ops(setting, ops[-1].output)
    if training and embedding.dropout:
        ops.append(dropout(ops[-1].output, f"{ops[-1].output.label} after dropout"))
    return Tape(tuple(ops), (ops[-1].output,))
