"""The iptables mode's entry in the registry."""

from collections.abc import Iterable, Sequence

from dataplane.model.net import Family
from dataplane.oracle.types import Decision
from dataplane.planes.base import Plane
from dataplane.planes.finding import Finding
from dataplane.planes.mode import PLAIN, Making, Mode
from dataplane.planes.options import PlaneOptions
from dataplane.planes.path import At, Step
from dataplane.planes.registry import mode_of
from dataplane.planes.rights import NET_ADMIN, NET_RAW
from dataplane.policy.node import NodeConfig
from dataplane.policy.settings import Promises


class IptablesMode(Mode):
    """kube-proxy's iptables mode, to the letter."""

    name = "iptables"
    promises = Promises.IPTABLES
    needs = (NET_ADMIN, NET_RAW)
    kube_proxy_chains = True
    tcp_be_liberal = True
    why_no_ping = "has kube-proxy's rules to the letter, and they answer no ping"
    why_no_flowtable = "has kube-proxy's rules to the letter, and they have no flowtable"
    tables = frozenset((family, "hotplane-capture") for family in ("ip", "ip6"))

    def make(self, making: Making = PLAIN) -> Plane:
        """See Mode.make."""
        from dataplane.planes.iptables.plane import IptablesPlane

        return IptablesPlane(loaded_for=making.loaded_for, tcp_be_liberal=making.tcp_be_liberal)

    def prepare(self, node: NodeConfig, options: PlaneOptions) -> None:
        """Set the sysctl for node ports on 127.0.0.0/8, with the nftables mode's guard, since this mode's chains do not
        exist yet."""
        if node.nodeports.loopback:
            mode_of("nftables").lead_from_loopback()

    def keep_loopback_open(self) -> None:
        """See Mode.keep_loopback_open. The localnet rule is the guard."""
        from dataplane.kernel.iptables import KernelTables, Variant, installed
        from dataplane.kernel.sysctl import ROUTE_LOCALNET, ensure
        from dataplane.planes.iptables.rules.skeleton import LOCALNET_RULE

        variants = [KernelTables(Family.IPV4, variant) for variant in Variant if installed(Family.IPV4, variant)]
        if any("filter" in tables.present() and LOCALNET_RULE in tables.save("filter") for tables in variants):
            ensure(ROUTE_LOCALNET, 1)

    def findings(self, options: PlaneOptions) -> Iterable[Finding]:
        """See Mode.findings."""
        from dataplane.planes.iptables.probe import probe_xtables

        return probe_xtables()

    def path(self, decision: Decision, at: At) -> Sequence[Step]:
        """See Mode.path: the chains."""
        from dataplane.planes.iptables.path import path

        return path(decision, at)


MODE: Mode = IptablesMode()
