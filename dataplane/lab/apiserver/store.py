"""Storage of the API server: objects by kind, one version counter, and the events since the beginning."""

import asyncio
import base64
from typing import Any, NamedTuple

import msgspec

from dataplane.lab.apiserver.versions import Object, as_version

PATHS = {
    "/api/v1/services": ("v1", "Service"),
    "/apis/discovery.k8s.io/v1/endpointslices": ("discovery.k8s.io/v1", "EndpointSlice"),
    "/apis/discovery.k8s.io/v1beta1/endpointslices": ("discovery.k8s.io/v1beta1", "EndpointSlice"),
    "/api/v1/nodes": ("v1", "Node"),
    "/api/v1/pods": ("v1", "Pod"),
    "/api/v1/namespaces": ("v1", "Namespace"),
    "/apis/networking.k8s.io/v1/networkpolicies": ("networking.k8s.io/v1", "NetworkPolicy"),
    "/apis/networking.k8s.io/v1/servicecidrs": ("networking.k8s.io/v1", "ServiceCIDR"),
    "/apis/networking.k8s.io/v1beta1/servicecidrs": ("networking.k8s.io/v1beta1", "ServiceCIDR"),
}


class Event(NamedTuple):
    """A change: its version, ADDED, MODIFIED or DELETED, the object, also as JSON, and what it was before."""

    version: int
    type: str
    kind: str
    object: Object
    json: bytes
    before: Object | None

    def json_of(self, api_version: str) -> bytes:
        """The object as JSON, in a version of its API."""
        if self.object.get("apiVersion") == api_version:
            return self.json
        return msgspec.json.encode(as_version(self.object, api_version))

    def seen_by(self, labels: str, fields: str) -> str:
        """The type that a watch with these selectors sees, "" if none: an object that begins to match is ADDED to it,
        one that no longer does is DELETED from it."""
        was = self.before is not None and selected(self.before, labels, fields)
        if self.type == "DELETED":
            return "DELETED" if was else ""
        if selected(self.object, labels, fields):
            return "MODIFIED" if was else "ADDED"
        return "DELETED" if was else ""


class Refused(Exception):
    """What a request is answered with instead of what it asked for: a Status."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message

    def status(self) -> bytes:
        """The Status object."""
        return msgspec.json.encode(
            {
                "apiVersion": "v1", "kind": "Status", "metadata": {}, "status": "Failure",
                "code": self.code, "reason": self.reason, "message": self.message,
            }
        )  # fmt: skip


def _copy(item: Object) -> Object:
    """Objects are plain JSON, and nobody changes one that is stored."""
    found: Object = msgspec.json.decode(msgspec.json.encode(item))
    return found


def _key(item: Object) -> tuple[str, str]:
    return item["metadata"].get("namespace", ""), item["metadata"]["name"]


def selected(item: Object, labels: str, fields: str) -> bool:
    """Whether an object matches: label selectors of the forms `a`, `!a`, `a=b`, `a!=b`, and field selectors."""
    own = item["metadata"].get("labels") or {}
    for term in filter(None, labels.split(",")):
        name, wanted, value = _term(term)
        if wanted is not None:
            if (own.get(name) == value) != wanted:
                return False
        elif (name.lstrip("!") in own) == name.startswith("!"):
            return False
    return all(_has_field(item, *_term(term)) for term in filter(None, fields.split(",")))


# What each kind can be selected by, beside its name and namespace; absent fields are empty text.
_FIELDS = {"Service": ("spec.clusterIP", "spec.type"), "Node": ("spec.unschedulable",), "Pod": ("spec.nodeName",)}


def _term(term: str) -> tuple[str, bool | None, str]:
    """Name, whether it must be equal (None: nothing is compared) and value of one term of a selector."""
    name, equals, value = term.partition("=")
    if not equals:
        return name, None, ""
    return name.removesuffix("!"), not name.endswith("!"), value.removeprefix("=")


def _has_field(item: Object, name: str, wanted: bool | None, value: str) -> bool:
    """Whether a field is as wanted. Raises Refused 400 for one that the kind cannot be selected by."""
    if wanted is None:
        raise Refused(400, "BadRequest", f"invalid selector: '{name}'; can't understand '{name}'")
    if name not in ("metadata.name", "metadata.namespace", *_FIELDS.get(item["kind"], ())):
        raise Refused(400, "BadRequest", f"field label not supported: {name}")
    found: Any = item
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    text = str(found).lower() if isinstance(found, bool) else str(found or "")
    return (text == value) == wanted


def merged(item: Object, patch: Object) -> Object:
    """An object changed by a merge patch (RFC 7396): null removes a field."""
    found = dict(item)
    for name, value in patch.items():
        if value is None:
            found.pop(name, None)
        else:
            old = found.get(name)
            found[name] = merged(old if isinstance(old, dict) else {}, value) if isinstance(value, dict) else value
    return found


class Store:
    """All objects. Every method must be called in the server's own thread."""

    def __init__(self) -> None:
        self.version = 1000
        self.oldest = 0
        self.objects: dict[str, dict[tuple[str, str], Object]] = {kind: {} for _, kind in PATHS.values()}
        self.events: list[Event] = []
        self.changed = asyncio.Event()
        self.written: list[Object] = []
        self._lists: dict[tuple[str, str, str, int], list[Object]] = {}

    def apply(self, items: list[Object]) -> None:
        """Create or replace objects."""
        for given in items:
            item = _copy(given)
            known = self.objects[item["kind"]]
            key = _key(item)
            self._record("MODIFIED" if key in known else "ADDED", item, known.get(key))
            known[key] = item
        self._wake()

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Delete one object."""
        before = self.objects[kind].pop((namespace, name))
        self._record("DELETED", _copy(before), before)
        self._wake()

    def forget(self) -> None:
        """Compact: no watch can be resumed from before now."""
        self.events.clear()
        self._lists.clear()
        self.oldest = self.version

    def page(self, kind: str, labels: str, fields: str, limit: int, more: str, api_version: str = "") -> bytes:
        """A list or a page of one, in a version of its API ("": the first that the kind has); all pages are of the
        state of the first one. Raises Refused 410 for a `continue` from before the last compaction."""
        start, version = 0, self.version
        if more:
            start, version = msgspec.json.decode(base64.urlsafe_b64decode(more), type=tuple[int, int])
            if version < self.oldest:
                raise Refused(410, "Expired", "The provided continue parameter is too old")
        key = (kind, labels, fields, version)
        if not more:
            self._lists[key] = [i for _, i in sorted(self.objects[kind].items()) if selected(i, labels, fields)]
        found = self._lists[key]
        part = found[start : start + limit] if limit else found[start:]
        metadata: Object = {"resourceVersion": str(version)}
        if start + len(part) < len(found):
            metadata["continue"] = base64.urlsafe_b64encode(msgspec.json.encode((start + len(part), version))).decode()
            metadata["remainingItemCount"] = len(found) - start - len(part)
        served = api_version or next(v for v, k in PATHS.values() if k == kind)
        items = (as_version(item, served) for item in part)
        bare = [{name: value for name, value in item.items() if name not in ("kind", "apiVersion")} for item in items]
        return msgspec.json.encode({"kind": f"{kind}List", "apiVersion": served, "metadata": metadata, "items": bare})

    def _record(self, type_: str, item: Object, before: Object | None) -> None:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        self.events.append(Event(self.version, type_, item["kind"], item, msgspec.json.encode(item), before))

    def _wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()
