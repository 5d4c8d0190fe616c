"""The scenario table, with real sockets, through each plane, against the oracle: both families, both pod routings."""

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from dataplane.lab import showcase, table, verify
from dataplane.lab.lab import Lab
from dataplane.lab.spec import PodLink, Routing
from dataplane.oracle.decide import Verdict
from tests.kernel.modes import MODES, lab_proxy

SHAPES = ((Routing.DIRECT, PodLink.VETH), (Routing.VXLAN, PodLink.BRIDGE))


@pytest.fixture(scope="module", params=SHAPES, ids=lambda shape: "-".join(shape))
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    routing, pod_link = request.param
    spec = replace(table.SPEC, name=f"table-{routing}", routing=routing, pod_link=pod_link, ipv6=True)
    with Lab.up(spec) as lab:
        lab.start_echo(lab.pods, [table.TARGET_PORT])
        yield lab


@pytest.mark.parametrize("mode", MODES)
def test_scenario_table(lab: Lab, mode: str) -> None:
    services = table.services(lab.topology, ipv6=True)
    cells = table.cells(services, lab.topology)
    with lab_proxy(lab, mode) as proxy:
        proxy.update(table.objects(services))
        verdicts = {d.verdict for d in verify.decisions(lab, proxy.oracles(), cells)}
        findings = verify.verify(lab, proxy, cells)
    assert len(cells) == len(services) * 4 * 2 * 2 * len(table.SOURCES)
    assert verdicts == {Verdict.DNAT, Verdict.REJECT, Verdict.DROP}
    assert not findings, "\n".join(map(str, findings[:20]))


@pytest.mark.parametrize("mode", MODES)
def test_the_table_notices_a_plane_that_is_not_there(lab: Lab, mode: str) -> None:
    """The table can fail: with the rules of one node removed behind the plane's back, its cells must disagree."""
    services = table.services(lab.topology, ipv6=True)[:2]
    cells = table.cells(services, lab.topology)
    with lab_proxy(lab, mode) as proxy:
        proxy.update(table.objects(services))
        proxy.nodes["node1"].cleanup()
        findings = verify.verify(lab, proxy, cells)
    assert {finding.cell for finding in findings} == {cell for cell in cells if cell.decides == "node1"}


@pytest.mark.parametrize("mode", MODES)
def test_showcase(mode: str) -> None:
    with Lab.up(replace(showcase.SPEC, name="showcase")) as lab:
        lab.start_echo(lab.pods, [8080])
        with lab_proxy(lab, mode) as proxy:
            results = showcase.run_all(lab, proxy)
    failed = [f"{scenario.name}: {result.seen}" for scenario, result in results if not result.passed]
    assert len(results) == len(showcase.SCENARIOS)
    assert not failed, "\n".join(failed)
