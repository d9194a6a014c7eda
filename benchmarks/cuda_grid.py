"""How far the predicted memory is from what a GPU's allocator says, over a grid that was decided before any run.

    python benchmarks/cuda_grid.py OUT.json [SECONDS] [--workers N]

Every case runs in a process of its own. OUT.json has a row for each, also for those that fail, run out of memory or are
not reached in SECONDS (default 480): the environment, every figure of every phase predicted and measured, and what the
difference is made of. It is rewritten after each row. The allocator's own records of the cases marked `keep` go to
records/ beside it: tests/data/measurements/records is where they belong. With N workers, light cases (under
LIGHT_BYTES each) run side by side, which changes no figure; heavy ones always run alone.

    python benchmarks/cuda_grid.py --one CASE [FOLDER]     one case, a JSON object, here and now; a line `ROW {…}`
"""

import gzip
import json
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from gptcalc.catalog import Resolved, resolve
from gptcalc.errors import GptcalcError
from gptcalc.files import write_atomically
from gptcalc.ledger.asked import with_dropout
from gptcalc.ledger.memory import ModeName, memory
from gptcalc.plan import Plan
from gptcalc.units import GIB

LLAMA_1B = {
    "d_model": 2048,
    "d_ff": 8192,
    "n_layers": 16,
    "n_heads": 32,
    "n_kv_heads": 8,
    "d_head": 64,
    "n_vocab": 128256,
    "tied": True,
    "n_ctx": 131072,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "small": ("gpt2", {}),
    "medium": ("gpt2-medium", {}),
    "large": ("gpt2-large", {}),
    "xl": ("gpt2-xl", {}),
    "llama-1b": ("llama-3-8b", LLAMA_1B),
}
#: model, precision, attention, optimizer (or inference and which logits), batch×length; dropout, where it is not the
#: model's own; fields of the plan; `keep` the record. The most telling come first: time may run out.
CASES = """
small     bf16  auto       foreach          1×256
small     bf16  auto       foreach          8×1024
small     fp32  auto       foreach          8×1024
llama-1b  bf16  auto       foreach          8×1024
xl        bf16  auto       fused            8×1024
small     bf16  flash      fused            3×777           keep
small     fp32  eager      fused            1×256           keep
llama-1b  bf16  flash      foreach          1×256           keep
small     bf16  flash      foreach          1×256   0.0     keep
small     fp16  efficient  sgd              1×256           keep
llama-1b  bf16  auto       inference-last   1×256           keep
small     autocast-bf16  auto  foreach       8×1024
small     autocast-bf16  auto  foreach       1×256   keep
small     bf16  auto       foreach          8×1024  checkpointing=full
small     bf16  auto       foreach          8×1024  chunked_loss=8
small     bf16  auto       foreach          4×1024  grad_accum=2 grad_clip=1.0
small     bf16  auto       foreach          8×1024  master_weights=fp32 grad_clip=1.0
small     bf16  auto       adafactor        8×1024
small     bf16  auto       muon             8×1024
small     bf16  auto       adamw8bit        8×1024
small     autocast-fp16  auto  fused         8×1024  grad_clip=1.0
medium    autocast-bf16  auto  foreach       8×1024  checkpointing=full chunked_loss=4
llama-1b  autocast-bf16  flash foreach       4×1024  checkpointing=selective
llama-1b  bf16  flash      foreach          4×1024  grad_dtype=fp32 master_weights=fp32 grad_accum=2
llama-1b  bf16  flash      fused            4×1024  optimizer_in_backward=true checkpointing=full chunked_loss=8
small     bf16  auto       amsgrad          8×1024  zero_grads=true
small     bf16  math       foreach          4×1024  checkpointing=selective keep_outputs=true
small     fp32  auto       muon             3×777   grad_clip=1.0
medium    bf16  auto       adafactor        4×1024  optimizer_in_backward=true
medium    autocast-bf16  eager fused         3×777   grad_accum=2 zero_grads=true
small     fp16  auto       foreach          8×1024
small     bf16  efficient  foreach          8×1024
small     bf16  math       foreach          8×1024
small     bf16  eager      foreach          8×1024
small     bf16  cudnn      foreach          8×1024  0.0
small     bf16  flash      for-loop         3×777
small     fp32  efficient  fused            3×777
small     fp32  math       for-loop         1×256
small     fp16  flash      for-loop         1×256
small     fp16  eager      fused            3×777
small     fp16  math       sgd              3×777
small     bf16  flash      sgd              16×1024
small     fp32  efficient  sgd-momentum     8×1024
small     bf16  flash      foreach          8×1024  0.0
small     fp32  auto       foreach          3×777   0.0
small     bf16  auto       foreach          16×1024
medium    bf16  flash      foreach          8×1024
medium    fp32  auto       fused            3×777
medium    fp16  efficient  for-loop         16×1024
medium    bf16  eager      sgd              1×256
medium    bf16  math       foreach          3×777
large     bf16  auto       foreach          8×1024
large     fp32  efficient  for-loop         1×256
large     fp16  flash      fused            3×777
large     bf16  eager      foreach          8×1024
xl        bf16  flash      foreach          1×256
xl        fp32  auto       sgd              3×777
xl        fp16  math       for-loop         1×256
llama-1b  fp32  math       fused            3×777
llama-1b  fp32  auto       for-loop         1×256
llama-1b  fp16  flash      sgd              3×777
llama-1b  bf16  eager      foreach          3×777
llama-1b  bf16  cudnn      foreach          8×1024
small     bf16  auto       inference-last   8×1024
large     fp32  eager      inference-last   3×777
xl        fp16  flash      inference-last   16×1024
llama-1b  fp32  math       inference-last   3×777
llama-1b  bf16  auto       inference-all    8×1024
llama-1b  bf16  flash      fused            16×1024
xl        bf16  flash      foreach          16×1024
xl        fp32  efficient  foreach          16×1024
"""
UPDATES: dict[str, dict[str, Any]] = {
    "foreach": {"optimizer": "adamw", "optimizer_impl": "foreach"},
    "fused": {"optimizer": "adamw", "optimizer_impl": "fused"},
    "for-loop": {"optimizer": "adamw", "optimizer_impl": "for-loop"},
    "sgd": {"optimizer": "sgd"},
    "sgd-momentum": {"optimizer": "sgd", "momentum": 0.9},
    "amsgrad": {"optimizer": "adam", "amsgrad": True},
    "adafactor": {"optimizer": "adafactor"},
    "muon": {"optimizer": "muon"},
    "adamw8bit": {"optimizer": "adamw8bit", "optimizer_impl": "fused"},
    "inference-last": {"logits": "last"},
    "inference-all": {"logits": "all"},
}
#: Goals, in percent of the allocated bytes measured at the peak.
GOAL, GOAL_MEDIAN = 0.5, 0.2
#: A case predicted below this may run beside others.
LIGHT_BYTES = 24 * GIB
#: No case takes longer, unless something hangs.
MOST_S = 240
#: Buckets of a phase's gap that a row lists.
LISTED = 8
Row = dict[str, Any]


class Case(NamedTuple):
    """What is run: a model of MODELS (or a preset, with overrides), the plan's fields, the mode."""

    name: str
    model: str
    plan: dict[str, Any]
    mode: ModeName = "training"
    overrides: dict[str, Any] | None = None
    dropout: float | None = None
    keep: bool = False

    def resolved(self) -> tuple[Resolved, Plan]:
        """The model and the plan that it means. Raises `GptcalcError`."""
        preset, own = MODELS.get(self.model, (self.model, {}))
        overrides = with_dropout({**own, **(self.overrides or {})}, {"dropout": self.dropout})
        return resolve(preset, overrides), Plan.model_validate(self.plan)


def grid() -> Iterator[Case]:
    """Every case of the table."""
    for line in CASES.split("\n"):
        if not line:
            continue
        model, precision, attention, update, size, *rest = line.split()
        batch, seq = (int(number) for number in size.split("×"))
        own = dict(word.split("=") for word in rest if "=" in word)
        dropout = next((float(word) for word in rest if word[0].isdecimal()), None)
        kv_dtype = precision.removeprefix("autocast-")
        plan = {"batch": batch, "seq": seq, "precision": precision, "kv_dtype": kv_dtype, "attention": attention}
        said = [word for word in rest if word != "keep"]
        name = "-".join([model, precision, attention, update, f"{batch}x{seq}", *said])
        mode: ModeName = "inference" if update.startswith("inference") else "training"
        fields = plan | UPDATES[update] | {key: value_of(value) for key, value in own.items()}
        yield Case(name, model, fields, mode, dropout=dropout, keep="keep" in rest)


def value_of(text: str) -> object:
    """A field's value: a number, true, or a word."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


# --- One case --------------------------------------------------------------------------------------------------------


def run(case: Case, folder: Path | None) -> Row:
    """Measure and predict a case; whatever goes wrong is its row's `failure`."""
    row: Row = {"case": case._asdict(), "failure": ""}
    started = time.perf_counter()
    try:
        row |= measured_row(case, folder)
    except (GptcalcError, RuntimeError, ValueError) as error:
        row["failure"] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return row | {"seconds": round(time.perf_counter() - started, 1)}


def measured_row(case: Case, folder: Path | None) -> Row:
    """Everything that is known of a case."""
    from gptcalc.ledger.snapshot import Measured, compare, events_to_figures, gaps, segments_held, to_json
    from gptcalc.witness.cuda import measure, predict

    def by_allocator(measured: Measured) -> Iterator[Row]:
        """Where the recorded requests, through the model of the allocator, give other figures than were measured."""
        figures = events_to_figures(measured.recorded, expandable=measured.plan.expandable_segments)
        held = segments_held(measured.recorded)
        last = {phase.name: number for number, phase in enumerate(measured.recorded)}
        for phase, taken in measured.phases.items() if measured.recorded else ():
            modelled = figures[last[phase]]
            for figure, value in taken._asdict().items():
                if getattr(modelled, figure) != value:
                    yield {"phase": phase, "figure": figure, "modelled": getattr(modelled, figure), "measured": value}
            if held[last[phase]] != taken.reserved:
                yield {"phase": phase, "figure": "segments recorded", "modelled": held[last[phase]]}

    model, plan = case.resolved()
    measured = measure(model.spec, plan, case.mode, records=True)
    row: Row = {"environment": measured.environment._asdict(), "notes": measured.notes, "failure": measured.skipped}
    if measured.skipped:
        return row
    predicted = predict(model.spec, measured)
    shown: dict[str, list[Row]] = {}
    for gap in gaps(model.spec, measured):
        shown.setdefault(gap.phase, []).append(gap._asdict() | {"amount": gap.amount})
    if folder is not None and case.keep:
        folder.mkdir(parents=True, exist_ok=True)
        kept = {"case": case._asdict(), "measured": to_json(measured)}
        with gzip.GzipFile(folder / f"{case.name}.json.gz", "wb", mtime=0) as file:
            file.write(json.dumps(kept, separators=(",", ":")).encode())
    compared = [each._asdict() | {"error": round(each.error, 4)} for each in compare(predicted, measured)]
    peak = max(taken.allocated for taken in measured.phases.values())
    return row | {
        "attention": {"predicted": predicted.attention[0], "measured": measured.attention},
        "peak": {
            "predicted": predicted.totals.allocated,
            "measured": peak,
            "error": round(100 * (predicted.totals.allocated - peak) / peak, 4),
        },
        "figures": compared,
        "allocator": list(by_allocator(measured)),
        "gaps": {phase: found[:LISTED] for phase, found in shown.items()},
    }


# --- The grid --------------------------------------------------------------------------------------------------------


def main() -> int:
    """Run the grid, or one case."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("seconds", nargs="?", type=float, default=480.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--one", metavar="CASE")
    asked = parser.parse_args()
    if asked.one:
        print("ROW " + json.dumps(run(Case(**json.loads(asked.one)), asked.out)))
        return 0
    if asked.out is None:
        parser.error("OUT.json is needed")
    return whole(asked)


def whole(asked: Namespace) -> int:
    """Every case of the grid, light ones side by side, heavy ones alone."""
    cases, until = list(grid()), time.monotonic() + asked.seconds
    rows: dict[str, Row] = {
        case.name: {"case": case._asdict(), "failure": "not run: the time was spent"} for case in cases
    }
    records = asked.out.parent / "records"

    def take(case: Case) -> Row | None:
        return child(case, records, until) if time.monotonic() < until else None

    def note(case: Case, row: Row | None) -> None:
        if row is not None:
            rows[case.name] = row
            print(line(case, row), flush=True)
            write(asked.out, list(rows.values()))

    weights = {case.name: predicted_bytes(case) for case in cases}
    light = [case for case in cases if weights[case.name] < LIGHT_BYTES] if asked.workers > 1 else []
    with ThreadPoolExecutor(asked.workers) as pool:
        waiting = {pool.submit(take, case): case for case in light}
        for done in as_completed(waiting):
            note(waiting[done], done.result())
    for case in cases:
        if case not in light:
            note(case, take(case))
    write(asked.out, list(rows.values()))
    print(summary(list(rows.values())))
    return 0


def predicted_bytes(case: Case) -> int:
    """What a case will hold, before anything is known of the machine; nothing where it cannot be predicted."""
    try:
        model, plan = case.resolved()
        return memory(model.spec, plan, (case.mode,)).modes[0].totals.reserved
    except GptcalcError:
        return 0


def child(case: Case, records: Path, until: float) -> Row:
    """The row of a case that ran in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps(case._asdict()), str(records)]
    limit = min(MOST_S, max(30.0, until - time.monotonic()))
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"case": case._asdict(), "failure": f"not finished after {limit:.0f} s"}
    found = [text for text in done.stdout.splitlines() if text.startswith("ROW ")]
    if found:
        row: Row = json.loads(found[-1].removeprefix("ROW "))
        return row
    last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
    return {"case": case._asdict(), "failure": f"died with {done.returncode}: {last[:300]}"}


def write(path: Path, rows: list[Row]) -> None:
    """The file is always whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps({"schema": "gptcalc.cuda_grid/1", "rows": rows}, indent=1) + "\n")


def line(case: Case, row: Row) -> str:
    """A case in a line."""
    if row["failure"]:
        return f"{case.name:<52}{row['failure']}"
    peak = row["peak"]
    return f"{case.name:<52}{peak['measured']:>16,} allocated{peak['error']:>+10.3f} %  {row['seconds']:.0f} s"


def summary(rows: list[Row]) -> str:
    """How many ran, and the median and the worst error of allocated bytes."""
    ran = [row for row in rows if not row["failure"]]
    text = f"{len(ran)} of {len(rows)} cases ran"
    if not ran:
        return text
    worst = max(ran, key=lambda row: abs(row["peak"]["error"]))
    middle = median(abs(row["peak"]["error"]) for row in ran)
    phases = [abs(one["error"]) for row in ran for one in row["figures"] if one["figure"] == "allocated"]
    within = sum(abs(row["peak"]["error"]) <= GOAL for row in ran)
    return (
        f"{text}; allocated at the peak: median error {middle:.3f} % (goal {GOAL_MEDIAN} %), worst"
        f" {worst['peak']['error']:+.3f} % ({worst['case']['name']}), {within} within {GOAL} %; over all phases: median"
        f" {median(phases):.3f} %, worst {max(phases):.3f} %"
    )


if __name__ == "__main__":
    sys.exit(main())
