"""The benchmark's cluster as JSON, as an API server would send it: many Services, of which few lead to real pods."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from dataplane.bench.scenarios import Position, index

NAMESPACE = "bench"
ENDPOINTS = 5
"""Endpoints of each Service. Those of a real one are ports of one pod, so that five backends need one process."""
TCP_PORT, UDP_PORT, BULK_PORT = 80, 53, 5201
"""Ports of every real Service; the others have only TCP_PORT."""
SERVER_PORT = 9000
"""The pod's first port; ENDPOINTS of them, TCP and UDP. Bulk traffic goes to BULK_PORT of the pod."""
LOCAL_NODE_PORT, REMOTE_NODE_PORT = 30080, 30081
"""Node ports (TCP, and UDP of the same number) that lead to a pod of this node, of another node."""
_CHUNK = 500
_PER_NET = 250
_MOST_CHANGED = 5000
_STRIDE = 7919


class Backend(NamedTuple):
    """A real pod and the node it is on."""

    address: str
    node: str


def cluster_ip(number: int) -> str:
    """clusterIP of Service `number` (from 0)."""
    high, low = divmod(number, _PER_NET)
    return f"10.{96 + high // 256}.{high % 256}.{low + 1}"


def _service(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {"namespace": NAMESPACE, "name": name, "creationTimestamp": "2024-01-01T00:00:00Z"}
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def endpoint_slice(
    service: str, suffix: str, ports: Sequence[Mapping[str, Any]], endpoints: Sequence[Backend]
) -> dict[str, Any]:
    """An IPv4 EndpointSlice of ready endpoints."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "namespace": NAMESPACE,
            "name": f"{service}-{suffix}",
            "labels": {"kubernetes.io/service-name": service},
        },
        "addressType": "IPv4",
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


def made_up_endpoints(number: int, generation: int = 0) -> list[Backend]:
    """Endpoints of a Service that nobody uses; the first one differs from generation to generation."""
    high, low = divmod(number, _PER_NET)
    rest = [Backend(f"10.{128 + e}.{high}.{low + 1}", "elsewhere") for e in range(1, ENDPOINTS)]
    return [_changed(generation) if generation else Backend(f"10.128.{high}.{low + 1}", "elsewhere"), *rest]


def _changed(generation: int) -> Backend:
    high, low = divmod(generation, _PER_NET)
    return Backend(f"10.{200 + high // 256 % 50}.{high % 256}.{low + 1}", "elsewhere")


def filler_slice(number: int, generation: int = 0) -> dict[str, Any]:
    """The EndpointSlice of a Service that nobody uses."""
    ports = [{"name": "tcp", "protocol": "TCP", "port": SERVER_PORT}]
    return endpoint_slice(service_name(number), "0", ports, made_up_endpoints(number, generation))


def _real_slices(name: str, backend: Backend) -> Iterator[dict[str, Any]]:
    for number in range(ENDPOINTS):
        ports = [
            {"name": "tcp", "protocol": "TCP", "port": SERVER_PORT + number},
            {"name": "udp", "protocol": "UDP", "port": SERVER_PORT + number},
        ]
        if number == 0:  # the connections of one iperf3 run must all meet the same server
            ports.append({"name": "bulk", "protocol": "TCP", "port": BULK_PORT})
        yield endpoint_slice(name, str(number), ports, [backend])


def _real(name: str, address: str, backend: Backend, node_port: int = 0) -> Iterator[dict[str, Any]]:
    ports: list[dict[str, Any]] = [
        {"name": "tcp", "protocol": "TCP", "port": TCP_PORT},
        {"name": "udp", "protocol": "UDP", "port": UDP_PORT},
    ]
    if node_port:
        ports = [port | {"nodePort": node_port} for port in ports]
    else:
        ports.append({"name": "bulk", "protocol": "TCP", "port": BULK_PORT})
    kind = "NodePort" if node_port else "ClusterIP"
    yield _service(name, {"type": kind, "clusterIP": address, "clusterIPs": [address], "ports": ports})
    yield from _real_slices(name, backend)


def objects(services: int, local: Backend, remote: Backend) -> Iterator[dict[str, Any]]:
    """`services` Services and their slices; the first, middle and last lead to `local`; two more have node ports."""
    real = {index(position, services) for position in Position}
    for number in range(services):
        address = cluster_ip(number)
        if number in real:
            yield from _real(service_name(number), address, local)
        else:
            ports = [{"name": "tcp", "protocol": "TCP", "port": TCP_PORT}]
            spec = {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ports": ports}
            yield _service(service_name(number), spec)
            yield filler_slice(number)
    yield from _real("zz-north-local", "10.95.0.1", local, LOCAL_NODE_PORT)
    yield from _real("zz-north-remote", "10.95.0.2", remote, REMOTE_NODE_PORT)


def chunks(services: int, local: Backend, remote: Backend) -> Iterator[bytes]:
    """The same as JSON documents of kind List, a few hundred objects each."""
    items: list[dict[str, Any]] = []
    for item in objects(services, local, remote):
        items.append(item)
        if len(items) == _CHUNK:
            yield _list(items)
            items = []
    if items:
        yield _list(items)


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

    def __init__(self, services: int) -> None:
        self._fillers = _fillers(services)
        self._generation = 0

    def next(self) -> bytes:
        """The next EndpointSlice to arrive."""
        self._generation += 1
        if not self._fillers:
            return self._extra([_changed(self._generation)])
        at = self._generation * _STRIDE % len(self._fillers)
        return msgspec.json.encode(filler_slice(self._fillers[at], self._generation))

    def undo(self) -> bytes | None:
        """What puts real Services back as they were; None when they never changed."""
        return None if self._fillers else self._extra([])

    def _extra(self, endpoints: list[Backend]) -> bytes:
        ports = [{"name": "tcp", "protocol": "TCP", "port": SERVER_PORT}]
        return msgspec.json.encode(endpoint_slice(service_name(0), "extra", ports, endpoints))
