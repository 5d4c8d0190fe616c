"""The daemon's part of host routing on a node of the lab, in an event loop of its own: it follows NetworkPolicies that
it is told of and the node's chains, and tells the plane."""

import asyncio
import io
import json
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from ctl.daemon.host_routing.chains import POLL_SECONDS, ChainWatch
from ctl.daemon.host_routing.keeper import RouteKeeper
from ctl.daemon.log import Log
from dataplane.kernel.foreign_chains import TableName
from dataplane.kernel.namespaces.netns import netns
from dataplane.model.decode import decode_object
from dataplane.planes.registry import modes
from tests.apiserver.objects import network_policy, pod
from tests.kernel.host_lab import FAMILIES, HostLab

PODS = ("pod1-1", "pod1-2")
_START_SECONDS = 20.0


class Deciders:
    """As a context manager. own: tables besides hotplane's that are not another program's."""

    def __init__(self, lab: HostLab, own: frozenset[TableName]) -> None:
        self._lab = lab
        self._own = own | frozenset(table for mode in modes() for table in mode.tables)
        self._loop = asyncio.new_event_loop()
        self._ready, self._end = threading.Event(), asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="deciders")
        self._keeper: RouteKeeper | None = None

    @property
    def keeper(self) -> RouteKeeper:
        """Only to be touched by `call`."""
        assert self._keeper is not None, "it is entered"
        return self._keeper

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(_START_SECONDS), "the event loop does not start"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def call(self, function: Callable[..., Any], *words: Any) -> Any:
        """Call a function in the event loop, to its end."""

        async def called() -> Any:
            return function(*words)

        return asyncio.run_coroutine_threadsafe(called(), self._loop).result()

    def why(self) -> str | None:
        """Why everything stays on the stack, as the plane was told; None if it need not."""
        found: str | None = self.call(lambda: self.keeper.current.node)
        return found

    def policy(self, name: str, there: bool) -> None:
        """A NetworkPolicy selects a pod from now on, or no longer; the plane knows when this returns."""
        found = decode_object(json.dumps(network_policy(name, matchLabels={"pod": name})).encode())
        assert found.ref is not None
        if there:
            self.call(self.keeper.listener.put, found)
        else:
            self.call(self.keeper.listener.remove, found.ref)

    def _run(self) -> None:
        with netns(self._lab.node.netns):
            asyncio.set_event_loop(self._loop)
            self._loop.run_until_complete(self._work())
            self._loop.close()

    async def _work(self) -> None:
        self._keeper = keeper = RouteKeeper(
            self._lab.node.name, "auto", self._lab.host().exclude, Log(out=io.StringIO()), api=False
        )
        watch = ChainWatch(self._own, keeper.found_chains)
        watch.open()
        for name in PODS:
            addresses = [self._lab.address(name, family) for family in FAMILIES]
            raw = json.dumps(pod(name, self._lab.node.name, *addresses, labels={"pod": name})).encode()
            keeper.listener.put(decode_object(raw))
        keeper.listener.complete("Pod", {("default", name) for name in PODS})
        keeper.listener.complete("NetworkPolicy", ())
        keeper.begin()
        self._ready.set()
        while not self._end.is_set():
            await asyncio.sleep(POLL_SECONDS)
            await watch.poll()
            await keeper.tell_again()
        keeper.end("the test is over")
        watch.close()
