"""The daemon's beginning, and what a failure on the way to the first load leaves."""

import asyncio
import io
from pathlib import Path

import pytest

from ctl.daemon import daemon as module
from ctl.daemon.daemon import Daemon
from ctl.daemon.log import Log
from ctl.daemon.settings import settings_of
from ctl.parser import parse
from ctl.store.lock import Holder, Lock
from tests.unit.test_daemon_kernel import PickyPlane


def test_another_try_at_the_first_load_goes_on_with_the_plane(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has threads and maps, and two of them would do everything twice."""
    made: list[PickyPlane] = []

    def make(*_: object) -> PickyPlane:
        made.append(PickyPlane())
        return made[-1]

    monkeypatch.setattr(module, "daemon_plane", make)
    monkeypatch.setattr(module, "untouched", lambda plane: None)

    async def run() -> None:
        settings = settings_of(parse(["--node-name", "n1", "--state-dir", str(tmp_path), "run", "-f", str(tmp_path)]))
        log, lock = Log("error", out=io.StringIO()), Lock(tmp_path / "lock", None, Holder())
        daemon = Daemon(settings, log, lambda: settings, lock)
        failures = [OSError(105, "no buffer space"), None]

        async def start() -> None:
            if (error := failures.pop(0)) is not None:
                raise error

        monkeypatch.setattr(daemon.reconciler, "start", start)
        try:
            with pytest.raises(OSError):
                await daemon._begin()
            await daemon._begin()
            assert failures == []
        finally:
            await daemon._close()

    asyncio.run(run())
    assert len(made) == 1
