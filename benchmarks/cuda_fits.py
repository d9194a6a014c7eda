"""Whether the largest batch that is said to fit really runs, and one beyond the stated margin does not.

    python benchmarks/cuda_fits.py OUT.json [SECONDS]

For each of CASES and each room: the largest batch whose answer is "fits" runs, and the first whose answer is "does not
fit" runs out of memory; between them nobody promised anything, and bisection finds the last batch that runs. Rooms are
sizes, for which torch's allocator is given what is left beside CUDA's context (at the largest batch beside the largest
context, beyond it beside the smallest: the harder case each time), and `local`, what NVML says is free, without any
limit. Every run is three steps, or a prompt and a token, in a process of its own. OUT.json is rewritten after each row;
what fails, or is not reached in SECONDS (default 480), is a row too.

    python benchmarks/cuda_fits.py --one RUN     one run, here and now; a line `ROW {…}`
    python benchmarks/cuda_fits.py --probe       the machine; a line `ROW {…}`
"""

import json
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cuda_grid import LLAMA_1B, MOST_S, Row

from gptcalc.catalog import resolve
from gptcalc.errors import GptcalcError
from gptcalc.files import write_atomically
from gptcalc.ledger.fit import Fit, Range, Room, fit, room
from gptcalc.ledger.memory import CONTEXT, ModeName
from gptcalc.ledger.solve import largest
from gptcalc.ledger.totals import Totals
from gptcalc.plan import Plan
from gptcalc.spec import Spec

#: What each plan takes: rooms ask for the same ones.
TOTALS = Totals()
#: No batch is larger.
MOST = 1 << 20
LOCAL = "local"
#: The most telling come first: time may run out.
ROOMS = ("16GiB", LOCAL, "24GiB")
#: Runs that bisection may take for one row.
BISECTIONS = 6


class Case(NamedTuple):
    """A model and a run of it, but for its batch."""

    name: str
    model: str
    plan: dict[str, Any]
    mode: ModeName = "training"
    overrides: dict[str, Any] | None = None

    def spec(self) -> Spec:
        """The model."""
        return resolve(self.model, self.overrides or {}).spec


CASES = (
    Case("small-bf16", "gpt2", {"seq": 1024, "precision": "bf16"}),
    Case(
        "medium-autocast-checkpointed",
        "gpt2-medium",
        {"seq": 1024, "precision": "autocast-bf16", "checkpointing": "full", "optimizer_impl": "fused"},
    ),
    Case("llama-1b-bf16", "llama-3-8b", {"seq": 2048, "precision": "bf16"}, overrides=LLAMA_1B),
    Case("xl-inference", "gpt2-xl", {"seq": 1024, "precision": "bf16", "kv_dtype": "bf16"}, "inference"),
)
#: Runs a plan under a limit of bytes for the allocator (None: none); the row has `skipped`, empty where it ran.
Runner = Callable[[Case, Plan, int | None], Row]


# --- What is promised, and whether it is kept ------------------------------------------------------------------------


class Answers:
    """What is said of each batch of a case in a room."""

    def __init__(self, case: Case, plan: Plan, space: Room) -> None:
        """`plan` is of any batch, as the machine runs it."""
        self.case, self.plan, self.space = case, plan, space
        self.spec = case.spec()

    def of(self, batch: int) -> Plan:
        """The plan with that batch."""
        return self.plan.model_copy(update={"batch": batch})

    def __call__(self, batch: int) -> Fit:
        """The answer."""
        return fit(TOTALS(self.spec, self.of(batch), self.case.mode), self.space)

    def promised(self) -> int | None:
        """The largest batch that fits; None where not even one does."""
        return largest(lambda batch: self(batch).fits, MOST)

    def refused(self, after: int) -> int:
        """The first batch that does not fit, for all that is known."""
        possible = largest(lambda batch: self(batch).verdict != "does not fit", MOST, hint=max(after, 1))
        return (possible or 0) + 1

    def row(self, batch: int) -> Row:
        """The answer of a batch, in bytes."""
        figures = TOTALS(self.spec, self.of(batch), self.case.mode)
        found = self(batch)
        return {
            "batch": batch,
            "verdict": found.verdict,
            "figures": figures._asdict(),
            "needed": found.needed._asdict(),
            "margin": found.margin._asdict(),
        }


def evidence(case: Case, space: Room, plan: Plan, run: Runner) -> Row:
    """One row: the promise, both runs, and the last batch that runs."""
    row: Row = {"case": case._asdict(), "room": space._asdict(), "plan": plan.model_dump(), "failure": ""}
    try:
        answers = Answers(case, plan, space)
        promised = answers.promised()
        if promised is None:
            return row | {"failure": "not even a batch of 1 is said to fit"}
        beyond = answers.refused(promised)
    except GptcalcError as error:
        return row | {"failure": str(error)}
    limits = [None if space.name == LOCAL else space.usable.low - context for context in reversed(CONTEXT)]
    fits = answers.row(promised) | {"ran": run(case, answers.of(promised), limits[0])}
    fails = answers.row(beyond) | {"ran": run(case, answers.of(beyond), limits[1])}
    fits["agrees"], fails["agrees"] = not fits["ran"]["skipped"], is_out(fails["ran"])
    row |= {"largest": fits, "beyond": fails, "agrees": fits["agrees"] and fails["agrees"]}
    if row["agrees"]:
        row["last"] = last_that_runs(promised, beyond, lambda batch: run(case, answers.of(batch), limits[1]))
    return row


def is_out(ran: Row) -> bool:
    """Whether a run ended because memory ran out, and for no other reason."""
    return str(ran["skipped"]).startswith("out of memory")


def last_that_runs(runs: int, fails: int, run: Callable[[int], Row]) -> Row:
    """Between a batch that runs and one that does not: the last that does, as far as the bisections go."""
    for _ in range(BISECTIONS):
        if fails - runs <= 1:
            break
        middle = (runs + fails) // 2
        ran = run(middle)
        if ran["skipped"] and not is_out(ran):
            break
        runs, fails = (runs, middle) if ran["skipped"] else (middle, fails)
    return {"runs": runs, "fails": fails}


# --- One run ---------------------------------------------------------------------------------------------------------


def one(case: Case, plan: Plan, limit: int | None) -> Row:
    """Run it here; `outside` is what the process holds beside the allocator's segments, a context and kernels."""
    import torch

    from gptcalc.witness.cuda import local_gpu, measure

    gpu = local_gpu()
    free, total = torch.cuda.mem_get_info()
    if limit is not None:
        torch.cuda.set_per_process_memory_fraction(limit / total)
    before = total - free - torch.cuda.memory_reserved()
    measured = measure(case.spec(), plan, case.mode, gpu=gpu)
    free, total = torch.cuda.mem_get_info()
    return {
        "limit": limit,
        "environment": measured.environment._asdict(),
        "notes": list(measured.notes),
        "skipped": measured.skipped,
        "phases": {name: taken._asdict() for name, taken in measured.phases.items()},
        "outside": {"before": before, "after": total - free - torch.cuda.memory_reserved()},
    }


def probe() -> Row:
    """What is free by NVML, asked before CUDA is opened, then the machine by torch; `local` may be an error."""
    try:
        local: Row = room(LOCAL)._asdict()
    except GptcalcError as error:
        local = {"failure": str(error)}
    from gptcalc.witness.cuda import local_gpu

    return {"local": local, "environment": local_gpu().environment()._asdict()}


def child(*arguments: str, until: float) -> Row:
    """The row that another process of this script prints."""
    limit = min(MOST_S, max(30.0, until - time.monotonic()))
    started = time.perf_counter()
    try:
        done = subprocess.run(
            [sys.executable, __file__, *arguments], capture_output=True, text=True, check=False, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"skipped": f"not finished after {limit:.0f} s"}
    rows = [text for text in done.stdout.splitlines() if text.startswith("ROW ")]
    if rows:
        row: Row = json.loads(rows[-1].removeprefix("ROW "))
        return row | {"seconds": round(time.perf_counter() - started, 1)}
    last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
    return {"skipped": f"died with {done.returncode}: {last[:300]}"}


# --- All of it -------------------------------------------------------------------------------------------------------


def main() -> int:
    """Every case in every room, or one run."""
    parser = ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", nargs="?", type=Path)
    parser.add_argument("seconds", nargs="?", type=float, default=480.0)
    parser.add_argument("--one", metavar="RUN")
    parser.add_argument("--probe", action="store_true")
    asked = parser.parse_args()
    try:
        if asked.probe:
            print("ROW " + json.dumps(probe()))
            return 0
        if asked.one:
            wanted = json.loads(asked.one)
            found = one(Case(**wanted["case"]), Plan.model_validate(wanted["plan"]), wanted["limit"])
            print("ROW " + json.dumps(found))
            return 0
    except GptcalcError as error:
        print(error, file=sys.stderr)
        return 2
    if asked.out is None:
        parser.error("OUT.json is needed")
    return whole(asked.out, time.monotonic() + asked.seconds)


def whole(out: Path, until: float) -> int:
    """Every row, each written when it is there; 1 where a promise was not kept, or none could be tried."""
    machine = child("--probe", until=until)
    if "environment" not in machine:
        print(machine["skipped"], file=sys.stderr)
        return 2
    rows: list[Row] = []
    for name in ROOMS:
        for case in CASES:
            if time.monotonic() < until:
                rows.append(row_of(case, name, machine, until))
            else:
                rows.append({"case": case._asdict(), "room": name, "failure": "not run: the time was spent"})
            print(line(rows[-1]), flush=True)
            found = {"schema": "gptcalc.cuda_fits/1", "machine": machine, "rows": rows}
            out.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(out, json.dumps(found, indent=1) + "\n")
    ran = [row for row in rows if not row["failure"]]
    kept = sum(row["agrees"] for row in ran)
    print(f"{kept} of {len(ran)} promises kept, {len(rows) - len(ran)} not tried")
    return int(kept < len(ran) or not ran)


def row_of(case: Case, name: str, machine: Row, until: float) -> Row:
    """A case in a room on that machine."""
    if name == LOCAL and "failure" in machine["local"]:
        return {"case": case._asdict(), "room": name, "failure": machine["local"]["failure"]}
    space = Room(**machine["local"]) if name == LOCAL else room(name)
    space = space._replace(usable=Range(*space.usable))
    from gptcalc.ledger.snapshot import Environment

    here = Environment(**machine["environment"])
    own = {"target": here.target, "torch": here.release, "expandable_segments": here.expandable_segments}

    def run(tried: Case, plan: Plan, limit: int | None) -> Row:
        wanted = {"case": tried._asdict(), "plan": plan.model_dump(), "limit": limit}
        return child("--one", json.dumps(wanted), until=until)

    return evidence(case, space, Plan.model_validate(case.plan | own), run)


def line(row: Row) -> str:
    """A row in a line."""
    place = row["room"] if isinstance(row["room"], str) else row["room"]["name"]
    name = f"{row['case']['name']} in {place}"
    if row["failure"]:
        return f"{name:<44}{row['failure']}"
    fits, fails = row["largest"], row["beyond"]
    said = f"{fits['batch']} {'runs' if fits['agrees'] else fits['ran']['skipped']}"
    said += f", {fails['batch']} {'does not' if fails['agrees'] else fails['ran']['skipped'] or 'runs too'}"
    return f"{name:<44}{said}" + (f"; the last that runs is {row['last']['runs']}" if "last" in row else "")


if __name__ == "__main__":
    sys.exit(main())
