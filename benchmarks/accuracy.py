"""How far `gptcalc memory` is from every truth that the repository holds: tables for docs/accuracy.md and the README.

    python benchmarks/accuracy.py              write both anew
    python benchmarks/accuracy.py --trace      measure tests/data/facts_traces.json first; takes a minute, and torch

A truth is a number that gptcalc did not make: steps of transformers' classes on fake CUDA tensors, gptcalc's own torch
modules traced on the meta device, published formulas, and what a GPU's allocator counted (tests/data/measurements).
Each row says which. A prediction is made when this runs; no row is left out for being wrong.
"""

import json
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from gptcalc.catalog import resolve
from gptcalc.files import write_atomically
from gptcalc.ledger.memory import PHASES, Mode, memory, record
from gptcalc.ledger.parameters import stored
from gptcalc.plan import Plan
from gptcalc.spec import Spec
from gptcalc.tape.replay import Recording, fold, replay
from gptcalc.units import format_count

ROOT = Path(__file__).parent.parent
DATA = ROOT / "tests" / "data"
TRACES = DATA / "facts_traces.json"
STEPS = DATA / "facts_steps.json"
#: What a table stands between.
BEGIN, END = "<!-- accuracy -->\n", "<!-- end of accuracy -->"


class Row(NamedTuple):
    """A number that is predicted, and what it is in truth: `source` made that one; both are in `unit`."""

    source: str
    case: str
    figure: str
    predicted: int
    truth: int
    unit: str = "bytes"

    @property
    def error(self) -> float:
        """Percent by which the prediction is above the truth."""
        return 100 * (self.predicted - self.truth) / self.truth


# --- transformers' classes on fake CUDA tensors -----------------------------------------------------------------------

FAKE_CUDA = "transformers 5.23 on fake CUDA, torch 2.13"
LLAMA_1B = {
    "model_type": "llama",
    "hidden_size": 2048,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 8192,
    "vocab_size": 128256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
#: The models that were measured, as configs of their classes.
MEASURED: dict[str, dict[str, object]] = {
    "gpt2": {"model_type": "gpt2"},
    "gpt2-medium": {"model_type": "gpt2", "n_layer": 24, "n_embd": 1024, "n_head": 16},
    "gpt2-xl": {"model_type": "gpt2", "n_layer": 48, "n_embd": 1600, "n_head": 25},
    "llama-3.2-1b": LLAMA_1B,
}
#: Families and precisions that are modelled as transformers runs them.
FAMILIES = ("gpt2", "llama")
PRECISIONS = ("fp32", "bf16")


def routed(kind: str, precision: str, attention: str) -> str:
    """What sdpa was routed to: fp32 of grouped heads has no fused kernel."""
    if attention == "eager":
        return "eager"
    if precision != "fp32":
        return "flash"
    return "math" if kind.startswith("llama") else "efficient"


def steps() -> Iterator[Row]:
    """The peak of a second step with AdamW, each storage rounded up to 512 bytes, without what kernels take."""
    for case in json.loads(STEPS.read_text())["peaks"]:
        kind, precision = case["kind"].removesuffix("-eager"), case["prec"]
        attention = "eager" if kind != case["kind"] else "sdpa"
        if MEASURED[kind]["model_type"] not in FAMILIES or precision not in PRECISIONS:
            continue
        plan = Plan.model_validate(
            {
                "batch": case["b"],
                "seq": case["s"],
                "precision": precision,
                "attention": routed(kind, precision, attention),
                "optimizer_impl": {"loop": "for-loop"}.get(case["opt"], case["opt"]),
                "checkpointing": "full" if case["ckpt"] else "none",
                "implementation": "transformers",
            }
        )
        found = rounded_peaks(record("training", resolve(MEASURED[kind], {}).spec, plan, None))
        words = [f"{kind}, {precision}, {attention}, {case['b']}×{case['s']}, {case['opt']}"]
        words += ["checkpointing"] if case["ckpt"] else []
        yield Row(FAKE_CUDA, ", ".join(words), "peak of a step", max(found.values()), max(case["phases"].values()))


def rounded_peaks(recording: Recording) -> dict[str, int]:
    """The most rounded bytes in each phase of the last step."""
    stages = recording.record.stages
    names = [stage.name for stage in stages]
    last = range(len(names) - 1 - names[::-1].index("forward"), len(names))
    rounded = fold(recording, last).rounded
    return {names[n]: rounded[n] for n in last if names[n] in PHASES["training"]}


def saved() -> Iterator[Row]:
    """What autograd keeps for the backward pass: of a layer more, and of all outside the layers."""
    for name, measured in json.loads(STEPS.read_text())["saved"].items():
        kind, attention, precision, drop, activation = name.split("|")
        if MEASURED[kind]["model_type"] not in FAMILIES or precision not in PRECISIONS:
            continue
        p = float(drop.removeprefix("drop"))
        fields: dict[str, object] = {"attention_dropout": p}
        layers = "num_hidden_layers"
        if kind == "gpt2":
            fields = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), p) | {"activation_function": activation}
            layers = "n_layer"
        plan = Plan.model_validate(
            {
                "batch": 8,
                "seq": 1024,
                "precision": precision,
                "attention": routed(kind, precision, attention),
                "implementation": "transformers",
            }
        )
        config = MEASURED[kind] | fields
        two, three = (kept(resolve(config | {layers: n}, {}).spec, plan) for n in (2, 3))
        case = f"{kind}, {precision}, {attention}, dropout {p}, {activation}, 8×1024"
        yield Row(FAKE_CUDA, case, "kept of a layer", three - two, measured["per_layer"])
        ids = plan.batch * plan.seq * 8  # the token IDs, which live anyhow
        outside = two - 2 * (three - two) + ids
        yield Row(FAKE_CUDA, case, "kept outside the layers", outside, measured["outside_layers"])


def kept(spec: Spec, plan: Plan) -> int:
    """Bytes that autograd keeps of one forward pass, beside weights and inputs."""
    recording = record("training", spec, plan, None, n_steps=1)
    stage = next(stage for stage in recording.record.stages if stage.name == "forward")
    return sum(
        event.slot.bytes * event.times * run.times
        for run in recording.runs(stage)
        for event in run.events
        if event.alloc and event.slot.keepers
    )


# --- gptcalc's own modules, traced ------------------------------------------------------------------------------------

TRACED = "gptcalc.modules traced on meta, torch 2.13"
#: Models, what is changed in them, and the plan of two steps of training.
CASES: dict[str, tuple[str, dict[str, object], dict[str, object]]] = {
    "gpt2, bf16, flash, 3×777": ("gpt2", {}, {"batch": 3, "seq": 777, "attention": "flash"}),
    "gpt2, fp32, eager, 2×333, fused": (
        "gpt2",
        {},
        {"batch": 2, "seq": 333, "attention": "eager", "precision": "fp32", "optimizer_impl": "fused"},
    ),
    "gpt2-medium, fp16, flash, 8×1024, checkpointing": (
        "gpt2-medium",
        {},
        {"batch": 8, "seq": 1024, "attention": "flash", "precision": "fp16", "checkpointing": "full"},
    ),
    "llama-2-13b, bf16, flash, 1×555": ("llama-2-13b", {}, {"batch": 1, "seq": 555, "attention": "flash"}),
    "gemma-2-9b, bf16, eager, 2×499": ("gemma-2-9b", {}, {"batch": 2, "seq": 499, "attention": "eager"}),
    "mixtral-8x7b of 4 layers, bf16, flash, 1×1001": (
        "mixtral-8x7b",
        {"n_layers": 4},
        {"batch": 1, "seq": 1001, "attention": "flash"},
    ),
}


def traces() -> Iterator[Row]:
    """Rounded and allocated peaks of every phase of the second step."""
    for case, measured in json.loads(TRACES.read_text())["cases"].items():
        name, overrides, settings = CASES[case]
        recording = record("training", resolve(name, overrides).spec, Plan.model_validate(settings), None)
        names = [stage.name for stage in recording.record.stages]
        blocks = dict(zip(names, (peak for peak, _ in replay(recording, expandable=False)), strict=True))
        rounded = rounded_peaks(recording)
        yield Row(TRACED, case, "peak of a step", max(rounded.values()), max(p["rounded"] for p in measured.values()))
        allocated = max(blocks[phase].allocated for phase in PHASES["training"])
        yield Row(
            TRACED, case, "the same, as allocated", allocated, max(phase["allocated"] for phase in measured.values())
        )


def trace() -> None:
    """Trace the cases, and keep what was measured."""
    import torch

    from gptcalc.witness.trace import replay as figures_of
    from gptcalc.witness.trace import trace_training

    found = {}
    for case, (name, overrides, settings) in CASES.items():
        peaks = figures_of(trace_training(resolve(name, overrides).spec, Plan.model_validate(settings)))
        last = max(peak.step for peak in peaks)
        kept = {peak.phase: peak.figures._asdict() for peak in peaks if peak.step == last}
        found[case] = {phase: kept[phase] for phase in PHASES["training"]}
    provenance = (
        f"python benchmarks/accuracy.py --trace, torch {torch.__version__}: gptcalc.modules on the meta device, every"
        " storage that two steps of training allocate and free, in order; the peaks of the second step by phase"
    )
    write_atomically(TRACES, json.dumps({"provenance": provenance, "cases": found}, indent=1) + "\n")


# --- Published --------------------------------------------------------------------------------------------------------

KORTHIKANTI = "published formula: Korthikanti et al. 2022"
#: Heads, width and micro-batch of the models of Figure 1, as calculon's validation suite has them; 2,048 tokens.
MEGATRON = {"22B": (64, 6144, 4), "175B": (96, 12288, 1)}


def korthikanti() -> Iterator[Row]:
    """What a layer keeps: sbh·(34 + 5as/h); without the core of attention, 34·sbh; of blocks that run again, 2·sbh.

    The paper leaves out the norms' statistics: the mean and 1/σ of two norms in fp32, 16·sb.
    """
    for name, (heads, width, batch) in MEGATRON.items():
        sbh = 2048 * batch * width
        shape = {"n_heads": heads, "d_model": width, "n_vocab": 51200, "n_ctx": 2048}
        rules = (
            ("none", "34 + 5as/h", 34 * sbh + 5 * heads * 2048 * 2048 * batch),
            ("selective", "selective recomputation: 34", 34 * sbh),
            ("full", "full recomputation: 2", 2 * sbh),
        )
        for checkpointing, how, truth in rules:
            settings = {"batch": batch, "seq": 2048, "precision": "fp16", "attention": "eager"}
            plan = Plan.model_validate(settings | {"checkpointing": checkpointing})
            two, three = (kept(resolve("gpt2", shape | DROPOUT | {"n_layers": n}).spec, plan) for n in (2, 3))
            yield Row(KORTHIKANTI, f"a layer of {name}, {how}", "kept of a layer", three - two, truth)


#: With which the paper counts masks.
DROPOUT: dict[str, object] = dict.fromkeys(("embedding_dropout", "attention_dropout", "residual_dropout"), 0.1)


#: The matrices of a layer, which papers count as 12·L·h².
MATRICES = ("attn_q", "attn_k", "attn_v", "attn_o", "mlp_up", "mlp_down")
#: Layers of the models of Figure 1, and over how many devices their states are spread: tensor × pipeline parallel.
SPREAD = {"22B": (48, 8), "175B": (96, 8 * 8)}


def states() -> Iterator[Row]:
    """Weights, gradients and Adam's states in mixed precision.

    ZeRO (Rajbhandari et al. 2020, §3.1) speaks of what stays between steps, with gradients in fp16: 2 + 2 + 12 bytes.
    Figure 1 of Korthikanti et al. speaks of the layers' matrices, with gradients in fp32: 2 + 4 + 12, 45.5625 GiB a
    device, of which there are as many as the model is spread over.
    """
    for name, (heads, width, _) in MEGATRON.items():
        n_layers, devices = SPREAD[name]
        shape = {"n_heads": heads, "d_model": width, "n_layers": n_layers, "n_vocab": 51200, "n_ctx": 2048}
        spec = resolve("gpt2", shape).spec
        mode = _mixed(spec, "fp16")
        beside = sum(held.amount for held in mode.held if held.kind in ("inputs", "workspace"))
        rule, case = "published rule: Rajbhandari et al. 2020 (ZeRO)", f"{name}, one device, 16 bytes a parameter"
        yield Row(rule, case, "states between steps", mode.persistent.requested - beside, 16 * stored(spec))
        mode = _mixed(spec, "fp32")
        kinds = ("weights", "gradients", "optimizer")
        found = sum(line.amount for line in mode.lines if line.kind in kinds and line.component in MATRICES)
        figure, case = "published figure: Korthikanti et al. 2022, Fig. 1", f"{name}, 45.5625 GiB on each of {devices}"
        yield Row(figure, case, "parameters and optimizer", found, int(45.5625 * 2**30) * devices)


def _mixed(spec: Spec, grad_dtype: str) -> Mode:
    """A step in fp16 with master weights in fp32."""
    settings = {"batch": 1, "seq": 1, "precision": "fp16", "master_weights": "fp32", "grad_dtype": grad_dtype}
    return memory(spec, Plan.model_validate(settings), ["training"]).modes[0]


# --- GPUs -------------------------------------------------------------------------------------------------------------


def gpus() -> Iterator[Row]:
    """Allocated bytes at the peak, as a GPU's own allocator counted them: every case that ran to its end."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from cuda_grid import Case

    for path in sorted((DATA / "measurements").glob("*-memory.json")):
        for row in json.loads(path.read_text())["rows"]:
            if row["failure"]:
                continue
            case, where = Case(**row["case"]), row["environment"]
            model, plan = case.resolved()
            release = ".".join(where["torch"].split(".")[:2])
            plan = plan.model_copy(update={"target": where["target"], "torch": release})
            (mode,) = memory(model.spec, plan, [case.mode]).modes
            source = f"measured on {where['device']}, torch {release}"
            yield Row(source, case.name, "peak, allocated", mode.totals.allocated, row["peak"]["measured"])


# --- Tables -----------------------------------------------------------------------------------------------------------


def every() -> list[Row]:
    """All rows, the same at each run."""
    return [row for rows in (gpus, steps, saved, traces, korthikanti, states) for row in rows()]


def summary(rows: Iterable[Row]) -> str:
    """One line for each source and figure: how many there are, how many are exact, the median and the worst."""
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.source, row.figure), []).append(row)
    lines = ["| truth | figure | cases | exact | median | worst |", "|---|---|---:|---:|---:|---:|"]
    for (source, figure), own in groups.items():
        errors = sorted((row.error for row in own), key=abs)
        exact = sum(row.predicted == row.truth for row in own)
        middle, worst = errors[len(errors) // 2], errors[-1]
        lines.append(f"| {source} | {figure} | {len(own)} | {exact} | {percent(middle)} | {percent(worst)} |")
    return "\n".join(lines) + "\n"


def whole(rows: Iterable[Row]) -> str:
    """Every row."""
    lines = [
        "| truth | case | figure | predicted | in truth | difference | |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {row.source} | {row.case} | {row.figure} | {format_count(row.predicted)} | {format_count(row.truth)} |"
        f" {format_count(row.predicted - row.truth)} | {percent(row.error)} |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def percent(error: float) -> str:
    """Nothing where there is none; never rounded down to nothing."""
    return "0" if not error else f"{error:+.4f}%" if abs(error) >= 0.0001 else f"{error:+.1e}%"


def between(text: str, table: str) -> str:
    """The text with the table where its marks are."""
    found, n_marks = re.subn(f"(?s)({re.escape(BEGIN)}).*?({re.escape(END)})", lambda m: m[1] + table + m[2], text)
    if n_marks != 1:
        raise ValueError(f"marks: found {n_marks} pairs of {BEGIN.strip()} and {END}; allowed: one")
    return found


def pages() -> Mapping[Path, str]:
    """The pages as they must be today."""
    rows = every()
    tables = {ROOT / "README.md": summary(rows), ROOT / "docs" / "accuracy.md": whole(rows)}
    return {path: between(path.read_text(encoding="utf-8"), table) for path, table in tables.items()}


def main(arguments: list[str]) -> None:
    """Trace if asked to, and write the pages."""
    if "--trace" in arguments:
        trace()
    for path, text in pages().items():
        write_atomically(path, text)


if __name__ == "__main__":
    main(sys.argv[1:])
