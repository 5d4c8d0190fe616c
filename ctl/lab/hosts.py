"""Names inside a lab: /etc/hosts of what `lab exec` runs, with its places and the Services that are loaded.

A Service's names are those of a cluster's DNS (github.com/kubernetes/dns, specification 1.1.0): name.namespace, with
.svc and .svc.cluster.local behind it too; one of the namespace default by its name alone, as its own pods see it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path

from ctl.output import notify
from ctl.store import state
from dataplane.kernel.namespaces import netns
from dataplane.lab.lab import Lab
from dataplane.plan.types import FrontendKind, Plan

DOMAIN = "cluster.local"
HERE = "default"
_LOCALHOST = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def hosts(lab: Lab, state_dir: Path) -> str:
    """The file's text. Services as the first node that has any knows them; where that cannot be read, there are none,
    and it is told."""
    lines = [f"{address}\t{place.name}" for place in lab.topology.places() for address in place.addresses.values()]
    taken = {place.name for place in lab.topology.places()}
    for node in lab.nodes:
        try:
            with netns.netns(node.netns):
                saved = state.load(state_dir)
        except state.StateError as error:
            notify(f"hotplane: Services have no names in here: {error}")
            break
        if saved is not None:
            lines += service_lines(saved.plan(), taken)
            break
    return _LOCALHOST + "\n".join(lines) + "\n"


def service_lines(plan: Plan, taken: Iterable[str]) -> Iterator[str]:
    """One line a clusterIP. taken: names that are somebody else's already."""
    seen: set[str] = set()
    for frontend, entry in plan.frontends():
        if frontend.kind is not FrontendKind.CLUSTER_IP or frontend.key.address in seen:
            continue
        seen.add(frontend.key.address)
        full = f"{entry.key.name}.{entry.key.namespace}"
        short = [entry.key.name] if entry.key.namespace == HERE and entry.key.name not in taken else []
        yield "\t".join((frontend.key.address, " ".join([*short, full, f"{full}.svc", f"{full}.svc.{DOMAIN}"])))
