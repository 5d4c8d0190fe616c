"""The page over HTTP: its files, its questions as JSON, what happens as server-sent events.

Whoever may connect may look. What other sites' pages could do through a browser is refused: a request by a name that is
not this machine's (DNS rebinding), and one that changes something without the page's own token. No page may frame this
one, and it loads nothing from elsewhere (Content-Security-Policy).
"""

import asyncio
import ipaddress
import secrets
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
from aiohttp.web_request import BaseRequest
from aiohttp.web_response import Response, StreamResponse

from ctl.daemon.http.web import Reply, split_bind
from ctl.ui.view import MOST_CALLS, View
from dataplane.errors import HotplaneError, UsageError
from dataplane.malformed import MALFORMED
from dataplane.model.net import host_port, is_loopback

PAGE = Path(__file__).with_name("page")
PICTURE_STYLE = Path(__file__).parents[1] / "picture" / "picture.css"
FILES = {
    "/": (PAGE / "index.html", "text/html"),
    "/page.js": (PAGE / "page.js", "text/javascript"),
    "/page.css": (PAGE / "page.css", "text/css"),
    "/picture.css": (PICTURE_STYLE, "text/css"),
}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
TOKEN_HEADER = "X-Hotplane-Token"
MOST_BODY, MOST_WATCHERS = 4096, 16
MOST_NEWS = 200
"""So many events are kept for pages that lose their connection for a moment."""
LOOK_SECONDS, STREAM_SECONDS = 2.0, 60.0
"""Time from one look to the next, and after which a stream ends; the browser opens the next one by itself."""


class Refused(Exception):
    """A request that is not answered. status: of HTTP."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class _Stream(StreamResponse):
    """A response that is written bit by bit, without the header Server."""

    async def _prepare_headers(self) -> None:
        await super()._prepare_headers()
        self.headers.pop("Server", None)


class Call(msgspec.Struct, forbid_unknown_fields=True):
    """Packets to send, as the page asks for them."""

    source: str
    destination: str
    count: int = 1


def listening_address(text: str, *, remote: bool, option: str, allow: str) -> tuple[str, int]:
    """Host and port of `ADDRESS:PORT`. Raises UsageError for what is none, and for an address that others can reach
    unless `remote`. option, allow: names of both options in the message."""
    try:
        host, port = split_bind(text)
        address = str(ipaddress.ip_address(host))
    except ValueError as error:
        raise UsageError(f"{option} {text}: write ADDRESS:PORT, such as 127.0.0.1:8099 or [::1]:8099") from error
    if not 0 < port < 65536:
        raise UsageError(f"{option} {text}: {port} is no port; write ADDRESS:PORT, such as 127.0.0.1:8099")
    if not is_loopback(address) and not remote:
        raise UsageError(
            f"{option} {text}: others can reach this address, and the page asks nobody who they are; use a loopback "
            f"address (and ssh -L to get there), or add {allow} to let everybody in"
        )
    return address, port


class Page:
    """Answers the requests of a page about a view. remote: it may be asked for by any address of this machine."""

    def __init__(self, view: View, *, remote: bool = False) -> None:
        self._view, self._remote = view, remote
        self.token = secrets.token_urlsafe(24)
        self._watchers = 0
        self._looked = 0.0
        self._looking, self._calling = asyncio.Lock(), asyncio.Lock()
        self._news: list[tuple[int, str, bytes]] = []
        self._number = 0
        self._counters = b"[]"

    async def answer(self, request: BaseRequest) -> StreamResponse:
        """Answer a request."""
        try:
            self._check_host(request)
            return await self._routed(request)
        except Refused as refusal:
            return _json({"error": str(refusal)}, refusal.status)
        except UsageError as error:
            return _json({"error": str(error)}, 400)
        except HotplaneError as error:
            return _json({"error": str(error)}, 503)

    def _check_host(self, request: BaseRequest) -> None:
        """Let through who asks for an address or for localhost: another name may be anybody's that leads here."""
        name = _host_of(f"//{request.headers.get('Host', '')}")
        if name == "localhost":
            return
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            raise Refused(421, f"{name[:80]!r} is not a name of this page; use its address") from None
        if not (self._remote or is_loopback(str(address))):
            raise Refused(421, f"{name} is not an address of this page")

    async def _routed(self, request: BaseRequest) -> StreamResponse:
        path = request.path
        if path == "/api/call":
            self._check_post(request)
            return await self._call(request)
        if request.method != "GET":
            raise Refused(405, f"{request.method} is not for this page")
        if path in FILES:
            file, kind = FILES[path]
            return Reply(body=file.read_bytes(), content_type=kind, charset="utf-8", headers=HEADERS)
        answer = self._answers().get(path)
        if answer is None:
            raise Refused(404, "there is no such page")
        return await answer(request)

    def _answers(self) -> Mapping[str, Callable[[BaseRequest], Awaitable[StreamResponse]]]:
        return {
            "/api/overview": self._overview,
            "/api/services": self._services,
            "/api/explain": self._explain,
            "/api/events": self._stream,
        }

    async def _overview(self, _: BaseRequest) -> StreamResponse:
        overview = await self._view.overview()
        return _json(msgspec.structs.replace(overview, token=self.token if overview.sends else ""))

    async def _services(self, request: BaseRequest) -> StreamResponse:
        return _json(await self._view.services(_asked(request, "search", "")))

    async def _explain(self, request: BaseRequest) -> StreamResponse:
        return _json(await self._view.explain(_asked(request, "source"), _asked(request, "destination")))

    def _check_post(self, request: BaseRequest) -> None:
        """Refuse what another site's page may have a browser send."""
        if request.method != "POST":
            raise Refused(405, f"{request.method} sends nothing; use POST")
        origin = request.headers.get("Origin", "")
        if origin and origin != f"http://{request.headers.get('Host', '')}":
            raise Refused(403, f"a page of {origin[:80]} may not send packets here")
        if not secrets.compare_digest(request.headers.get(TOKEN_HEADER, "").encode(), self.token.encode()):
            raise Refused(403, f"the header {TOKEN_HEADER} has not this page's token; load the page again")
        if request.content_type != "application/json":
            raise Refused(415, "the request must be JSON")
        if request.content_length is None or request.content_length > MOST_BODY:
            raise Refused(413, f"the request is longer than {MOST_BODY} bytes, or does not say how long it is")

    async def _call(self, request: BaseRequest) -> StreamResponse:
        try:
            call = msgspec.json.decode(await request.read(), type=Call)
        except MALFORMED as error:
            raise Refused(400, f"the request is malformed: {error}") from error
        if not 1 <= call.count <= MOST_CALLS:
            raise Refused(400, f"{call.count} packets: send 1 to {MOST_CALLS}")
        if self._calling.locked():
            raise Refused(429, "other packets are under way; wait for their answers")
        async with self._calling:
            return _json(await self._view.call(call.source, call.destination, call.count))

    async def _stream(self, request: BaseRequest) -> StreamResponse:
        """Counters and news until the stream has been open for a while; the browser asks for the next one."""
        if self._watchers >= MOST_WATCHERS:
            raise Refused(503, f"{MOST_WATCHERS} pages watch already; close one")
        seen = request.headers.get("Last-Event-ID", "")
        last = int(seen) if seen.isascii() and seen.isdecimal() and len(seen) < 10 else self._number
        response = _Stream(headers={**HEADERS, "Content-Type": "text/event-stream"})
        await response.prepare(request)
        self._watchers += 1
        try:
            await response.write(b"retry: 500\n\n")
            async with asyncio.timeout(STREAM_SECONDS):
                while True:
                    last = await self._tell(response, min(last, self._number))
                    await asyncio.sleep(LOOK_SECONDS)
        except (TimeoutError, ConnectionError):
            return response
        finally:
            self._watchers -= 1
            await self._rest()

    async def _rest(self) -> None:
        """Let the view rest, unless somebody watches; the next look is a real one, however soon it comes."""
        async with self._looking:
            if not self._watchers:
                self._looked = 0.0
                await self._view.rest()

    async def _tell(self, response: StreamResponse, last: int) -> int:
        """Write what came after number `last`, and the counters. Returns the last number."""
        counters = await self._look()
        for number, kind, data in self._news:
            if number > last:
                await response.write(b"id: %d\nevent: %s\ndata: %s\n\n" % (number, kind.encode(), data))
        await response.write(b"event: counters\ndata: %s\n\n" % counters)
        return self._number

    async def _look(self) -> bytes:
        """Look once for all watchers."""
        async with self._looking:
            now = asyncio.get_running_loop().time()
            if now - self._looked < LOOK_SECONDS / 2:
                return self._counters
            try:
                look = await self._view.look()
            except HotplaneError as error:
                self._counters = msgspec.json.encode({"error": str(error)})
            else:
                self._counters = msgspec.json.encode(look.counters)
                for event in look.events:
                    self._number += 1
                    self._news.append((self._number, event.kind, msgspec.json.encode(event)))
                del self._news[:-MOST_NEWS]
            self._looked = asyncio.get_running_loop().time()
            return self._counters


def _asked(request: BaseRequest, name: str, default: str | None = None) -> str:
    """A parameter of a request's address. Raises Refused if it must be there and is not."""
    value = request.query.get(name, default)
    if value is None:
        raise Refused(400, f"the parameter {name} is missing")
    return value


def _host_of(url: str) -> str:
    """The name or address in a URL, "" if it has none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _json(value: object, status: int = 200) -> Response:
    return Reply(body=msgspec.json.encode(value), status=status, content_type="application/json", headers=HEADERS)


def url(host: str, port: int) -> str:
    """Where a page is found."""
    return f"http://{host_port(host, port)}/"
