"""HTTP servers of the daemon, in one event loop: /healthz and /livez, /metrics and /proxyMode."""

import asyncio
import errno
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiohttp.web_protocol import RequestHandler
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse
from aiohttp.web_server import Server

from ctl.daemon.http.guard import Connection, Guard
from ctl.daemon.http.health import Health
from ctl.daemon.http.metrics import Metrics

Answer = Callable[[BaseRequest], Awaitable[StreamResponse]]
NOSNIFF = {"X-Content-Type-Options": "nosniff"}
_BATCH = 100
_FULL_SECONDS = 1.0
MOST_HEADERS, MOST_LINE = 48, 4096
"""Limits of a request's lines and bytes; a client of these pages has nothing to send but a bearer token."""

NOT_FOUND = "404 page not found\n"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def split_bind(text: str) -> tuple[str, int]:
    """Return host and port of `address:port`, IPv6 in brackets. Port 0 or an empty text means no server: ("", 0)."""
    host, _, port = text.rpartition(":")
    return (host.strip("[]"), int(port)) if port and int(port) else ("", 0)


def listening_socket(host: str, port: int) -> socket.socket:
    """Make a listening TCP socket; `::` takes IPv4 too. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if host == "::" else 1)
        listener.bind((host, port))
        listener.listen(128)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


class Reply(Response):
    """A response without the header Server, in which the library puts its name and version; kube-proxy sends none."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.pop("Server", None)


class Listener:
    """A listening socket of a Site. Connections that were accepted before it is closed are still answered."""

    def __init__(self, bound: socket.socket, protocols: Server) -> None:
        self._socket, self._protocols = bound, protocols
        self._tasks: set[asyncio.Task[object]] = set()
        self._loop = asyncio.get_running_loop()
        self._listen()

    def _listen(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.add_reader(self._socket, self._accept)

    def close(self) -> None:
        """Stop listening."""
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _accept(self) -> None:
        for _ in range(_BATCH):
            try:
                connection, _ = self._socket.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._loop.remove_reader(self._socket)
                    self._loop.call_later(_FULL_SECONDS, self._listen)
                return  # otherwise the client has gone already
            connection.setblocking(False)
            task: asyncio.Task[object] = self._loop.create_task(
                self._loop.connect_accepted_socket(self._protocols, connection)
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)


class _Guarded(RequestHandler):
    """A connection that a guard tracks."""

    def __init__(self, manager: Server, guard: Guard, **options: Any) -> None:
        super().__init__(manager, **options)
        self._guard = guard
        self.connection: Connection | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert isinstance(transport, asyncio.Transport), "of a socket"
        self.connection = self._guard.opened(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        if self.connection is not None:
            self._guard.gone(self.connection)
        super().connection_lost(exc)


class _Server(Server):
    """Makes connections that a guard tracks."""

    def __init__(self, answer: Answer, guard: Guard) -> None:
        super().__init__(answer)
        self._guard = guard

    def __call__(self) -> RequestHandler:
        return _Guarded(
            self, self._guard, loop=self._loop, keepalive_timeout=30, access_log=None, lingering_time=0,
            max_line_size=MOST_LINE, max_field_size=MOST_LINE, max_headers=MOST_HEADERS,
        )  # fmt: skip


class Site:
    """An HTTP server; each socket it serves on can be closed alone. For use in one event loop. guard: bounds its
    connections, and those of other servers with the same guard."""

    def __init__(self, answer: Answer, guard: Guard) -> None:
        async def guarded(request: BaseRequest) -> StreamResponse:
            connection = request.protocol.connection if isinstance(request.protocol, _Guarded) else None
            if connection is None:
                return await answer(request)
            connection.begins()
            try:
                return await answer(request)
            finally:
                connection.ends()

        self._protocols = _Server(guarded, guard)

    def open(self, host: str, port: int) -> Listener:
        """Serve on one more address; closing what this returns ends it. Raises OSError."""
        return Listener(listening_socket(host, port), self._protocols)

    async def close(self) -> None:
        """Close all connections."""
        await self._protocols.shutdown(0.5)


def health_answer(health: Health, metrics: Metrics) -> Answer:
    """/healthz and /livez, as kube-proxy answers them."""

    async def answer(request: BaseRequest) -> StreamResponse:
        if request.path == "/healthz":
            status, body = health.healthz()
            metrics.healthz.labels(str(status)).inc()
        elif request.path == "/livez":
            status, body = health.livez()
            metrics.livez.labels(str(status)).inc()
        else:
            return Reply(status=404, text=NOT_FOUND)
        return Reply(status=status, body=body.encode(), content_type="application/json", headers=NOSNIFF)

    return answer


def metrics_answer(
    health: Health,
    metrics: Metrics,
    mode: Callable[[], str],
    collect: Callable[[], Awaitable[None]],
    pages: Mapping[str, Callable[[], Reply]],
) -> Answer:
    """/metrics, /proxyMode, /healthz and `pages` on the metrics address. collect: brings the gauges up to date."""

    async def answer(request: BaseRequest) -> StreamResponse:
        match request.path:
            case "/metrics":
                await collect()
                return Reply(body=metrics.text(), headers={"Content-Type": METRICS_TYPE})
            case "/proxyMode":
                return Reply(body=mode().encode(), content_type="text/plain", headers=NOSNIFF)
            case "/healthz":
                return Reply(text="ok" if health.healthy() else "behind", status=health.livez()[0])
            case path if path in pages:
                return pages[path]()
        return Reply(status=404, text=NOT_FOUND)

    return answer
