"""Programs that hang: killed with all that they started, after their time or when this process ends."""

import threading
import time
from pathlib import Path

import pytest

from dataplane.kernel import tools
from dataplane.kernel.tools import ToolError, end_tools, run_tool

PATIENCE = 60.0
"""Seconds for what must come to pass; only a defect makes anyone wait so long."""

SLEEPERS = 'sleep 300 & echo $! > "$0"; wait'


def _ends(pidfile: Path) -> bool:
    """True once the process has ended: one that is killed is so once it has had its turn of a processor."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{int(pidfile.read_text())}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.01)
    return False


def _said(pidfile: Path) -> bool:
    return pidfile.exists() and pidfile.read_text().endswith("\n")


def test_what_it_says_and_how_it_ends() -> None:
    done = run_tool(["sh", "-c", "cat; echo two >&2; exit 3"], input=b"one", seconds=30)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"one", b"two\n")
    with pytest.raises(FileNotFoundError):
        run_tool(["/none/such"], seconds=30)


def test_its_time_is_over_and_its_children_s_too(tmp_path: Path) -> None:
    started, pidfile = time.monotonic(), tmp_path / "pid"
    for seconds in (1, 10, 60):  # where others have the processor it may not have begun within a second
        with pytest.raises(ToolError, match=rf"^sh: did not end within {seconds} s and was killed$"):
            run_tool(["sh", "-c", SLEEPERS, str(pidfile)], seconds=seconds)
        if _said(pidfile):
            break
    assert time.monotonic() - started < 250
    assert _ends(pidfile)


def test_this_process_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_running", tools._Running())
    said: list[str] = []

    def work() -> None:
        with pytest.raises(ToolError) as caught:
            run_tool(["sh", "-c", SLEEPERS, str(tmp_path / "pid")], seconds=300)
        said.append(str(caught.value))

    thread = threading.Thread(target=work)
    thread.start()
    while not _said(tmp_path / "pid"):
        time.sleep(0.01)
    end_tools()
    thread.join(PATIENCE)
    assert said == ["sh: was killed, because this process ends"]
    assert _ends(tmp_path / "pid")
    with pytest.raises(ToolError, match="is not started, because this process ends"):
        run_tool(["true"], seconds=1)
