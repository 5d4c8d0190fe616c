"""Find errors of hand-written objects that decoders ignore: unknown fields, annotations and kinds, duplicate keys.

Only for manifests: an API server has decoded its objects itself, and may be of a later version. Fields: core/v1,
discovery.k8s.io/v1 and networking.k8s.io/v1 of Kubernetes 1.36, with those that earlier versions had.
"""

import difflib
import json
from collections.abc import Iterable, Iterator
from typing import Any

from dataplane.model.algorithm import ALGORITHM_ANNOTATION
from dataplane.model.forwarding import NODE_ANNOTATION, SERVICE_ANNOTATION
from dataplane.model.pods import CONNECT_TIME
from dataplane.model.weights import WEIGHTS_ANNOTATION

LARGEST = 16 << 20
"""Limit of JSON bytes for the search of duplicate keys, which takes a hundred times as long as decoding."""

_GUESSED = 20
"""Limit of unknown fields of an object for which a similar known field is searched, which is slow."""

_Fields = dict[str, "_Fields | None"]
"""Fields by name; None = everything below is ignored."""


def _names(text: str, **below: _Fields) -> _Fields:
    return {**dict.fromkeys(text.split()), **below}


_OBJECT = "apiVersion kind metadata"
_PORT = "name protocol port appProtocol"
_SERVICE_SPEC = _names(
    "allocateLoadBalancerNodePorts clusterIP clusterIPs externalIPs externalName externalTrafficPolicy "
    "healthCheckNodePort internalTrafficPolicy ipFamilies ipFamily ipFamilyPolicy loadBalancerClass loadBalancerIP "
    "loadBalancerSourceRanges publishNotReadyAddresses selector sessionAffinity topologyKeys trafficDistribution type",
    ports=_names(f"{_PORT} nodePort targetPort"),
    sessionAffinityConfig=_names("", clientIP=_names("timeoutSeconds")),
)
_ENDPOINT = _names(
    "addresses deprecatedTopology hostname nodeName targetRef topology zone",
    conditions=_names("ready serving terminating"),
    hints=_names("", forZones=_names("name"), forNodes=_names("name")),
)
_ADDRESS = _names("ip hostname nodeName targetRef")
KINDS: dict[str, _Fields] = {
    "Service": _names(f"{_OBJECT} status", spec=_SERVICE_SPEC),
    "EndpointSlice": _names(f"{_OBJECT} addressType", endpoints=_ENDPOINT, ports=_names(_PORT)),
    "Endpoints": _names(
        _OBJECT, subsets=_names("", addresses=_ADDRESS, notReadyAddresses=_ADDRESS, ports=_names(_PORT))
    ),
    "ServiceCIDR": _names(f"{_OBJECT} status", spec=_names("cidrs")),
}

ANNOTATED = {
    SERVICE_ANNOTATION: ("Service",),
    ALGORITHM_ANNOTATION: ("Service",),
    WEIGHTS_ANNOTATION: ("EndpointSlice",),
    CONNECT_TIME: ("Pod", "Namespace"),
    NODE_ANNOTATION: ("Node",),
}
"""Annotations that are read, and the kinds of objects on which they are."""
_OURS = ("service.hotplane.io/", "node.hotplane.io/")


def unknown_annotations(kind: str, value: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the path of each annotation with a prefix of ours that is not read on this kind of object, and why."""
    metadata = value.get("metadata")
    found = metadata.get("annotations") if isinstance(metadata, dict) else None
    if not isinstance(found, dict):
        return []
    wrong = [name for name in found if name.startswith(_OURS) and kind not in ANNOTATED.get(name, ())]
    return [(f"metadata.annotations[{name}]", _why_annotation(name)) for name in wrong]


def _why_annotation(name: str) -> str:
    """Return why an annotation has no effect: it belongs on another kind, or there is none of this name."""
    if name in ANNOTATED:
        return f"has no effect on this kind of object, only on: {', '.join(ANNOTATED[name])}"
    close = difflib.get_close_matches(name, ANNOTATED, 1)
    return f"is no annotation that is read and has no effect{f'; is {close[0]} meant?' if close else ''}"


def meant_kind(kind: str, known: Iterable[str]) -> str:
    """Return the known kind of which another is a slip, in its capitals or its plural; "" if it is none."""
    return next((each for each in known if kind.lower() in (each.lower(), f"{each.lower()}s")), "")


def unknown_fields(kind: str, value: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the path of each unknown field of an object, and why it matters. Unknown kinds have none."""
    found = list(_unknown(value, KINDS.get(kind), ""))
    return [
        (field, _why(name, known if number < _GUESSED else {})) for number, (field, name, known) in enumerate(found)
    ]


def _why(name: str, known: _Fields) -> str:
    """Return the effect of an unknown field, with a similar known field if there is one."""
    close = difflib.get_close_matches(name, known, 1)
    return f"is no field of this kind and has no effect{f'; is {close[0]} meant?' if close else ''}"


def _unknown(value: Any, known: _Fields | None, path: str) -> Iterator[tuple[str, str, _Fields]]:
    """Yield the path and name of each unknown field, and the known fields there."""
    if known is None:
        return
    if isinstance(value, list):
        for index, item in enumerate(value):
            if isinstance(item, dict):
                yield from _unknown(item, known, f"{path}[{index}]")
    elif isinstance(value, dict):
        for name, item in value.items():
            field = f"{path}.{name}" if path else name
            if name in known:
                yield from _unknown(item, known[name], field)
            else:
                yield field, name, known


class _Twice(ValueError):
    """A duplicate key in one object."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise _Twice(f"the key {name[:100]!r} is given twice; remove one of them")
            seen.add(name)
    return found


def json_fault(data: bytes) -> str:
    """Return why decodable JSON should not be used: a duplicate key; "" if there is none, or it is too large."""
    if len(data) > LARGEST:
        return ""
    try:
        json.loads(data, object_pairs_hook=_object)
    except _Twice as error:
        return str(error)
    except (ValueError, RecursionError):  # other readers have better sentences for it
        return ""
    return ""
