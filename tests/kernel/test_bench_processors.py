"""Load on several processors, for real: queues of uplinks, a flow for each processor, and a small run."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import UDP
from scapy.layers.l2 import Ether

from dataplane.bench.figures.results import read
from dataplane.bench.load.generator import (
    RUN_PACKETS,
    Generator,
    port_writer_code,
    take_frames,
    udp_frame,
    uplink_ends,
    uplink_macs,
)
from dataplane.bench.processors import present
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import AttachType, MapType, ProgramType
from dataplane.kernel.netlink.links import Links
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from dataplane.model.net import Family
from tests.json_views import check_output
from tests.kernel.lost_packets import lost_packets

PATIENCE = 900.0
MACS, ADDRESSES, PORTS = ("02:00:00:00:00:01", "02:00:00:00:00:02"), ("198.51.100.2", "172.18.0.1"), (40000, 30081)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(name=f"processors-{os.getpid()}", nodes=2, pods=1)) as lab:
        yield lab


def test_a_veth_gets_queues_and_loses_them_again(lab: Lab) -> None:
    node, switch, most = lab.nodes[0], lab.topology.underlay.netns, len(present())
    with Links(node.netns) as near, Links(switch) as far:
        for count in (most, 1):
            assert near.set_queues(node.uplink, count) == count
            assert far.set_queues(node.name, count) == count
            shown = subprocess.run(
                ["ip", "netns", "exec", node.netns, "sh", "-c", f"ls -d /sys/class/net/{node.uplink}/queues/rx-*"],
                check=True, capture_output=True, text=True,
            ).stdout  # fmt: skip
            assert len(shown.split()) == count
        assert near.set_queues(node.uplink, 1 << 20) < 1 << 20
        near.set_queues(node.uplink, 1)


def test_every_processor_writes_a_packet_of_its_own_with_right_checksums() -> None:
    frame = udp_frame(MACS, ADDRESSES, PORTS)
    opened = [bpf.map_create(MapType.PROG_ARRAY, 4, 4, 1, name="programs")]
    allowed = os.sched_getaffinity(0)
    try:
        code = port_writer_code(frame, opened[0])
        opened.append(bpf.program_load(code, ProgramType.XDP, AttachType.XDP, "writer"))
        for processor in present():
            os.sched_setaffinity(0, {processor})
            seen = Ether(bpf.run_program(opened[1], bytes(len(frame))).data)
            again = Ether(bytes(seen))
            assert (again[UDP].sport, again[UDP].dport) == (PORTS[0] + processor, PORTS[1])
            del again[UDP].chksum
            assert bytes(again) == bytes(seen)
    finally:
        os.sched_setaffinity(0, allowed)
        for descriptor in opened:
            os.close(descriptor)


def test_what_several_processors_send_is_counted(lab: Lab) -> None:
    node, other = lab.nodes
    ends = uplink_ends(lab.topology.underlay.netns, node)
    take_frames(node, other, Family.IPV4)
    macs = uplink_macs(*ends)
    addresses = lab.client.addresses[Family.IPV4], other.pods[0].addresses[Family.IPV4]
    frame = udp_frame(macs, addresses, (40000, 9))
    with Generator(*ends, frame, by_port=True) as generator, lost_packets(ends[0]) as lost:
        found = generator.run_on(present(), 0.0)
    assert found["sent"] == RUN_PACKETS * len(present())
    # On a busy machine a processor's backlog is full at times, and what does not fit is dropped.
    assert max(0.99 * found["sent"] - lost(), 0.5 * found["sent"]) <= found["operations"] <= found["sent"] + 10
    assert 0 < found["together"] <= 1
    assert found["rate"] > 0


def bench(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "ctl.main", "bench", "--profile", "tiny", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)


def test_a_small_run_on_one_and_on_all_processors(tmp_path: Path) -> None:
    path, most = tmp_path / "r.json", len(present())
    done = bench("--scenario", "connect-processors,forward-processors", "--modes", "iptables,nftables,ebpf-xdp",
                 "--services", "5", "--rounds", "1", "--processors", str(most), "--results", str(path))  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = read(path)
    assert [cell for cell in results.cells if cell.error] == []
    assert {cell.key.position for cell in results.cells} == {"1 processor", f"{most} processors"}
    assert f"--processors {most}" in results.command
    for cell in results.cells:
        assert cell.figures["rate"] > 0
        assert cell.key.scenario == "forward-processors" or cell.figures["p99"] > 0
    assert f"{most} / 1" in done.stdout
    assert "connect-processors" in done.stdout


def test_processors_that_are_not_there_are_refused_before_anything_is_done(tmp_path: Path) -> None:
    path, most = tmp_path / "r.json", len(present())
    done = bench("--processors", f"1,{most + 1}", "--results", str(path))
    assert done.returncode == 2
    assert f"--processors {most + 1}: this machine has {most} processor" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_list_names_them() -> None:
    command = [sys.executable, "-m", "ctl.main", "bench", "--list", "-o", "json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found = check_output(("bench", "--list"), done.stdout)
    assert {"connect-processors", "forward-processors"} <= {record["name"] for record in found}
