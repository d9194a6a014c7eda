"""The four figures of a run alone, without its lines: what a search over many plans asks for."""

from gptcalc.allocator import Figures
from gptcalc.ledger.memory import ModeName, is_reported, last_step, need, record
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.tape.kernels import CudaKernels, target, torch_version
from gptcalc.tape.replay import replay


class Totals:
    """The figures of `ledger.memory`, each plan asked of it once."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._known: dict[tuple[Spec, Plan, ModeName], Figures] = {}

    def __call__(self, spec: Spec, plan: Plan, mode: ModeName) -> Figures:
        """Each figure's own maximum over the last step. Raises `InvalidValueError` for what torch does not have."""
        key = spec, plan, mode
        if key not in self._known:
            self._known[key] = _totals(spec, plan, mode)
        return self._known[key]


def _totals(spec: Spec, plan: Plan, mode: ModeName) -> Figures:
    need(spec, plan, (mode,))
    recording = record(mode, spec, plan, CudaKernels(target(plan.target), torch_version(plan.torch)))
    names = [stage.name for stage in recording.record.stages]
    blocks = replay(recording, expandable=plan.expandable_segments)
    found = [blocks[stage][0] for stage in last_step(recording) if is_reported(mode, names[stage], plan)]
    return Figures(*map(max, zip(*found, strict=True)))
