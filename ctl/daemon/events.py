"""Kubernetes Events about objects that hotplane must refuse, so that their owners see it with kubectl describe."""

import asyncio
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from ctl.daemon.log import Log
from ctl.sources.api import Api, ApiError, ApiStatus
from dataplane.errors import HotplaneError
from dataplane.model.objects import ObjectRef

SERIES_SECONDS = 1800.0
"""A refusal that keeps coming is one Event, whose count is brought up to date this often at most (client-go's
refreshTime)."""

FORGET_SECONDS = 3600.0
"""How long an API server keeps Events by default; after that a refusal is a new Event."""

BURST, REFILL_SECONDS = 25.0, 300.0
"""Events about one object: so many at once, then one each 300 s (client-go's spam filter)."""

MOST_NOTE, MOST_INSTANCE, MOST_NAME = 1024, 128, 253
"""Longest texts that the API server accepts, in bytes (kube-apiserver's validation of Events)."""

MOST_WAITING = 1000
MOST_KNOWN = 2000
MOST_A_SECOND = 5.0
_VERSIONS = {"Service": "v1", "EndpointSlice": "discovery.k8s.io/v1", "Node": "v1", "Pod": "v1"}
_NOT_FOUND, _CONFLICT = 404, 409


class _Key(NamedTuple):
    """Identity of a refusal."""

    ref: ObjectRef
    reason: str
    note: str


class _Known:
    """An Event. count: how often it occurred; reported: the count in the written Event, 0 before there is one."""

    def __init__(self, now: float) -> None:
        self.count, self.reported, self.first, self.written = 1, 0, now, now
        self.last = ""


class EventRecorder:
    """Writes Events in the background, rate limited; the same refusal again only counts in the Event that there is.

    The name of an Event follows from what it says, so that a daemon that starts again finds the one of before. A full
    queue drops what comes: Events are help for people, not a record. Without an API server nothing is written.
    """

    def __init__(self, api: Api | None, node: str, log: Log, clock: Callable[[], float] = time.monotonic) -> None:
        self._api, self._node, self._log, self._clock = api, node, log, clock
        self._waiting: asyncio.Queue[_Key] = asyncio.Queue(MOST_WAITING)
        self._known: OrderedDict[_Key, _Known] = OrderedDict()
        self._budgets: OrderedDict[ObjectRef, tuple[float, float]] = OrderedDict()

    def warn(self, ref: ObjectRef, reason: str, note: str) -> None:
        """Report something about an object. reason: one CamelCase word; note: a sentence."""
        if self._api is None or ref.kind not in _VERSIONS:
            return
        key, now = _Key(ref, reason, _cut(note, MOST_NOTE)), self._clock()
        known = self._known.get(key)
        if known is not None and now - known.first < FORGET_SECONDS:
            known.count += 1
            known.last = _micro_time()
            if now - known.written < SERIES_SECONDS:
                return
            known.written = now
        elif not self._may_write(ref, now):
            return
        else:
            self._known[key] = _Known(now)
            self._known.move_to_end(key)
            if len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
        if not self._waiting.full():
            self._waiting.put_nowait(key)

    def _may_write(self, ref: ObjectRef, now: float) -> bool:
        """True if one more Event about an object is within its budget."""
        left, when = self._budgets.get(ref, (BURST, now))
        left = min(BURST, left + (now - when) / REFILL_SECONDS)
        self._budgets[ref] = (max(0.0, left - 1) if left >= 1 else left, now)
        self._budgets.move_to_end(ref)
        if len(self._budgets) > MOST_KNOWN:
            self._budgets.popitem(last=False)
        return left >= 1

    async def run(self) -> None:
        """Write queued Events, for ever."""
        while self._api is not None:
            key = await self._waiting.get()
            try:
                await self._write(self._api, key)
            except (ApiError, HotplaneError) as error:
                self._log.debug("an Event could not be written", object=key.ref, reason=error)
            self._waiting.task_done()
            await asyncio.sleep(1 / MOST_A_SECOND)

    async def idle(self) -> None:
        """Wait until every queued Event is written or has failed."""
        await self._waiting.join()

    async def _write(self, api: Api, key: _Key) -> None:
        known = self._known.get(key) or _Known(self._clock())
        path = f"/apis/events.k8s.io/v1/namespaces/{key.ref.namespace or 'default'}/events"
        event = self._event(key)
        if not known.reported:
            await self._create(api, path, event, known)
        if known.count > known.reported:
            series = {"count": known.count, "lastObservedTime": known.last or _micro_time()}
            try:
                await api.patch(f"{path}/{event['metadata']['name']}", msgspec.json.encode({"series": series}))
            except ApiStatus as refusal:
                if refusal.code != _NOT_FOUND:  # this server keeps Events for less than an hour
                    raise
                await self._create(api, path, event | {"series": series}, known)
            known.reported = known.count

    @staticmethod
    async def _create(api: Api, path: str, event: dict[str, Any], known: _Known) -> None:
        try:
            await api.post(path, msgspec.json.encode(event))
            known.reported = 1
        except ApiStatus as refusal:
            if refusal.code != _CONFLICT:  # there is one already, of a daemon that ran here before
                raise
            known.count = max(known.count, 2)

    def _event(self, key: _Key) -> dict[str, Any]:
        ref = key.ref
        regarding = {"apiVersion": _VERSIONS[ref.kind], "kind": ref.kind, "name": ref.name}
        identity = "\0".join((self._node, *ref, key.reason, key.note))
        digest = "." + hashlib.blake2b(identity.encode(), digest_size=8).hexdigest()
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {
                "name": _cut(ref.name, MOST_NAME - len(digest)).rstrip("-.") + digest,
                "namespace": ref.namespace or "default",
            },
            "eventTime": _micro_time(),
            "reportingController": "hotplane",
            "reportingInstance": _cut(f"hotplane-{self._node}", MOST_INSTANCE),
            "action": "Sync",
            "reason": key.reason,
            "note": key.note,
            "type": "Warning",
            "regarding": regarding | ({"namespace": ref.namespace} if ref.namespace else {}),
        }


def _cut(text: str, most: int) -> str:
    """The beginning of a text, at most so many bytes of UTF-8."""
    return text.encode()[:most].decode(errors="ignore")


def _micro_time() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
