"""Explain in sentences how a Service port's endpoints became its backend sets, which is not in the plan."""

from collections.abc import Iterable, Sequence

from dataplane.oracle.reasons import count
from dataplane.policy.endpoints import BackendSets, Candidate
from dataplane.policy.node import NodeConfig


def endpoint_notes(candidates: Iterable[Candidate], sets: BackendSets, node: NodeConfig) -> tuple[str, ...]:
    """Sentences on an entry's endpoints.

    in: all its endpoints in any condition, the sets made of them, and the node.
    """
    everyone = list(candidates)
    if not everyone:
        return ("no EndpointSlice has an endpoint for this port in this IP family",)
    ready = [candidate for candidate in everyone if candidate[0].ready]
    sentences = [_conditions(everyone, len(ready))]
    if sets.cluster_terminating:
        sentences.append(f"none is ready, so those that still serve while terminating are used: {len(sets.cluster)}")
    elif ready:
        weighing = [candidate for candidate in ready if candidate[0].weight]
        if not weighing:
            sentences.append("all that are ready have weight 0, so they are used as if none had")
        elif len(weighing) < len(ready):
            sentences.append(f"{len(ready) - len(weighing)} of weight 0 get no new connections")
        sentences += _topology(weighing or ready, sets, node)
    if sets.local_terminating and not sets.cluster_terminating:
        sentences.append(f"none on this node is ready; {len(sets.local)} there still serving while terminating")
    return tuple(sentences)


def _distinct(candidates: Iterable[Candidate]) -> int:
    return len({(endpoint.address, port) for endpoint, port in candidates})


def _conditions(everyone: Sequence[Candidate], ready: int) -> str:
    serving = sum(not e.ready and e.serving and e.terminating for e, _ in everyone)
    parts = [f"{ready} ready"]
    if serving:
        parts.append(f"{serving} terminating but serving")
    if other := len(everyone) - ready - serving:
        parts.append(f"{other} not usable")
    distinct = _distinct(everyone)
    repeated = f" ({distinct} distinct)" if distinct != len(everyone) else ""
    return f"the EndpointSlices list {count(len(everyone), 'endpoint')}{repeated}: {', '.join(parts)}"


def _topology(ready: Sequence[Candidate], sets: BackendSets, node: NodeConfig) -> Iterable[str]:
    distinct = _distinct(ready)
    where = {"forNodes": f"node {node.name}", "forZones": f"zone {node.zone}"}
    if sets.topology:
        yield f"hints {sets.topology} narrow {distinct} ready to {len(sets.cluster)} for {where[sets.topology]}"
        return
    for kind, here in (("forNodes", node.name), ("forZones", node.zone)):
        hints = [endpoint.node_hints if kind == "forNodes" else endpoint.zone_hints for endpoint, _ in ready]
        if not any(hints):
            continue
        if not here:
            yield f"hints {kind} are ignored: this node's {'name' if kind == 'forNodes' else 'zone'} is not known"
        elif not all(hints):
            yield f"hints {kind} are ignored: not every ready endpoint carries them"
        else:
            yield f"hints {kind} are ignored: none names {where[kind]}"
