"""The Vagrant lab's way to the scenario table, all but ssh and the machines: hotplane's command line on every node,
agents at the end of pipes, the oracle here. The places are those of a lab of namespaces, so it is always there."""

import os
from collections import Counter
from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.netlink.links import Links
from dataplane.lab.lab import Lab
from dataplane.lab.scenarios import shares, table, verify
from dataplane.lab.spec import LabError
from dataplane.lab.vagrant.proxies import VARIANTS, MachineProxies
from dataplane.lab.vagrant.run import check_ways, run_variant, share_out
from dataplane.model.net import Family
from dataplane.oracle.decide import Verdict
from dataplane.planes.registry import mode_of
from tests.kernel.machines import Namespaces


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespaces]:
    with Lab.up(replace(table.SPEC, name=f"v{os.getpid()}", ipv6=True)) as lab:
        lab.start_echo(lab.pods, [table.TARGET_PORT])
        with Namespaces(lab, tmp_path_factory.mktemp("machines")) as found:
            yield found


@pytest.mark.parametrize("variant", ["iptables", "nftables", "ebpf", "ebpf-dsr", "ebpf-tc-tunnel"])
def test_scenario_table_through_the_command_line(machines: Namespaces, variant: str) -> None:
    cells = table.cells(table.services(machines.topology, ipv6=False), machines.topology)
    if VARIANTS[variant].lb_mode:  # which is the ebpf mode's to all but clients from outside
        cells = [cell for cell in cells if cell.source == "outside"]
    result = run_variant(machines, variant, cells, 1.0)
    assert not result.findings, "\n".join(result.findings[:20])
    assert result.cells == len(cells) == sum(result.verdicts.values())
    assert not result.said
    if variant.startswith("ebpf"):
        counted = Counter[str]()
        for way, count in result.counters.items():
            counted[way.partition(":")[2]] += count
        assert counted["flow"] + counted["forwarded"] > len(cells) / 20
        assert (counted["forwarded"] > 0) == bool(VARIANTS[variant].lb_mode)
    for node in machines.nodes:  # nothing is left behind
        with netns(node.netns):
            assert not mode_of("nftables").make().read_back()


def test_the_table_notices_a_node_without_rules(machines: Namespaces) -> None:
    services = table.services(machines.topology, ipv6=False)[:1]
    cells = table.cells(services, machines.topology)[::2]
    with MachineProxies(machines, "nftables") as proxies:
        proxies.load(table.objects(services))
        assert Verdict.DNAT in {d.verdict for d in verify.decisions(machines, proxies.oracles(), cells)}
        with netns(machines.nodes[0].netns):
            mode_of("nftables").make().cleanup()
        bare = [cell for cell in cells if cell.decides == "node1"]
        findings = verify.verify(machines, proxies, bare, patience=1.0)
        others = verify.verify(machines, proxies, [cell for cell in cells if cell not in bare])
    assert ([finding.cell for finding in findings], others) == (bare, [])


@pytest.mark.parametrize("variant", ["nftables", "ebpf", "ebpf-tc"])
def test_every_pod_has_its_share_and_sees_whom_the_oracle_says(machines: Namespaces, variant: str) -> None:
    run = share_out(machines, variant, set(Family), 1.0)
    assert [text for share in run.shares for text in share.findings] == []
    found = {(share.service, share.kind, share.family): share for share in run.shares}
    assert found.keys() == {
        (f"imbalance-{name}", kind, family)
        for name in ("local", "cluster", "tunnel", "dsr")
        for kind in ("loadBalancerIP", "nodePort")
        for family in ("ipv4", "ipv6")
    }
    total = len(shares.ENTRIES) * shares.REQUESTS
    assert {sum(share.requests.values()) for share in run.shares} == {total}
    forwards = variant.startswith("ebpf")
    for share in run.shares:
        asks = share.service.removeprefix("imbalance-")
        assert (share.kept == total) == (asks == "local" or (forwards and asks in ("tunnel", "dsr")))
        assert (share.requests["pod1-3"] == shares.REQUESTS) == (asks == "local")
    counted = Counter[str]()
    for way, count in run.counters.items():
        counted[way.partition(":")[2]] += count
    assert (counted["forwarded"] > 2 * total) == forwards


def test_shares_notice_pods_that_another_address_reaches(machines: Namespaces) -> None:
    """Judged as though the nodes knew each other, when they do not: what asks for tunnel and dsr is masqueraded."""
    services = shares.objects(machines.topology)
    with MachineProxies(machines, "ebpf") as bare, MachineProxies(machines, "ebpf", peers=True) as told:
        bare.load(services)
        for planner in told.planners.values():
            planner.update(services)
        ways = shares.ways(machines.topology, services, {Family.IPV4})
        found = shares.measure(machines, told, ways, requests=60)
    wrong = {(share.service, share.kind): len(share.findings) for share in found if share.findings}
    names, kinds = ("imbalance-tunnel", "imbalance-dsr"), ("loadBalancerIP", "nodePort")
    assert wrong == {(name, kind): len(shares.ENTRIES) for name in names for kind in kinds}


def test_a_pod_that_does_not_answer_is_named_before_any_mode_is_tried(machines: Namespaces) -> None:
    check_ways(machines, {Family.IPV4}, 1.0)
    pod = machines.nodes[1].pods[0]
    with Links(machines.nodes[1].netns) as links:
        mac = links.mac(pod.device)
    gateway, wrong = "169.254.1.1", "02:00:00:00:00:01"
    with Links(pod.netns) as links:
        links.neighbour("eth0", gateway, wrong)
        try:
            with pytest.raises(LabError, match=f"does not reach {pod.name} at {pod.addresses[Family.IPV4]} .timeout"):
                check_ways(machines, {Family.IPV4}, 0.3)
        finally:
            links.neighbour("eth0", gateway, mac)
    check_ways(machines, {Family.IPV4}, 1.0)
