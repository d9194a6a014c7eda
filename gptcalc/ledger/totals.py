"""The four figures of a run alone, without its lines: what a search over many plans asks for.

Plans that differ in the batch (or in the length) and the device share recordings: in one, these are numbers that may
change (`tape.unknown`), so that it stands for all plans of which the very same would be recorded. Every figure is that
of `ledger.memory`, to the byte.
"""

from typing import Literal, NamedTuple

from gptcalc.allocator import Figures
from gptcalc.formula import product_size
from gptcalc.inventory import inventory
from gptcalc.ledger.memory import ModeName, attention_choices, is_reported, last_step, need, record
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.tape.kernels import Chip, CudaKernels, target, torch_version, workspace_size
from gptcalc.tape.replay import Script, most_rounded, script, stages
from gptcalc.tape.unknown import Unknowns, at
from gptcalc.units import bytes_of

#: What of a plan may be sought: plans that differ in it share recordings.
What = Literal["batch", "seq"]


class _Run(NamedTuple):
    """What is recorded once for all numbers for which `unknowns` hold; `reported` are the numbers of its stages."""

    unknowns: Unknowns
    script: Script
    reported: tuple[int, ...]


class _Sized(NamedTuple):
    """A run, by its number, with the bytes of what it allocates: all that its figures depend on."""

    run: int
    sizes: tuple[int, ...]
    expandable: bool


class Totals:
    """The figures of `ledger.memory`; nothing is recorded or replayed twice."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.runs: list[_Run] = []
        self.figures: dict[_Sized, Figures] = {}
        self.exceeded: dict[_Sized, int] = {}
        self.least: dict[_Sized, int] = {}
        #: The runs of a plan, whatever it varies in, by the attention kernels.
        self.recorded: dict[tuple[Spec, Plan, ModeName, What], dict[tuple[str, ...], list[int]]] = {}
        self._courses: dict[tuple[Spec, Plan, ModeName, What], Course] = {}
        self._elements: dict[Spec, tuple[int, int]] = {}

    def __call__(self, spec: Spec, plan: Plan, mode: ModeName) -> Figures:
        """Each figure's own maximum over the last step. Raises `InvalidValueError` for what torch does not have."""
        return self.course(spec, plan, mode)(plan.batch)

    def course(self, spec: Spec, plan: Plan, mode: ModeName, what: What = "batch") -> "Course":
        """The figures as they are with any batch (or length), all else being as the plan says."""
        key = (spec, plan.model_copy(update={what: 0}), mode, what)
        if key not in self._courses:
            self._courses[key] = Course(self, *key)
        return self._courses[key]

    def elements(self, spec: Spec) -> tuple[int, int]:
        """Parameters of a model, and how many of them are in tables and matrices, of which each gets a gradient."""
        if spec not in self._elements:
            rows = [row for row in inventory(spec) if row.tied_to is None]
            sizes = [row.elements * product_size(row.copies) for row in rows]
            matrices = sum(size for size, row in zip(sizes, rows, strict=True) if row.role in ("lookup", "matmul"))
            self._elements[spec] = sum(sizes), matrices
        return self._elements[spec]


class Course:
    """The figures of a plan by its batch, or by its length."""

    def __init__(self, totals: Totals, spec: Spec, plan: Plan, mode: ModeName, what: What) -> None:
        """Nothing is recorded yet that was not for another course."""
        self.totals, self.spec, self.plan, self.mode, self.what = totals, spec, plan, mode, what
        self._chip, self._torch = target(plan.target), torch_version(plan.torch)
        self._device = {"SMs": self._chip.n_sms, "workspace": workspace_size(self._chip, self._torch)}
        alike = plan.model_copy(update={"target": "", "expandable_segments": False})
        self._runs = totals.recorded.setdefault((spec, alike, mode, what), {})
        elements, matrices = totals.elements(spec)
        at_once = mode == "training" and not plan.optimizer_in_backward and plan.grad_dtype == "none"
        #: Bytes of the weights, in training with the gradients that are there at once: less is never held.
        self.weights = bytes_of(elements + (matrices if at_once else 0), plan.dtype)
        #: About what they are with what Adam adds to them.
        self.states = bytes_of(elements * (4 if mode == "training" else 1), plan.dtype)
        self._choices: list[tuple[Unknowns, tuple[str, ...]]] = []

    def __call__(self, number: int) -> Figures:
        """Each figure's own maximum over the last step. Raises `InvalidValueError` for what torch does not have."""
        known, sized = self.totals.figures, self._sized(number)
        if sized not in known:
            self._replay(sized)
        return known[sized]

    def within(self, number: int, most: int) -> Figures | None:
        """The figures if at most so many bytes are reserved; where they are not, that is known before the figures."""
        known, exceeded, sized = self.totals.figures, self.totals.exceeded, self._sized(number)
        if sized not in known and most > exceeded.get(sized, -1):
            if self._least(sized) <= most:
                self._replay(sized, most)
            if sized not in known:
                exceeded[sized] = most
        figures = known.get(sized)
        return figures if figures is not None and figures.reserved <= most else None

    def at_least(self, number: int) -> int:
        """No more than is reserved, and no less than is requested: quicker to find than the figures."""
        return self._least(self._sized(number))

    def _least(self, sized: _Sized) -> int:
        known = self.totals.least
        if sized not in known:
            known[sized] = most_rounded(self.totals.runs[sized.run].script, sized.sizes)
        return known[sized]

    def _replay(self, sized: _Sized, most: int | None = None) -> None:
        """The figures become known, but not where more than `most` is reserved."""
        run = self.totals.runs[sized.run]
        found = list(stages(run.script, sized.sizes, expandable=sized.expandable, most=most))
        if len(found) == len(run.script.ends):
            peaks = [found[stage][0] for stage in run.reported]
            self.totals.figures[sized] = Figures(*map(max, zip(*peaks, strict=True)))

    def _sized(self, number: int) -> _Sized:
        """The run that stands for a number; one that is there already or a new one."""
        values = {self.what: number} | self._device
        runs, all_runs = self._runs.setdefault(self.attention(number), []), self.totals.runs
        for place in reversed(runs):
            if (found := all_runs[place].unknowns.holds(**values)) is not None:
                break
        else:
            place, unknowns = len(all_runs), Unknowns(**values)
            all_runs.append(self._record(unknowns))
            runs.append(place)
            found = unknowns.now
        sizes = tuple([at(size, found) for size in all_runs[place].script.sizes])
        return _Sized(place, sizes, self.plan.expandable_segments)

    def attention(self, number: int) -> tuple[str, ...]:
        """The kernel of each group of layers."""
        for unknowns, backends in self._choices:
            if unknowns.holds(**{self.what: number}) is not None:
                return backends
        unknowns = Unknowns(**{self.what: number})
        plan = self.plan.model_copy(update={self.what: unknowns[self.what]})
        choices = attention_choices(self.spec, plan, training=self.mode == "training")
        self._choices.append((unknowns, tuple(choice.backend for choice in choices)))
        return self._choices[-1][1]

    def _record(self, unknowns: Unknowns) -> _Run:
        plan, mode = self.plan.model_copy(update={self.what: unknowns[self.what]}), self.mode
        need(self.spec, plan, (mode,))
        chip = Chip(self._chip.capability, unknowns["SMs"], self._chip.devices)
        kernels = CudaKernels(chip, self._torch, unknowns["workspace"])
        recording = record(mode, self.spec, plan, kernels)
        names = [stage.name for stage in recording.record.stages]
        reported = tuple(stage for stage in last_step(recording) if is_reported(mode, names[stage], plan))
        return _Run(unknowns, script(recording), reported)
