"""When the daemon compares the kernel with its plan, beside others who change rules all the time."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from ctl.daemon.sync.drift import DriftCheck

_HOURS = 7200.0


class _Kernel:
    """A kernel in which others have changed rules. gone: they took the table away."""

    def __init__(self, *, touched: bool, gone: bool) -> None:
        self.untouched, self._touched = object(), touched
        self.plane = SimpleNamespace(is_gone=lambda: gone, commits_tell_all=True)

    async def look(self) -> bool:
        return self._touched

    async def call(self, function: Callable[..., Any], *arguments: object) -> Any:
        return function(*arguments)


class _Counted(DriftCheck):
    """Counts its checks."""

    checks = 0

    async def check(self) -> int:
        self.checks += 1
        return 0


@pytest.mark.parametrize(
    ("touched", "gone", "checks"), [(True, False, 1), (True, True, 3), (False, True, 0), (False, False, 0)]
)
def test_a_long_check_waits_unless_the_whole_table_has_gone(touched: bool, gone: bool, checks: int) -> None:
    reconciler: Any = SimpleNamespace(kernel=_Kernel(touched=touched, gone=gone))
    no: Any = None
    drift = _Counted(reconciler, no, no, 30.0)

    async def poll() -> None:
        for _ in range(3):
            await drift.poll()
            drift._spent = _HOURS

    drift._spent = 0.0
    asyncio.run(poll())
    assert drift.checks == checks
