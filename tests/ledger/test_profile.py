"""A profile's file: whole, versioned, and checked when it is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import DATA

from gptcalc.errors import UnreadableFileError
from gptcalc.ledger.profile import (
    SCHEMA,
    Device,
    Measured,
    Moved,
    Point,
    Profile,
    Shape,
    Software,
    differences,
    load,
    save,
)


def toy_profile() -> Profile:
    """Two points, one number each."""
    shape = Shape(rows=4, d_model=8, n_vocab=50, n_ctx=4, seq=4)
    measured = Measured(restarts=((100, 101), (102,)), rejected=1, stopped="budget")
    points = tuple(
        Point(
            case=case,
            dtype="fp32",
            backend="eager",
            shape=shape,
            must_move=(Moved(label="input", formula="4×M×D", bytes=128),),
            checked="relative error 1e-8",
            measured={"cold": measured},
        )
        for case in ("layernorm.forward", "rmsnorm.forward")
    )
    return Profile(
        command="gptcalc bench",
        started="2026-01-01T00:00:00+00:00",
        device=Device(kind="cpu", name="toy", cache_bytes=1 << 20),
        software=Software(gptcalc="0", torch="2", python="3.11", system="Linux"),
        asked=2,
        points=points,
    )


def test_saved_is_what_is_loaded(tmp_path: Path) -> None:
    """Every sample comes back, under a schema that names its version."""
    path = tmp_path / "run.json"
    save(toy_profile(), path)
    assert load(path) == toy_profile()
    assert json.loads(path.read_text())["schema"] == SCHEMA


@pytest.mark.parametrize("path", sorted((DATA / "measurements").glob("*.json")), ids=lambda path: path.name)
def test_every_measurement_is_read_for_ever(path: Path) -> None:
    """What was measured once is whole, and read by every version of gptcalc that knows its schema."""
    assert load(path).points


def _without(*path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        del data[path[-1]]

    return change


def _with(value: object, *path: str | int) -> Callable[[dict[str, Any]], None]:
    def change(data: Any) -> None:
        for step in path[:-1]:
            data = data[step]
        data[path[-1]] = value

    return change


NUMBER = ("points", 0, "measured", "cold")

DAMAGE = {
    "device": _without("device"),
    "points.0.shape.rows": _with(0, "points", 0, "shape", "rows"),
    "points.0.measured.cold.restarts.0.1": _with(-1, *NUMBER, "restarts", 0, 1),
    "points.0.measured.cold.restarts.1": _with([], *NUMBER, "restarts", 1),
    "points.0.measured.cold.restarts": _with([[1]], *NUMBER, "restarts"),
    "points.0.measured.cold.rejected": _with(True, *NUMBER, "rejected"),  # noqa: FBT003
    "points.0.measured.cold.stopped": _with("bored", *NUMBER, "stopped"),
    "points.0.measured.lukewarm": _with(None, "points", 0, "measured", "lukewarm"),
    "points.0.must_move.0.bytes": _with("128", "points", 0, "must_move", 0, "bytes"),
    "extra": _with(1, "extra"),
    "stands in it twice": _with("rmsnorm.forward", "points", 0, "case"),
    "2 points of 1": _with(1, "asked"),
    "numbers, or a problem": _with({}, "points", 0, "measured"),
}


@pytest.mark.parametrize("where", DAMAGE)
def test_damage_is_found_and_named(tmp_path: Path, where: str) -> None:
    """A field that is missing, wrong or unknown is an error that names the file and the place."""
    path = tmp_path / "run.json"
    save(toy_profile(), path)
    data = json.loads(path.read_text())
    DAMAGE[where](data)
    path.write_text(json.dumps(data))
    with pytest.raises(UnreadableFileError) as error:
        load(path)
    assert "run.json: damaged" in str(error.value)
    assert where in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "damaged"),
        (b'{"schema": "gptcalc.profile/1", "points": [', "damaged"),
        (b"[1, 2]", "no schema"),
        (b'{"schema": "gptcalc.profile/0"}', "gptcalc.profile/0"),
        (b'{"schema": "gptcalc.count/1"}', "gptcalc.count/1"),
        (b"\xff\xfe\x00", "binary"),
        (b"[" * 100_000, "damaged"),
        (b'{"schema": NaN}', "no schema"),
    ],
)
def test_what_is_no_profile_is_refused(tmp_path: Path, text: bytes, said: str) -> None:
    """An empty, cut, older, other or binary file is refused, with what was read."""
    path = tmp_path / "run.json"
    path.write_bytes(text)
    with pytest.raises(UnreadableFileError, match=said):
        load(path)


def test_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    """A file that is not there, and a folder, are errors."""
    with pytest.raises(UnreadableFileError, match="--save"):
        load(tmp_path / "no.json")
    with pytest.raises(UnreadableFileError, match="cannot be read"):
        load(tmp_path)


def test_runs_differ_in_what_is_not_the_same_machine_or_software() -> None:
    """Each field in which they differ is named, known or not; memory, which no two runs find alike, is none."""
    then = toy_profile()
    device = then.device.model_copy(update={"memory_bytes": 1 << 30, "units": 2})
    software = then.software.model_copy(update={"torch": "3"})
    now = then.model_copy(update={"device": device, "software": software})
    assert list(differences(then, now)) == [("device", "units", None, 2), ("software", "torch", "2", "3")]
    assert not list(differences(then, then))
