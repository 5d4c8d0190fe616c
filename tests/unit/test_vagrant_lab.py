"""The Vagrant lab, as far as it can be told without machines: settings, commands over ssh, manifests, report."""

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from dataplane.lab.scenarios import table
from dataplane.lab.scenarios.manifests import manifest
from dataplane.lab.scenarios.shares import Share
from dataplane.lab.spec import LabError, LabSpec, LabSpecError, PodLink, Routing, topology
from dataplane.lab.traffic.agents import Agents
from dataplane.lab.traffic.probe import Probe
from dataplane.lab.vagrant.machine import on_uplink
from dataplane.lab.vagrant.machines import HOME, Machines
from dataplane.lab.vagrant.proxies import VARIANTS
from dataplane.lab.vagrant.report import BenchRun, Facts, Report, SharesRun, TableRun, earlier, markdown, write
from dataplane.lab.vagrant.settings import defaults, settings
from dataplane.model.decode import decode
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import (
    EndpointPort,
    EndpointSlice,
    ModelObject,
    Node,
    Service,
    ServicePortSpec,
    ServiceType,
    make_endpoint,
)


def test_settings_default_to_a_lab_that_the_table_fits_into() -> None:
    found = settings({})
    assert found.spec == LabSpec(nodes=2, pods=3, ipv6=True)
    assert (found.spec.nodes, found.spec.pods) >= (table.SPEC.nodes, table.SPEC.pods)
    assert found.slowness == 1.0


def test_settings_come_from_the_environment() -> None:
    found = settings(
        {
            "HOTPLANE_VM_NODES": "4",
            "HOTPLANE_VM_PODS": "5",
            "HOTPLANE_VM_ROUTING": "vxlan",
            "HOTPLANE_VM_POD_LINK": "bridge",
            "HOTPLANE_VM_IPV6": "no",
            "HOTPLANE_VM_SLOWNESS": "10",
            "HOTPLANE_VM_DRIVER": "qemu",
        }
    )
    assert found.spec == LabSpec(nodes=4, pods=5, routing=Routing.VXLAN, pod_link=PodLink.BRIDGE)
    assert (found.slowness, found.driver) == (10.0, "qemu")


@pytest.mark.parametrize(
    ("name", "value"), [("NODES", "two"), ("NODES", "0"), ("ROUTING", "bgp"), ("IPV6", "true"), ("SLOWNESS", "-1")]
)
def test_a_wrong_setting_is_named(name: str, value: str) -> None:
    with pytest.raises(LabError, match=name if value != "0" else "0 nodes"):
        settings({f"HOTPLANE_VM_{name}": value})


def test_the_vagrantfile_and_the_scripts_use_only_settings_that_there_are() -> None:
    folder = Path(__file__).parents[2] / "vagrant"
    vagrantfile = (folder / "Vagrantfile").read_text()
    known = defaults()
    used = {word for part in vagrantfile.split('setting("')[1:] for word in [part.partition('"')[0]]}
    used |= {word for part in vagrantfile.split('number("')[1:] for word in [part.partition('"')[0]]}
    assert used
    assert used <= known.keys()
    for name in known:
        assert name in vagrantfile or name == "SLOWNESS"  # which is this side's alone


def test_places_are_reached_on_their_machines(tmp_path: Path) -> None:
    machines = Machines(LabSpec(nodes=2, pods=3), tmp_path / "config")

    def last_words(place: str) -> tuple[str, list[str]]:
        *_, machine, command = machines.command(place, ["echo", "a b"])
        return machine, shlex.split(command)

    assert last_words("node2") == ("node2", ["sudo", "echo", "a b"])
    assert last_words("pod2-1") == ("node2", ["sudo", "ip", "netns", "exec", "hp-lab-pod2-1", "echo", "a b"])
    assert last_words("client") == ("client", ["sudo", "ip", "netns", "exec", "hp-lab-client", "echo", "a b"])
    assert last_words("net") == ("client", ["sudo", "echo", "a b"])
    with pytest.raises(LabSpecError, match="node1"):
        machines.command("node9", ["true"])


class _Recorded(Machines):
    """Machines of which no command gets further than a list; each ends at once."""

    def __init__(self, spec: LabSpec, ssh_config: Path) -> None:
        super().__init__(spec, ssh_config)
        self.asked: list[tuple[str, str]] = []

    def command(self, where: str, argv: Sequence[str]) -> list[str]:
        self.asked.append((where, argv[-1]))
        return ["true"]


def test_each_machine_is_connected_before_its_agents_are_started(tmp_path: Path) -> None:
    """Agents that start at the same time would each make a connection, of which only one can be shared."""
    machines = _Recorded(LabSpec(nodes=2, pods=1), tmp_path / "config")
    with pytest.raises(LabError, match="agent failed"):
        machines.probe_all({place: [Probe("192.0.2.1", 1)] for place in ("pod2-1", "node2", "client")})
    agent = "dataplane.lab.traffic.agent"
    assert machines.asked == [
        ("node2", "true"), ("pod2-1", agent), ("node2", agent), ("client", "true"), ("client", agent),
    ]  # fmt: skip


def test_an_agent_that_has_ended_is_named() -> None:
    def start(name: str) -> "subprocess.Popen[bytes]":
        process = subprocess.Popen(["true"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        process.wait()
        return process

    with pytest.raises(LabError, match="pod1-1: the probe agent failed: it has ended"):
        Agents(start).probe_all({"pod1-1": [Probe("192.0.2.1", 1)]})


def test_nodes_of_machines_have_the_machines_uplink() -> None:
    plan = topology(LabSpec(nodes=2, pods=1))
    other = on_uplink(plan, "eth1")
    assert {node.uplink for node in other.nodes} == {"eth1"}
    assert on_uplink(other, "eth0") == plan


def _decoded(objects: list[ModelObject]) -> list[ModelObject]:
    found = decode(manifest(objects), "test")
    assert not found.problems
    return list(found.objects)


def test_the_table_survives_its_way_through_manifests() -> None:
    objects = table.objects(table.services(topology(replace(table.SPEC, ipv6=True)), ipv6=True))
    assert _decoded(objects) == objects


def test_every_field_survives_its_way_through_manifests() -> None:
    service = Service(
        "a", "b", ServiceType.LOAD_BALANCER, ("10.96.0.9",), ports=(ServicePortSpec("x", Protocol.SCTP, 5),),
        source_ranges=("10.0.0.0/8",), affinity_seconds=77, created="2024-01-01T00:00:00Z",
        proxied_elsewhere=True, forwarding_mode="dsr", lb_algorithm="maglev",
    )  # fmt: skip
    headless = Service("a", "h", headless=True, ports=(ServicePortSpec("", Protocol.TCP, 5),))
    endpoint = make_endpoint(
        "10.244.1.9", ready=False, serving=False, node="n", zone_hints=("z",), node_hints=("n", "m"), weight=3
    )
    endpoints = EndpointSlice(
        "a", "b-1", "b", Family.IPV4, (EndpointPort("x", Protocol.SCTP, 9),), (endpoint,), headless=True
    )
    assert _decoded([service, headless, endpoints]) == [service, headless, endpoints]


def test_kinds_that_labs_do_not_have_are_refused() -> None:
    with pytest.raises(TypeError, match="Node n"):
        manifest([Node("n")])


def test_every_mode_is_among_the_variants() -> None:
    assert {variant.mode for variant in VARIANTS.values()} >= {"iptables", "nftables", "ebpf"}
    assert HOME.startswith("/")


def test_the_report_says_what_was_run(tmp_path: Path) -> None:
    facts = Facts("6.12", "Debian", "nft v1", "iptables v1", "qemu", "box", "qemu", LabSpec())
    good = TableRun("nftables", 5, {"dnat": 5}, [], 1.4, 2.6, {}, [], {"ipv6": 2, "ipv4": 3})
    bad = TableRun(
        "ebpf", 2, {"dnat": 2}, ["cell: wanted x, saw y"], 1.0, 2.0, {"tc:flow": 3}, ["node1: no XDP"], {"ipv4": 2}
    )
    share = Share("imbalance-dsr", "nodePort", "ipv6", {"pod1-3": 3, "pod2-2": 4}, 7, [])
    wrong = replace(share, family="ipv4", kept=0, findings=["cell: wanted the client"])
    shares = SharesRun("ebpf-tc", [share, wrong], {"xdp:flow": 9}, ["node2: no XDP"])
    report = Report(facts, [good, bad], [shares], BenchRun("## Fast", msgspec.Raw(b'{"cells": []}')))
    text = markdown(report)
    assert "| mode | ipv4 cells | ipv6 cells | disagree with the oracle | load, s | probes, s |" in text
    assert "| nftables | 3 | 2 | 0 | 1 | 3 |" in text
    assert "| ebpf | 2 | 0 | 1 | 1 | 2 |" in text
    assert good.line().startswith("nftables: 3 ipv4 and 2 ipv6 cells (5 dnat)")
    assert all(word in text for word in ("wanted x, saw y", "node1: no XDP", "tc:flow 3", "## Fast", "Linux 6.12"))
    assert "as the oracle says" in good.line()
    assert "1 DISAGREE" in bad.line()
    assert "| imbalance-dsr | nodePort | ipv6 | 3 | 4 | 7 of 7 | 0 |" in text
    assert "| imbalance-dsr | nodePort | ipv4 | 3 | 4 | 0 of 7 | 1 |" in text
    assert all(word in text for word in ("## Shares, ebpf-tc", "wanted the client", "node2: no XDP", "xdp:flow 9"))
    assert shares.line() == "ebpf-tc: 14 connections by 2 ways in: 1 DISAGREE"
    assert share.line() == "imbalance-dsr, nodePort, ipv6: pod1-3 43% pod2-2 57%, 100% see the client"
    write(report, tmp_path)
    assert (tmp_path / "report.md").read_text() == text
    found = earlier(tmp_path, facts)
    assert (found.table, found.shares) == ([good, bad], [shares])
    assert found.benchmark
    assert msgspec.json.decode(found.benchmark.results) == {"cells": []}


def test_a_report_of_other_machines_is_not_gone_on_with(tmp_path: Path) -> None:
    facts = Facts("6.12", "Debian", "nft v1", "iptables v1", "qemu", "box", "qemu", LabSpec())
    run = TableRun("nftables", 5, {"dnat": 5}, [], 1.4, 2.6, {}, [])
    assert earlier(tmp_path / "new", facts) == Report(facts)
    write(Report(facts, [run]), tmp_path)
    other = replace(facts, spec=LabSpec(routing=Routing.VXLAN))
    assert earlier(tmp_path, other) == Report(other)
    (tmp_path / "report.json").write_text('{"facts": 1}')
    with pytest.raises(LabError, match=r"report\.json"):
        earlier(tmp_path, facts)
