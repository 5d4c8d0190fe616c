"""`hotplane monitor --pcap`: what is refused, in a file that others read, and nothing left in the rules afterwards."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.utils import RawPcapNgReader, rdpcap

from dataplane.errors import HotplaneError
from dataplane.kernel.namespaces.netns import in_netns
from dataplane.planes.captures import CaptureStream
from dataplane.planes.iptables.plane import IptablesPlane
from dataplane.planes.nftables.plane import NftablesPlane
from tests.json_views import check_view
from tests.kernel.daemon_lab import until
from tests.kernel.nftables_listing import nft
from tests.kernel.nftables_net import CLIENT, LB, VIP, Network, network
from tests.kernel.test_refusals import SERVED, plan, send, tries

ROOT = Path(__file__).resolve().parents[2]
BOTH = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
def net(make_namespace: Callable[[str], str]) -> Iterator[Network]:
    with network(make_namespace) as made:
        yield made


def monitor(net: Network, *words: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "ctl.main", "--mode", "nftables", "monitor", *words]
    process: subprocess.Popen[bytes] = in_netns(
        net.node, subprocess.Popen, command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    until(lambda: captures(net) or process.poll() is not None, "the capture has begun")
    assert process.poll() is None, process.communicate()[1].decode()
    return process


def captures(net: Network) -> bool:
    return "log prefix" in nft(net.node, "list", "ruleset")


def refuse(net: Network, version: int) -> None:
    """A packet for each reason."""
    for address, port, seen, _ in tries(version):
        send(net, address, port, seen)


@BOTH
def test_each_refused_packet_is_in_the_file_with_its_reason_and_device(
    net: Network, version: int, tmp_path: Path
) -> None:
    plane = in_netns(net.node, NftablesPlane)
    plane.load(plan(version))
    file, begun = tmp_path / "refused.pcapng", time.time()
    process = monitor(net, "--pcap", str(file), "--count", "5", "-o", "json", "--snaplen", "64")
    assert send(net, SERVED[version])[0] == "0", "what is served is not captured"
    refuse(net, version)
    out, errors = process.communicate(timeout=30)
    assert process.returncode == 0, errors.decode()
    assert not captures(net)
    assert file.stat().st_mode & 0o777 == 0o600

    ip = IP if version == 4 else IPv6
    packets = rdpcap(str(file))
    assert [(packet[ip].src, packet[ip].dst, packet[UDP].dport) for packet in packets] == [
        (CLIENT[version], address, port) for address, port, *_ in tries(version)
    ]
    for packet, (_, _, _, reason) in zip(packets, tries(version), strict=True):
        assert packet.comment.decode().startswith(f"nftables: {reason}: ")
        assert packet.sniffed_on == "c0"
        assert begun - 1 < float(packet.time) < time.time() + 1
    assert packets[0].comment.decode().endswith("(default/nobody)")
    with RawPcapNgReader(str(file)) as reader:
        for data, meta in reader:
            assert (len(data) <= 64, meta.wirelen >= len(data), meta.linktype) == (True, True, 101)

    lines = [json.loads(line) for line in out.splitlines()]
    for line in lines:
        check_view("monitor", line)
    assert [line["reason"] for line in lines] == [reason for *_, reason in tries(version)]
    assert {(line["kind"], line["deviceName"], line["protocol"]) for line in lines} == {("refused", "c0", "udp")}
    assert lines[2]["destination"] == (f"{LB[4]}:80" if version == 4 else f"[{LB[6]}]:80")


def test_filters_and_standard_output_and_an_end_by_a_signal(net: Network, tmp_path: Path) -> None:
    plane = in_netns(net.node, NftablesPlane)
    plane.load(plan(4))
    process = monitor(net, "--pcap", "-", "--reason", "unknown_port", "--client", CLIENT[4])
    refuse(net, 4)
    time.sleep(0.7)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert not captures(net)
    (tmp_path / "out.pcapng").write_bytes(out)
    (packet,) = rdpcap(str(tmp_path / "out.pcapng"))
    assert (packet[IP].dst, packet[UDP].dport) == (SERVED[4], 81)


def test_what_a_killed_capture_left_goes_with_the_next_or_the_table(net: Network, tmp_path: Path) -> None:
    plane = in_netns(net.node, NftablesPlane)
    plane.load(plan(4))
    before = nft(net.node, "list", "table", "ip", "hotplane")
    process = monitor(net, "--pcap", str(tmp_path / "one"))
    second = in_netns(
        net.node, subprocess.run, [sys.executable, "-m", "ctl.main", "monitor", "--pcap", str(tmp_path / "two")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert (second.returncode, "captured by another process" in second.stderr) == (1, True)
    assert in_netns(net.node, plane.read_back), "a capture is no fault of the rules"
    process.kill()
    process.communicate()
    assert captures(net)
    assert send(net, VIP[4]) == "refused", "rules that nobody listens to change nothing"
    with in_netns(net.node, plane.capture, 64) as stream:
        assert isinstance(stream, CaptureStream)
    assert not captures(net)
    assert nft(net.node, "list", "table", "ip", "hotplane").count("\n") == before.count("\n")
    plane.cleanup()
    assert nft(net.node, "list", "tables") == ""


def test_a_capture_goes_on_over_reloads_and_restarts(net: Network) -> None:
    plane = in_netns(net.node, NftablesPlane)
    plane.load(plan(4))
    with in_netns(net.node, plane.capture, 64) as stream:
        later = in_netns(net.node, NftablesPlane)
        later.load(plan(4))
        assert send(net, VIP[4]) == "refused"
        (packet,) = in_netns(net.node, stream.poll, 5)
        assert (packet.reason, packet.device, packet.length >= 28) == ("no_endpoint", "c0", True)
        later.cleanup()
    assert stream.lost == 0


def test_where_nothing_can_be_captured_it_is_said(net: Network, tmp_path: Path) -> None:
    plane = in_netns(net.node, NftablesPlane)
    with pytest.raises(HotplaneError, match="no rules of this version are loaded"):
        in_netns(net.node, plane.capture, 64)
    assert IptablesPlane().capture(64) is None
    words = ("--mode", "iptables", "monitor", "--pcap", str(tmp_path / "f"), "-o", "json")
    command = [sys.executable, "-m", "ctl.main", *words]
    done = in_netns(net.node, subprocess.run, command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, "nothing can be captured in iptables mode" in done.stderr) == (1, True)
    check_view("monitor", json.loads(done.stdout))
    assert not (tmp_path / "f").exists()
