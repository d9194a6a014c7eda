"""`gptcalc explain`: records as torch writes them, what they have alive, and the lines of a prediction."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import re
import sys
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import pytest
import snapshots
import steps
from jsonschema import Draft202012Validator
from snapshots import Machine, Request, of_tape, of_trace, snapshot
from support import gptcalc, refused

from gptcalc import api
from gptcalc.allocator import round_size
from gptcalc.catalog import resolve
from gptcalc.cli.app import run
from gptcalc.errors import GptcalcError, UnreadableFileError
from gptcalc.ledger.explain import by_size
from gptcalc.ledger.explain import snapshot as at_moment
from gptcalc.plan import Plan
from gptcalc.reading.records import from_plain, read_record, user_frame
from gptcalc.report.schema import json_schema

if TYPE_CHECKING:
    from pathlib import Path

    from gptcalc.ledger.memory import ModeName

FIELDS = {"model_type": "gpt2", "vocab_size": 67, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 3}
TOY = ["gpt2", "--n-layers", "3", "--d-model", "24", "--n-heads", "3", "--vocab", "67", "--context", "32"]
RUN = ["--batch", "4", "--seq", "17", "--attention", "math"]
SPEC = resolve(FIELDS, {}).spec
PLAN = Plan(batch=4, seq=17, attention="math")


def toy(mode: ModeName = "training") -> Machine:
    """A machine that has run the toy."""
    return Machine().run(of_tape(mode, SPEC, PLAN))


def written(folder: Path, value: object, name: str = "snapshot.pickle") -> str:
    """A file that holds a value as torch would write it, or as JSON."""
    path = folder / name
    path.write_bytes(json.dumps(value).encode() if name.endswith(".json") else pickle.dumps(value))
    return str(path)


def answered(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What the command prints as JSON; its lines add up."""
    code = run(["explain", *arguments, "--format", "json"])
    shown = capsys.readouterr()
    assert (code, shown.err) == (0, "")
    found: dict[str, Any] = json.loads(shown.out)
    assert [*Draft202012Validator(json_schema("explain")).iter_errors(found)] == []
    record = found["record"]
    assert sum(row["amount"] for row in found["blocks"]) == record["requested"]
    assert sum(row["count"] for row in found["blocks"]) == record["blocks"]
    if "prediction" in found:
        match = found["prediction"]
        assert match["found"] + sum(row["amount"] for row in match["others"]) == record["requested"]
        assert match["found"] + match["missing"] == match["predicted"]
        for key, total in (("found", "found"), ("missing", "missing"), ("predicted", "predicted")):
            assert sum(line[key] for line in match["lines"]) == match[total]
    return found


# --- What is alive ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["training", "inference"])
@pytest.mark.parametrize("name", ["snapshot.pickle", "snapshot.json"])
def test_the_peak_of_a_whole_record_is_the_peak(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, mode: ModeName, name: str
) -> None:
    """Requested and reserved are the allocator's own; every byte is a tensor of the predicted peak."""
    machine = toy(mode)
    found = answered(capsys, written(tmp_path, snapshot(machine), name), *TOY, *RUN)
    peak = machine.allocator.peak()
    assert found["record"]["requested"] == peak.requested
    assert found["record"]["rounded"] == peak.rounded
    assert found["record"]["moment"] == "peak"
    match = found["prediction"]
    assert (match["mode"], match["missing"], match["others"]) == (mode, 0, [])
    assert match["found"] == match["peak"] == peak.requested


@pytest.mark.parametrize("kept", [0.9, 0.5, 0.2, 0.01, 0])
def test_a_ring_buffer_that_lost_the_start_has_all_that_is_alive(kept: float) -> None:
    """At every event that is kept, what is requested and reserved is what the whole record has there."""
    machine = toy()
    whole = from_plain(snapshot(machine), "x")
    last = int(len(machine.trace) * kept)
    ring = from_plain(snapshot(machine, last=last), "x")
    cut = len(machine.trace) - last
    taken = at_moment(ring)
    trace = whole.traces[0]
    place = cut + taken.event
    same = at_moment(whole._replace(traces=(trace[:place],), segments=()), moment="end")
    assert Counter(one.bytes for one in taken.alive) == Counter(one.bytes for one in same.alive)
    assert taken.reserved == same.reserved
    assert taken.missed == 0
    for number in range(cut, len(trace) + 1, 50):
        then = whole._replace(traces=(trace[:number],), segments=())
        assert at_moment(then, moment="end").requested <= taken.requested


def test_an_error_is_explained_where_it_happened(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The last out-of-memory error is the moment, unless another is asked for; what it asked for is named."""
    requests = of_tape("training", SPEC, PLAN)
    cut = next(place for place, one in enumerate(requests) if one.line == 12) + 40
    size = next(one.bytes for one in requests[cut:] if one.bytes > 4096)
    machine = Machine().run(requests[:cut]).fail(999, 5).run(requests[cut : cut + 1]).fail(round_size(size), 1 << 20)
    alive = sum(block.requested for block, _ in machine.blocks.values())
    machine.run([Request(name, 0) for name in list(machine.blocks)[::-2]])
    path = written(tmp_path, snapshot(machine))

    found = answered(capsys, path, *TOY, *RUN)
    record = found["record"]
    assert (record["moment"], record["requested"]) == ("oom", alive)
    assert (record["failed"], record["device_free"]) == (round_size(size), 1 << 20)
    match = found["prediction"]
    assert (match["mode"], match["phase"], match["missing"], match["others_bytes"]) == ("training", "backward", 0, 0)
    assert match["failed"]
    assert answered(capsys, path, "--at", "end")["record"]["requested"] == sum(
        block.requested for block, _ in machine.blocks.values()
    )
    assert answered(capsys, path, "--at", "peak")["record"]["requested"] >= alive
    assert "read 'oom'" in refused(capsys, "explain", written(tmp_path, snapshot(toy())), "--at", "oom")
    assert "'highest'" in refused(capsys, "explain", path, "--at", "highest")


def test_at_the_end_all_figures_are_the_allocators(tmp_path: Path) -> None:
    """Then every block's size is known: allocated and reserved are exact, and the pieces add up."""
    machine = toy()
    taken = at_moment(read_record(tmp_path / written(tmp_path, snapshot(machine))), moment="end")
    now = machine.allocator.current()
    assert taken.exact
    assert (taken.requested, taken.rounded, taken.allocated, taken.reserved) == now
    pieces = taken.pieces
    assert pieces is not None
    assert (pieces.size, pieces.active) == (now.reserved, now.allocated)
    assert pieces.active + pieces.between + pieces.unused == pieces.size
    assert pieces.small + pieces.large == len(machine.segments)


def test_blocks_are_told_by_size_and_by_the_users_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Torch's own frames are passed over; without frames, or in text that is no Python, nothing is made up."""
    machine = Machine().run([Request(1, 5000, 7), Request(2, 5000, 7), Request(3, 5000, 8), Request(4, 90, 7)])
    path = written(tmp_path, snapshot(machine))
    rows = answered(capsys, path)["blocks"]
    assert [(row["bytes"], row["count"], row["where"]) for row in rows] == [
        (5000, 2, "train.py:7 step"),
        (5000, 1, "train.py:8 step"),
        (90, 1, "train.py:7 step"),
    ]
    assert "prediction" not in answered(capsys, path)
    bare = at_moment(from_plain(snapshot(Machine(framed=False).run([Request(1, 5000)])), "x"))
    assert by_size(bare.alive)[0].where == ""
    torch = {"filename": "/x/site-packages/torch/optim/adamw.py", "line": 3, "name": "step"}
    assert user_frame([{"filename": "??", "name": "at::empty"}, torch]) == "adamw.py:3 step"
    assert user_frame([None, 3, {"filename": 5}, {"name": "x"}]) == ""  # type: ignore[list-item]


def test_of_several_devices_that_with_most_events_is_told(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Unless another is asked for; one that is not there is refused with those that are."""
    machines = [Machine(device=0).run([Request(1, 700)]), Machine(device=1).run(of_tape("training", SPEC, PLAN))]
    path = written(tmp_path, snapshot(*machines))
    assert answered(capsys, path)["record"]["device"] == 1
    assert answered(capsys, path)["record"]["devices"] == [0, 1]
    assert answered(capsys, path, "--device", "0")["record"]["requested"] == 700
    assert "allowed: 0, 1" in refused(capsys, "explain", path, "--device", "2")
    assert run(["explain", path]) == 0
    assert "device 1 of 0, 1, the one with most events" in capsys.readouterr().out


def test_a_block_is_alive_until_its_free_is_completed() -> None:
    """Another stream may still use what nobody holds: torch calls it pending, and counts it as requested."""
    whole = snapshot(Machine().run([Request(1, 5000), Request(2, 600), Request(1, 0)]))
    trace = whole["device_traces"][0]
    assert trace[-1]["action"] == "free_completed"
    assert at_moment(from_plain(whole, "x"), moment="end").requested == 600
    del trace[-1]
    blocks = [block for segment in whole["segments"] for block in segment["blocks"]]
    merged = next(block for block in blocks if block["state"] == "inactive")
    own = {**merged, "address": trace[-1]["addr"], "size": 5120, "requested_size": 5000, "state": "active_pending_free"}
    whole["segments"][0]["blocks"].append(own)
    taken = at_moment(from_plain(whole, "x"), moment="end")
    assert (taken.requested, taken.missed) == (5600, 0)


def test_older_and_smaller_forms_are_read() -> None:
    """A list of segments, blocks with a history and without addresses, a list of events, or a list of such lists."""
    whole = snapshot(toy())
    size = at_moment(from_plain(whole, "x"), moment="end").requested
    assert at_moment(from_plain(whole["segments"], "x")).requested == size
    old = [
        {
            "total_size": segment["total_size"],
            "blocks": [
                {"size": one["size"], "state": one["state"], "history": [{"real_size": one["requested_size"]}]}
                for one in segment["blocks"]
            ],
            "address": segment["address"],
        }
        for segment in whole["segments"]
    ]
    assert at_moment(from_plain(old, "x")).requested == size
    assert at_moment(from_plain(whole["device_traces"], "x"), moment="end").requested == size
    assert at_moment(from_plain(whole["device_traces"][0], "x"), moment="end").requested == size
    assert at_moment(from_plain({**whole, "device_traces": [[]]}, "x")).requested == size
    trace = [*whole["device_traces"][0], {"action": "user_defined"}]
    assert at_moment(from_plain({**whole, "device_traces": [trace]}, "x"), moment="end").requested == size


# --- Against a prediction --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["training", "inference"])
def test_what_torch_itself_requests_is_matched_to_the_last_byte(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, mode: ModeName
) -> None:
    """A record of gptcalc's module as torch runs it: all is found, but for what kernels take, which no trace has."""
    pytest.importorskip("torch")
    machine = Machine().run(of_trace(mode, SPEC, PLAN))
    found = answered(capsys, written(tmp_path, snapshot(machine)), *TOY, *RUN, "--depth", "3")["prediction"]
    assert (found["mode"], found["others"]) == (mode, [])
    assert {line["kind"] for line in found["lines"] if line["missing"]} <= {"workspace"}


def test_blocks_that_nobody_predicts_and_tensors_that_nobody_has_are_told(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Four odd blocks more and two weights less: exactly these, with where they were asked for."""
    requests = of_tape("training", SPEC, PLAN)
    weights = [one.name for one in requests if one.line == 10 and one.bytes == 24 * 96 * 2][:2]
    kept = [one for one in requests if one.name not in weights]
    machine = Machine().run([Request(-1 - n, 12_345, 99) for n in range(4)]).run(kept)
    found = answered(capsys, written(tmp_path, snapshot(machine)), *TOY, *RUN)["prediction"]
    assert found["others"] == [{"bytes": 12_345, "count": 4, "amount": 49_380, "where": "train.py:99 step"}]
    assert found["missing"] == 2 * 24 * 96 * 2
    assert sum(line["tensors_predicted"] - line["tensors_found"] for line in found["lines"]) == 2


def test_the_moment_of_the_run_is_found(tmp_path: Path) -> None:
    """A record that ends anywhere fits the prediction there: nothing is on one side alone."""
    requests = of_tape("training", SPEC, PLAN)
    for cut in range(20, len(requests), len(requests) // 15):
        path = tmp_path / written(tmp_path, snapshot(Machine().run(requests[:cut])))
        found = api.explain(path, FIELDS, at="end", settings={"batch": 4, "seq": 17, "attention": "math"})
        assert found.predicted is not None
        assert (found.predicted.match.missing, found.predicted.match.others) == (0, ())


def test_a_wrong_guess_of_the_run_shows(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Another kernel or optimizer leaves bytes alone, of the right mode; sizes known at other moments are named."""
    path = written(tmp_path, snapshot(toy()))
    found = answered(capsys, path, *TOY, "--batch", "4", "--seq", "17", "--attention", "flash")["prediction"]
    assert found["mode"] == "training"
    assert found["missing"]
    assert found["others_bytes"]
    other = answered(capsys, path, *TOY, *RUN, "--optimizer", "sgd")["prediction"]
    assert (other["mode"], other["missing"]) == ("training", 0)
    assert all("elsewhere" in row for row in other["others"] if row["bytes"] > 4)


def test_a_plan_file_says_the_run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The same options, from a file."""
    assert run(["memory", *TOY, *RUN, "--mode", "training", "--save-plan", str(tmp_path / "run.toml")]) == 0
    capsys.readouterr()
    path = written(tmp_path, snapshot(toy()))
    found = answered(capsys, path, "--plan", str(tmp_path / "run.toml"))["prediction"]
    assert (found["missing"], found["others"], found["mode"]) == (0, [], "training")


# --- Forms -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 200])
@pytest.mark.parametrize("against", [[], [*TOY, "--batch", "4", "--seq", "17"]], ids=["alone", "against"])
def test_a_terminal_of_any_width_is_kept(tmp_path: Path, width: int, against: list[str]) -> None:
    """No line is longer, and the totals are there."""
    path = written(tmp_path, snapshot(toy()))
    text = gptcalc("explain", "snapshot.pickle", *against, COLUMNS=str(width), cwd=tmp_path).stdout
    assert max(map(len, text.splitlines())) <= width
    assert f"{api.explain(path).taken.requested:,}" in text
    assert ("found" in text) == bool(against)


def test_csv_and_markdown_have_every_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Found, missing and others in csv add up to both totals."""
    path = written(tmp_path, snapshot(toy()))
    typed = [path, *TOY, "--batch", "4", "--seq", "17", "--attention", "flash"]
    found = answered(capsys, *typed)
    assert run(["explain", *typed, "--format", "csv"]) == 0
    records = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    sums = Counter[str]()
    for record in records:
        sums[record["section"]] += int(record["bytes"])
    assert sums["found"] + sums["record"] == found["record"]["requested"]
    assert sums["found"] + sums["missing"] == found["prediction"]["predicted"]
    assert run(["explain", path, "--format", "csv"]) == 0
    blocks = csv.DictReader(io.StringIO(capsys.readouterr().out))
    assert sum(int(row["bytes"]) for row in blocks) == found["record"]["requested"]
    assert run(["explain", *typed, "--format", "markdown"]) == 0
    assert f"| **requested** | **{found['record']['requested']:,}** |" in capsys.readouterr().out
    assert run(["explain", path]) == 0
    rows = capsys.readouterr().out.partition("alive ")[2]
    assert re.search(rf"^requested .* {found['record']['requested']:,} ", rows, re.MULTILINE)


def test_python_has_the_same_answer(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`gptcalc.explain` takes what the command takes."""
    path = written(tmp_path, snapshot(toy()))
    typed = answered(capsys, path, *TOY, *RUN)
    fields = {"n_layers": 3, "d_model": 24, "n_heads": 3, "n_vocab": 67, "n_ctx": 32}
    called = api.explain(path, "gpt2", settings={"batch": 4, "seq": 17, "attention": "math"}, **fields)
    assert {**called.to_dict(), "command": ""} == {**typed, "command": ""}
    assert "<table>" in called._repr_html_()


def test_no_torch_is_opened(tmp_path: Path) -> None:
    """A record is read, and explained, without torch and numpy."""
    path = written(tmp_path, snapshot(toy()))
    code = (
        f"import sys; from gptcalc.cli.app import run; run(['explain', {path!r}, 'gpt2', '--format', 'json']);"
        "print({'torch', 'numpy', 'rich'} & set(sys.modules), file=sys.stderr)"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "set()\n"


# --- What is no record -----------------------------------------------------------------------------------------------

ENTRY = {"action": "alloc", "addr": 1, "size": 2, "stream": 0}


class Shell:
    """An object that would run a command."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        """What pickle asks."""
        return os.system, ("touch pwned",)


WRONG: dict[str, tuple[object, str]] = {
    "a shell": (pickle.dumps({"segments": [Shell()], "device_traces": []}), "opcode"),
    "a text pickle": (pickle.dumps({"segments": []}, 0), "not JSON"),
    "an empty file": (b"", "empty"),
    "half a pickle": (pickle.dumps(snapshot(Machine().run([Request(1, 8)])))[:-40], "in the middle"),
    "a gzip": (b"\x1f\x8b\x08abc", "gzip"),
    "weights": (b"PK\x03\x04abc", "zip archive"),
    "a page": (b"<!DOCTYPE html><html>", "_memory_viz"),
    "binary": (b"\x00\xff\xfe" * 50, "neither a pickle"),
    "deep JSON": (b"[" * 100_000, "not JSON"),
    "half JSON": (b'{"segments": [', "not JSON"),
    "a config": (b'{"model_type": "gpt2"}', "model_type"),
    "a number": (b"3", "read 3"),
    "nothing recorded": ({"segments": [], "device_traces": [[]]}, "nothing is recorded"),
    "segments in no list": ({"segments": 3}, "segments: read 3"),
    "a segment that is none": ({"segments": [3]}, "segment 0: read 3"),
    "a segment of no size": ({"segments": [{"blocks": []}]}, "total_size: read None"),
    "blocks in no list": ({"segments": [{"total_size": 1, "blocks": {}}]}, "blocks: read a dict"),
    "a block of words": ({"segments": [{"total_size": 1, "blocks": [{"size": "many"}]}]}, "size: read 'many'"),
    "a negative size": ({"device_traces": [[ENTRY | {"size": -1}]]}, "event 0: size: read -1"),
    "a truth": ({"device_traces": [[ENTRY | {"size": True}]]}, "size: read True"),
    "a fraction": ({"device_traces": [[ENTRY | {"addr": 1.5}]]}, "addr: read 1.5"),
    "a huge size": ({"device_traces": [[ENTRY | {"size": 1 << 90}]]}, "91 bits"),
    "an action that is none": ({"device_traces": [[{"action": 3}]]}, "action: read 3"),
    "an action in a list": ({"device_traces": [[{"action": ["alloc"]}]]}, "action"),
    "an event that is none": ({"device_traces": [["alloc"]]}, "event 0: read 'alloc'"),
    "traces in no list": ({"device_traces": [ENTRY]}, "device_traces: read a dict"),
}


@pytest.mark.parametrize(("content", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_is_no_record_is_one_clear_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, said: str
) -> None:
    """It names the file and what was read; nothing is run."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.pickle"
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content))
    error = refused(capsys, "explain", "x.pickle")
    assert "x.pickle" in error
    assert said in error
    assert [one.name for one in tmp_path.iterdir()] == ["x.pickle"]


def test_a_file_that_is_not_there_and_a_wrong_run_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """So are a folder, an option that is none, and a stage that has no lines."""
    assert "no such file" in refused(capsys, "explain", str(tmp_path / "no.pickle"))
    assert "cannot be read" in refused(capsys, "explain", str(tmp_path))
    path = written(tmp_path, snapshot(toy()))
    assert "--batch: read 0" in refused(capsys, "explain", path, *TOY, "--batch", "0")
    assert "'gtp2'" in refused(capsys, "explain", path, "gtp2")
    with pytest.raises(GptcalcError, match="embedding"):
        api.explain(path, FIELDS, settings={"scope": "embedding"})


def test_a_record_that_contradicts_itself_is_told_to(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Events that are lost in the middle are counted, and the answer is given all the same."""
    whole = snapshot(toy())
    trace = whole["device_traces"][0]
    allocs = [place for place, entry in enumerate(trace) if entry["action"] == "free_completed"]
    whole["device_traces"][0] = [entry for place, entry in enumerate(trace) if place != allocs[len(allocs) // 2]]
    found = answered(capsys, written(tmp_path, whole))
    assert found["record"]["missed"]
    assert "do not fit" in found["notes"][0]


def test_json_bombs_are_refused_before_they_are_built(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """More containers, or bytes, than any record has: one line."""
    from gptcalc.reading import records

    path = tmp_path / "x.json"
    path.write_text("[" + "[]," * 2000 + "[]]")
    monkeypatch.setattr(records, "MOST_CONTAINERS", 1000)
    with pytest.raises(UnreadableFileError, match="1,000 containers"):
        read_record(path)
    monkeypatch.setattr(records, "MOST_BYTES", 1000)
    with pytest.raises(UnreadableFileError, match="1 GiB"):
        read_record(path)


def test_the_writer_of_these_tests_lays_segments_out_whole() -> None:
    """Blocks of a segment follow each other without a gap, so that the records are as torch's are."""
    for segment in snapshot(toy())["segments"]:
        blocks = segment["blocks"]
        assert sum(block["size"] for block in blocks) == segment["total_size"]
        assert all(one["address"] + one["size"] == other["address"] for one, other in pairwise(blocks))
    assert snapshots.BASES[0] < snapshots.BASES[1]


@pytest.mark.parametrize("mode", ["training", "inference"])
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_experts_in_turns_and_recomputed_layers_are_matched(
    tmp_path: Path, mode: ModeName, checkpointing: Literal["none", "full"]
) -> None:
    """A mixture's experts, which a tape has as one that stands for many, are told one by one; none is left over."""
    model = resolve(steps.MIXTRAL | {"num_local_experts": 7, "num_hidden_layers": 5}, {})
    settings: dict[str, Any] = {"batch": 3, "seq": 9, "attention": "math", "checkpointing": checkpointing}
    if mode == "inference":
        del settings["checkpointing"]
    machine = Machine().run(of_tape(mode, model.spec, Plan(**settings)))
    found = api.explain(
        written(tmp_path, snapshot(machine)),
        steps.MIXTRAL,
        settings={**settings, "mode": mode},
        num_local_experts=7,
        num_hidden_layers=5,
        depth=3,
    )
    assert found.predicted is not None
    match = found.predicted.match
    assert (match.missing, match.others) == (0, ())
    assert match.found == match.peak == machine.allocator.peak().requested


def test_any_moment_of_a_mixture_is_named(tmp_path: Path) -> None:
    """Where experts take turns too, the layer that runs and every tensor have their names; nothing is missing."""
    fields = steps.MIXTRAL | {"num_local_experts": 7}
    plan = Plan(batch=3, seq=9, attention="math")
    requests = of_tape("training", resolve(fields, {}).spec, plan)
    settings = {"batch": 3, "seq": 9, "attention": "math", "mode": "training"}
    for cut in range(30, len(requests), len(requests) // 25):
        path = written(tmp_path, snapshot(Machine().run(requests[:cut])))
        found = api.explain(path, fields, at="end", settings=settings, depth=3)
        assert found.predicted is not None
        assert found.predicted.match.missing == 0
        assert found.predicted.match.more <= 2 * 432  # a list that goes at once is cut in its middle
