"""Render a plan for IPVS: virtual servers, local addresses for them, and masquerade rules."""

from collections.abc import Iterator
from typing import NamedTuple

from dataplane.model.net import Family, Protocol, host_port
from dataplane.plan.types import Frontend, Plan, PlanEntry
from dataplane.policy.endpoints import Backend
from dataplane.policy.routes import Action

TABLE = "hotplane-ipvs"
SCHEDULER = "rr"
_SERVICE = {Protocol.TCP: "-t", Protocol.UDP: "-u", Protocol.SCTP: "--sctp-service"}
_WORD = {Family.IPV4: "ip", Family.IPV6: "ip6"}
_SOURCES = ("pod", "node", "outside")


class Rendered(NamedTuple):
    """servers: input of `ipvsadm --restore`. addresses: those of virtual servers that are not the node's own.
    rules: one nftables transaction that replaces the table."""

    servers: str
    addresses: tuple[str, ...]
    rules: str


def can_render(frontend: Frontend) -> bool:
    """True if one virtual server can be this frontend: all sources get one set of backends, an empty set rejects,
    and no source is dropped or checked against ranges."""
    kinds = {(route.action, route.scope) for route in frontend.routes}
    return len(kinds) == 1 and frontend.routes.pod.action is not Action.DROP and frontend.source_ranges is None


def _destinations(frontend: Frontend, entry: PlanEntry) -> tuple[Backend, ...]:
    """Return the backends for packets from outside, which kube-proxy uses for all sources."""
    route = frontend.routes.outside
    return entry.backends(route.scope) if route.action is Action.FORWARD else ()


def _addresses(frontend: Frontend, plan: Plan) -> Iterator[str]:
    """Return the addresses of a frontend: its own, or the node's for a node port."""
    family = frontend.key.family
    if frontend.key.address:
        yield frontend.key.address
    else:
        here = plan.node.addresses if plan.node.nodeports.any_local else plan.node.nodeports.addresses
        yield from (address for address in here if (":" in address) == (family is Family.IPV6))


def _servers(plan: Plan) -> Iterator[str]:
    for frontend, entry in plan.frontends():
        for address in _addresses(frontend, plan):
            server = f"{_SERVICE[frontend.key.protocol]} {host_port(address, frontend.key.port)}"
            affinity = f" -p {entry.affinity_seconds}" if entry.affinity_seconds else ""
            yield f"-A {server} -s {SCHEDULER}{affinity}"
            for backend in _destinations(frontend, entry):
                yield f"-a {server} -r {host_port(backend.address, backend.port)} -m -w 1"


def _set(family: Family, name: str, key: str, elements: list[str]) -> str:
    listed = f" elements = {{ {', '.join(elements)} }}" if elements else ""
    return f"  set {name}-{family.name.lower()} {{ type {key};{listed}\n  }}"


def _family_rules(plan: Plan, family: Family) -> tuple[list[str], dict[str, list[str]]]:
    """The sets of a family, and its rules by chain."""
    word, name = _WORD[family], family.name.lower()
    address = "ipv4_addr" if family is Family.IPV4 else "ipv6_addr"
    masqueraded: dict[str, list[str]] = {source: [] for source in _SOURCES}
    own: dict[str, None] = {}
    for frontend, entry in plan.frontends():
        if frontend.key.family is not family:
            continue
        own |= {backend.address: None for backend in _destinations(frontend, entry) if backend.local}
        for ip in _addresses(frontend, plan):
            for source in _SOURCES:
                if getattr(frontend.routes, source).masquerade:
                    masqueraded[source].append(f"{ip} . {frontend.key.protocol.text} . {frontend.key.port}")
    key = f"{address} . inet_proto . inet_service"
    sets = [_set(family, source, key, elements) for source, elements in masqueraded.items()]
    sets.append(_set(family, "itself", f"{address} . {address}", [f"{ip} . {ip}" for ip in own]))
    mark, to = f"{plan.node.masquerade_mark:#x}", f"{word} daddr . meta l4proto . th dport"

    def marks(source: str) -> str:
        return f"{to} @{source}-{name} meta mark set meta mark | {mark}"

    cidrs = [cidr for cidr in plan.node.detector.cidrs if (":" in cidr) == (family is Family.IPV6)]
    pods = f"{word} saddr {{ {', '.join(cidrs)} }}" if cidrs else f"{word} saddr != {word} saddr"
    not_pods = pods.replace("saddr {", "saddr != {") if cidrs else ""
    return sets, {
        "prerouting": [f"{pods} {marks('pod')}", f"{not_pods} {marks('outside')}"] if cidrs else [marks("outside")],
        "output": [marks("node")],
        "postrouting": [f"{word} saddr . {word} daddr @itself-{name} masquerade fully-random"],
    }


def _rules(plan: Plan) -> str:
    sets: list[str] = []
    chains: dict[str, list[str]] = {"prerouting": [], "output": [], "postrouting": []}
    for family in Family:
        more, rules = _family_rules(plan, family)
        sets += more
        for chain, lines in rules.items():
            chains[chain] += lines
    mark = f"{plan.node.masquerade_mark:#x}"
    # Cleared, as kube-proxy does: a VXLAN packet inherits the mark of what it carries, and must keep its own address.
    taken = f"meta mark & {mark} == {mark} meta mark set meta mark ^ {mark}"
    chains["postrouting"].append(f"{taken} masquerade fully-random")
    hooks = {
        "prerouting": "type filter hook prerouting priority -101;",
        "output": "type filter hook output priority -101;",
        "postrouting": "type nat hook postrouting priority 100;",
    }
    body = [f"  chain {name} {{ {hooks[name]}\n    " + "\n    ".join(lines) + "\n  }" for name, lines in chains.items()]
    return "\n".join(
        [f"table inet {TABLE} {{ }}", f"delete table inet {TABLE}", f"table inet {TABLE} {{", *sets, *body, "}", ""]
    )


def render(plan: Plan) -> Rendered:
    """Render the part of a plan that IPVS can express. Pure; O(size of the plan)."""
    found = {a: None for frontend, _ in plan.frontends() if frontend.key.address for a in _addresses(frontend, plan)}
    servers = "".join(f"{line}\n" for line in _servers(plan))
    return Rendered(servers, tuple(a for a in found if a not in plan.node.addresses), _rules(plan))
