"""Where labs are kept on disk, beside other processes that keep something there."""

import json
from pathlib import Path

import pytest

from ctl.main import main
from dataplane.lab import state
from dataplane.lab.spec import LabSpec


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(state, "STATE_DIR", tmp_path / "hotplane" / "lab")
    return tmp_path / "hotplane"


def test_what_is_empty_goes(folder: Path) -> None:
    with state.locked():
        assert (folder / "lab").is_dir()
    assert not folder.exists()


def test_what_somebody_puts_there_at_the_last_moment_stays(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock of a network namespace, which is another lock than the labs'."""
    whole = Path.rmdir

    def rmdir(path: Path) -> None:
        if path == folder:
            (folder / "netns-c1.lock").touch()
        whole(path)

    monkeypatch.setattr(Path, "rmdir", rmdir)
    with state.locked():
        pass
    assert [path.name for path in folder.iterdir()] == ["netns-c1.lock"]


def test_what_somebody_removes_while_it_is_waited_for_is_made_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, removed = Path.mkdir, list[Path]()

    def mkdir(path: Path, mode: int = 0o777, *, parents: bool = False, exist_ok: bool = False) -> None:
        if path == folder / "lab" and not removed:
            removed.append(path)
            raise FileNotFoundError(path)
        whole(path, mode, parents=parents, exist_ok=exist_ok)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with state.locked():
        assert removed
        assert (folder / "lab").is_dir()


def test_a_damaged_lab_hides_no_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nor does one that is being built."""
    (folder / "lab").mkdir(parents=True)
    state.store(state.LabState(LabSpec("half")))
    state.path_of("damaged").write_text("{damaged")
    assert main(["lab", "status", "-o", "json"]) == 0
    printed = capsys.readouterr()
    assert {each["lab"]: each["state"] for each in json.loads(printed.out)} == {
        "damaged": "unfinished", "half": "unfinished"
    }  # fmt: skip
    assert "damaged.json is damaged" in printed.err
