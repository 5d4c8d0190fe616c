"""Rules that do not depend on any Service: the jumps from the built-in chains, marking, masquerading, forwarding.

All rule text of this package is in the form that iptables-save prints, so that rules sent and read back can be compared
as text. kube-proxy's rules differ in the order of options, but are equivalent.
"""

from typing import NamedTuple

from dataplane.planes.iptables.rules import names
from dataplane.planes.iptables.settings import FamilySettings


class Jump(NamedTuple):
    """A jump from a built-in chain to one of ours; `match` ends in a space or is empty."""

    table: str
    source: str
    match: str
    target: str

    @property
    def rule(self) -> str:
        """Return the rule without its verb: `INPUT ... -j KUBE-...`."""
        return f"{self.source} {self.match}-j {self.target}"


_NEW = "-m conntrack --ctstate NEW "


def _comment(text: str) -> str:
    return f'-m comment --comment "{text}" '


_EXTERNAL = _NEW + _comment("kubernetes externally-visible service portals")
_PORTALS = _comment("kubernetes service portals")
_LB_FIREWALL = _NEW + _comment("kubernetes load balancer firewall")

# In kube-proxy's order; each is put at the top of its chain, so that the last one here ends up first there.
JUMPS = (
    Jump("filter", "INPUT", _EXTERNAL, names.EXTERNAL_SERVICES),
    Jump("filter", "FORWARD", _EXTERNAL, names.EXTERNAL_SERVICES),
    Jump("filter", "INPUT", _comment("kubernetes health check service ports"), names.NODEPORTS),
    Jump("filter", "FORWARD", _NEW + _PORTALS, names.SERVICES),
    Jump("filter", "OUTPUT", _NEW + _PORTALS, names.SERVICES),
    Jump("filter", "FORWARD", _comment("kubernetes forwarding rules"), names.FORWARD),
    Jump("filter", "INPUT", _LB_FIREWALL, names.PROXY_FIREWALL),
    Jump("filter", "OUTPUT", _LB_FIREWALL, names.PROXY_FIREWALL),
    Jump("filter", "FORWARD", _LB_FIREWALL, names.PROXY_FIREWALL),
    Jump("nat", "OUTPUT", _PORTALS, names.SERVICES),
    Jump("nat", "PREROUTING", _PORTALS, names.SERVICES),
    Jump("nat", "POSTROUTING", _comment("kubernetes postrouting rules"), names.POSTROUTING),
    Jump("filter", "INPUT", "", names.FIREWALL),
    Jump("filter", "OUTPUT", "", names.FIREWALL),
)

# The mitigation that must stand beside route_localnet=1, else neighbours could reach this node's loopback addresses.
LOCALNET_RULE = (
    f"-A {names.FIREWALL} ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "
    '"block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP'
)

_NODEPORTS_LAST = _comment("kubernetes service nodeports; NOTE: this must be the last rule in this chain")


def nat_head(settings: FamilySettings) -> list[str]:
    """KUBE-POSTROUTING and KUBE-MARK-MASQ: masquerade what is marked, with a random source port, and clear the mark."""
    mark = settings.mark
    return [
        f"-A {names.POSTROUTING} -m mark ! --mark {mark}/{mark} -j RETURN",
        f"-A {names.POSTROUTING} -j MARK --set-xmark {mark}/0x0",
        f"-A {names.POSTROUTING} {_comment('kubernetes service traffic requiring SNAT')}-j MASQUERADE --random-fully",
        f"-A {names.MARK_MASQ} -j MARK --set-xmark {mark}/{mark}",
    ]


def nat_tail(settings: FamilySettings) -> list[str]:
    """Return the jumps to KUBE-NODEPORTS, which must come after all Services."""
    return [
        f"-A {names.SERVICES} {destination}{_NODEPORTS_LAST}{match}-j {names.NODEPORTS}"
        for destination, match in settings.node_port_destinations
    ]


def filter_head(settings: FamilySettings) -> list[str]:
    """Return the localnet rule, if node ports answer on loopback addresses."""
    return [LOCALNET_RULE] if settings.localhost_node_ports else []


def filter_tail(settings: FamilySettings) -> list[str]:
    """KUBE-FORWARD: drop invalid packets (unless conntrack is liberal), let Service traffic through."""
    mark = settings.mark
    invalid = [] if settings.tcp_be_liberal else [f"-A {names.FORWARD} -m conntrack --ctstate INVALID -j DROP"]
    return [
        *invalid,
        f"-A {names.FORWARD} {_comment('kubernetes forwarding rules')}-m mark --mark {mark}/{mark} -j ACCEPT",
        f"-A {names.FORWARD} {_comment('kubernetes forwarding conntrack rule')}"
        "-m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT",
    ]


def chain_lines(chains: tuple[str, ...]) -> list[str]:
    """Return chain lines, each of which creates or flushes its chain in a restore."""
    return [f":{chain} - [0:0]" for chain in chains]
