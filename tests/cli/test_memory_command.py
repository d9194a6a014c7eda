"""`gptcalc memory` as a user types it: options, what they set, what contradicts, what goes where.

The engine is replaced by made-up ledgers where a test is about the command, so that only the last ones wait for it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
from report import memories
from support import gptcalc

from gptcalc import api
from gptcalc.cli.app import run
from gptcalc.errors import GptcalcError
from gptcalc.ledger import memory as ledger

IMPORTS = """
import sys
from gptcalc.cli.app import run
code = run({arguments!r})
print(code, sorted({names!r} & set(sys.modules)), file=sys.stderr)
"""
#: What is typed -> what the error must say.
WRONG: dict[str, tuple[list[str], list[str]]] = {
    "no batch": (["--batch", "0"], ["--batch", "read 0", "from 1"]),
    "negative batch": (["--batch", "-1"], ["--batch", "read -1"]),
    "fractional batch": (["--batch", "2.5"], ["--batch", "read 2.5", "whole number"]),
    "huge batch": (["--batch", "99999999999"], ["--batch", "2,147,483,647"]),
    "batch of 5,000 digits": (["--batch", "9" * 5000], ["--batch", "characters"]),
    "batch in words": (["--batch", "many"], ["--batch", "'many'", "whole number"]),
    "boolean batch": (["--batch", "true"], ["--batch", "True", "whole number"]),
    "null batch": (["--batch", "none"], ["--batch", "'none'", "whole number"]),
    "no tokens": (["--seq", "0"], ["--seq", "read 0"]),
    "fractional tokens": (["--seq", "1e3"], ["--seq", "1000.0", "whole number"]),
    "beyond learned positions": (["--seq", "2048"], ["--seq", "2,048", "at most 1,024", "learned"]),
    "beyond a shortened context": (["--context", "64", "--seq", "65"], ["--seq", "65", "at most 64"]),
    "no micro-batch": (["--grad-accum", "0"], ["--grad-accum", "read 0", "from 1"]),
    "half a micro-batch": (["--grad-accum", "1.5"], ["--grad-accum", "read 1.5", "whole number"]),
    "negative norm": (["--grad-clip", "-1.0"], ["--grad-clip", "read -1.0", "0 for no clipping"]),
    "norm in words": (["--grad-clip", "inf"], ["--grad-clip", "'inf'", "above 0"]),
    "unknown master weights": (["--master-weights", "bf16"], ["--master-weights", "'bf16'", "fp32"]),
    "unknown gradients": (["--grad-dtype", "fp8"], ["--grad-dtype", "'fp8'", "fp16"]),
    "masters of fp32 weights": (
        ["--precision", "fp32", "--master-weights", "fp32"],
        ["--master-weights", "fp32 already", "bf16 or fp16"],
    ),
    "zeroed and buffered": (["--zero-grads", "--grad-dtype", "fp32"], ["--zero-grads", "--grad-dtype fp32", "one of"]),
    "outputs of transformers": (
        ["--keep-outputs", "--implementation", "transformers"],
        ["--keep-outputs", "KV cache", "one of them"],
    ),
    **{
        f"{option[0]} in inference": (["--mode", "inference", *option], [option[0], "--mode inference", "no use"])
        for option in (["--grad-accum", "2"], ["--grad-clip", "1"], ["--keep-outputs"], ["--grad-dtype", "fp32"])
    },
    "unknown mode": (["--mode", "train"], ["--mode", "'train'", "training"]),
    "unknown precision": (["--precision", "bf32"], ["--precision", "'bf32'", "bf16"]),
    "unknown optimizer": (["--optimizer", "adamv"], ["--optimizer", "'adamv'", "adamw"]),
    "unknown way to run it": (["--optimizer-impl", "forloop"], ["--optimizer-impl", "for-loop"]),
    "unknown attention": (["--attention", "flash2"], ["--attention", "'flash2'", "flash"]),
    "unknown dtype of the cache": (["--kv-dtype", "fp8"], ["--kv-dtype", "'fp8'", "fp16"]),
    "unknown logits": (["--logits", "first"], ["--logits", "'first'", "last"]),
    "unknown implementation": (["--implementation", "nanogpt"], ["--implementation", "'nanogpt'", "reference"]),
    "a family that was not read": (
        ["falcon-7b", "--implementation", "transformers"],
        ["'falcon'", "only the reference is modelled", "gpt2"],
    ),
    "transformers with the core of attention again": (
        ["--implementation", "transformers", "--checkpointing", "selective"],
        ["--checkpointing", "read selective", "none or full"],
    ),
    "inference by transformers": (
        ["--implementation", "transformers", "--mode", "both"],
        ["--mode both", "--implementation transformers", "--mode training"],
    ),
    "a model that no class of transformers can be": (
        ["--implementation", "transformers", "--d-head", "32"],
        ["gpt2-small", "d_head = 32", "allowed: reference"],
    ),
    "unknown scope": (["--scope", "embeddings"], ["--scope", "'embeddings'", "embedding"]),
    "unknown target": (["--target", "h100"], ["--target", "'h100'", "sm90"]),
    "unknown release": (["--torch", "two"], ["--torch", "'two'", "2.13"]),
    "unknown depth": (["--depth", "4"], ["--depth", "read 4", "1 (components)"]),
    "unknown option": (["--bacth", "4"], ["--bacth", "--batch"]),
    "unknown format": (["--format", "yaml"], ["yaml", "json"]),
    "unknown model": (["gtp2"], ["'gtp2'", "gpt2"]),
    "negative momentum": (["--optimizer", "sgd", "--momentum=-1"], ["--momentum", "read -1", "from 0"]),
    "infinite momentum": (["--optimizer", "sgd", "--momentum", "inf"], ["--momentum", "'inf'"]),
    "momentum of AdamW": (["--momentum", "0.9"], ["--momentum", "--optimizer adamw", "--optimizer sgd"]),
    "all dropped": (["--dropout", "1"], ["--dropout", "read 1", "below 1"]),
    "negative dropout": (["--dropout=-0.1"], ["--dropout", "read -0.1"]),
    "dropout in words": (["--dropout", "high"], ["--dropout", "'high'"]),
    "dropout twice": (
        ["--dropout", "0.2", "--set", "residual_dropout=0.1"],
        ["--dropout", "residual_dropout", "give it once"],
    ),
    "dropout twice, in transformers' words": (
        ["--dropout", "0.2", "--set", "attn_pdrop=0.1"],
        ["attn_pdrop", "attention_dropout=0.2", "give one"],
    ),
    "an optimizer of inference": (["--mode", "inference", "--optimizer", "sgd"], ["--optimizer", "--mode inference"]),
    "its default, given": (["--mode", "inference", "--optimizer-impl", "foreach"], ["--optimizer-impl", "--mode"]),
    "dropout of inference": (["--mode", "inference", "--dropout", "0"], ["--dropout", "--mode inference"]),
    "logits of training": (["--mode", "training", "--logits", "all"], ["--logits", "--mode training"]),
    "a cache of training": (["--mode", "training", "--kv-dtype", "fp16"], ["--kv-dtype", "--mode training"]),
    "a stage with an optimizer": (["--scope", "embedding", "--optimizer", "sgd"], ["--optimizer", "--scope embedding"]),
    "a stage with a mode": (["--scope", "embedding", "--mode", "both"], ["--mode", "--scope embedding"]),
    "a stage with a depth": (["--scope", "embedding", "--depth", "3"], ["--depth 3", "--scope embedding"]),
    "a stage with a timeline": (["--scope", "embedding", "--timeline"], ["--timeline", "--scope embedding"]),
    "a setting in --set": (["--set", "batch=3"], ["'batch'", "allowed"]),
    "a parameter in --set": (["--set", "depth=3"], ["'depth'", "allowed"]),
}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made-up ledgers in place of the engine's."""
    monkeypatch.setattr(ledger, "memory", memories.engine, raising=False)


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    code = run(["memory", *arguments, "--format", "json"])
    shown = capsys.readouterr()
    assert (code, shown.err) == (0, "")
    found: dict[str, Any] = json.loads(shown.out)
    return found


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(("arguments", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_option_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: list[str]
) -> None:
    """It names what was read and what is allowed, exits with 2 and prints no answer."""
    code = run(["memory", *arguments])
    shown = capsys.readouterr()

    assert (code, shown.out) == (2, "")
    assert 1 <= len(shown.err.splitlines()) <= 2
    assert len(shown.err) < 500
    assert "bug" not in shown.err
    for words in said:
        assert words in shown.err


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("arguments", "plan"),
    [
        ([], {"batch": 1, "seq": 1024, "precision": "bf16", "optimizer": "adamw", "optimizer_impl": "foreach"}),
        ([], {"attention": "auto", "kv_dtype": "bf16", "logits": "last", "target": "sm90", "torch": "2.13"}),
        ([], {"momentum": 0.0, "expandable_segments": False, "implementation": "reference"}),
        (["--batch", "8", "--seq", "77"], {"batch": 8, "seq": 77}),
        (["--context", "64"], {"seq": 64}),
        (["llama-3-8b"], {"seq": 1024}),
        (["llama-3-8b", "--seq", "99999"], {"seq": 99_999}),
        (["--precision", "fp32"], {"precision": "fp32", "kv_dtype": "fp32"}),
        (["--precision", "FP16", "--kv-dtype", "bf16"], {"precision": "fp16", "kv_dtype": "bf16"}),
        (["--optimizer", "sgd", "--momentum", "0.9"], {"optimizer": "sgd", "momentum": 0.9}),
        (["--optimizer-impl", "for-loop", "--attention", "math"], {"optimizer_impl": "for-loop", "attention": "math"}),
        (["--logits", "all", "--target", "sm_80", "--torch", "2.6.0"], {"logits": "all", "target": "sm80"}),
        (["--torch", "2.6.0"], {"torch": "2.6"}),
        (["--torch", "2.10"], {"torch": "2.10"}),
        (["--expandable-segments"], {"expandable_segments": True}),
        ([], {"checkpointing": "none"}),
        (["--grad-accum", "4", "--grad-clip", "1.0"], {"grad_accum": 4, "grad_clip": 1.0}),
        ([], {"grad_accum": 1, "grad_clip": 0.0, "zero_grads": False, "master_weights": "none", "grad_dtype": "none"}),
        (["--zero-grads", "--keep-outputs"], {"zero_grads": True, "keep_outputs": True}),
        (["--set-to-none"], {"zero_grads": False}),
        (["--master-weights", "fp32", "--grad-dtype", "bf16"], {"master_weights": "fp32", "grad_dtype": "bf16"}),
        (["--checkpointing", "full"], {"checkpointing": "full"}),
        (["--checkpointing", "selective", "--chunked-loss", "7"], {"checkpointing": "selective", "chunked_loss": 7}),
    ],
    ids=str,
)
def test_options_reach_the_plan(capsys: pytest.CaptureFixture[str], arguments: list[str], plan: dict[str, Any]) -> None:
    """Each option sets its field, what was not given has its default, and all of it is in the answer."""
    assert plan.items() <= answered(capsys, *arguments)["plan"].items()


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("arguments", "modes"),
    [
        ([], ["inference", "training"]),
        (["--mode", "both"], ["inference", "training"]),
        (["--mode", "training"], ["training"]),
        (["--mode", "inference"], ["inference"]),
        (["--scope", "model"], ["inference", "training"]),
        (["--scope", "embedding"], ["embedding"]),
    ],
    ids=str,
)
def test_the_answer_has_what_was_asked_for(
    capsys: pytest.CaptureFixture[str], arguments: list[str], modes: list[str]
) -> None:
    """Both modes where none is named, and the embedding stage in their place."""
    assert sorted({"training", "inference", "embedding"} & set(answered(capsys, *arguments))) == modes


@pytest.mark.usefixtures("made")
def test_dropout_sets_all_three_of_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    """It is an override like any other: the model says what was changed."""
    model = answered(capsys, "--dropout", "0")["model"]

    assert [model[f"{part}_dropout"] for part in ("embedding", "attention", "residual")] == [0, 0, 0]
    assert model["changed"]["attention_dropout"] == {"was": 0.1, "now": 0.0}


@pytest.mark.usefixtures("made")
def test_the_exact_command_is_echoed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Quoted so that a shell reads it back as it was typed; from Python it is the call."""
    typed = ["memory", "gpt2", "--set", "attn_pdrop=0.0", "--batch", "8", "--format", "json"]
    monkeypatch.setattr(sys, "argv", ["/usr/bin/gptcalc", *typed[:-2], "--torch", "2.13 ", *typed[-2:]])

    assert answered(capsys, *typed[1:])["command"] == (
        "gptcalc memory gpt2 --set attn_pdrop=0.0 --batch 8 --torch '2.13 ' --format json"
    )
    called = api.memory("gpt2", batch=8, depth=2, n_layer=6)
    assert called.command == "gptcalc.memory('gpt2', depth=2, batch=8, n_layer=6)"


@pytest.mark.usefixtures("made")
def test_flags_reach_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """`--timeline` draws, `--explain` explains, `--depth 3` lists tensors, and none is there unasked."""
    words = {"--timeline": "Bytes alive over", "--explain": "Why, in training", "--depth=3": "nll loss backward"}
    for flag, word in words.items():
        assert run(["memory", "gpt2", flag]) == 0
        shown = capsys.readouterr().out
        assert [other for other in words.values() if other in shown] == [word]


@pytest.mark.usefixtures("made")
def test_python_has_the_same_answer_as_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    """`gptcalc.memory` takes the options as keywords, and the model's fields beside them."""
    import gptcalc as package

    typed = answered(capsys, "gpt2", "--batch", "4", "--optimizer", "sgd", "--n-layers", "6", "--dropout", "0")
    called = package.memory("gpt2", batch=4, optimizer="sgd", n_layers=6, dropout=0)

    assert {**called.to_dict(), "command": ""} == {**typed, "command": ""}
    assert called.training.totals.requested == typed["training"]["totals"]["requested"]


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"batch": 0}, "^batch: read 0"),
        ({"batch": True}, "^batch: read True"),
        ({"seq": 2048}, "^seq: read 2,048; allowed: at most 1,024"),
        ({"mode": "train"}, "^mode: read 'train'"),
        ({"precision": 16}, "^precision: read '16'"),
        ({"momentum": float("nan"), "optimizer": "sgd"}, "^momentum: read nan"),
        ({"torch": 2.10}, r"^torch: read 2\.1; allowed: a release of PyTorch as text"),
        ({"expandable_segments": "yes"}, "^expandable_segments: read 'yes'; allowed: true or false"),
        ({"mode": "inference", "optimizer": "adam"}, "read optimizer with mode inference"),
        ({"depth": True}, "^depth: read True"),
        ({"scope": "embedding", "depth": 2}, "read depth 2 with scope embedding"),
    ],
    ids=str,
)
def test_errors_in_python_speak_of_arguments(asked: dict[str, Any], said: str) -> None:
    """What is `--batch` on the command line is `batch` here."""
    with pytest.raises(GptcalcError, match=said):
        api.memory("gpt2", **asked)


def test_positions_may_be_none() -> None:
    """The word is the kind; what has no value is null."""
    done = gptcalc("memory", "gpt2", "--positions", "none", "--set", "n_inner=null", "--n-layers", "1")
    assert done.returncode == 0
    assert "positions learned → none" in done.stdout


def test_help_groups_the_options_of_a_run() -> None:
    """Training's and inference's own stand apart, with every choice and default, and an example ends it."""
    shown = gptcalc("memory", "--help", COLUMNS="140").stdout
    listed = " ".join(shown.split())

    assert "Example: gptcalc memory" in shown
    for panel in ("The run", "The run: training", "The run: inference", "Change the model"):
        assert f"─ {panel} ─" in shown
    for words in ("adamw, adam, sgd", "foreach, fused, for-loop", "auto, flash, cudnn, efficient, math, eager", "smXX"):
        assert words in listed
    assert "--worst-routing" not in shown


@pytest.mark.parametrize(
    ("arguments", "opened"),
    [
        (["memory", "--scope", "embedding"], ["rich"]),
        (["memory", "--scope", "embedding", "--format", "json"], []),
        (["memory", "--scope", "embedding", "--format", "csv"], []),
        (["memory", "--format", "json"], []),
    ],
    ids=" ".join,
)
def test_no_torch_is_opened_and_rich_only_for_tables(arguments: list[str], opened: list[str]) -> None:
    """Cold start is kept by what gets imported."""
    names = {"torch", "transformers", "numpy", "rich", "jsonschema"}
    code = IMPORTS.format(arguments=arguments, names=names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr.splitlines()[-1] == f"0 {opened}"


def test_count_pays_nothing_for_memory() -> None:
    """Counting imports neither the engine, nor its plan, nor its reports."""
    names = {
        "gptcalc.plan",
        "gptcalc.tape",
        "gptcalc.allocator",
        "gptcalc.ledger.asked",
        "gptcalc.ledger.embedding",
        "gptcalc.ledger.memory",
        "gptcalc.report.memory",
        "gptcalc.report.memory_data",
        "gptcalc.report.timeline",
    }
    code = IMPORTS.format(arguments=["count", "gpt3-175b", "--format", "json"], names=names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr.splitlines()[-1] == "0 []"


def test_a_run_alone_pays_nothing_for_questions() -> None:
    """Without a GPU, a budget or what is solved for, neither the GPUs nor any search is opened."""
    names = {f"gptcalc.{name}" for name in ("gpus", "ledger.answer", "ledger.changes", "ledger.fit", "ledger.largest")}
    code = IMPORTS.format(arguments=["memory", "--n-layers", "1"], names=names)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr.splitlines()[-1] == "0 []"


def test_the_schema_is_printed() -> None:
    """`gptcalc schema memory` has both modes and the stage, none of which must be there."""
    schema = json.loads(gptcalc("schema", "memory").stdout)

    assert {"training", "inference", "embedding"} <= set(schema["properties"])
    assert set(schema["required"]) == {"schema", "command", "model", "plan", "notes"}
