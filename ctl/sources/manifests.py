"""Objects from manifest files: files, directories of them, and standard input."""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from dataplane.errors import HotplaneError
from dataplane.model.decode import Decoded, decode_strictly
from dataplane.model.net import Protocol
from dataplane.model.objects import SOURCE, EndpointSlice, ModelObject, ObjectRef, Problem, Service
from dataplane.plan.frontends import has_frontends

SUFFIXES = (".yaml", ".yml", ".json")
_SHOWN = 5
"""Endpoints, or ports, that a note names."""


class PortRange(NamedTuple):
    """Ports from first to last, both included."""

    first: int
    last: int


NODE_PORTS = PortRange(30000, 32767)
"""kube-apiserver's default of --service-node-port-range. What an API server sends has met its own."""
ALL_PORTS = PortRange(1, 65535)


class SourceError(HotplaneError):
    """A source of objects that cannot be read at all; the message is a sentence for the person who named it."""


def read_manifests(paths: Sequence[str], node_ports: PortRange = NODE_PORTS) -> Decoded:
    """Read files, directories (recursively: *.yaml, *.yml, *.json, in sorted order; hidden ones not) and `-` (stdin).

    An object that occurs again (same kind, namespace and name) replaces the earlier one, and a note says so. Problems
    name their file. Node ports outside of node_ports are left out: they would take ports of the node itself.
    Raises SourceError when a path cannot be read or a directory holds no manifest; what a file holds never raises.
    """
    result = Decoded()
    latest: dict[ObjectRef, ModelObject] = {}
    places: dict[ObjectRef, str] = {}
    for path in paths:
        for name, data in _read(path):
            found = decode_strictly(data, name)
            for value in found.objects:
                ref = value.ref
                if isinstance(value, Service):
                    value = _within(value, node_ports, found.problems)
                if ref in latest:
                    where = "twice in this file" if places[ref] == name else f"in {places[ref]} too"
                    twice = f"stands {where}; the one that is read last is used"
                    found.notes.append(Problem(ref, "", twice))
                latest[ref], places[ref] = value, name
            found.problems = [_in_file(problem, name) for problem in found.problems]
            found.notes = [_in_file(note, name) for note in found.notes]
            places.update((legacy.ref, name) for legacy in found.slices)
            result.extend(found)
    result.objects = list(latest.values())
    _add_endpoints(result, places)
    result.notes += [note._replace(source=places[note.ref]) for note in _unanswered_ports(result.objects)]
    return result


def _unanswered_ports(objects: Sequence[ModelObject]) -> Iterator[Problem]:
    """Yield a note for each Service with ports that none of its EndpointSlices has by name and protocol, though they
    have others: a slip in a name, or a targetPort's name that no container has."""
    offered: dict[tuple[str, str], set[tuple[str, Protocol]]] = {}
    for value in objects:
        if isinstance(value, EndpointSlice) and value.endpoints:
            found = offered.setdefault((value.namespace, value.service), set())
            found.update((port.name, port.protocol) for port in value.ports)
    for value in objects:
        have = offered.get((value.ref.namespace, value.ref.name)) if isinstance(value, Service) else None
        if not have or not isinstance(value, Service) or not has_frontends(value):
            continue
        lacking = [(port.name, port.protocol) for port in value.ports if (port.name, port.protocol) not in have]
        if lacking:
            reason = (
                f"no EndpointSlice of this Service has a port {_named(lacking)}, so nobody answers there; "
                f"they have {_named(have)}"
            )
            yield Problem(value.ref, "spec.ports", reason)


def _named(ports: Iterable[tuple[str, Protocol]]) -> str:
    """Names and protocols of ports, the first few of them."""
    texts = sorted(f"{name!r} ({protocol.text})" for name, protocol in ports)
    return ", ".join(texts[:_SHOWN]) + (f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else "")


def _add_endpoints(result: Decoded, places: Mapping[ObjectRef, str]) -> None:
    """Use v1 Endpoints for Services that have no EndpointSlice; one note names them, and their files."""
    with_slices = {(value.namespace, value.service) for value in result.objects if isinstance(value, EndpointSlice)}
    used = [legacy for legacy in result.slices if (legacy.namespace, legacy.service) not in with_slices]
    del result.ignored["Endpoints"]
    if not used:
        return
    names = list(dict.fromkeys(f"{legacy.namespace}/{legacy.service}" for legacy in used))
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    result.objects += used
    reason = "is of the old API and read as EndpointSlices, for its Service has none; write EndpointSlices"
    files = ", ".join(dict.fromkeys(places[legacy.ref] for legacy in used))
    result.notes.append(Problem(ObjectRef("Endpoints", "", ", ".join(names[:_SHOWN]) + more), "", reason, files))


def outside(services: Iterable[Service], allowed: PortRange) -> list[Problem]:
    """What would be left out of these Services with that range of node ports, as notes for those who only ask."""
    found: list[Problem] = []
    for service in services:
        _within(service, allowed, found)
    return found


def _within(service: Service, allowed: PortRange, problems: list[Problem]) -> Service:
    """A Service without the node ports that it may not have."""
    ports = []
    for index, port in enumerate(service.ports):
        if port.node_port and not allowed.first <= port.node_port <= allowed.last:
            reason = (
                f"{port.node_port} is outside of {allowed.first}-{allowed.last} and left out; choose another, or set "
                "--service-node-port-range"
            )
            problems.append(Problem(service.ref, f"spec.ports[{index}].nodePort", reason))
            port = msgspec.structs.replace(port, node_port=0)
        ports.append(port)
    return msgspec.structs.replace(service, ports=tuple(ports)) if tuple(ports) != service.ports else service


def _in_file(problem: Problem, file: str) -> Problem:
    """A problem that tells its file; that of a whole source does already."""
    return problem if problem.ref.kind == SOURCE else problem._replace(source=file)


def _read(path: str) -> Iterator[tuple[str, bytes]]:
    if path == "-":
        yield "stdin", sys.stdin.buffer.read()
        return
    place = Path(path)
    if place.is_dir():
        files = _manifests(place)
        if not files:
            raise SourceError(f"{path}: no manifest in this directory; it should hold *.yaml, *.yml or *.json files")
        for file in files:
            yield str(file), _bytes(file)
    else:
        yield path, _bytes(place)


def _manifests(directory: Path) -> list[Path]:
    """Manifests under a directory, without hidden files and folders (editors and mounted volumes keep copies there)."""

    def visible(file: Path) -> bool:
        return not any(part.startswith(".") for part in file.relative_to(directory).parts)

    found = (file for file in directory.rglob("*") if file.suffix in SUFFIXES and visible(file))
    return sorted(file for file in found if file.is_file())


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise SourceError(f"{file}: cannot be read: {error.strerror}; check the path and its permissions") from error
