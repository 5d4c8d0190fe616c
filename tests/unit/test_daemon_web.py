"""The daemon's HTTP servers with clients that want too much, or never come to the point."""

import asyncio
import contextlib
import os
import resource
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import cast

import pytest
from aiohttp import web

from ctl.daemon.http import guard as guards
from ctl.daemon.http.guard import Guard
from ctl.daemon.http.web import Listener, Reply, Site
from ctl.daemon.sync.child import Child
from dataplane.kernel.wait import readable

PATIENCE = 60.0
"""Seconds for what must come to pass; only a defect makes anyone wait so long."""


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class _Served:
    """A server that says "ok" on a port of its own, and connections to it."""

    def __init__(self, stack: contextlib.AsyncExitStack) -> None:
        self.closed: Counter[str] = Counter()
        self.guard = Guard(lambda why: self.closed.update([why]))
        self.site = Site(self._answer, self.guard)
        self.listener: Listener = self.site.open("127.0.0.1", 0)
        self.port = self.listener._socket.getsockname()[1]
        self._stack = stack

    async def _answer(self, _: web.BaseRequest) -> web.StreamResponse:
        return Reply(text="ok")

    async def connect(self, source: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))
        self._stack.callback(writer.close)
        return reader, writer

    async def get(self, source: str = "127.0.0.1") -> bytes:
        reader, writer = await self.connect(source)
        writer.write(b"GET / HTTP/1.0\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(PATIENCE):
            return await reader.read()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                await asyncio.sleep(0.01)

    def age(self, seconds: float) -> None:
        """Let so much time pass for every connection that there is."""
        for mine in self.guard._clients.values():
            for connection in mine:
                connection.since -= seconds


class _Peer:
    """The transport of a connection from an address, which is closed when the guard says so."""

    def __init__(self, address: str) -> None:
        self.address, self.open = address, True

    def get_extra_info(self, _: str) -> tuple[str, int]:
        return self.address, 1

    def abort(self) -> None:
        self.open = False


def test_a_client_whose_only_connection_makes_room_for_its_next_is_still_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "MOST", 3)
    guard = Guard()
    first, *others = peers = [_Peer(f"10.0.0.{last}") for last in (1, 2, 3)]
    for peer in peers:
        guard.opened(cast(asyncio.Transport, peer))
    again = _Peer(first.address)
    connection = guard.opened(cast(asyncio.Transport, again))
    assert (first.open, again.open, [peer.open for peer in others]) == (False, True, [True, True])
    assert guard.count == 3
    connection.since -= 2 * guards.REQUEST_SECONDS
    asyncio.run(guard.sweep())
    assert (again.open, guard.count) == (False, 2)


def _serve(scenario: Callable[[_Served], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with contextlib.AsyncExitStack() as stack:
            served = _Served(stack)
            try:
                await scenario(served)
            finally:
                served.listener.close()
                await served.site.close()

    asyncio.run(whole())


def test_a_client_with_half_requests_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "MOST_A_CLIENT", 40)
    monkeypatch.setattr(guards, "MOST", 60)

    async def scenario(served: _Served) -> None:
        for _ in range(200):
            _, writer = await served.connect("127.0.0.2")
            writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        assert b"200 OK" in await served.get("127.0.0.2"), "not even itself"
        assert b"200 OK" in await served.get()
        assert served.guard.count <= 40
        assert served.closed["client"] >= 160
        for host in range(3, 103):
            await served.connect(f"127.0.0.{host}")
        assert b"200 OK" in await served.get()
        await served.until(lambda: served.guard.count <= 60 and served.closed["total"] >= 40)

    _serve(scenario)


def test_a_request_that_takes_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "REQUEST_SECONDS", 1000.0)
    monkeypatch.setattr(guards, "IDLE_SECONDS", 2000.0)

    async def scenario(served: _Served) -> None:
        slow, writer = await served.connect()
        writer.write(b"GET / HT")
        kept, second = await served.connect()
        second.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"200 OK" in await kept.readuntil(b"ok")
        await served.guard.sweep()
        assert served.closed == {}
        served.age(1500)
        await served.guard.sweep()
        assert await slow.read() == b"", "closed without a word"
        assert served.closed == {"slow": 1}
        second.write(b"GET / HT")
        await asyncio.sleep(0.2)
        served.age(1000)
        await served.guard.sweep()
        assert await kept.read() == b"", "half a request is none"
        assert (served.closed, served.guard.count) == ({"slow": 2}, 0)

    _serve(scenario)


@pytest.mark.parametrize(
    "request_", [b"GET /" + b"a" * 5000 + b" HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 100 + b"\r\n"]
)
def test_a_request_that_is_too_big(request_: bytes) -> None:
    async def scenario(served: _Served) -> None:
        reader, writer = await served.connect()
        writer.write(request_)
        async with asyncio.timeout(PATIENCE):
            assert (await reader.read()).startswith(b"HTTP/1.0 400")

    _serve(scenario)


def test_a_body_is_not_waited_for() -> None:
    async def scenario(served: _Served) -> None:
        reader, writer = await served.connect()
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n" + b"x" * 1000)
        async with asyncio.timeout(PATIENCE):
            assert b"200 OK" in await reader.read()

    _serve(scenario)


@contextlib.contextmanager
def _more_than_select_knows() -> Iterator[None]:
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert max(held) > 1023
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


def test_a_child_and_a_wait_beyond_1023_descriptors() -> None:
    with _more_than_select_knows():
        assert asyncio.run(Child(lambda: b"answer").answer(PATIENCE)) == b"answer"
        reader, writer = os.pipe()
        try:
            assert reader > 1023
            assert readable([reader], 0) == set()
            os.write(writer, b"x")
            assert readable([reader], 0) == {reader}
        finally:
            os.close(reader)
            os.close(writer)
