"""Validation by a real API server of an Event of events.k8s.io/v1 (kube-apiserver's validation of Events)."""

import re

from dataplane.lab.apiserver.store import Refused
from dataplane.lab.apiserver.versions import Object

MOST = {"reportingInstance": 128, "action": 128, "reason": 128, "note": 1024}
"""Limits in bytes, as Go counts."""

MOST_NAME = 253
_REQUIRED = ("reportingController", "reportingInstance", "action", "reason")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_MICRO_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


def validate_event(event: Object) -> None:
    """Raises Refused, 422 as a real server answers."""
    name, namespace = event["metadata"]["name"], event["metadata"]["namespace"]
    regarding = event["regarding"].get("namespace", "")
    wrong = [
        f"{field}: can have at most {most} characters" for field, most in MOST.items() if _size(event, field) > most
    ]
    wrong += [f"{field}: Required value" for field in _REQUIRED if not event.get(field)]
    if len(name) > MOST_NAME or not _SUBDOMAIN.fullmatch(name):
        wrong.append(f"metadata.name: Invalid value: {name!r}")
    if regarding != namespace and (regarding or namespace not in ("default", "kube-system")):
        wrong.append("involvedObject.namespace: does not match event.namespace")
    if event["type"] not in ("Normal", "Warning"):
        wrong.append("type: has invalid value")
    if not _MICRO_TIME.fullmatch(event["eventTime"]):
        wrong.append("eventTime: Invalid value")
    _refuse(wrong)
    if "series" in event:
        validate_series(event["series"])


def validate_series(series: Object) -> None:
    """Raises Refused, 422."""
    wrong = ["series.count: should be at least 2"] if series["count"] < 2 else []
    if not _MICRO_TIME.fullmatch(series["lastObservedTime"]):
        wrong.append("series.lastObservedTime: Invalid value")
    _refuse(wrong)


def _size(event: Object, field: str) -> int:
    return len(str(event.get(field, "")).encode())


def _refuse(wrong: list[str]) -> None:
    if wrong:
        raise Refused(422, "Invalid", "Event is invalid: " + ", ".join(wrong))
