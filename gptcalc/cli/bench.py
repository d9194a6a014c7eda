"""`gptcalc bench`: real kernels on the local device, against what the device can do."""

import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from gptcalc import __version__, catalog
from gptcalc.bench.plan import BACKENDS, CASES, DTYPES, Job, chosen_cases, parse_axis, plan, sequence
from gptcalc.cli.options import FormatOption, complete_preset
from gptcalc.cli.output import answer, say
from gptcalc.errors import GptcalcError, InvalidValueError, UnknownNameError, plain, shown
from gptcalc.files import must_be_writable
from gptcalc.ledger.profile import Profile, Shape, differences, load, save
from gptcalc.ledger.timing import compare, timing
from gptcalc.report.bench import bench_document
from gptcalc.report.bench_against import comparison_document, comparison_json
from gptcalc.report.bench_data import bench_json
from gptcalc.report.formats import Format, render

if TYPE_CHECKING:
    from collections.abc import Callable

    from gptcalc.bench.run import Bench, Step

#: What the headline set may take, so that it is done within a minute, torch's start and the checks included.
HEADLINE_S = 45.0
#: Batch and sequence that nobody asked for.
BATCH, SEQ = 8, 1024

Name = TypeVar("Name", bound=str)

AgainstOption = Annotated[
    Path | None,
    typer.Option("--against", metavar="FILE", help="Compare with a saved run; exit code 1 on a regression."),
]
ExplainOption = Annotated[bool, typer.Option("--explain", help="Add what the bytes are made of.")]
ThresholdOption = Annotated[
    str, typer.Option("--threshold", metavar="SHARE", help="How much slower is a regression: 5% or 0.05.")
]


class MeasureOrShow(TyperGroup):
    """`bench show` is a command; whatever else follows `bench` are cases and options of the one that measures."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the measuring command first where no other stands there."""
        return super().parse_args(ctx, args if args[:1] == ["show"] else ["measure", *args])


class Measure(TyperCommand):
    """The command behind `bench` itself: help and errors call it so."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:  # noqa: ARG002
        """The context of `gptcalc bench`."""
        return super().make_context(parent.info_name, args, parent=parent.parent, **extra)


app = typer.Typer(
    add_completion=False,
    cls=MeasureOrShow,
    help="Time real embedding and LayerNorm kernels against the device's own copy and launch times.",
)


def complete_case(incomplete: str) -> list[str]:
    """Case names for the shell."""
    return [name for name in CASES if name.startswith(incomplete.lower())]


@app.command(cls=Measure, epilog="Example: gptcalc bench layernorm.forward --d-model 256:16384:x2 --save run.json")
def measure(
    *,
    cases: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="CASE",
            autocompletion=complete_case,
            help=f"Names or globs ('layernorm.*') of: {', '.join(CASES)}. (default: all, within a minute)",
            show_default=False,
        ),
    ] = None,
    device: Annotated[
        str, typer.Option("--device", metavar="NAME", help="cuda, cpu, mps, or auto: the best that is there.")
    ] = "auto",
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="MODEL", autocompletion=complete_preset, help="Shapes of a model. (default: gpt2-small)"
        ),
    ] = None,
    batch: Annotated[str | None, typer.Option("--batch", metavar="B", help="Sequences. (default: 8)")] = None,
    seq: Annotated[
        str | None, typer.Option("--seq", metavar="T", help="Tokens of each. (default: the context, 1,024 at most)")
    ] = None,
    rows: Annotated[
        str | None, typer.Option("--rows", metavar="SIZES", help="Rows instead of batch and sequence: 1k,8k,64k.")
    ] = None,
    d_model: Annotated[
        str | None, typer.Option("--d-model", metavar="SIZES", help="Widths instead of the model's: 256:16384:x2.")
    ] = None,
    vocab: Annotated[str | None, typer.Option("--vocab", metavar="V", help="Rows of the token table.")] = None,
    dtype: Annotated[str, typer.Option("--dtype", metavar="NAMES", help="fp32, bf16, fp16.")] = "fp32",
    backend: Annotated[
        str, typer.Option("--backend", metavar="NAMES", help="eager, compile, or eager,compile side by side.")
    ] = "eager",
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, max=4096, help="CPU threads. (default: torch's)")
    ] = None,
    time_budget: Annotated[
        str | None,
        typer.Option("--time-budget", metavar="TIME", help="For the whole run: 90, 90s, 10m. (default: 2 s a number)"),
    ] = None,
    save_: Annotated[
        Path | None,
        typer.Option("--save", metavar="FILE", help="Keep every sample; a run that was stopped goes on from there."),
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what FILE has.")] = False,
    against: AgainstOption = None,
    threshold: ThresholdOption = "5%",
    explain: ExplainOption = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Time real embedding and LayerNorm kernels against the device's own copy and launch times.

    Every result is checked against a float64 reference before it is timed.

    'gptcalc bench show FILE' prints a saved run.

    Exit codes: 1 a result was wrong or regressed, 2 something could not be measured.
    """
    chosen = chosen_cases(cases or ())
    shapes = _shapes(model, batch=batch, seq=seq, rows=rows, d_model=d_model, vocab=vocab)
    jobs = plan(chosen, shapes, _names(dtype, "--dtype", DTYPES), _names(backend, "--backend", BACKENDS))
    budget = _seconds(time_budget) if time_budget else None if cases else HEADLINE_S
    limit = _share(threshold)
    if against and save_ and against.resolve() == save_.resolve():
        raise InvalidValueError(f"--against: read the file of --save, {plain(str(save_))}; allowed: an earlier run")
    earlier = load(against) if against else None
    if save_:
        must_be_writable(save_)  # known before the first minute is spent
    kept = load(save_) if save_ and save_.exists() else None
    from gptcalc.bench.device import Machine, software

    machine = Machine.open(device, threads)
    profile = Profile(
        command=shlex.join(["gptcalc", *sys.argv[1:]]),
        started=datetime.now(UTC).isoformat(timespec="seconds"),
        device=machine.device,
        software=software(__version__),
        load=machine.load(),
        asked=len(jobs),
        points=(),
    )
    if kept and not fresh:
        profile = _resumed(profile, jobs, kept, plain(str(save_)))
        has = f"{len(profile.points)} of {profile.asked} points"
        say(f"gptcalc: {plain(str(save_))} has {has} already; --fresh measures them again")
    from gptcalc.bench.run import Bench

    with _progress() as show:
        profile, stopped = _measure(Bench(machine, jobs, profile, budget, show), save_)
    regressed = _answer(profile, None if stopped else earlier, limit, format_, explain=explain)
    _say_what_is_missing(profile, stopped, save_)
    if regressed:
        raise typer.Exit(1)


@app.command(epilog="Example: gptcalc bench show run.json --against before.json")
def show(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A run that was saved.", show_default=False)],
    against: AgainstOption = None,
    threshold: ThresholdOption = "5%",
    explain: ExplainOption = False,
    format_: FormatOption = Format.TABLE,
) -> None:
    """Print a saved run; needs neither torch nor the device."""
    limit = _share(threshold)
    if _answer(load(file), load(against) if against else None, limit, format_, explain=explain):
        raise typer.Exit(1)


def _answer(profile: Profile, earlier: Profile | None, threshold: float, format_: Format, *, explain: bool) -> bool:
    """Print the run, or what changed since `earlier`; return whether something became slower."""
    if earlier is None:
        read = timing(profile)
        answer(render(format_, lambda: bench_document(read, explain=explain), lambda: bench_json(read)))
        return False
    comparison = compare(earlier, profile)
    answer(
        render(
            format_,
            lambda: comparison_document(comparison, threshold),
            lambda: comparison_json(comparison, threshold),
        )
    )
    return any(change.regressed(threshold) for change in comparison.changes)


def _measure(bench: "Bench", path: Path | None) -> tuple[Profile, BaseException | None]:
    """The profile, saved after each block, and what stopped the run early: nothing that was measured is lost."""
    profile = bench.profile
    try:
        for profile in bench:
            if path:
                save(profile, path)
    except (KeyboardInterrupt, GptcalcError) as stop:
        return profile, stop
    return profile, None


def _say_what_is_missing(profile: Profile, stopped: BaseException | None, path: Path | None) -> None:
    """Leave with the exit code that fits where the answer is not all that was asked for."""
    again = f"the same command goes on from {plain(str(path))}" if path else "--save FILE would keep what is done"
    if isinstance(stopped, KeyboardInterrupt):
        say(f"gptcalc: stopped at {len(profile.points)} of {profile.asked} points; {again}")
    if stopped:
        raise stopped
    if len(profile.points) < profile.asked:
        say(f"gptcalc: the time was up at {len(profile.points)} of {profile.asked} points; {again}")
    problems = [(point.case, point.problem) for point in profile.points if point.problem]
    if problems:
        case, first = problems[0]
        say(f"gptcalc: {len(problems)} of {profile.asked} points could not be measured; {case}: {first.text}")
        raise typer.Exit(1 if any(problem.kind == "wrong" for _, problem in problems) else 2)


def _resumed(profile: Profile, jobs: Sequence[Job], kept: Profile, path: str) -> Profile:
    """The old run, of which more is asked now, where both speak of the same device and software."""
    for what, field, then, now in differences(kept, profile):
        if None not in (then, now):
            raise InvalidValueError(
                f"--save: {path} is of another {what}: {field} was {shown(then)}, here it is {shown(now)};"
                " --fresh replaces it"
            )
    wanted = set(jobs) | {point.key for point in kept.points}
    return kept.model_copy(update={"command": profile.command, "asked": len(wanted)})


@contextmanager
def _progress() -> Iterator["Callable[[Step], None]"]:
    """A bar on stderr where somebody looks at it."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    # Drawn between restarts only: a thread that draws would be measured with the kernels.
    with Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False) as bar:
        task = bar.add_task("", total=None)
        yield lambda step: bar.update(
            task, total=step.total_s, completed=step.done_s, description=step.what, refresh=True
        )


def _shapes(
    model: str | None,
    *,
    batch: str | None,
    seq: str | None,
    rows: str | None,
    d_model: str | None,
    vocab: str | None,
) -> list[Shape]:
    """Every M × D that was asked for; what was not is the model's."""
    if rows and (batch or seq):
        raise InvalidValueError("bench: read --rows with --batch or --seq; allowed: rows, or batch and sequence")
    spec = catalog.resolve(model, {}).spec
    n_vocab = _one(vocab, "--vocab") or spec.n_vocab
    length = _one(seq, "--seq") or min(spec.n_ctx, SEQ)
    if length > spec.n_ctx:
        raise InvalidValueError(f"--seq: read {length:,}; allowed: at most the model's context, {spec.n_ctx:,}")
    counts = parse_axis(rows, "--rows") if rows else ((_one(batch, "--batch") or BATCH) * length,)
    widths = parse_axis(d_model, "--d-model") if d_model else (spec.d_model,)
    return [
        Shape(
            rows=count,
            d_model=width,
            n_vocab=n_vocab,
            n_ctx=spec.n_ctx,
            seq=sequence(count, spec.n_ctx) if rows else length,
        )
        for count, width in product(counts, widths)
    ]


def _one(text: str | None, what: str) -> int | None:
    """One size, or nothing."""
    if text is None:
        return None
    sizes = parse_axis(text, what)
    if len(sizes) > 1:
        raise InvalidValueError(f"{what}: read {shown(text)}; allowed: one size (a sweep is over --rows and --d-model)")
    return sizes[0]


def _names(text: str, what: str, allowed: tuple[Name, ...]) -> tuple[Name, ...]:
    """Names between commas, each allowed, each once."""
    found: dict[Name, None] = {}
    for name in text.split(","):
        match = next((known for known in allowed if known == name.strip().lower()), None)
        if match is None:
            raise UnknownNameError.near(what, name.strip(), allowed)
        found[match] = None
    return tuple(found)


def _seconds(text: str) -> float:
    """`90`, `90s`, `10m`, `2h` in seconds."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)([smh]?)", text.strip().lower())
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0
    if not seconds:
        raise InvalidValueError(f"--time-budget: read {shown(text)}; allowed: a time above 0, as in 90, 90s, 10m or 2h")
    return seconds


def _share(text: str) -> float:
    """`5%` or `0.05` as a fraction."""
    match = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{1,9})?)(%?)", text.strip())
    if not match:
        raise InvalidValueError(f"--threshold: read {shown(text)}; allowed: a share from 0 on, as in 5% or 0.05")
    return float(match[1]) / (100 if match[2] else 1)
