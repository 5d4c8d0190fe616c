"""An API server that speaks the real wire protocol over HTTP, and misbehaves when it is told to.

Lists with limit and continue, watches as JSON lines in chunks, bookmarks, resourceVersion, 410 Gone, streaming lists
(sendInitialEvents), single objects, gzip, Events. All is JSON: a client that wants protobuf and nothing else is refused
with 406, a body in protobuf with 415, as servers refuse what they do not have; clients of every version also take JSON.
It runs in a thread of its own; its methods may be called from any thread.
"""

import asyncio
import contextlib
import re
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import msgspec
from aiohttp import web

from dataplane.lab.apiserver.events import validate_event, validate_series
from dataplane.lab.apiserver.store import PATHS, Event, Refused, Store, merged, selected
from dataplane.lab.apiserver.versions import Object, as_version

_T = TypeVar("_T")
_JSON = "application/json"
_PATH = re.compile(r"(/api/v1|/apis/[^/]+/[^/]+)/(?:namespaces/([^/]+)/)?([a-z]+)(?:/([^/]+))?")
"""Group and version, namespace, resource, name."""


class _Asked(NamedTuple):
    """What a path names. collection: the path of all of its kind. namespace, name: "" for all."""

    collection: str
    namespace: str
    name: str


def _asked(path: str) -> _Asked:
    """A path taken apart. Raises Refused 404 for one that no API has."""
    found = _PATH.fullmatch(path)
    if found is None:
        raise Refused(404, "NotFound", "the server could not find the requested resource")
    return _Asked(f"{found[1]}/{found[3]}", found[2] or "", found[4] or "")


def _refuse_other_than_json(request: web.BaseRequest) -> None:
    """Raises Refused for a client that takes no JSON, 406, and for a body that is none, 415."""
    accepted = request.headers.get("Accept", "*/*")
    if not any(part.split(";")[0].strip() in ("*/*", "application/*", _JSON) for part in accepted.split(",")):
        raise Refused(406, "NotAcceptable", f"only the following media types are accepted: {_JSON}")
    body = request.headers.get("Content-Type", _JSON).split(";")[0]
    if request.method in ("POST", "PATCH", "PUT") and not body.endswith("json"):
        raise Refused(415, "UnsupportedMediaType", f"the body of the request was in an unknown format: {body}")


@dataclass
class Mood:
    """How the server behaves. Change it with `ApiServer.behave`.

    down: every connection is cut before an answer. refuse: answer every request with this HTTP status.
    streaming_lists: offers sendInitialEvents; "ignore": answers as a server from before it existed does.
    delay: seconds before an answer. gzip: compress lists. page: never more items in a list than this.
    pages_before_refusal: lists break off with 500 after so many pages; 0: never.
    expire_pages: every continue token is too old. retry_after: seconds that a 429 asks for.
    bookmark_seconds: time between bookmarks. missing: kinds, or paths, that are not served. token: what must be
    presented.
    watch_seconds: watches end after this time. groups: API groups that are served beside Kubernetes' own.
    forbidden: verbs of single objects that nobody may, such as PATCH.
    """

    down: bool = False
    refuse: int = 0
    streaming_lists: bool | str = True
    delay: float = 0.0
    gzip: bool = True
    page: int = 0
    pages_before_refusal: int = 0
    expire_pages: bool = False
    retry_after: int = 1
    bookmark_seconds: float = 1.0
    missing: tuple[str, ...] = ()
    token: str = ""
    watch_seconds: float = 600.0
    groups: tuple[str, ...] = ()
    forbidden: tuple[str, ...] = ()


@dataclass
class Seen:
    """What was asked for, by kind where that matters."""

    lists: list[str] = field(default_factory=list)
    watches: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    tokens: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    limits: list[str] = field(default_factory=list)
    accepts: list[str] = field(default_factory=list)


class ApiServer:
    """`with ApiServer() as server:` — listens on 127.0.0.1 of the network namespace that the caller's thread is in."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family)
        self.port = self._listener.getsockname()[1]
        self._tls = tls
        self.url = f"http{'s' if tls else ''}://{f'[{host}]' if ':' in host else host}:{self.port}"
        self.seen = Seen()
        self._mood = Mood()
        self._pages: Counter[str] = Counter()
        self._streams: set[web.StreamResponse] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait(60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._end.set)
        self._thread.join(60)

    def apply(self, *items: Object) -> None:
        """Create or replace objects."""
        self._call(lambda: self._store.apply(list(items)))

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete an object."""
        self._call(lambda: self._store.delete(kind, namespace, name))

    def behave(self, **changes: object) -> None:
        """Change the server's mood, field by field."""

        def change() -> None:
            for name, value in changes.items():
                assert hasattr(self._mood, name), name
                setattr(self._mood, name, value)

        self._call(change)

    def cut(self) -> None:
        """Cut every open connection of a watch, without a word."""
        self._call(self._cut)

    def forget(self) -> None:
        """Compact the history: whoever resumes a watch from before gets 410 Gone."""
        self._call(lambda: self._store.forget())

    def say(self, line: bytes) -> None:
        """Send these bytes into every open watch, as they are."""
        asyncio.run_coroutine_threadsafe(self._say(line), self._loop).result(60)

    def object(self, kind: str, namespace: str, name: str) -> Object:
        """An object as it is now."""
        return self._call(lambda: dict(self._store.objects[kind][namespace, name]))

    def written(self) -> list[Object]:
        """The Events that clients have created, as they are now."""
        return self._call(lambda: [dict(item) for item in self._store.written])

    @property
    def watching(self) -> int:
        """How many watches are open."""
        return self._call(lambda: len(self._streams))

    def _call(self, function: Callable[[], _T]) -> _T:
        async def call() -> _T:
            return function()

        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(60)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._store = Store()
        server = web.Server(self._answer, access_log=None)
        listener = await self._loop.create_server(server, sock=self._listener, ssl=self._tls)
        self._ready.set()
        await self._end.wait()
        listener.close()
        self._cut()
        await server.shutdown(0.1)

    def _cut(self) -> None:
        for stream in list(self._streams):
            transport = stream._req.transport if stream._req is not None else None
            if transport is not None:
                transport.abort()

    async def _say(self, line: bytes) -> None:
        for stream in list(self._streams):
            with contextlib.suppress(ConnectionError):  # it is just being cut
                await stream.write(line)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        mood = self._mood
        if mood.delay:
            await asyncio.sleep(mood.delay)
        if mood.down:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()
        self.seen.tokens.append(request.headers.get("Authorization", ""))
        try:
            return await self._dispatch(request)
        except Refused as refusal:
            headers = {"Content-Type": _JSON} | ({"Retry-After": str(mood.retry_after)} if refusal.code == 429 else {})
            return web.Response(status=refusal.code, body=refusal.status(), headers=headers)

    async def _dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        mood = self._mood
        if mood.refuse:
            raise Refused(mood.refuse, "Test", "told to refuse")
        if mood.token and request.headers.get("Authorization") != f"Bearer {mood.token}":
            raise Refused(401, "Unauthorized", "Unauthorized")
        self.seen.accepts.append(request.headers.get("Accept", ""))
        _refuse_other_than_json(request)
        if request.method in ("POST", "PATCH") and "/events" in request.path:
            return self._event(request, msgspec.json.decode(await request.read()))
        self.seen.paths.append(request.path)
        if request.path == "/apis":
            return self._groups()
        asked = _asked(request.path)
        if asked.collection not in PATHS or {asked.collection, PATHS[asked.collection][1]} & {*mood.missing}:
            raise Refused(404, "NotFound", "the server could not find the requested resource")
        version, kind = PATHS[asked.collection]
        if asked.name:
            return await self._single(request, kind, version, asked)
        query = dict(request.query)
        if asked.namespace:
            own = f"metadata.namespace={asked.namespace}"
            query["fieldSelector"] = ",".join(filter(None, [query.get("fieldSelector"), own]))
        selected({"kind": kind, "metadata": {"name": ""}}, *self._selectors(query))  # refuses what it does not know
        if query.get("watch") in ("1", "true"):
            return await self._watch(request, version, kind, query)
        return self._list(request, version, kind, query)

    async def _single(self, request: web.BaseRequest, kind: str, version: str, asked: _Asked) -> web.StreamResponse:
        what = asked.collection.rpartition("/")[2]
        if request.method in self._mood.forbidden:
            verb = request.method.lower()
            raise Refused(403, "Forbidden", f'{what} "{asked.name}" is forbidden: User "test" cannot {verb} resource')
        item = self._store.objects[kind].get((asked.namespace, asked.name))
        if item is None:
            raise Refused(404, "NotFound", f'{what} "{asked.name}" not found')
        if request.method == "PATCH":
            if request.headers.get("Content-Type") != "application/merge-patch+json":
                raise Refused(415, "UnsupportedMediaType", "this is a merge patch by another name")
            patch: Object = msgspec.json.decode(await request.read())
            item = merged(item, patch)
            self._store.apply([item])
        return web.Response(body=msgspec.json.encode(as_version(item, version)), content_type=_JSON)

    def _groups(self) -> web.StreamResponse:
        names = {version.rpartition("/")[0] for version, _ in PATHS.values()} - {""} | {*self._mood.groups}
        body = {"kind": "APIGroupList", "apiVersion": "v1", "groups": [{"name": name} for name in sorted(names)]}
        return web.Response(body=msgspec.json.encode(body), content_type=_JSON)

    def _event(self, request: web.BaseRequest, body: Object) -> web.StreamResponse:
        """An Event is created, once, or changed. Those of the older API are taken as they are, and forgotten."""
        if request.path.startswith("/api/v1/"):
            return web.Response(status=201, body=msgspec.json.encode(body), content_type=_JSON)
        written = {item["metadata"]["name"]: item for item in self._store.written}
        if request.method == "PATCH":
            name = request.path.rpartition("/")[2]
            if name not in written:
                raise Refused(404, "NotFound", f'events.events.k8s.io "{name}" not found')
            if request.headers.get("Content-Type") != "application/merge-patch+json":
                raise Refused(415, "UnsupportedMediaType", "this is a merge patch by another name")
            validate_series(body["series"])
            written[name].update(body)
            return web.Response(body=b"{}", content_type="application/json")
        validate_event(body)
        if body["metadata"]["name"] in written:
            raise Refused(409, "AlreadyExists", "there is one of that name")
        self._store.written.append(body)
        return web.Response(status=201, body=b"{}", content_type="application/json")

    def _list(self, request: web.BaseRequest, api_version: str, kind: str, query: dict[str, str]) -> web.StreamResponse:
        self.seen.lists.append(kind)
        self.seen.limits.append(query.get("limit", ""))
        if self._mood.expire_pages and query.get("continue"):
            raise Refused(410, "Expired", "The provided continue parameter is too old")
        if self._mood.pages_before_refusal:
            self._pages[kind] = self._pages[kind] + 1 if query.get("continue") else 1
            if self._pages[kind] > self._mood.pages_before_refusal:
                raise Refused(500, "InternalError", "told to break off")
        limit = min(filter(None, (int(query.get("limit", 0)), self._mood.page)), default=0)
        body = self._store.page(kind, *self._selectors(query), limit, query.get("continue", ""), api_version)
        answer = web.Response(body=body, content_type=_JSON)
        if self._mood.gzip and "gzip" in request.headers.get("Accept-Encoding", ""):
            answer.enable_compression(web.ContentCoding.gzip)
        return answer

    async def _watch(
        self, request: web.BaseRequest, api_version: str, kind: str, query: dict[str, str]
    ) -> web.StreamResponse:
        self.seen.watches.append((kind, query))
        initial = self._initial(query)
        at = int(query.get("resourceVersion") or 0)
        if at and at < self._store.oldest:
            raise Refused(410, "Expired", f"too old resource version: {at} ({self._store.oldest})")
        stream = web.StreamResponse(headers={"Content-Type": _JSON, "Transfer-Encoding": "chunked"})
        await stream.prepare(request)
        self._streams.add(stream)
        try:
            if not at:
                at = self._store.version
                await self._initial_events(stream, api_version, kind, query, ends=initial)
            await self._follow(stream, api_version, kind, query, at)
        except ConnectionError:
            pass  # the client, or `cut`, ended it
        finally:
            self._streams.discard(stream)
        return stream

    def _initial(self, query: dict[str, str]) -> bool:
        if query.get("sendInitialEvents") != "true" or self._mood.streaming_lists == "ignore":
            return False
        if not self._mood.streaming_lists:
            raise Refused(422, "Invalid", "sendInitialEvents: Forbidden: not offered")
        return True

    async def _initial_events(
        self, stream: web.StreamResponse, api_version: str, kind: str, query: dict[str, str], *, ends: bool
    ) -> None:
        version = self._store.version
        for item in list(self._store.objects[kind].values()):
            if selected(item, *self._selectors(query)):
                await stream.write(_line("ADDED", msgspec.json.encode(as_version(item, api_version))))
        if ends:
            marks = {"k8s.io/initial-events-end": "true"}
            await stream.write(_bookmark(api_version, kind, version, marks))

    async def _follow(
        self, stream: web.StreamResponse, api_version: str, kind: str, query: dict[str, str], at: int
    ) -> None:
        end = self._loop.time() + min(self._mood.watch_seconds, float(query.get("timeoutSeconds") or 600))
        while (left := end - self._loop.time()) > 0:
            changed, store = self._store.changed, self._store
            news = _after(store.events, at)
            for event in news:
                seen = event.seen_by(*self._selectors(query)) if event.kind == kind else ""
                if seen:
                    await stream.write(_line(seen, event.json_of(api_version)))
                at = event.version
            if news:
                continue
            try:
                async with asyncio.timeout(min(left, self._mood.bookmark_seconds)):
                    await changed.wait()
            except TimeoutError:
                if query.get("allowWatchBookmarks") == "true":
                    await stream.write(_bookmark(api_version, kind, at, {}))

    @staticmethod
    def _selectors(query: dict[str, str]) -> tuple[str, str]:
        return query.get("labelSelector", ""), query.get("fieldSelector", "")


def _after(events: Sequence[Event], version: int) -> Sequence[Event]:
    """The events later than a version; they are in order."""
    index = len(events)
    while index and events[index - 1].version > version:
        index -= 1
    return events[index:]


def _line(type_: str, body: bytes) -> bytes:
    return b'{"type":"%s","object":%s}\n' % (type_.encode(), body)


def _bookmark(api_version: str, kind: str, version: int, annotations: dict[str, str]) -> bytes:
    metadata: Object = {"resourceVersion": str(version)}
    if annotations:
        metadata["annotations"] = annotations
    return _line("BOOKMARK", msgspec.json.encode({"kind": kind, "apiVersion": api_version, "metadata": metadata}))
