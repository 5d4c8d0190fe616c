"""The scenario table with connect-time balancing over the nftables plane: whichever of the two serves a client, the
oracle must be right about what it sees."""

import re
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from dataplane.lab import showcase, table, verify
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.spec import Node, PodLink, Routing
from dataplane.planes.base import Plane
from dataplane.planes.ebpf.layout import constant, hook_names, reason_names
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.ebpf.programs import ConnectHook
from dataplane.planes.ebpf.sockets import SocketCleaner
from dataplane.planes.nftables.plane import NftablesPlane
from tests.kernel.ebpf_lab import SMALL

SHAPES = ((Routing.DIRECT, PodLink.VETH), (Routing.VXLAN, PodLink.BRIDGE))


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: "-".join(shape))
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    routing, pod_link = request.param
    spec = replace(table.SPEC, name=f"connect-{routing}", routing=routing, pod_link=pod_link, ipv6=True)
    with Lab.up(spec) as lab:
        lab.start_echo(lab.pods, [table.TARGET_PORT])
        yield lab


def _proxy(lab: Lab, kube_proxy_masquerade: bool) -> LabProxy:
    def make(lab: Lab, node: Node) -> Plane:
        group = lab.cgroup(node.name)
        return EbpfPlane(
            NftablesPlane(),
            [ConnectHook(group)],
            SMALL,
            kube_proxy_masquerade=kube_proxy_masquerade,
            cleaner=SocketCleaner(group),
        )

    return LabProxy(lab, "ebpf", make)


def _counted(proxy: LabProxy, hook: str, reason: str) -> int:
    index = hook_names().index(hook) * constant("REASON_COUNT") + reason_names().index(reason)
    planes = [node.plane for node in proxy.nodes.values()]
    return sum(
        int.from_bytes(value, "little")
        for plane in planes
        if isinstance(plane, EbpfPlane)
        for value in plane.tables.maps.per_cpu("counters", index)
    )


def _hairpin_with_own_address(lab: Lab, finding: verify.Finding) -> bool:
    """A pod that is balanced to itself at connect time talks to itself directly: no masquerade is needed or made."""
    place, own = finding.cell.place, verify.source_address(lab, finding.cell)
    return re.fullmatch(rf"{place} saw {re.escape(own)} \d+x", finding.seen) is not None


def test_scenario_table(lab: Lab) -> None:
    services = table.services(lab.topology, ipv6=True)
    cells = table.cells(services, lab.topology)
    with _proxy(lab, kube_proxy_masquerade=True) as proxy:
        proxy.update(table.objects(services))
        findings = verify.verify(lab, proxy, cells)
        balanced = _counted(proxy, "connect", "connected")
    wrong = [finding for finding in findings if not _hairpin_with_own_address(lab, finding)]
    assert not wrong, "\n".join(map(str, wrong[:20]))
    assert balanced > len(cells)  # most cells have several attempts, and every pod and node is a client in many


def test_showcase(lab: Lab) -> None:
    with Lab.up(replace(showcase.SPEC, name="connect-show")) as shown:
        shown.start_echo(shown.pods, [8080])
        with _proxy(shown, kube_proxy_masquerade=True) as proxy:
            results = showcase.run_all(shown, proxy)
    failed = {scenario.name: result.seen for scenario, result in results if not result.passed}
    assert len(results) == len(showcase.SCENARIOS)
    # The pod that is balanced to itself keeps its address, as all its clients do: it talks to itself directly.
    hairpin = re.fullmatch(r"itself sees (\S+), others see (\S+)", failed.pop("hairpin", ""))
    assert hairpin is not None
    assert hairpin[1] == hairpin[2]
    assert not failed
