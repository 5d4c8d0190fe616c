"""Report of what this node forwards with the client's address kept, to whom, and why not to others."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ctl.store import forwarding, state
from ctl.store.forwarding import SavedForwarding
from dataplane.errors import HotplaneError
from dataplane.plan.types import Plan, PlanEntry
from dataplane.planes.finding import Finding, Status
from dataplane.planes.mode import Mode
from dataplane.policy.dispatch import alike
from dataplane.policy.forwarding import Dispatch, Forwarding

_NAME = "forwarding"
_ADVICE = "see docs/semantics.md, Forwarding with the client's address"
_RIGHTS = "kubectl apply -f docs/deploy/forwarding-role.yaml, or name the nodes with --lb-peer"


def probe_forwarding(mode: Mode, state_dir: Path) -> Iterator[Finding]:
    """One finding for the plan, and with a daemon one for what this node announces and one for each other node; none
    where nothing asks for forwarding, or where the mode is not what is loaded."""
    try:
        saved = state.load(state_dir)
        if saved is None or saved.mode != mode.name or saved.node.snat_only:
            return
        plan, said = saved.plan(), forwarding.load(state_dir)
    except HotplaneError as error:
        yield Finding(mode.name, _NAME, Status.LIMITED, f"cannot be told: {error}")
        return
    asked = [entry for entry in plan.entries.values() if entry.forwarding is not Forwarding.SNAT]
    if not asked and not plan.tunnel_peers and (said is None or not said.asked):
        return
    yield of_plan(mode.name, plan)
    if said is not None:
        yield from of_nodes(mode.name, said)


def of_plan(area: str, plan: Plan) -> Finding:
    entries = [entry for entry in plan.entries.values() if entry.forwarding is not Forwarding.SNAT]
    backends = [t for entry in entries for b, t in zip(entry.cluster, entry.tunnels, strict=True) if not b.local]
    forwarded, nodes = sum(map(bool, backends)), len(set(filter(None, backends)))
    peers = len(plan.tunnel_peers)
    detail = (
        f"--lb-mode {plan.node.lb_mode.value}; {len(entries)} Service ports ask for more than SNAT; of their "
        f"{len(backends)} backends elsewhere {forwarded} are forwarded to, by {nodes} nodes; packets are taken from "
        f"{peers} addresses ({plan.node.offer}); --lb-dispatch {plan.node.lb_dispatch.value}{_in_vxlan(plan, entries)}"
    )
    if forwarded == len(backends):
        return Finding(area, _NAME, Status.OK, detail)
    return Finding(area, _NAME, Status.LIMITED, f"{detail}; the others get SNAT", _ADVICE)


def _in_vxlan(plan: Plan, entries: Sequence[PlanEntry]) -> str:
    """Return who gets something else than what this node is to send, or nothing."""
    if plan.node.lb_dispatch is Dispatch.VXLAN:
        return ""
    others = {t for entry in entries for t in entry.tunnels if t and t not in plan.tunnel_formats}
    text = f", VXLAN to {', '.join(sorted(others))}, which say nothing of it" if others else ""
    pairs = ((zip(e.cluster, e.tunnels, strict=True), e.key.protocol) for e in entries)
    same = sum(len(alike(ways, plan.tunnel_formats, protocol)) for ways, protocol in pairs)
    return text + (f", VXLAN to {same} backends that {plan.node.lb_dispatch.title} cannot tell apart" if same else "")


def of_nodes(area: str, said: SavedForwarding) -> Iterator[Finding]:
    """Yield what this node announces, where anything asks for it, and each other node."""
    if said.asked:
        own = f"{_NAME}, this node"
        if said.announced and not said.why:
            yield Finding(area, own, Status.OK, f"announces {said.announced}")
        else:
            why = said.why or "not announced yet"
            yield Finding(area, own, Status.LIMITED, f"other nodes use SNAT towards it: {why}", _RIGHTS)
    for node in said.nodes:
        name = f"{_NAME}, node {node.name}"
        if node.why:
            yield Finding(area, name, Status.LIMITED, f"gets SNAT: {node.why}", _ADVICE)
        else:
            yield Finding(
                area, name, Status.OK, f"forwarded to, and from, by {', '.join(node.addresses)}, in {node.dispatch}"
            )
