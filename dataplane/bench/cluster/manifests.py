"""The benchmark's objects in a cluster: a namespace, four pods, Services that all lead to the one server."""

import enum
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from dataplane.bench.objects import TCP_PORT, UDP_PORT, service_name
from dataplane.model.net import Family

LABEL, OWNER = "app.kubernetes.io/managed-by", "hotplane-bench"
"""Whatever carries it is the benchmark's to remove."""
ROLE, RUN = "hotplane.io/bench-role", "hotplane.io/bench-run"
"""A pod's role (label), and the run that a namespace is of (annotation)."""
NODE_PORT_SERVICE = "zz-node-port"
CONTAINER = "load"
VOLUME = "/hotplane-bench"
"""Directory of a pod that its container may write to and run programs of."""
INSIDE = Path(__file__).with_name("inside.py")
_NOBODY = 65534
_CHUNK = 250

Object = dict[str, Any]


class Role(enum.StrEnum):
    """The pods: clients on one node, servers on the other; one of each has an address of its own, one its node's."""

    CLIENT = "client"
    SERVER = "server"
    HOST_CLIENT = "host-client"
    HOST_SERVER = "host-server"

    @property
    def on_host(self) -> bool:
        """True if the pod uses its node's network."""
        return self in (Role.HOST_CLIENT, Role.HOST_SERVER)

    @property
    def serves(self) -> bool:
        """True if the pod is on the server's node."""
        return self in (Role.SERVER, Role.HOST_SERVER)


class PodShape(NamedTuple):
    """What pods are made of. tolerant: they come onto a node whatever taints it has, because somebody named it."""

    image: str
    pull_policy: str
    port: int
    tolerant: bool = False


def inside(*arguments: str) -> list[str]:
    """The command line of one of inside.py's commands in a pod."""
    return ["python3", "-c", INSIDE.read_text(encoding="utf-8"), *arguments]


def _metadata(name: str, **labels: str) -> Object:
    return {"name": name, "labels": {LABEL: OWNER, **labels}}


def namespace(name: str, run: str) -> Object:
    """The namespace of a run. Pods with their node's network need the privileged level of Pod Security."""
    levels = {f"pod-security.kubernetes.io/{what}": "privileged" for what in ("enforce", "audit", "warn")}
    metadata: Object = {"name": name, "labels": {LABEL: OWNER, **levels}, "annotations": {RUN: run}}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def pod(role: Role, node: str, shape: PodShape) -> Object:
    """A pod that waits until it is told what to do; it has no rights, no token, and ends at once.

    The scheduler places it, on that node alone, so that it says why it cannot. Variables for Services are off: those of
    thousands are more than a program may be started with.
    """
    here = {"key": "metadata.name", "operator": "In", "values": [node]}
    required = {"nodeSelectorTerms": [{"matchFields": [here]}]}
    container = {
        "name": CONTAINER,
        "image": shape.image,
        "imagePullPolicy": shape.pull_policy,
        "command": inside("hold"),
        "ports": [{"containerPort": shape.port, "protocol": protocol} for protocol in ("TCP", "UDP")]
        if role.serves
        else [],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
        },
        "volumeMounts": [{"name": "work", "mountPath": VOLUME}],
    }
    spec: Object = {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}},
        "automountServiceAccountToken": False,
        "containers": [container],
        "enableServiceLinks": False,
        "hostNetwork": role.on_host,
        "restartPolicy": "Never",
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _NOBODY,
            "runAsGroup": _NOBODY,
            "fsGroup": _NOBODY,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": 1,
        "tolerations": [{"operator": "Exists"}] if shape.tolerant else [],
        "volumes": [{"name": "work", "emptyDir": {}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": _metadata(role.value, **{ROLE: role.value}), "spec": spec}


def service(name: str, family: Family, port: int, *, node_port: bool = False, udp: bool = False) -> Object:
    """A Service whose only endpoint is the server. port: the server's, of both protocols."""
    ports = [{"name": "tcp", "protocol": "TCP", "port": TCP_PORT, "targetPort": port}]
    ports += [{"name": "udp", "protocol": "UDP", "port": UDP_PORT, "targetPort": port}] if udp else []
    spec = {
        "type": "NodePort" if node_port else "ClusterIP",
        "ipFamilyPolicy": "SingleStack",
        "ipFamilies": [f"IPv{family.value}"],
        "selector": {ROLE: Role.SERVER.value},
        "ports": ports,
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": _metadata(name), "spec": spec}


def services(first: int, count: int, family: Family, port: int) -> Iterator[Object]:
    """Services number `first` (from 0) to count - 1; the last one is measured, so it has a port for UDP too."""
    for number in range(first, count):
        yield service(service_name(number), family, port, udp=number == count - 1)


def documents(items: Iterator[Object] | Sequence[Object]) -> Iterator[tuple[int, bytes]]:
    """Objects as JSON documents of kind List, with the number of objects in each."""
    chunk: list[Object] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == _CHUNK:
            yield len(chunk), _list(chunk)
            chunk = []
    if chunk:
        yield len(chunk), _list(chunk)


def _list(items: list[Object]) -> bytes:
    return msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": items})
