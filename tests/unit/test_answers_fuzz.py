"""Whatever an API server answers, a watch goes on: it is told, tried again, and what was listed stays."""

import asyncio
import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.daemon.http.health import eligible
from ctl.daemon.log import Log
from ctl.daemon.sync.inbox import Inbox
from ctl.sources.api import Api
from ctl.sources.watch import Reflector, Resource
from dataplane.backoff import Backoff
from tests.unit.mangling import examples, mangled, twisted

SERVICE = {
    "kind": "Service",
    "metadata": {"name": "a", "namespace": "x", "resourceVersion": "5"},
    "spec": {"clusterIP": "10.0.0.1", "ports": [{"port": 80}]},
}
PAGE: dict[str, Any] = {"kind": "ServiceList", "metadata": {"resourceVersion": "7", "continue": ""}, "items": [SERVICE]}
END = {"metadata": {"resourceVersion": "8", "annotations": {"k8s.io/initial-events-end": "true"}}}
STATUS = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old", "details": {}}
SLICE = {
    "kind": "EndpointSlice",
    "metadata": {
        "name": "a-1",
        "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": "2026-01-01T00:00:00Z"},
    },
    "addressType": "IPv4",
    "endpoints": [{"addresses": ["10.1.0.1"]}],
}
EVENTS: list[dict[str, Any]] = [
    {"type": "ADDED", "object": SERVICE},
    {"type": "BOOKMARK", "object": END},
    {"type": "MODIFIED", "object": SLICE},
    {"type": "DELETED", "object": SERVICE},
    {"type": "ERROR", "object": STATUS},
]
STREAM = b"".join(msgspec.json.encode(event) + b"\n" for event in EVENTS)
NODE = b'{"metadata": {"deletionTimestamp": null}, "spec": {"taints": [{"key": "x"}]}}'


class Scripted:
    """An API server that answers every request alike. most: requests until the watch is ended from outside."""

    def __init__(self, page: bytes, stream: bytes, piece: int = 7, most: int = 6) -> None:
        self._page, self._stream, self._piece, self._left = page, stream, piece, most

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise asyncio.CancelledError

    async def get(self, path: str, params: Mapping[str, str]) -> bytes:
        self._count()
        return self._page

    @asynccontextmanager
    async def stream(self, path: str, params: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        self._count()
        yield self._pieces()

    async def _pieces(self) -> AsyncIterator[bytes]:
        for at in range(0, len(self._stream), self._piece):
            yield self._stream[at : at + self._piece]

    def recovered(self) -> None:
        pass

    async def recovery(self, seconds: float) -> bool:
        return True


def _follow(server: Scripted, kind: str, *, streaming: bool) -> tuple[Inbox, str]:
    """Watch until the server ends it; what the watch brought, and what it said."""
    out = io.StringIO()

    async def watch() -> Inbox:
        inbox = Inbox((kind,))
        resource = Resource(kind, f"/{kind}")
        reflector = Reflector(cast(Api, server), resource, inbox, Log("debug", out=out), backoff=Backoff(0.0, 0.0))
        if not streaming:
            reflector._streaming = False
        with pytest.raises(asyncio.CancelledError):
            await reflector.run()
        return inbox

    return asyncio.run(watch()), out.getvalue()


@examples(150)
@given(
    data=mangled(msgspec.json.encode(PAGE)) | twisted(PAGE), kind=st.sampled_from(("Service", "EndpointSlice", "Node"))
)
def test_lists(data: bytes, kind: str) -> None:
    _, said = _follow(Scripted(data, b""), kind, streaming=False)
    assert all(line.isprintable() for line in said.splitlines())


@examples(250)
@given(
    data=mangled(STREAM) | twisted(EVENTS).map(lambda text: text.replace(b"\n", b" ") + b"\n"),
    kind=st.sampled_from(("Service", "EndpointSlice")),
    piece=st.integers(1, 500),
)
def test_streams(data: bytes, kind: str, piece: int) -> None:
    _, said = _follow(Scripted(b"{}", data, max(piece, len(data) // 200)), kind, streaming=True)
    assert all(line.isprintable() for line in said.splitlines())


@examples(250)
@given(st.sampled_from(EVENTS).flatmap(twisted), st.sampled_from(("Service", "EndpointSlice")))
def test_one_event(data: bytes, kind: str) -> None:
    line = data.replace(b"\n", b" ") + b"\n"
    inbox, _ = _follow(Scripted(b"{}", STREAM[: STREAM.index(b'{"type":"MOD')] + line), kind, streaming=True)
    assert inbox.synced == {kind}, "the list that came before it stands"


@examples(150)
@given(mangled(NODE) | twisted(msgspec.json.decode(NODE)))
def test_a_node_s_taints(data: bytes) -> None:
    assert eligible(msgspec.Raw(data)) in (True, False)


class _Counted(bytes):
    """Bytes that count how much of them is copied when they are put behind others."""

    copied = 0

    def __radd__(self, other: bytes) -> bytes:
        _Counted.copied += len(other)
        return bytes(other) + bytes(self)


def test_an_event_in_many_pieces_is_not_copied_for_each() -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10_000):
            yield _Counted(b"x" * 100)
        yield b"\n"

    server = Scripted(b"{}", b"", most=1)
    server._pieces = pieces  # type: ignore[method-assign]
    _Counted.copied = 0
    inbox, said = _follow(server, "Service", streaming=True)
    assert inbox.invalid_events == 1, said
    assert _Counted.copied <= 2_000_000
