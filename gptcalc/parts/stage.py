"""The input stage: what runs between token IDs and the first block."""

from collections.abc import Sequence

from gptcalc.parts.embedding import TokenEmbedding
from gptcalc.parts.norm import LayerNorm
from gptcalc.parts.positions import LearnedPositions, SinusoidalPositions
from gptcalc.spec import AnyPart
from gptcalc.tape import Rows, Setting, Tape, add, dropout, ops_of


def input_stage(  # noqa: PLR0913  what a stage has
    setting: Setting,
    embedding: TokenEmbedding,
    positions: LearnedPositions | SinusoidalPositions | None,
    norm: LayerNorm | None = None,
    *,
    between: Sequence[AnyPart] = (),
    training: bool = False,
) -> Tape:
    """Token rows, position rows, their sum; then a norm, where there is one, and dropout in training: (M, D).

    Parts `between` read the token rows before the sum.
    """
    rows = Rows(setting)
    rows += embedding.ops(setting.within(embedding.name), setting.ids)
    x = rows[-1].output
    for part in between:
        rows += ops_of(part, setting, x)
        rows.drop(x)
        x = rows[-1].output
    if positions is not None:
        rows += positions.ops(setting.within(positions.name))
        both = rows[-1].output, x
        x = rows(add(x, rows[-1].output, "input vectors"))
        rows.drop(*both)
    if norm is not None:
        rows += norm.ops(setting.within(norm.name), x)
        rows.drop(x)
        x = rows[-1].output
    if training and embedding.dropout:
        before, x = x, rows(dropout(x, f"{x.label} after dropout"))
        rows.drop(before)
    return Tape(tuple(rows), (x,))
