"""Adafactor, as torch/optim/_adafactor.py has it."""

from collections.abc import Sequence
from typing import ClassVar, Self

from gptcalc.optimizers.base import Optimizer, Parameter, Variables, each, let_go, number, product, state, temporary
from gptcalc.plan import Plan
from gptcalc.tape.record import Recorder, Slot


class Adafactor(Optimizer):
    """Adafactor (Shazeer & Stern 2018): the second moment of a matrix is a column times a row, of a vector all of it.

    Of more than two axes the last two are the matrix. No first moment is kept. A step makes the estimate of the second
    moment, as large as the weight, and turns it into the update in place: `foreach` for all matrices at once, which
    live until those of the vectors are there; `for-loop` one after the other, the last two side by side.
    """

    since: ClassVar = {"foreach": (2, 5), "for-loop": (2, 5)}

    def __init__(self, impl: str) -> None:
        """By implementation."""
        self.impl = impl

    @classmethod
    def of(cls, plan: Plan) -> Self:
        """As a plan asks for it."""
        return cls(plan.optimizer_impl)

    def create(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """A number for each row and each column of a matrix; for each element of a vector."""
        for one in each(record, parameters):
            if len(one.axes) > 1:
                state(record, one.tensor, "row_var", "aten::new_zeros", dims=one.without(-1))
                state(record, one.tensor, "col_var", "aten::new_zeros", dims=one.without(-2))
            else:
                state(record, one.tensor, "variance", "aten::zeros_like")

    def step(self, record: Recorder, parameters: Sequence[Parameter]) -> None:
        """The temporaries of the update."""
        if self.impl == "foreach":
            self._all_at_once(record, parameters)
        else:
            self._one_by_one(record, parameters)

    @staticmethod
    def _all_at_once(record: Recorder, parameters: Sequence[Parameter]) -> None:
        """Matrices and vectors are two groups, that of the first weight first."""
        groups: dict[bool, list[Parameter]] = {}
        for one in parameters:
            groups.setdefault(len(one.axes) > 1, []).append(one)
        before: tuple[list[Parameter], list[Slot]] = ([], [])
        for is_matrix, group in groups.items():
            _norms(record, group)
            if is_matrix:
                for name, axis in (("rows", -1), ("columns", -2)):
                    means = [_norm_along(record, one, axis, name) for one in each(record, group)]
                    let_go(record, group, means)
                estimates = [_estimate(record, one) for one in each(record, group)]
                means = [_mean_of_rows(record, one) for one in each(record, group)]
                let_go(record, group, means)
            else:
                squares = [temporary(record, one.tensor, "aten::_foreach_mul") for one in each(record, group)]
                let_go(record, group, squares)
                estimates = [temporary(record, one.tensor, "aten::clone") for one in each(record, group)]
            let_go(record, *before)
            _norms(record, group)
            before = (group, estimates)
        let_go(record, *before)

    @staticmethod
    def _one_by_one(record: Recorder, parameters: Sequence[Parameter]) -> None:
        local = Variables(record)
        for one in each(record, parameters):
            _norms(record, [one])
            if len(one.axes) > 1:
                local.assign("row_mean", _norm_along(record, one, -1, "rows"))
                local.assign("col_mean", _norm_along(record, one, -2, "columns"))
                estimate = _estimate(record, one)
                record.release(_mean_of_rows(record, one))
            else:
                local.assign("grad_squared", temporary(record, one.tensor, "aten::mul"))
                estimate = temporary(record, one.tensor, "aten::clone")
            local.assign("update", estimate)  # and var_estimate, which is the same tensor
            _norms(record, [one])
        local.end()


def _norms(record: Recorder, parameters: Sequence[Parameter]) -> None:
    """The norm of each weight, or update, is read as a number and let go."""
    for one in each(record, parameters):
        record.release(number(record, one.tensor, "aten::linalg_vector_norm"))


def _norm_along(record: Recorder, one: Parameter, axis: int, name: str) -> Slot:
    """The norms of a gradient's rows, or columns."""
    return temporary(
        record, one.tensor, "aten::linalg_vector_norm", dims=one.without(axis), what=f"norms of the {name}"
    )


def _estimate(record: Recorder, one: Parameter) -> Slot:
    """The second moment: the column of the rows' moments times the row of the columns' ones."""
    op = "aten::mm" if len(one.axes) == 2 else "aten::bmm"
    made = temporary(record, one.tensor, op)
    record.kernel(product(made.tensor))
    return made


def _mean_of_rows(record: Recorder, one: Parameter) -> Slot:
    """The mean of a matrix's row moments: a number, or one for each of several matrices."""
    return temporary(record, one.tensor, "aten::mean", dims=tuple(dim for axis in one.axes[:-2] for dim in axis))
