"""The Services of a plan as the page lists them."""

from collections.abc import Iterable, Sequence

from ctl.ui.view import MOST_SERVICES, FrontendShown, ServiceShown, ServicesShown
from dataplane.model.net import Family, host_port
from dataplane.plan.types import Frontend, Plan

NodeAddress = tuple[str, str]
"""A node's name and an address of it."""


def services_of(plan: Plan, search: str, nodes: Sequence[NodeAddress]) -> ServicesShown:
    """Services whose names hold a text, without case, by name; a node port at each of these nodes' addresses."""
    wanted = search.casefold()
    found: dict[str, list[FrontendShown]] = {}
    endpoints: dict[str, dict[str, None]] = {}
    for entry in plan.entries.values():
        name = entry.key.service
        if wanted not in name.casefold():
            continue
        found.setdefault(name, []).extend(each for f in entry.frontends for each in _shown(f, nodes))
        endpoints.setdefault(name, {}).update(dict.fromkeys(map(str, sorted({*entry.cluster, *entry.local}))))
    names = sorted(found)
    shown = [ServiceShown(name, tuple(found[name]), tuple(endpoints[name])) for name in names[:MOST_SERVICES]]
    return ServicesShown(tuple(shown), len(names))


def _shown(frontend: Frontend, nodes: Sequence[NodeAddress]) -> Iterable[FrontendShown]:
    key = frontend.key
    for name, address in [("", key.address)] if key.address else nodes:
        if key.address or (Family.IPV6 if ":" in address else Family.IPV4) is key.family:
            destination = f"{host_port(address, key.port)}/{key.protocol.text}"
            yield FrontendShown(frontend.kind.value, destination, name)
