"""The nftables mode's entry in the registry."""

from collections.abc import Iterable, Sequence

from dataplane.oracle.types import Decision
from dataplane.planes.base import Plane
from dataplane.planes.finding import Finding
from dataplane.planes.mode import PLAIN, Making, Mode
from dataplane.planes.options import PlaneOptions
from dataplane.planes.path import At, Step
from dataplane.planes.rights import NET_ADMIN
from dataplane.policy.node import NodeConfig
from dataplane.policy.settings import Promises


class NftablesMode(Mode):
    """The mode that keeps Services as elements of nftables maps."""

    name = "nftables"
    promises = Promises.NFTABLES
    needs = (NET_ADMIN,)
    why_no_ping = ""
    why_no_flowtable = ""
    tables = frozenset(
        {
            *((family, f"hotplane{suffix}") for family in ("ip", "ip6") for suffix in ("", "-ping", "-stand-in")),
            ("ip", "hotplane-localnet"),
        }
    )

    def make(self, making: Making = PLAIN) -> Plane:
        """See Mode.make."""
        from dataplane.planes.nftables.plane import NftablesPlane

        return NftablesPlane(loaded_for=making.loaded_for, watch=making.watch, warn=making.warn, mended=making.mended)

    def check_kernel(self, node: NodeConfig) -> None:
        """See Mode.check_kernel: flowtables."""
        from dataplane.planes.nftables.plane import NftablesPlane

        NftablesPlane().check_kernel(node)

    def prepare(self, node: NodeConfig, options: PlaneOptions) -> None:
        """Compile the rules, for which libnftables gets a network namespace of its own, and what node ports on
        127.0.0.0/8 need, a writable /proc/sys."""
        from dataplane.planes.nftables.rules.library import compile_ahead

        self.check_kernel(node)
        compile_ahead(node)
        if node.nodeports.loopback:
            self.lead_from_loopback()

    def lead_from_loopback(self) -> None:
        """See Mode.lead_from_loopback."""
        from dataplane.planes.nftables.plane import NftablesPlane

        NftablesPlane().lead_from_loopback()

    def keep_loopback_open(self) -> None:
        """See Mode.keep_loopback_open. A table of its own guards it."""
        from dataplane.planes.nftables.localnet import keep_open

        keep_open()

    def findings(self, options: PlaneOptions) -> Iterable[Finding]:
        """See Mode.findings."""
        from dataplane.planes.nftables.probe import probe_nft

        return probe_nft()

    def path(self, decision: Decision, at: At) -> Sequence[Step]:
        """See Mode.path: maps, their elements, and chains."""
        from dataplane.planes.nftables.path import path

        return path(decision, at)


MODE: Mode = NftablesMode()
