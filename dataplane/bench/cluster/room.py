"""The benchmark's namespace in a cluster: made, known again by its label, and removed."""

import time
import uuid
from collections.abc import Callable
from typing import Any

import msgspec

from dataplane.bench.cluster.kubectl import ClusterError, Kubectl, KubectlError
from dataplane.bench.cluster.manifests import LABEL, OWNER, RUN, namespace

_PAUSE_SECONDS = 0.5


class Room:
    """The benchmark's namespace. seconds: limit of its removal. may_exist: this object has tried to create it."""

    def __init__(self, kubectl: Kubectl, name: str, seconds: float, say: Callable[[str], None]) -> None:
        self._kubectl, self.name, self.seconds, self._say = kubectl, name, seconds, say
        self._run = uuid.uuid4().hex
        self.may_exist = False

    def make(self) -> None:
        """Make it; one that an earlier run left is removed first. Raises ClusterError when it is somebody else's."""
        found = self._get()
        if found is not None:
            labels = found["metadata"].get("labels", {})
            if labels.get(LABEL) != OWNER:
                raise ClusterError(
                    f"namespace {self.name} exists and is not the benchmark's (it has no label {LABEL}={OWNER}): "
                    "give another --namespace"
                )
            self._say(f"namespace {self.name} is left from an earlier run, and goes first")
            self._delete(found["metadata"]["uid"])
        self.may_exist = True
        document = msgspec.json.encode(namespace(self.name, self._run))
        self._kubectl.run(f"namespace {self.name}", "create", "--validate=false", "-f", "-", input=document)

    def remove(self) -> None:
        """Remove it with everything in it, if this object made it. Raises ClusterError when it does not go in time; it
        goes on going then."""
        if not self.may_exist:
            return
        found = self._get()
        if found is not None and found["metadata"].get("annotations", {}).get(RUN) == self._run:
            self._delete(found["metadata"]["uid"])
        self.may_exist = False

    def _get(self) -> Any:
        """The Namespace as it is now, or None."""
        try:
            return self._kubectl.json(f"namespace {self.name}", "get", "namespace", self.name)
        except KubectlError as error:
            if error.is_missing:
                return None
            raise

    def _delete(self, uid: str) -> None:
        """Delete the Namespace, which was seen to have this uid, and wait until that one is gone."""
        end = time.monotonic() + self.seconds
        self._kubectl.run(
            f"namespace {self.name}", "delete", "namespace", self.name, "--wait=false", "--ignore-not-found"
        )
        while (found := self._get()) is not None and found["metadata"]["uid"] == uid:
            if time.monotonic() > end:
                raise ClusterError(
                    f"namespace {self.name} is not gone after {self.seconds:.0f} s: {_reason(found)}; it goes on "
                    f"going: kubectl get namespace {self.name}"
                )
            time.sleep(_PAUSE_SECONDS)


def _reason(found: Any) -> str:
    """Why a Namespace does not go, as its conditions say."""
    conditions = found.get("status", {}).get("conditions", ())
    told = [c["message"] for c in conditions if c.get("status") == "True" and c.get("message")]
    return told[0] if told else f"it is {found.get('status', {}).get('phase', 'there')}"
