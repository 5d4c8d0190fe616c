"""The benchmark's cluster as JSON, as an API server would send it: many Services, of which few lead to real pods."""

import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from dataplane.bench.scenarios import Position, index
from dataplane.errors import HotplaneError
from dataplane.model.decode import decode
from dataplane.model.net import Family, canonical_address
from dataplane.model.objects import ModelObject

NAMESPACE = "bench"
ENDPOINTS, MOST_ENDPOINTS = 5, 64
"""Endpoints of each Service, unless asked for otherwise. Those of a real one are ports of one pod, so that all of them
need one process."""
TCP_PORT, UDP_PORT, BULK_PORT = 80, 53, 5201
"""Ports of every real Service; the others have only TCP_PORT."""
SERVER_PORT = 9000
"""The pod's first port; one for each endpoint, TCP and UDP. Bulk traffic goes to BULK_PORT of the pod."""
LOCAL_NODE_PORT, REMOTE_NODE_PORT = 30080, 30081
"""Node ports (TCP, and UDP of the same number) that lead to a pod of this node, of another node."""
PROCESSORS_PORT = 9100
"""The pod's first port of servers that have a processor each (see processors); one for each of them, TCP."""
PROCESSORS_SERVICE = "zz-processors"
FLOWS_PORT, FLOWS_SERVICE = 10000, "zz-flows"
"""First port of the pod, TCP, one an endpoint, of the Service whose endpoints are many or become more; its name."""
FLOW_ENDPOINTS, MOST_FLOW_ENDPOINTS = 8, 3000
"""Its endpoints: usually, and where it is to be a large one. A scale-out doubles them."""
_CHUNK = 500
_PER_NET = 250
_MOST_CHANGED = 5000
_STRIDE = 7919


class Backend(NamedTuple):
    """A real pod and the node it is on."""

    address: str
    node: str


class Form(enum.StrEnum):
    """What is special about a cluster. SHARED: all Services that nobody uses lead to the same endpoints. LARGE: one has
    MOST_FLOW_ENDPOINTS, and new connections are measured through it. AFFINITY: all have sessionAffinity ClientIP."""

    PLAIN = "plain"
    SHARED = "shared"
    LARGE = "large"
    AFFINITY = "affinity"


class Shape(NamedTuple):
    """How large the cluster is: so many Services with so many endpoints each, all of one family. servers: endpoints of
    one more Service, for load on several processors; flows: of yet another, for flows that stay; 0: there is none."""

    services: int
    endpoints: int = ENDPOINTS
    family: Family = Family.IPV4
    servers: int = 0
    flows: int = 0
    form: Form = Form.PLAIN


def _address(second: int, third: int, fourth: int, family: Family) -> str:
    """10.second.third.fourth, or an IPv6 address made of the same numbers."""
    if family is Family.IPV4:
        return f"10.{second}.{third}.{fourth}"
    return canonical_address(f"fd00:be:{second:x}:{third:x}::{fourth:x}")


def cluster_ip(number: int, family: Family = Family.IPV4) -> str:
    """clusterIP of Service `number` (from 0)."""
    high, low = divmod(number, _PER_NET)
    return _address(96 + high // 256, high % 256, low + 1, family)


def processors_ip(family: Family = Family.IPV4) -> str:
    """clusterIP of the Service whose endpoints have a processor each."""
    return _address(95, 0, 3, family)


def probe_ip(family: Family = Family.IPV4) -> str:
    """clusterIP of the Service by which peers are probed (see peer.cluster)."""
    return _address(95, 0, 9, family)


def flows_ip(family: Family = Family.IPV4) -> str:
    """clusterIP of FLOWS_SERVICE."""
    return _address(95, 0, 4, family)


def _service(name: str, spec: dict[str, Any], shape: Shape) -> dict[str, Any]:
    metadata = {"namespace": NAMESPACE, "name": name, "creationTimestamp": "2024-01-01T00:00:00Z"}
    if shape.form is Form.AFFINITY:
        spec = {**spec, "sessionAffinity": "ClientIP"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def endpoint_slice(
    service: str, suffix: str, ports: Sequence[Mapping[str, Any]], endpoints: Sequence[Backend], family: Family
) -> dict[str, Any]:
    """An EndpointSlice of ready endpoints, all of one family."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": NAMESPACE,
            "name": f"{service}-{suffix}",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": f"IPv{family.value}",
        "ports": list(ports),
        "endpoints": [
            {
                "addresses": [endpoint.address],
                "conditions": {"ready": True, "serving": True, "terminating": False},
                "nodeName": endpoint.node,
            }
            for endpoint in endpoints
        ],
    }


def service_name(number: int) -> str:
    """Name of Service `number`; names sort as numbers do."""
    return f"svc-{number:06d}"


def made_up_endpoints(number: int, shape: Shape, generation: int = 0) -> list[Backend]:
    """Endpoints of a Service that nobody uses; the first one differs from generation to generation."""
    high, low = divmod(0 if shape.form is Form.SHARED else number, _PER_NET)
    found = [Backend(_address(128 + e, high, low + 1, shape.family), "elsewhere") for e in range(shape.endpoints)]
    if generation:
        found[0] = _changed(generation, shape.family)
    return found


def _changed(generation: int, family: Family) -> Backend:
    high, low = divmod(generation, _PER_NET)
    return Backend(_address(200 + high // 256 % 50, high % 256, low + 1, family), "elsewhere")


def filler_slice(number: int, shape: Shape, generation: int = 0) -> dict[str, Any]:
    """The EndpointSlice of a Service that nobody uses."""
    ports = [{"name": "tcp", "protocol": "TCP", "port": SERVER_PORT}]
    endpoints = made_up_endpoints(number, shape, generation)
    return endpoint_slice(service_name(number), "0", ports, endpoints, shape.family)


def _real_slices(name: str, backend: Backend, shape: Shape) -> Iterator[dict[str, Any]]:
    for number in range(shape.endpoints):
        ports = [
            {"name": "tcp", "protocol": "TCP", "port": SERVER_PORT + number},
            {"name": "udp", "protocol": "UDP", "port": SERVER_PORT + number},
        ]
        if number == 0:  # the connections of one iperf3 run must all meet the same server
            ports.append({"name": "bulk", "protocol": "TCP", "port": BULK_PORT})
        yield endpoint_slice(name, str(number), ports, [backend], shape.family)


def _real(name: str, address: str, backend: Backend, shape: Shape, node_port: int = 0) -> Iterator[dict[str, Any]]:
    ports: list[dict[str, Any]] = [
        {"name": "tcp", "protocol": "TCP", "port": TCP_PORT},
        {"name": "udp", "protocol": "UDP", "port": UDP_PORT},
    ]
    if node_port:
        ports = [port | {"nodePort": node_port} for port in ports]
    else:
        ports.append({"name": "bulk", "protocol": "TCP", "port": BULK_PORT})
    kind = "NodePort" if node_port else "ClusterIP"
    yield _service(name, {"type": kind, "clusterIP": address, "clusterIPs": [address], "ports": ports}, shape)
    yield from _real_slices(name, backend, shape)


def objects(shape: Shape, local: Backend, remote: Backend) -> Iterator[dict[str, Any]]:
    """The Services and their slices; the first, middle and last lead to `local`; two more have node ports."""
    real = {index(position, shape.services) for position in Position}
    for number in range(shape.services):
        address = cluster_ip(number, shape.family)
        if number in real:
            yield from _real(service_name(number), address, local, shape)
        else:
            ports = [{"name": "tcp", "protocol": "TCP", "port": TCP_PORT}]
            spec = {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ports": ports}
            yield _service(service_name(number), spec, shape)
            yield filler_slice(number, shape)
    for name, last, backend, port in (
        ("zz-north-local", 1, local, LOCAL_NODE_PORT),
        ("zz-north-remote", 2, remote, REMOTE_NODE_PORT),
    ):
        yield from _real(name, _address(95, 0, last, shape.family), backend, shape, port)
    if shape.servers:
        yield from _on_processors(local, shape)
    if shape.flows:
        spec = {"clusterIP": flows_ip(shape.family), "ports": [{"name": "tcp", "protocol": "TCP", "port": TCP_PORT}]}
        yield _service(FLOWS_SERVICE, spec, shape)
        yield from (flow_slice(number, [local], shape.family) for number in range(shape.flows))


def flow_slice(number: int, backends: Sequence[Backend], family: Family) -> dict[str, Any]:
    """Endpoint `number` (from 0) of FLOWS_SERVICE; without a backend it has none."""
    ports = [{"name": "tcp", "protocol": "TCP", "port": FLOWS_PORT + number}]
    return endpoint_slice(FLOWS_SERVICE, str(number), ports, backends, family)


def _on_processors(backend: Backend, shape: Shape) -> Iterator[dict[str, Any]]:
    address = processors_ip(shape.family)
    ports: list[dict[str, Any]] = [{"name": "tcp", "protocol": "TCP", "port": TCP_PORT}]
    spec = {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ports": ports}
    yield _service(PROCESSORS_SERVICE, spec, shape)
    for number in range(shape.servers):
        ports = [{"name": "tcp", "protocol": "TCP", "port": PROCESSORS_PORT + number}]
        yield endpoint_slice(PROCESSORS_SERVICE, str(number), ports, [backend], shape.family)


def chunks(shape: Shape, local: Backend, remote: Backend) -> Iterator[bytes]:
    """The same as JSON documents of kind List, a few hundred objects each."""
    items: list[dict[str, Any]] = []
    for item in objects(shape, local, remote):
        items.append(item)
        if len(items) == _CHUNK:
            yield _list(items)
            items = []
    if items:
        yield _list(items)


def decoded(chunk: bytes) -> list[ModelObject]:
    """The objects of one of `chunks`. Raises HotplaneError."""
    found = decode(chunk, "bench")
    if found.problems:
        raise HotplaneError(f"the benchmark's own objects are wrong: {found.problems[0]}")
    return found.objects


def _list(items: list[dict[str, Any]]) -> bytes:
    return msgspec.json.encode({"apiVersion": "v1", "kind": "List", "items": items})


def _fillers(services: int) -> list[int]:
    """The made-up Services, or those of them that the changes of one run go through."""
    real = {index(position, services) for position in Position}
    step = max(1, services // _MOST_CHANGED)
    return [number for number in range(0, services, step) if number not in real]


class Changes:
    """Endless events of one endpoint change each, as JSON: another address for the first endpoint of a made-up Service,
    a different Service each time. Where there is none, an endpoint more for the first Service; `undo` removes it."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._fillers = _fillers(shape.services)
        self._generation = 0

    def next(self) -> bytes:
        """The next EndpointSlice to arrive."""
        self._generation += 1
        if not self._fillers:
            return self._extra([_changed(self._generation, self._shape.family)])
        at = self._generation * _STRIDE % len(self._fillers)
        return msgspec.json.encode(filler_slice(self._fillers[at], self._shape, self._generation))

    def undo(self) -> bytes | None:
        """Return the change that restores the real Services; None when they never changed."""
        return None if self._fillers else self._extra([])

    def _extra(self, endpoints: list[Backend]) -> bytes:
        ports = [{"name": "tcp", "protocol": "TCP", "port": SERVER_PORT}]
        return msgspec.json.encode(endpoint_slice(service_name(0), "extra", ports, endpoints, self._shape.family))
