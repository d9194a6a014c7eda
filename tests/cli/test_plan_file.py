"""Plan files: all options of `memory` in a file, which gives the same answer again."""

from __future__ import annotations

import json
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from support import refused

from gptcalc import api
from gptcalc.catalog import resolve
from gptcalc.cli.app import run
from gptcalc.errors import GptcalcError, OutputError
from gptcalc.ledger import request as plans
from gptcalc.ledger.asked import SETTINGS
from gptcalc.ledger.request import Request, from_table, read_plan, save_plan, to_table

if TYPE_CHECKING:
    from pathlib import Path

TOY = {"model_type": "gpt2", "n_layer": 2, "n_embd": 24, "n_head": 3, "vocab_size": 67, "n_positions": 32}
LLAMA = {"model_type": "llama", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 67}
LLAMA |= {"intermediate_size": 40, "max_position_embeddings": 64, "rope_scaling": None}
HEAD = 'schema = "gptcalc.plan/1"\n'
#: What stands in a TOML file after its schema -> what the error must say.
WRONG: dict[str, tuple[str, list[str]]] = {
    "a setting outside its table": ("batch = 8", ["'batch'", "settings"]),
    "a key that is none": ("modle = 'gpt2'", ["'modle'", "nearest: model"]),
    "a setting that is none": ("[settings]\nbacth = 8", ["settings", "'bacth'", "nearest: batch"]),
    "a number in words": ("[settings]\nbatch = '8'", ["p.toml: batch", "'8'", "whole number"]),
    "a fraction": ("[settings]\nbatch = 1.5", ["p.toml: batch", "1.5"]),
    "a list for a name": ("[settings]\nprecision = ['bf16']", ["p.toml: precision", "bf16"]),
    "a table for a number": ("[settings.seq]\nx = 1", ["p.toml: seq", "whole number"]),
    "a flag in words": ("[settings]\nexpandable_segments = 'yes'", ["p.toml: expandable_segments", "true or false"]),
    "a flag for a number": ("[settings]\nbatch = true", ["p.toml: batch", "True"]),
    "dropout of all": ("[settings]\ndropout = 1.0", ["p.toml: dropout", "1.0"]),
    "settings in no table": ("settings = 3", ["settings", "read 3", "a table"]),
    "overrides in no table": ("overrides = ['n_layers']", ["overrides", "a table"]),
    "an override that is none": ("[overrides]\nn_layerz = 2", ["'n_layerz'", "n_layers"]),
    "an override that cannot be": ("[overrides]\nn_layers = 0", ["n_layers", "read 0"]),
    "a model that is none": ("model = 'gtp2'", ["'gtp2'", "gpt2"]),
    "a model in numbers": ("model = 2", ["model", "read 2", "preset"]),
    "a model without a type": ("[model]\nn_layer = 2", ["model_type"]),
    "a file that is not there": ("model = 'no.json'", ["no.json", "no such file"]),
    "a depth in words": ("[view]\ndepth = 'deep'", ["depth", "'deep'", "whole number"]),
    "a depth that is none": ("[view]\ndepth = 4", ["depth", "read 4"]),
    "a view that is none": ("[view]\ntimelines = true", ["view", "timeline"]),
    "defaults that it has not": ("defaulted = ['batch']", ["defaulted", "'batch'"]),
    "defaults in no list": ("defaulted = 'batch'", ["defaulted", "a list"]),
    "no TOML": ("[settings", ["p.toml", "not TOML"]),
    "a key twice": ("[settings]\nbatch = 1\nbatch = 2", ["p.toml", "not TOML"]),
    "nested too deep": (f"model = {'[' * 40}{']' * 40}", ["p.toml", "32 levels"]),
    "an integer of 400 digits": (f"[settings]\nbatch = {'9' * 400}", ["p.toml", "bits"]),
}


def plan_file(folder: Path, text: str, name: str = "p.toml") -> Path:
    """A plan file with that text."""
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What a command prints as JSON."""
    code = run(["memory", *arguments, "--format", "json"])
    shown = capsys.readouterr()
    assert (code, shown.err) == (0, "")
    found: dict[str, Any] = json.loads(shown.out)
    return found


@pytest.mark.parametrize("suffix", [".toml", ".json"])
@pytest.mark.parametrize(
    "typed",
    [
        ["gpt2", "--n-layers", "2", "--vocab", "67", "--batch", "3", "--optimizer", "sgd", "--momentum", "0.9"],
        ["gpt2", "--set", "n_layer=2", "--mode", "inference", "--kv-dtype", "fp32", "--seq", "40", "--depth", "3"],
        ["gpt2", "--n-layers", "2", "--dropout", "0.25", "--mode", "training", "--expandable-segments"],
        ["toy.json", "--n-layers", "3", "--precision", "fp32", "--target", "sm80", "--torch", "2.8"],
        ["llama.json", "--positions", "none", "--set", "rope_theta=500000.0"],
        ["gpt2", "--scope", "embedding", "--batch", "3"],
    ],
    ids=str,
)
def test_a_saved_plan_alone_gives_the_same_answer(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: list[str], suffix: str
) -> None:
    """Everything but the command that was typed, and where the model was read, is as it was: model files included."""
    monkeypatch.chdir(tmp_path)
    plan_file(tmp_path, json.dumps(TOY), "toy.json")
    plan_file(tmp_path, json.dumps(LLAMA), "llama.json")
    first = answered(capsys, *typed, "--save-plan", f"run{suffix}")
    (tmp_path / "toy.json").unlink()
    (tmp_path / "llama.json").unlink()
    again = answered(capsys, "--plan", f"run{suffix}")

    for part in ("plan", "training", "inference", "embedding"):
        if part == "embedding" and "embedding" in first:
            first[part].pop("claims")
            again[part].pop("claims")
        assert again.get(part) == first.get(part), part
    for key in ("model_type", "n_layers", "d_model", "positions", "attention_dropout"):
        assert again["model"].get(key) == first["model"].get(key)
    assert again["model"]["parts"] == first["model"]["parts"]


def test_a_saved_plan_holds_every_setting_and_says_which_nobody_gave(tmp_path: Path) -> None:
    """A later release's defaults change nothing in it: what has a use in the run stands in it, resolved."""
    path = tmp_path / "run.toml"
    api.memory(TOY, batch=3, mode="training").save_plan(path)
    table = tomllib.loads(path.read_text(encoding="utf-8"))

    assert table["schema"] == "gptcalc.plan/1"
    assert {"batch": 3, "mode": "training", "seq": 32, "precision": "bf16", "torch": "2.13"}.items() <= table[
        "settings"
    ].items()
    assert {"batch", "mode"} & set(table["defaulted"]) == set()
    assert {"seq", "precision", "optimizer", "target"} <= set(table["defaulted"])
    assert not {"momentum", "kv_dtype", "logits"} & set(table["settings"])
    assert table["model"]["n_layers"] == 2


def test_what_is_typed_wins_over_the_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Settings, overrides under either name, flags, depth; another model comes without the file's overrides."""
    text = (
        f"{HEAD}model = 'gpt2'\n[overrides]\nn_layer = 3\nn_vocab = 67\n[settings]\nbatch = 2\nseq = 16\n"
        "expandable_segments = true\n[view]\ndepth = 3\n"
    )
    path = str(plan_file(tmp_path, text))
    found = answered(capsys, "--plan", path, "--batch", "5", "--n-layers", "2", "--no-expandable-segments")
    assert {"batch": 5, "seq": 16, "expandable_segments": False}.items() <= found["plan"].items()
    assert (found["model"]["n_layers"], found["model"]["n_vocab"]) == (2, 67)
    assert found["notes"][0] == f"plan: {path}"
    assert "dtype" in found["training"]["lines"][0]
    assert "dtype" not in answered(capsys, "--plan", path, "--depth", "1")["training"]["lines"][0]

    other = answered(capsys, "distilgpt2", "--plan", path)
    assert (other["model"]["n_layers"], other["model"]["n_vocab"], other["plan"]["batch"]) == (6, 50_257, 2)


def test_defaults_in_a_file_move_as_defaults_do(tmp_path: Path) -> None:
    """The cache follows a precision that is typed and the sequence a shorter context; a value that was given stays."""
    path = tmp_path / "run.toml"
    api.memory(TOY).save_plan(path)
    moved = Request(settings={"precision": "fp32"}, overrides={"n_ctx": 20}).over(read_plan(path))
    plan = api.memory_by(moved).to_dict()["plan"]
    assert (plan["seq"], plan["kv_dtype"]) == (20, "fp32")
    assert "optimizer" in moved.defaults

    api.memory(TOY, kv_dtype="bf16").save_plan(path)
    moved = Request(settings={"precision": "fp32"}).over(read_plan(path))
    assert (moved.asked["kv_dtype"], moved.asked["seq"]) == ("bf16", 32)


def test_what_the_typed_has_no_use_for_is_let_go_and_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A plan of SGD with momentum serves AdamW and inference too; two typed options must still agree."""
    path = str(plan_file(tmp_path, f"{HEAD}[settings]\noptimizer = 'sgd'\nmomentum = 0.9\nbatch = 2\n"))
    adamw = answered(capsys, "--plan", path, "--optimizer", "adamw", "--n-layers", "2")
    assert (adamw["plan"]["optimizer"], adamw["plan"]["momentum"]) == ("adamw", 0)
    assert adamw["notes"][0] == f"plan: {path}; left out, since the run has no use for it: momentum"
    assert "training" not in answered(capsys, "--plan", path, "--mode", "inference", "--n-layers", "2")

    assert "--logits" in refused(capsys, "memory", "--plan", path, "--mode", "training", "--logits", "all")


@pytest.mark.parametrize("optimizer", SETTINGS["optimizer"].names)
@pytest.mark.parametrize("mode", ["training", "both"])
def test_every_optimizer_may_be_typed_over_saved_defaults(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, optimizer: str, mode: str
) -> None:
    """What AdamW has by default gives way to what the other has: the answer is that of the option alone."""
    toy = str(plan_file(tmp_path, json.dumps(TOY), "toy.json"))
    path = str(tmp_path / "run.toml")
    assert run(["memory", toy, "--mode", mode, "--save-plan", path]) == 0
    capsys.readouterr()
    found = answered(capsys, "--plan", path, "--optimizer", optimizer)
    alone = answered(capsys, toy, "--mode", mode, "--optimizer", optimizer)
    assert (found["plan"], found["training"]) == (alone["plan"], alone["training"])


@pytest.mark.parametrize(("text", "said"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_plan_file_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, said: list[str]
) -> None:
    """It names the file, what was read and the nearest that is allowed."""
    error = refused(capsys, "memory", "--plan", str(plan_file(tmp_path, HEAD + text)))
    for words in said:
        assert words in error


@pytest.mark.parametrize(
    ("content", "name", "said"),
    [
        (b"", "p.toml", "empty"),
        (b"\x80\x04K\x01.", "p.json", "a pickle"),
        (b"\xff\xfea\0", "p.toml", "UTF-16"),
        (b"[" * 100_000, "p.json", "not JSON"),
        (b'{"schema": "gptcalc.plan/1", "schema": "gptcalc.plan/1"}', "p.json", "stands twice"),
        (b"[1]", "p.json", "read a list"),
        (b'{"n_layer": 2}', "p.json", "schema: read None"),
        (b'{"schema": "gptcalc.plan/2"}', "p.json", "'gptcalc.plan/2'"),
        (b" " * (11 << 20), "p.json", "10 MiB"),
        (b"x = 1\n" * 200_000, "p.toml", "1 MiB of TOML"),
        (b"schema: gptcalc.plan/1", "p.yaml", "'.yaml'"),
    ],
    ids=["empty", "pickle", "utf16", "deep", "twice", "list", "config", "newer", "huge", "hugetoml", "yaml"],
)
def test_what_is_no_plan_file_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, content: bytes, name: str, said: str
) -> None:
    """Empty, binary, huge, nested, of another form: one line, quickly."""
    path = tmp_path / name
    path.write_bytes(content)
    assert said in refused(capsys, "memory", "--plan", str(path))


def test_a_missing_file_and_a_folder_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The nearest file is named."""
    plan_file(tmp_path, HEAD)
    assert "nearest" in refused(capsys, "memory", "--plan", str(tmp_path / "q.toml"))
    (tmp_path / "x.toml").mkdir()
    assert "cannot be read" in refused(capsys, "memory", "--plan", str(tmp_path / "x.toml"))


def test_a_plan_is_saved_whole_or_not_at_all(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Another ending, no such folder, a wrong request: nothing is written, and what was there stays."""
    old = plan_file(tmp_path, "old", "run.toml")
    assert "'.yaml'" in refused(capsys, "memory", "--save-plan", str(tmp_path / "run.yaml"))
    assert "cannot be written" in refused(capsys, "memory", "--save-plan", str(tmp_path / "no" / "run.toml"))
    refused(capsys, "memory", "--batch", "0", "--save-plan", str(old))
    with pytest.raises(GptcalcError, match="allowed in a plan"):
        save_plan(old, Request(view={"depth": {1, 2}}))
    with pytest.raises(OutputError):
        save_plan(tmp_path / "run", Request())
    assert old.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["run.toml"]


def test_a_path_in_a_plan_is_seen_from_its_folder(tmp_path: Path) -> None:
    """Wherever gptcalc is called, it is the same file; a preset is a preset."""
    plan_file(tmp_path, json.dumps(TOY), "toy.json")
    found = read_plan(plan_file(tmp_path, f"{HEAD}model = 'toy.json'"))
    assert resolve(found.model, {}).spec == resolve(TOY, {}).spec
    assert read_plan(plan_file(tmp_path, f"{HEAD}model = 'gpt2'")).model == "gpt2"


def test_python_takes_a_plan_as_a_file_or_a_mapping(tmp_path: Path) -> None:
    """Arguments win over it, as options do; errors speak of the plan."""
    api.memory(TOY, batch=3, mode="training").save_plan(tmp_path / "run.json")
    table = json.loads((tmp_path / "run.json").read_text())
    first = api.memory(TOY, batch=3, mode="training")
    for plan in (tmp_path / "run.json", str(tmp_path / "run.json"), table):
        assert api.memory(plan=plan).answer == first.answer
        assert api.memory(plan=plan, batch=1).answer != first.answer
    assert to_table(from_table(table, "plan")) == table
    with pytest.raises(GptcalcError, match="plan: batch: read 0"):
        api.memory(plan={"schema": "gptcalc.plan/1", "settings": {"batch": 0}})


def test_every_setting_of_the_table_can_stand_in_a_plan() -> None:
    """The file is read by the table of settings: a new option needs no word here."""
    table = {"schema": plans.SCHEMA, "settings": dict.fromkeys(SETTINGS)}
    assert from_table(table, "plan").settings == {}


def test_check_and_compare_take_plans(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """A check hears of model and settings, a comparison of the settings alone."""
    pytest.importorskip("torch")
    toy = json.dumps({"schema": plans.SCHEMA, "model": TOY, "settings": {"batch": 2, "seq": 7, "mode": "training"}})
    path = str(plan_file(tmp_path, toy, "run.json"))
    assert run(["check", "--plan", path, "--witness", "trace", "--format", "json"]) == 0
    assert "2 × 7" in capsys.readouterr().out
    assert run(["check", "--plan", path, "--witness", "reference"]) == 0
    capsys.readouterr()
    assert "--batch" in refused(capsys, "check", "--plan", path, "--witness", "reference", "--batch", "2")

    assert run(["compare", "gpt2", "distilgpt2", "--plan", path, "--format", "json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["batch"] == 2
