"""Programs that hang: killed with all that they started, after their time or when this process ends."""

import threading
import time
from pathlib import Path

import pytest

from dataplane.kernel import tools
from dataplane.kernel.tools import ToolError, end_tools, run_tool

SLEEPERS = 'sleep 300 & echo $! > "$0"; wait'


def _ended(pidfile: Path) -> bool:
    """True if the process of that number ends within a minute: a killed one needs a processor for it."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{int(pidfile.read_text())}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.01)
    return False


def test_what_it_says_and_how_it_ends() -> None:
    done = run_tool(["sh", "-c", "cat; echo two >&2; exit 3"], input=b"one", seconds=30)
    assert (done.returncode, done.stdout, done.stderr) == (3, b"one", b"two\n")
    with pytest.raises(FileNotFoundError):
        run_tool(["/none/such"], seconds=30)


def test_its_time_is_over_and_its_children_s_too(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(ToolError, match=r"^sh: did not end within 1 s and was killed$"):
        run_tool(["sh", "-c", SLEEPERS, str(tmp_path / "pid")], seconds=1)
    assert time.monotonic() - started < 20
    assert _ended(tmp_path / "pid")


def test_this_process_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "_running", tools._Running())
    said: list[str] = []

    def work() -> None:
        with pytest.raises(ToolError) as caught:
            run_tool(["sh", "-c", SLEEPERS, str(tmp_path / "pid")], seconds=300)
        said.append(str(caught.value))

    thread = threading.Thread(target=work)
    thread.start()
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.01)
    end_tools()
    thread.join(20)
    assert said == ["sh: was killed, because this process ends"]
    assert _ended(tmp_path / "pid")
    with pytest.raises(ToolError, match="is not started, because this process ends"):
        run_tool(["true"], seconds=1)
