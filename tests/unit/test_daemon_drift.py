"""Comparisons of the kernel with the plan: what is no difference though it looks like one."""

import asyncio
import io
from collections.abc import Awaitable, Callable
from typing import TypeVar, cast

import msgspec
import pytest

from ctl.daemon.http.metrics import Metrics
from ctl.daemon.log import Log
from ctl.daemon.sync import drift
from ctl.daemon.sync.drift import DriftCheck, Found
from ctl.daemon.sync.kernel import Kernel
from ctl.daemon.sync.reconcile import Reconciler
from dataplane.plan.planner import Planner
from dataplane.plan.types import EntryKey
from dataplane.policy.node import NodeConfig
from tests.unit.test_daemon_kernel import PickyPlane, fresh

_T = TypeVar("_T")


class FullPlane(PickyPlane):
    """Has no room for some entries."""

    def __init__(self) -> None:
        super().__init__()
        self.out: set[EntryKey] = set()

    @property
    def left_out(self) -> frozenset[EntryKey]:
        return frozenset(self.out)


class Loop:
    """The reconcile loop as far as a comparison needs it. before: happens before a job has its turn."""

    def __init__(self, kernel: Kernel, before: Callable[[], object]) -> None:
        self.kernel, self.planner, self._before = kernel, Planner(NodeConfig()), before
        self.touched: set[str] = set()
        self.requested: list[str] = []

    async def between(self, name: str, job: Callable[[], Awaitable[_T]]) -> _T:
        self._before()
        return await job()

    def request(self, name: str, job: Callable[[], Awaitable[object]]) -> None:
        self.requested.append(name)


def test_what_is_left_out_just_before_a_comparison_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change takes the last room while the comparison waits for its turn."""
    plane, [one] = FullPlane(), fresh("a")
    found = [Found(one.key.service, str(one.frontends[0].key), "is missing in the kernel")]
    monkeypatch.setattr(drift, "_look", lambda plan, mode: msgspec.msgpack.encode(found))

    async def run(full: bool) -> tuple[int, list[str]]:
        kernel = Kernel(lambda *_: None)
        loop = Loop(kernel, lambda: plane.out.update({one.key} if full else ()))
        await kernel.use(lambda: plane)
        check = DriftCheck(cast(Reconciler, loop), Metrics(), Log("error", out=io.StringIO()), 30)
        return await check.check(), loop.requested

    assert asyncio.run(run(full=False)) == (1, ["repair"])
    assert asyncio.run(run(full=True)) == (0, [])
