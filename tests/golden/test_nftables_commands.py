"""Plan in, exact commands out: what the nftables plane sends for a load, for a change, and for the way back to nothing.

The files in `nftables/` are the expected texts. No kernel: recording fakes for both handles
take the transactions, and elements that go as netlink messages are recorded as the commands that say the same.
HOTPLANE_UPDATE_GOLDEN=1 in the environment rewrites them.
"""

import os
from collections.abc import Iterable
from pathlib import Path

import pytest

from dataplane.kernel.nft.transaction import Nft
from dataplane.model.net import Family, Protocol
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, Plan, PlanEntry, SourceRanges
from dataplane.planes.nftables.elements.transaction import add_commands, delete_commands
from dataplane.planes.nftables.netlink.fields import Element, Layouts
from dataplane.planes.nftables.netlink.store import ElementStore
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.planes.nftables.rules.syntax import syntax_for
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses
from dataplane.policy.routes import cluster_ip_routes, external_routes

FILES = Path(__file__).parent / "nftables"

ADDRESSES = {
    Family.IPV4: ("10.96.0.1", "198.51.100.7", "10.244.0.{}", "192.0.2.0/24"),
    Family.IPV6: ("fd96::1", "2001:db8:7::7", "fd10::{}", "2001:db8::/64"),
}
NODE = NodeConfig(
    name="here",
    addresses=("192.168.0.2", "fd00::2"),
    detector=LocalDetector(("10.244.0.0/16", "fd10::/16")),
    nodeports=NodePortAddresses(addresses=("192.168.0.2", "fd00::2")),
)


class Recorder(Nft):
    """Takes transactions without a kernel."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def run(self, transaction: str) -> None:
        self.sent.append(transaction)

    def take(self) -> str:
        """All transactions since the last time, with a line between two."""
        text = "# and then\n".join(self.sent)
        self.sent.clear()
        return text


class RecorderStore(ElementStore):
    """Takes transactions of elements without a kernel."""

    def __init__(self, recorder: Recorder) -> None:
        self._all = Layouts(syntax_for(family, "hotplane") for family in Family)
        self._recorder = recorder

    def change(
        self,
        removed: Iterable[Element],
        added: Iterable[tuple[Element, bytes]],
        ahead: str = "",
        behind: str = "",
    ) -> None:
        elements = delete_commands(self._all, removed) + add_commands(self._all, added)
        self._recorder.run(ahead + elements + behind)

    def has_table(self, target: str) -> bool:
        return False


def backends(family: Family, *numbers: int) -> tuple[Backend, ...]:
    pattern = ADDRESSES[family][2]
    return tuple(Backend(pattern.format(number), 8080, number % 2 == 0) for number in numbers)


def service(family: Family, numbers: tuple[int, ...], affinity: int = 0) -> PlanEntry:
    """A Service of type LoadBalancer with policy Local, source ranges and a node port; even endpoints are local."""
    vip, ingress, _, ranges = ADDRESSES[family]
    cluster = backends(family, *numbers)
    local = tuple(backend for backend in cluster if backend.local)
    inside = cluster_ip_routes(
        has_cluster=bool(cluster), has_local=bool(local), internal_local=False, detects_pods=True, masquerade_all=False
    )
    outside = external_routes(has_cluster=bool(cluster), has_local=bool(local), external_local=True)

    def key(address: str, port: int) -> FrontendKey:
        return FrontendKey(family, address, Protocol.TCP, port)

    frontends = (
        Frontend(FrontendKind.CLUSTER_IP, key(vip, 80), inside),
        Frontend(
            FrontendKind.LOAD_BALANCER, key(ingress, 80), outside, SourceRanges((ranges, f"{ingress}/{family.bits}"))
        ),
        Frontend(FrontendKind.NODE_PORT, key("", 30080), outside),
    )
    return PlanEntry(
        EntryKey("shop", "web", "http", Protocol.TCP, family), cluster, local, frontends, affinity, False, True
    )


def check(name: str, text: str) -> None:
    path = FILES / f"{name}.nft"
    if os.environ.get("HOTPLANE_UPDATE_GOLDEN"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("affinity", [0, 10800])
def test_load_change_and_back_to_nothing(family: Family, affinity: int) -> None:
    recorder = Recorder()
    plane = NftablesPlane(families=(family,), nft=recorder, store=RecorderStore(recorder))
    name = f"ipv{family.value}-{'sticky' if affinity else 'plain'}"

    first = service(family, (2, 3, 4), affinity)
    plane.load(Plan(NODE, {first.key: first}, ("10.96.0.0/16", "fd96::/112")))
    check(f"{name}-1-load", recorder.take())

    # One endpoint goes, another comes: only what names them changes.
    second = service(family, (2, 4, 5), affinity)
    plane.apply(PlanChange((EntryChange(first, second),)))
    check(f"{name}-2-change", recorder.take())

    # Nobody is left: every frontend rejects, and all that was shared goes.
    third = service(family, (), affinity)
    plane.apply(PlanChange((EntryChange(second, third),)))
    check(f"{name}-3-nobody", recorder.take())

    plane.apply(PlanChange((EntryChange(third, None),)))
    check(f"{name}-4-gone", recorder.take())


def test_a_change_that_changes_nothing_sends_nothing() -> None:
    recorder = Recorder()
    plane = NftablesPlane(nft=recorder, store=RecorderStore(recorder))
    plane.load(Plan(NODE))
    recorder.take()
    plane.apply(PlanChange())
    assert recorder.sent == []
