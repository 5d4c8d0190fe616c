"""The scenario table with packet programs alone, no connect-time balancing: tc, and tc with XDP on the uplinks. The
nftables plane underneath serves what they pass on; the oracle must be right about whatever is seen."""

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from dataplane.lab import table, verify
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.spec import Node, PodLink, Routing
from dataplane.planes.base import Plane
from dataplane.planes.ebpf import views
from dataplane.planes.ebpf.hooks import PacketHook
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.nftables.plane import NftablesPlane
from tests.kernel.ebpf_lab import SMALL

SIZES = replace(SMALL, pending=65536, connections=65536)
SHAPES = ((Routing.DIRECT, PodLink.VETH), (Routing.VXLAN, PodLink.BRIDGE))


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: "-".join(shape))
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    routing, pod_link = request.param
    spec = replace(table.SPEC, name=f"packets-{routing}", routing=routing, pod_link=pod_link, ipv6=True)
    with Lab.up(spec) as lab:
        lab.start_echo(lab.pods, [table.TARGET_PORT])
        yield lab


def _proxy(lab: Lab, *, xdp: bool) -> LabProxy:
    def make(lab: Lab, node: Node) -> Plane:
        return EbpfPlane(NftablesPlane(), [PacketHook(xdp=xdp)], SIZES, kube_proxy_masquerade=True)

    return LabProxy(lab, "ebpf", make)


def _counted(proxy: LabProxy) -> dict[str, int]:
    """Counters of all nodes together, `hook:reason`."""
    found: dict[str, int] = {}
    for node in proxy.nodes.values():
        plane = node.plane
        assert isinstance(plane, EbpfPlane)
        for hook, reasons in views.counters(plane.tables.maps).items():
            for reason, number in reasons.items():
                found[f"{hook}:{reason}"] = found.get(f"{hook}:{reason}", 0) + number
    return found


@pytest.mark.parametrize("xdp", [False, True], ids=["tc", "xdp"])
def test_scenario_table(lab: Lab, xdp: bool) -> None:
    services = table.services(lab.topology, ipv6=True)
    cells = table.cells(services, lab.topology)
    with _proxy(lab, xdp=xdp) as proxy:
        proxy.update(table.objects(services))
        findings = verify.verify(lab, proxy, cells)
        counted = _counted(proxy)
    assert not findings, "\n".join(map(str, findings[:20])) + f"\n{counted}"
    assert counted["tc_ingress:new_flow"] > len(cells) / 2
    if xdp:
        assert counted["xdp:left_to_tc"]
    if xdp and lab.spec.routing is Routing.DIRECT:  # a tunnel is no device that XDP could send to
        assert counted["xdp:new_flow"]
        assert counted["xdp:flow"]
        assert counted["xdp:reply"]
