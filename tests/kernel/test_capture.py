"""`hotplane monitor --pcap`: what is refused, in a file that others read, and nothing left in the rules afterwards."""

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.utils import RawPcapNgReader, rdpcap

from ctl.main import main
from dataplane.errors import HotplaneError
from dataplane.kernel.namespaces.netns import in_netns, netns
from dataplane.kernel.netlink import nfnetlink
from dataplane.kernel.nft import uapi
from dataplane.kernel.nft.transaction import Nft
from dataplane.model.net import Protocol
from dataplane.plan.types import FrontendKind, Plan
from dataplane.planes.base import PlaneError
from dataplane.planes.captures import Captured, CaptureStream
from dataplane.planes.ebpf.make import make_ebpf_plane
from dataplane.planes.iptables import capture as iptables_capture
from dataplane.planes.iptables.capture import TABLE
from dataplane.planes.iptables.plane import IptablesPlane
from dataplane.planes.logged import open_log
from dataplane.planes.mode import Making
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.planes.options import PlaneOptions
from dataplane.planes.registry import modes
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import NodePortAddresses
from tests.json_views import check_view
from tests.kernel.daemon_lab import until
from tests.kernel.ebpf_lab import SMALL
from tests.kernel.nftables_listing import nft
from tests.kernel.nftables_net import (
    CLIENT,
    LB,
    NODE,
    NODE_CONFIG,
    PODS,
    PORT,
    VIP,
    Network,
    entry,
    ip,
    network,
    plan_of,
)
from tests.kernel.test_refusals import SERVED, plan, send, tries

ROOT = Path(__file__).resolve().parents[2]
AWAY = "203.0.113.9"
NODE_PORT = FrontendKind.NODE_PORT
XTABLES = {(word, table) for word in ("ip", "ip6") for table in ("filter", "nat", "mangle")}
"""Of iptables-nft, which stay once they are there."""

BOTH = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture
def net(make_namespace: Callable[[str], str]) -> Iterator[Network]:
    with network(make_namespace) as made:
        yield made


def monitor(net: Network, *words: str, mode: str = "nftables") -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", "ctl.main", "--mode", mode, "monitor", *words]
    process: subprocess.Popen[bytes] = in_netns(
        net.node, subprocess.Popen, command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    until(lambda: captures(net) or process.poll() is not None, "the capture has begun")
    assert process.poll() is None, process.communicate()[1].decode()
    return process


def killed(process: "subprocess.Popen[bytes]") -> None:
    """Kill -9 a capture."""
    process.kill()
    process.communicate()


def sizes(net: Network) -> dict[tuple[str, str], int]:
    """How many lines each table has."""
    return {table: nft(net.node, "list", "table", *table).count("\n") for table in in_netns(net.node, Nft).tables()}


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
    out, errors = process.communicate(timeout=120)
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


@BOTH
def test_iptables_refusals_are_captured_and_its_rules_stay_as_they_are(
    net: Network, version: int, tmp_path: Path
) -> None:
    plane, port = in_netns(net.node, IptablesPlane), 30080
    loaded = plan(version)
    nobody = entry(version, (), protocol=Protocol.UDP, kind=NODE_PORT, address="", port=port, name="no-one")
    in_netns(net.node, plane.load, Plan(loaded.node, loaded.entries | {nobody.key: nobody}))
    before = rules(net)
    file = tmp_path / "refused.pcapng"
    process = monitor(net, "--pcap", str(file), "--count", "4", "-o", "json", mode="iptables")
    assert send(net, SERVED[version])[0] == "0", "what is served is not captured"
    wanted = [*tries(version)[:3], (NODE[version], port, "refused", "no_endpoint")]
    for address, to, seen, _ in wanted:
        assert send(net, address, to, seen) == seen
    out, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors.decode()
    assert (captures(net), rules(net)) == (False, before)
    lines = [json.loads(line) for line in out.splitlines()]
    for line in lines:
        check_view("monitor", line)
    assert [(line["reason"], line["hook"]) for line in lines] == [(reason, "iptables") for *_, reason in wanted]
    assert [line["service"] for line in lines][::3] == ["default/nobody", "default/no-one"]
    assert [packet.comment.decode().split(":")[1] for packet in rdpcap(str(file))] == [f" {w[3]}" for w in wanted]


def taken(net: Network, stream: CaptureStream, count: int) -> list[Captured]:
    """What a capture hands over, once it is so many, and what comes in a moment after them."""
    found: list[Captured] = []
    end = time.monotonic() + 60
    while len(found) < count:
        assert time.monotonic() < end, found
        found += in_netns(net.node, stream.poll, 0.3)
    return [*found, *in_netns(net.node, stream.poll, 0.3)]


def rules(net: Network) -> list[str]:
    """iptables mode's own, without counters."""
    saved = [in_netns(net.node, subprocess.run, [tool], capture_output=True, text=True, check=True).stdout
             for tool in ("iptables-save", "ip6tables-save")]  # fmt: skip
    return [line for text in saved for line in text.splitlines() if line.startswith("-A")]


def test_a_capture_in_iptables_mode_follows_its_rules_and_ends_with_them(net: Network) -> None:
    plane = in_netns(net.node, IptablesPlane)
    in_netns(net.node, plane.load, plan_of(entry(4, (), protocol=Protocol.UDP, name="nobody")))
    with in_netns(net.node, plane.capture, 64) as stream:
        before = nft(net.node, "list", "table", "ip", TABLE)
        in_netns(net.node, plane.load, plan(4))

        def follows() -> bool:
            """The rules are read every two seconds, or more rarely where that takes long."""
            assert in_netns(net.node, stream.poll, 0) == []
            return nft(net.node, "list", "table", "ip", TABLE) != before

        until(follows, "the capture follows the rules")
        for address, port, seen, _ in tries(4)[:3]:
            send(net, address, port, seen)
        assert [each.reason for each in taken(net, stream, 3)] == ["no_endpoint", "policy_drop", "source_range"]
        in_netns(net.node, plane.cleanup)
        assert not captures(net)
        in_netns(net.node, plane.load, plan(4))
        until(lambda: in_netns(net.node, stream.poll, 0) == [] and captures(net), "the capture is there again")
        send(net, VIP[4])
        assert [each.reason for each in taken(net, stream, 1)] == ["no_endpoint"]
        in_netns(net.node, plane.cleanup)
        assert not captures(net)
    with pytest.raises(HotplaneError, match="no rules of this mode are loaded"):
        in_netns(net.node, plane.capture, 64)


def test_what_iptables_mode_drops_whatever_its_service_is_captured(net: Network) -> None:
    plane = in_netns(net.node, IptablesPlane)
    ports = NodePortAddresses(any_local=True, loopback=True)
    in_netns(net.node, plane.load, plan_of(node=msgspec.structs.replace(NODE_CONFIG, nodeports=ports)))
    hello = socket.create_connection  # so that the neighbours know each other
    in_netns(net.client, hello, (PODS[4][0], PORT)).close()
    with netns(net.client):
        (mac,) = {line.split()[3] for line in Path("/proc/self/net/arp").read_text().splitlines() if NODE[4] in line}
    with in_netns(net.node, plane.capture, 64) as stream:
        with in_netns(net.client, socket.socket, socket.AF_PACKET, socket.SOCK_RAW) as wire:
            wire.bind(("eth0", 0))
            for to, above in (("127.0.0.1", UDP(dport=53)), (PODS[4][0], TCP(sport=1, dport=PORT, flags="SF"))):
                wire.send(bytes(Ether(dst=mac, src="02:00:00:00:00:02") / IP(src=CLIENT[4], dst=to) / above))
        found = taken(net, stream, 2)
    counts = {each.reason: each.times for each in in_netns(net.node, plane.refused)}
    assert [(each.reason, each.device) for each in found] == [("localnet", "c0"), ("invalid", "c0")]
    assert counts == {"localnet": 1, "invalid": 1}


def test_the_table_of_a_capture_goes_while_no_other_can_begin(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = in_netns(net.node, IptablesPlane)
    in_netns(net.node, plane.load, plan(4))
    remove = iptables_capture.remove_table

    def fails() -> None:
        with pytest.raises(HotplaneError, match="captured by another process already"):
            plane.capture(64)
        remove()
        raise PlaneError("as if it could not be removed")

    stream = in_netns(net.node, plane.capture, 64)
    with monkeypatch.context() as patch:
        patch.setattr(iptables_capture, "remove_table", fails)
        with pytest.raises(PlaneError, match="as if"):
            in_netns(net.node, stream.close)
    assert not captures(net)
    with in_netns(net.node, plane.capture, 64):
        assert captures(net), "the log of the one before is closed all the same"
        tables = in_netns(net.node, Nft).tables()
        nft(net.node, "delete", "table", "ip", TABLE)
        with monkeypatch.context() as patch:
            patch.setattr(Nft, "tables", lambda _: tables)  # as if it had gone just after they were listed
            in_netns(net.node, remove)
    assert not captures(net)


def test_the_rules_of_a_capture_go_while_no_other_can_begin(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    plane = in_netns(net.node, NftablesPlane)
    in_netns(net.node, plane.load, plan(4))
    stream = in_netns(net.node, plane.capture, 64)
    run, tried = Nft.run, list[str]()

    def ends(self: Nft, transaction: str) -> None:
        with pytest.raises(HotplaneError, match="captured by another process already"):
            open_log(64)
        tried.append(transaction)
        run(self, transaction)

    with monkeypatch.context() as patch:
        patch.setattr(Nft, "run", ends)
        in_netns(net.node, stream.close)
    assert tried
    with in_netns(net.node, plane.capture, 64):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_ended_as_its_capture_begins_leaves_nothing(
    net: Network, number: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plane = in_netns(net.node, IptablesPlane)
    in_netns(net.node, plane.load, plan(4))
    run, begun = Nft.run, []

    def ended(self: Nft, transaction: str) -> None:
        run(self, transaction)
        if "log prefix" in transaction:
            begun.append(captures(net))
            os.kill(os.getpid(), number)

    def not_caught(*_: object) -> None:
        raise AssertionError("nothing is ready for the signal")

    before = signal.signal(signal.SIGTERM, not_caught)
    try:
        with monkeypatch.context() as patch, netns(net.node):
            patch.setattr(Nft, "run", ended)
            words = ["--mode", "iptables", "monitor", "--pcap", str(tmp_path / "none"), "--seconds", "1"]
            assert main(words) == 130
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (begun, captures(net)) == ([True], False)
    in_netns(net.node, in_netns(net.node, plane.capture, 64).close)  # the log is free again


def test_filters_and_standard_output_and_an_end_by_a_signal(net: Network, tmp_path: Path) -> None:
    plane = in_netns(net.node, NftablesPlane)
    plane.load(plan(4))
    process = monitor(net, "--pcap", "-", "--reason", "unknown_port", "--client", CLIENT[4])
    refuse(net, 4)
    assert process.stdout is not None
    written, wanted = b"", re.compile(re.escape(socket.inet_aton(SERVED[4])) + rb"..\x00\x51", re.DOTALL)
    while not wanted.search(written):  # that address, and a UDP header with the port 81
        assert select.select([process.stdout], [], [], 60)[0]
        written += os.read(process.stdout.fileno(), 1 << 16)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 130
    assert not captures(net)
    (tmp_path / "out.pcapng").write_bytes(written + out)
    (packet,) = rdpcap(str(tmp_path / "out.pcapng"))
    assert (packet[IP].dst, packet[UDP].dport) == (SERVED[4], 81)


def test_only_what_programs_refuse_at_the_hook_that_was_asked_for(
    net: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    away = entry(4, (Backend(AWAY, 8080, False),), (), protocol=Protocol.UDP, kind=NODE_PORT, address="", port=30080)
    plane = in_netns(net.node, make_ebpf_plane, Making(PlaneOptions(hooks=("tc",), uplinks=("c0",))), sizes=SMALL)
    try:
        in_netns(net.node, plane.load, plan_of(away, entry(4, (), protocol=Protocol.UDP, name="nobody")))
        here = in_netns(net.client, socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        with here:
            here.sendto(b"?", (NODE[4], 30080))  # the flow begins, and its endpoint does not answer
            ip(net.node, "route", "add", "unreachable", AWAY)
            file = tmp_path / "refused.pcapng"
            process = monitor(net, "--pcap", str(file), "--hook", "tc", "--count", "1", "-o", "json", mode="ebpf")
            until(lambda: file.exists() and file.stat().st_size > 0, "the programs hand packets over, too")
            assert send(net, VIP[4]) == "refused"
            here.sendto(b"?", (NODE[4], 30080))
            out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors.decode()
        assert [(line["hook"], line["reason"]) for line in map(json.loads, out.splitlines())] == [
            ("tc_ingress", "no_way_out")
        ]
        (packet,) = rdpcap(str(file))
        assert packet.comment.decode().startswith("tc_ingress: no_way_out: ")
        with netns(net.node):
            status = main(
                ["--mode", "ebpf", "monitor", "--pcap", str(tmp_path / "none"), "--hook", "connect", "--seconds", "1"]
            )
        assert (status, "no packets to capture at --hook connect" in capsys.readouterr().err) == (2, True)
        assert not (tmp_path / "none").exists()
    finally:
        in_netns(net.node, plane.cleanup)


def test_rules_have_no_hook_to_choose(net: Network, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    in_netns(net.node, NftablesPlane).load(plan(4))
    with netns(net.node):
        status = main(
            ["--mode", "nftables", "monitor", "--pcap", str(tmp_path / "none"), "--hook", "tc", "--seconds", "1"]
        )
    assert (status, "--hook tc; leave it out" in capsys.readouterr().err) == (2, True)
    assert not captures(net)
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("place", "absent"), [(uapi, "SUBSYSTEM"), (nfnetlink, "NETFILTER")])
def test_where_the_kernel_has_no_nf_tables_a_cleanup_finds_no_capture(
    net: Network, place: ModuleType, absent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This one has neither a subsystem nor a protocol of netlink of that number, and answers the same."""
    plane = in_netns(net.node, IptablesPlane)
    in_netns(net.node, plane.load, plan(4))
    monkeypatch.setattr(place, absent, 31)
    in_netns(net.node, plane.cleanup)
    assert in_netns(net.node, plane.read_back) == {}


@pytest.mark.parametrize(("mode", "make"), [("nftables", NftablesPlane), ("iptables", IptablesPlane)])
def test_what_a_killed_capture_left_goes_with_the_next_or_the_table(
    net: Network, mode: str, make: type[NftablesPlane] | type[IptablesPlane], tmp_path: Path
) -> None:
    plane = in_netns(net.node, make)
    in_netns(net.node, plane.load, plan(4))
    before = sizes(net)
    process = monitor(net, "--pcap", str(tmp_path / "one"), mode=mode)
    command = [sys.executable, "-m", "ctl.main", "--mode", mode, "monitor", "--pcap", str(tmp_path / "two")]
    second = in_netns(net.node, subprocess.run, command, cwd=ROOT, capture_output=True, text=True)
    assert (second.returncode, "captured by another process" in second.stderr) == (1, True)
    assert in_netns(net.node, plane.read_back), "a capture is no fault of the rules"
    killed(process)
    assert captures(net)
    own = frozenset(table for each in modes() for table in each.tables)
    assert in_netns(net.node, Nft).tables() <= own | XTABLES
    assert send(net, VIP[4]) == "refused", "rules that nobody listens to change nothing"
    with netns(net.node):
        stream = plane.capture(64)
        assert isinstance(stream, CaptureStream)
        stream.close()
    assert not captures(net)
    assert sizes(net) == before
    killed(monitor(net, "--pcap", str(tmp_path / "three"), mode=mode))
    assert captures(net)
    in_netns(net.node, plane.cleanup)
    assert in_netns(net.node, Nft).tables() <= XTABLES


def test_a_capture_goes_on_over_reloads_and_restarts(net: Network) -> None:
    plane = in_netns(net.node, NftablesPlane)
    plane.load(plan(4))
    with in_netns(net.node, plane.capture, 64) as stream:
        later = in_netns(net.node, NftablesPlane)
        later.load(plan(4))
        assert send(net, VIP[4]) == "refused"
        (packet,) = in_netns(net.node, stream.poll, 60)
        assert (packet.reason, packet.device, packet.length >= 28) == ("no_endpoint", "c0", True)
        later.cleanup()
    assert stream.lost == 0


def test_where_nothing_can_be_captured_it_is_said(net: Network, tmp_path: Path) -> None:
    plane = in_netns(net.node, NftablesPlane)
    with pytest.raises(HotplaneError, match="no rules of this version are loaded"):
        in_netns(net.node, plane.capture, 64)
