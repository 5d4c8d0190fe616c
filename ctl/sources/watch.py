"""List and watch one kind of object: what client-go's Reflector does, with bytes instead of object mappers.

First a streaming list (a watch that begins with all objects and marks when they are complete), or, if the server
does not offer it, a paged list; then a watch from there, resumed at the last resource version as long as the server
remembers it. Each event goes to the inbox at once; nothing here waits for the kernel.
Rules: Kubernetes API concepts ("Efficient detection of changes", "Streaming lists"); timings: client-go's.
"""

import asyncio
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from datetime import datetime

import msgspec

from ctl.daemon.log import Log
from ctl.daemon.sync.inbox import Inbox
from ctl.daemon.sync.names import Names
from ctl.sources.api import Api, ApiError, ApiStatus, parse_status
from dataplane.backoff import Backoff
from dataplane.errors import HotplaneError
from dataplane.malformed import MALFORMED
from dataplane.model.decode import DecodedObject, decode_object
from dataplane.model.objects import ModelObject, ObjectRef

PAGE = 500
WATCH_SECONDS = (300, 600)
"""Range of the random time for which the server is asked to keep one watch open."""

STREAM_SILENCE = 10.0
"""Silence that ends a streaming list: a server without them ignores the request and never marks the end."""

STREAM_SECONDS = 90.0
"""Time limit of a streaming list, since a busy server without them is never silent."""

WATCH_GRACE = 30
"""Seconds after the requested end of a watch when it counts as dead."""

RELIST_SECONDS = 30.0
"""A list that follows another one sooner than this waits, each time for longer."""

STANDS_SECONDS = 1.0
"""A watch that has been open for so long counts as working, even without an event: on a quiet watch servers send only a
bookmark a minute."""

NOT_SERVED_SECONDS = 600.0
"""How often an optional kind that the server does not serve is requested again."""

LONGEST_LINE = 64 << 20


class Resource(msgspec.Struct, frozen=True):
    """A kind of object to follow. optional: a server may not serve it (404) or may forbid it (403).

    older: the path on servers that do not serve `path` yet. patient: a server that forbids the kind is asked again as
    rarely as one that does not serve it, without a warning. awaited: nothing is loaded before these are listed.
    """

    kind: str
    path: str
    label_selector: str = ""
    field_selector: str = ""
    optional: bool = False
    older: str = ""
    patient: bool = False
    awaited: bool = True

    def covers(self, name: str) -> bool:
        """True if an object of this name is among those that are followed, as far as its name says."""
        field, equals, value = self.field_selector.partition("=")
        if not equals or field.removesuffix("!") != "metadata.name":
            return True
        return (name == value) != field.endswith("!")

    def selectors(self) -> dict[str, str]:
        """Return the query parameters of the selectors."""
        chosen = {"labelSelector": self.label_selector, "fieldSelector": self.field_selector}
        return {name: value for name, value in chosen.items() if value}


_CIDRS = "/apis/networking.k8s.io/{}/servicecidrs"
_NOT_OURS = "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name"


def resources(node_name: str) -> tuple[Resource, ...]:
    """Return the kinds that a Service proxy follows, with kube-proxy's selectors."""
    return (
        Resource("Service", "/api/v1/services", _NOT_OURS),
        Resource("EndpointSlice", "/apis/discovery.k8s.io/v1/endpointslices", _NOT_OURS),
        Resource("Node", "/api/v1/nodes", field_selector=f"metadata.name={node_name}"),
        Resource(
            "ServiceCIDR", _CIDRS.format("v1"), optional=True, older=_CIDRS.format("v1beta1")
        ),  # v1 since Kubernetes 1.33, v1beta1 since 1.31
    )


def other_nodes(node_name: str) -> Resource:
    """Return the Nodes that `resources` leaves out: what they announce matters only to who forwards to them."""
    return Resource("Node", "/api/v1/nodes", field_selector=f"metadata.name!={node_name}", awaited=False)


def policy_resources(node_name: str) -> tuple[Resource, ...]:
    """Return the kinds that decide which pods stay on the node's stack: this node's Pods, and all NetworkPolicies. If
    this proxy may not read them, all pods do that a policy could select."""
    return (
        Resource("NetworkPolicy", "/apis/networking.k8s.io/v1/networkpolicies", optional=True, patient=True),
        *pod_resources(node_name, host_ports=False, connect_time=False, policies=True),
    )


def pod_resources(
    node_name: str, *, host_ports: bool, connect_time: bool, policies: bool = False
) -> tuple[Resource, ...]:
    """Return the kinds with this node's Pods. host_ports: their hostPorts are published, so the Pods must be known.
    connect_time: labels of Pods and Namespaces may switch connect-time balancing off; if this proxy may not read them,
    it is on for all Pods. policies: it matters which NetworkPolicies select them."""
    found = []
    if host_ports or connect_time or policies:
        mine = f"spec.nodeName={node_name}"
        spare = not host_ports
        found.append(Resource("Pod", "/api/v1/pods", field_selector=mine, optional=spare, patient=spare))
    if connect_time:
        found.append(Resource("Namespace", "/api/v1/namespaces", optional=True, patient=True))
    return tuple(found)


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw = msgspec.field(default_factory=msgspec.Raw)


class _Annotations(msgspec.Struct):
    triggered: str = msgspec.field(default="", name="endpoints.kubernetes.io/last-change-trigger-time")
    initial_end: str = msgspec.field(default="", name="k8s.io/initial-events-end")


class _Meta(msgspec.Struct):
    name: str = ""
    namespace: str = ""
    resource_version: str = msgspec.field(default="", name="resourceVersion")
    annotations: _Annotations | None = None


class _Head(msgspec.Struct):
    metadata: _Meta


class _ListMeta(msgspec.Struct):
    resource_version: str = msgspec.field(default="", name="resourceVersion")
    more: str = msgspec.field(default="", name="continue")


class _Page(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


_event = msgspec.json.Decoder(_Event)
_head = msgspec.json.Decoder(_Head)
_page = msgspec.json.Decoder(_Page)


class WatchError(HotplaneError):
    """The watch cannot be continued; a new list is needed."""


def reflector_backoff() -> Backoff:
    """Return client-go's reflector backoff: 0.8 s doubling to 30 s, up to double by jitter, reset after 2 min."""
    return Backoff(0.8, 30.0, jitter=1.0, reset=120.0)


class _NotStreaming(Exception):
    """The server does not offer streaming lists."""


class Reflector:
    """Keeps the inbox up to date with one kind. observe: called with the bytes of every object, None for a deleted one.

    lists: complete lists so far. failing_since: when the API server was last lost (time.monotonic seconds), 0 when not.
    """

    def __init__(
        self,
        api: Api,
        resource: Resource,
        inbox: Inbox,
        log: Log,
        *,
        observe: Callable[[msgspec.Raw | None], None] | None = None,
        backoff: Backoff | None = None,
        stream_silence: float = STREAM_SILENCE,
    ) -> None:
        self._api, self._resource, self._inbox, self._log = api, resource, inbox, log
        self._observe = observe
        self._backoff, self._relist_backoff = backoff or reflector_backoff(), reflector_backoff()
        self._stream_silence = stream_silence
        self._version = ""
        self._streaming = True
        self._paths = deque(filter(None, (resource.path, resource.older)))
        self._relisted = -RELIST_SECONDS
        # What the list in progress has brought; it goes to the inbox in one step, so that nothing is ever half listed.
        # Of an object without faults only the object, for there are very many.
        self._listing: list[DecodedObject | ModelObject] | None = None
        self._started = 0.0
        self.lists = 0
        self.failing_since = 0.0

    async def run(self) -> None:
        """Follow for ever; ends by cancellation. An optional kind that is not served is requested again periodically:
        API servers are upgraded while proxies run."""
        while True:
            try:
                if not self._version and not self._streaming:
                    await self._paged_list()
                await self._follow()
            except _NotStreaming:
                self._streaming = False
                self._log.info("no streaming lists here, listing in pages", kind=self._resource.kind)
            except ApiStatus as refusal:
                if (refusal.code == 404 or self._resource.patient) and self._without(refusal):
                    await self._not_served(refusal)
                else:
                    await self._failed(refusal)
            except HotplaneError as error:
                await self._failed(error)

    async def _not_served(self, refusal: ApiStatus) -> None:
        """Try the older version's path at once, then go on without the kind for a while."""
        self._paths.rotate(-1)
        if self._paths[0] != self._resource.path:
            return
        if self._resource.kind not in self._inbox.synced:
            self._log.info("kind is not served", kind=self._resource.kind, answer=refusal)
            self._inbox.not_served(self._resource.kind, refusal.code, str(refusal))
        await asyncio.sleep(NOT_SERVED_SECONDS)

    async def _failed(self, error: HotplaneError) -> None:
        """Log a failure and wait. An expired resource version leads to a new list, at once if that is rare; earlier
        connection failures do not count then, since the server answers."""
        backoff = self._backoff
        if isinstance(error, WatchError) or (isinstance(error, ApiStatus) and error.code == 410):
            self._version = ""
            backoff = self._relist_backoff
            now = time.monotonic()
            if now - self._relisted >= RELIST_SECONDS:
                self._relisted = now
                self._log.info("watch expired, listing again", kind=self._resource.kind, reason=error)
                return
        if isinstance(error, ApiStatus) and self._without(error):
            self._inbox.not_served(self._resource.kind, error.code, str(error))
        self.failing_since = self.failing_since or time.monotonic()
        asked = error.retry_after if isinstance(error, ApiStatus) else 0.0
        delay = max(backoff.failed(), asked)
        self._log.warning("cannot watch", kind=self._resource.kind, reason=error, retry_s=round(delay, 1))
        await asyncio.sleep(asked)  # what the server asks for is kept, whatever other watches find out
        if await self._api.recovery(delay - asked):
            self._backoff.worked()  # what fails now is a server that begins to serve, not one that is away

    def _without(self, refusal: ApiStatus) -> bool:
        """True if the proxy can work without this kind; one that was listed before is never dropped for a refusal."""
        return self._resource.optional and not self.lists and refusal.code in (403, 404)

    def _works(self) -> None:
        if self.failing_since:
            seconds = round(time.monotonic() - self.failing_since, 1)
            self._log.info("watching again", kind=self._resource.kind, after_s=seconds)
            self.failing_since = 0.0
            self._api.recovered()

    def _begin_list(self) -> None:
        self._started = time.monotonic()
        self._listing = []

    def _end_list(self, version: str) -> None:
        """Complete a list: delete the known objects that are not in it."""
        listing, self._listing = self._listing or [], None
        self._version = version
        present = Names()
        for each in listing:
            found = each if isinstance(each, DecodedObject) else DecodedObject(each, each.ref)
            assert found.ref is not None, "_take lets nothing else in"
            if found.value is None and not found.problems:
                present.discard(found.ref.namespace, found.ref.name)
            else:
                present.add(found.ref.namespace, found.ref.name)
            self._inbox.put(found)
        complete = self._inbox.complete if self._resource.awaited else self._inbox.complete_part
        gone = complete(self._resource.kind, present, self._resource.covers)
        if self._observe is not None and not present:
            self._observe(None)
        self.lists += 1
        self._works()
        self._log.info(
            "listed", kind=self._resource.kind, objects=len(present), gone=gone, version=version,
            seconds=round(time.monotonic() - self._started, 3),
        )  # fmt: skip

    async def _paged_list(self) -> None:
        """Read a paged list, consistent as of one version; if the version expires meanwhile, read an unpaged list, as
        client-go's pager does."""
        self._begin_list()
        more, limit = "", {"limit": str(PAGE)}
        while True:
            params = {**limit, **self._resource.selectors()} | ({"continue": more} if more else {})
            try:
                body = await self._api.get(self._paths[0], params)
            except ApiStatus as refusal:
                if not (more and refusal.code == 410):
                    raise
                self._log.info("the list's version expired, listing in one piece", kind=self._resource.kind)
                more, limit = "", {}
                self._begin_list()
                continue
            try:
                page = _page.decode(body)
            except MALFORMED as error:
                raise ApiError(f"{self._resource.path}: the list cannot be read: {error}") from error
            for item in page.items or ():
                self._take(item)
            more = page.metadata.more
            if not more:
                self._end_list(page.metadata.resource_version)
                return
            await asyncio.sleep(0)

    async def _follow(self) -> None:
        """Read one watch to its end, from the last resource version, or as a streaming list if there is none."""
        seconds = random.randint(*WATCH_SECONDS)
        params = {"watch": "1", "allowWatchBookmarks": "true", "timeoutSeconds": str(seconds)}
        params |= self._resource.selectors()
        if self._version:
            params["resourceVersion"] = self._version
        else:
            params |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
            self._begin_list()
        started, version = time.monotonic(), self._version
        try:
            async with self._api.stream(self._paths[0], params) as chunks:
                await self._read_standing(chunks, seconds + WATCH_GRACE)
        except ApiStatus as refusal:
            if self._listing is not None and refusal.code in (400, 422):
                raise _NotStreaming from refusal
            raise
        if self._listing is not None:
            raise ApiError(f"{self._resource.path}: the list broke off")
        if version == self._version and time.monotonic() - started < STANDS_SECONDS:
            raise ApiError(f"{self._resource.path}: the watch ended at once, without any event")

    async def _read_standing(self, chunks: AsyncIterator[bytes], silence: float) -> None:
        """Read a watch from a known version; it counts as working after STANDS_SECONDS."""
        if self._listing is not None:
            return await self._read(chunks, silence)
        stands = asyncio.get_running_loop().call_later(STANDS_SECONDS, self._works)
        try:
            await self._read(chunks, silence)
        finally:
            stands.cancel()

    async def _read(self, chunks: AsyncIterator[bytes], silence: float) -> None:
        """Read lines until the stream ends."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        line_start, size = list[bytes](), 0  # chunks of a line whose end has not come yet: joined once at its end
        try:
            async with asyncio.timeout(self._stream_silence if self._listing is not None else silence) as limit:
                async for chunk in chunks:
                    first, *lines = chunk.split(b"\n")
                    line_start.append(first)
                    size += len(first)
                    for line in lines:
                        if size:
                            self._line(b"".join(line_start))
                        line_start, size = [line], len(line)
                    if size > LONGEST_LINE:
                        raise WatchError(f"{self._resource.path}: an event is longer than {LONGEST_LINE} bytes")
                    wait = silence
                    if self._listing is not None:
                        wait = min(self._stream_silence, began + STREAM_SECONDS - loop.time())
                    limit.reschedule(loop.time() + wait)
        except TimeoutError as error:
            if self._listing is not None:
                raise _NotStreaming from error
            raise ApiError(f"{self._resource.path}: the watch is silent for too long") from error
        if size:
            raise ApiError(f"{self._resource.path}: the watch broke off in the middle of an event")

    def _line(self, line: bytes) -> None:
        """Handle one event. Raises WatchError if it is malformed, ApiStatus for an ERROR event."""
        try:
            event = _event.decode(line)
            if event.type == "ERROR":
                raise self._error_event(event.object)
            meta = _head.decode(event.object).metadata
        except MALFORMED as error:
            self._inbox.invalid_events += 1
            raise WatchError(f"{self._resource.path}: an event cannot be read: {error}") from error
        if event.type == "BOOKMARK":
            if self._listing is not None:
                if meta.annotations is None or meta.annotations.initial_end != "true":
                    return
                self._end_list(meta.resource_version)
        elif event.type == "DELETED":
            self._remove(meta)
        elif event.type in ("ADDED", "MODIFIED"):
            self._take(event.object, meta)
        else:
            raise WatchError(f"{self._resource.path}: an event is of the unknown type {event.type!r}")
        if self._listing is None:
            self._version = meta.resource_version or self._version
            self._works()

    def _error_event(self, body: msgspec.Raw) -> ApiStatus:
        status = parse_status(body, 500)
        if status.code not in (429, 500, 503, 504):
            self._version = ""
        return status

    def _take(self, raw: msgspec.Raw, meta: _Meta | None = None) -> None:
        """Put an added or changed object into the inbox."""
        found = decode_object(raw, self._resource.kind)
        if found.ref is None or found.ref.kind != self._resource.kind:
            self._inbox.unknown(self._resource.kind)
            reason = found.problems[0].reason if found.problems else f"is a {found.ignored or found.ref}"
            self._log.warning("an object cannot be used", kind=self._resource.kind, reason=reason)
            return
        if self._observe is not None:
            self._observe(raw)
        if self._listing is not None:
            self._listing.append(found if found.value is None or found.problems or found.notes else found.value)
        else:
            self._inbox.put(found, _trigger(meta))

    def _remove(self, meta: _Meta) -> None:
        ref = ObjectRef(self._resource.kind, meta.namespace, meta.name)
        if self._observe is not None:
            self._observe(None)
        if self._listing is not None:
            self._listing.append(DecodedObject(None, ref))
        else:
            self._inbox.remove(ref)


def _trigger(meta: _Meta | None) -> float:
    """Return the time of an EndpointSlice's change in seconds since 1970, from its annotation; 0 without one."""
    if meta is None or meta.annotations is None or not meta.annotations.triggered:
        return 0.0
    try:
        return datetime.fromisoformat(meta.annotations.triggered).timestamp()
    except (ValueError, OverflowError):
        return 0.0
