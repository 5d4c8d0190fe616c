"""Choose the endpoints that a Service port may use on this node: the Cluster set and the Local set.

Source of the rules: kube-proxy's published behaviour for endpoint categories (KEP-1672 terminating endpoints,
KEP-2433 topology hints, KEP-3015 traffic distribution).
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import starmap

import msgspec

from dataplane.model.net import host_port
from dataplane.model.objects import Endpoint
from dataplane.policy.node import NodeConfig


class Backend(msgspec.Struct, frozen=True, order=True, array_like=True, gc=False):
    """An endpoint that a frontend may choose. `local`: it runs on this node. Sorts by address text, then port.

    weight: its share of new flows in proportion to the others' of the set, at least 1.

    A Struct, because one is made for every endpoint of the cluster: making a NamedTuple takes three times as long.
    """

    address: str
    port: int
    local: bool = False
    weight: int = 1

    def __str__(self) -> str:
        return host_port(self.address, self.port)


Candidate = tuple[Endpoint, int]
"""An endpoint of a Service port before any choice, and its port number (which may differ between slices). A plain
tuple, because one is made for every endpoint of the cluster."""


class BackendSets(msgspec.Struct, frozen=True, gc=False):
    """The two sets that traffic policies choose from, each sorted and without duplicates.

    topology: which kind of hint narrowed the Cluster set: "forNodes", "forZones" or "" (none applied).
    cluster_terminating, local_terminating: the set holds terminating endpoints because no ready one was left.
    weighted: an endpoint has another weight than 0 and 1, so that shares may differ.
    """

    cluster: tuple[Backend, ...] = ()
    local: tuple[Backend, ...] = ()
    topology: str = ""
    cluster_terminating: bool = False
    local_terminating: bool = False
    weighted: bool = False


def _hinted(
    ready: list[Candidate], hints: Callable[[Endpoint], tuple[str, ...] | None], here: str
) -> list[Candidate] | None:
    """Return the candidates whose hints of one kind name `here`, or None if that kind does not apply.

    It applies only if every ready endpoint has such hints and at least one of them names `here`.
    """
    if not here or any(not hints(endpoint) for endpoint, _ in ready):
        return None
    chosen = [candidate for candidate in ready if here in (hints(candidate[0]) or ())]
    return chosen or None


def _topology(ready: list[Candidate], node: NodeConfig) -> tuple[list[Candidate], str]:
    """Narrow ready endpoints by hints, forNodes before forZones; returns the list and the name of what applied."""
    if not ready or not (ready[0][0].traits.node_hints or ready[0][0].traits.zone_hints):
        return ready, ""  # the first has no hints, but all must have them
    by_node = _hinted(ready, lambda endpoint: endpoint.traits.node_hints, node.name)
    if by_node is not None:
        return by_node, "forNodes"
    by_zone = _hinted(ready, lambda endpoint: endpoint.traits.zone_hints, node.zone)
    if by_zone is not None:
        return by_zone, "forZones"
    return ready, ""


def _backends(candidates: Iterable[Candidate], here: str) -> tuple[Backend, ...]:
    name = here or None  # without a node name no endpoint is local
    found = [
        (endpoint.address, port, endpoint.traits.node == name, endpoint.traits.weight or 1)
        for endpoint, port in candidates
    ]
    found.sort()  # sorted as plain tuples, which compare faster
    return tuple(starmap(Backend, found))


def _usable(candidates: Sequence[Candidate]) -> tuple[list[Candidate], bool]:
    """Return the ready endpoints, or if there are none, those serving while terminating (then the flag is True).

    Drained ones are not among them, unless all are: as with terminating ones, somebody is better than nobody.
    """
    ready = [candidate for candidate in candidates if candidate[0].traits.ready]
    if ready:
        return _undrained(ready), False
    terminating = [
        candidate for candidate in candidates if candidate[0].traits.serving and candidate[0].traits.terminating
    ]
    return _undrained(terminating), bool(terminating)


def _undrained(candidates: list[Candidate]) -> list[Candidate]:
    """Return those with a weight, or if all have weight 0, all of them."""
    return [candidate for candidate in candidates if candidate[0].traits.weight] or candidates


def _distinct(candidates: Sequence[Candidate], here: str) -> Sequence[Candidate]:
    """Collapse duplicates of (address, port) to the most useful one, in any order of input.

    Ready wins over serving, serving over neither, then one that is not terminating, then one on this node (which
    is kube-proxy's preference); among equals the first. An endpoint that moves between slices is in both for a while,
    and a pod may get the address of one that is still terminating.
    """
    if len({endpoint.address for endpoint, _ in candidates}) == len(candidates):
        return candidates

    kept: dict[tuple[str, int], Candidate] = {}
    for candidate in candidates:
        key = (candidate[0].address, candidate[1])
        held = kept.setdefault(key, candidate)
        if held is not candidate and _usefulness(candidate[0], here) > _usefulness(held[0], here):
            kept[key] = candidate
    return list(kept.values())


def _usefulness(endpoint: Endpoint, here: str) -> tuple[bool, bool, bool, bool]:
    return endpoint.traits.ready, endpoint.traits.serving, not endpoint.traits.terminating, endpoint.traits.node == here


def most_useful(endpoints: Sequence[Endpoint], here: str) -> Endpoint:
    """Return the endpoint that counts among duplicates of one address and port (rule: see `_distinct`)."""
    return endpoints[0] if len(endpoints) == 1 else max(endpoints, key=lambda endpoint: _usefulness(endpoint, here))


def backend_sets(candidates: Sequence[Candidate], node: NodeConfig) -> BackendSets:
    """Compute both sets from every endpoint of a Service port in one family.

    in: candidates in a stable order (slices by name), this node. out: the sets; both are empty if no endpoint is
    usable. The Local set is made of this node's endpoints alone, with its own terminating fallback and no topology.
    """
    name = node.name
    everyone = _distinct(candidates, name)
    usable, cluster_terminating = _usable(everyone)
    chosen, topology = (usable, "") if cluster_terminating else _topology(usable, node)
    here = [candidate for candidate in everyone if candidate[0].traits.node == name] if name else []
    local, local_terminating = _usable(here) if here else (here, False)
    return BackendSets(
        _backends(chosen, name),
        _backends(local, name) if local else (),
        topology,
        cluster_terminating,
        local_terminating,
        any(endpoint.traits.weight > 1 for endpoint, _ in everyone),
    )


def nodes_of(candidates: Sequence[Candidate], node: NodeConfig) -> dict[tuple[str, int], str]:
    """Return the name of the node of each endpoint, by address and port; "" where the slice has none."""
    everyone = _distinct(candidates, node.name)
    return {(endpoint.address, port): endpoint.traits.node for endpoint, port in everyone}


def lingering(candidates: Sequence[Candidate], sets: BackendSets, node: NodeConfig) -> tuple[Backend, ...]:
    """Return the endpoints that serve but are in neither set, because of policy, topology, termination or weight 0."""
    if all(e.traits.ready and e.traits.weight for e, _ in candidates) and not sets.topology:
        return ()
    chosen = {*sets.cluster, *sets.local}
    useful = [c for c in _distinct(candidates, node.name) if c[0].traits.ready or c[0].traits.serving]
    return tuple(backend for backend in _backends(useful, node.name) if backend not in chosen)
