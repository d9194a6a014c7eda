"""Files are whole or not there."""

import os
from pathlib import Path

import pytest

from gptcalc.errors import OutputError
from gptcalc.files import must_be_writable, write_atomically


def names(folder: Path) -> list[str]:
    """All that lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


def test_new_file_has_usual_permissions(tmp_path: Path) -> None:
    """A new file is as readable as any that the user makes, and nothing lies beside it."""
    path = tmp_path / "run.json"
    write_atomically(path, "été\n")
    (tmp_path / "usual").touch()
    assert path.read_text(encoding="utf-8") == "été\n"
    assert path.stat().st_mode == (tmp_path / "usual").stat().st_mode
    assert names(tmp_path) == ["run.json", "usual"]


def test_replaced_file_keeps_its_permissions(tmp_path: Path) -> None:
    """A file that was private stays private."""
    path = tmp_path / "run.json"
    path.write_text("old")
    path.chmod(0o600)
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600


def test_link_stays_a_link(tmp_path: Path) -> None:
    """Writing through a link changes the file that it names."""
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_atomically(tmp_path / "link", "new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    """Where the disk is full, the old file is whole, no other is left, and the error says why."""

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "run.json"
    path.write_text("old")
    monkeypatch.setattr(os if call == "fsync" else Path, call, full)
    with pytest.raises(OutputError, match=r"run\.json: cannot be written: No space left on device"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["run.json"]


def test_missing_folder_and_folder_are_errors(tmp_path: Path) -> None:
    """A folder that is not there, and a name that is a folder, are errors that name the path."""
    with pytest.raises(OutputError, match="No such file or directory"):
        write_atomically(tmp_path / "no" / "run.json", "x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder"):
        write_atomically(tmp_path / "folder", "x")
    assert names(tmp_path) == ["folder"]


def test_whether_a_file_can_be_written_is_known_before(tmp_path: Path) -> None:
    """Asking leaves the file as it is and nothing beside it; a folder, or a missing one, cannot be written."""
    path = tmp_path / "run.json"
    must_be_writable(path)
    assert names(tmp_path) == []
    path.write_text("old")
    must_be_writable(path)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["run.json"]
    for wrong in (tmp_path, tmp_path / "no" / "run.json"):
        with pytest.raises(OutputError, match="cannot be written"):
            must_be_writable(wrong)
