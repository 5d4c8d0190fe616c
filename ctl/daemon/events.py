"""Kubernetes Events about objects that hotplane must refuse, so that their owners see it with kubectl describe."""

import asyncio
import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from ctl.daemon.log import Log
from ctl.sources.api import Api, ApiError
from dataplane.errors import HotplaneError
from dataplane.model.objects import ObjectRef

REPEAT_SECONDS = 3600.0
"""The same event about the same object is written again after this time at the earliest."""

MOST_WAITING = 1000
MOST_A_SECOND = 5.0
_VERSIONS = {"Service": "v1", "EndpointSlice": "discovery.k8s.io/v1", "Node": "v1"}


class EventRecorder:
    """Writes Events in the background, rate limited, never twice the same; without an API server it only counts.

    A full queue drops what comes: Events are help for people, not a record.
    """

    def __init__(self, api: Api | None, node: str, log: Log) -> None:
        self._api, self._node, self._log = api, node, log
        self._waiting: asyncio.Queue[tuple[ObjectRef, str, str]] = asyncio.Queue(MOST_WAITING)
        self._written: dict[tuple[ObjectRef, str, str], float] = {}
        self._number = time.time_ns()

    def warn(self, ref: ObjectRef, reason: str, note: str) -> None:
        """Say something about an object. reason: one CamelCase word; note: a sentence."""
        if self._api is None or ref.kind not in _VERSIONS:
            return
        now = time.monotonic()
        last = self._written.get((ref, reason, note))
        if (last is not None and now - last < REPEAT_SECONDS) or self._waiting.full():
            return
        if len(self._written) > MOST_WAITING * 10:
            self._written.clear()
        self._written[ref, reason, note] = now
        self._waiting.put_nowait((ref, reason, note))

    async def run(self) -> None:
        """Write what waits, for ever."""
        while self._api is not None:
            ref, reason, note = await self._waiting.get()
            try:
                await self._api.post(
                    f"/apis/events.k8s.io/v1/namespaces/{ref.namespace or 'default'}/events",
                    msgspec.json.encode(self._event(ref, reason, note)),
                )
            except (ApiError, HotplaneError) as error:
                self._log.debug("an Event could not be written", object=ref, reason=error)
            await asyncio.sleep(1 / MOST_A_SECOND)

    def _event(self, ref: ObjectRef, reason: str, note: str) -> dict[str, Any]:
        self._number += 1
        namespace = ref.namespace or "default"
        regarding = {"apiVersion": _VERSIONS[ref.kind], "kind": ref.kind, "name": ref.name}
        return {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{ref.name}.{self._number:x}", "namespace": namespace},
            "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            "reportingController": "hotplane",
            "reportingInstance": f"hotplane-{self._node}",
            "action": "Sync",
            "reason": reason,
            "note": note[:1024],
            "type": "Warning",
            "regarding": regarding | ({"namespace": ref.namespace} if ref.namespace else {}),
        }
