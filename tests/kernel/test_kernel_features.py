"""What the kernel can do is found by trying, and what older kernels cannot has a stand-in that does the same."""

import errno
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig

from dataplane.kernel import sysctl
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import BpfError, MapType
from dataplane.kernel.namespaces import netns, netns_cookie
from dataplane.kernel.netlink.links import Links
from dataplane.model.net import Family, Protocol
from dataplane.planes.ebpf.attach import kernel_features
from dataplane.planes.ebpf.attach.devices import read_network, source_addresses
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.layout import constant, unpack
from dataplane.planes.ebpf.maps.mapset import create_maps
from dataplane.planes.ebpf.maps.node_settings import write_node
from dataplane.planes.ebpf.maps.pins import PinDirectory
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, bench, entry, ip, ip_of, node_config
from tests.kernel.test_tc_packets import ADDRESSES, FAMILIES, exact

ROOT = Path(__file__).parents[2]
DEVICE_SOURCES = {Family.IPV4: "172.18.0.77", Family.IPV6: "fd00:172:18::77"}


def test_unknown_flags_and_helpers_are_told_from_known_ones() -> None:
    assert kernel_features.fib_flag_works(0)
    assert kernel_features.fib_flag_works(1)
    assert not kernel_features.fib_flag_works(1 << 30)
    assert kernel_features.helper_works(5)  # bpf_ktime_get_ns
    assert not kernel_features.helper_works(100_000)


def test_programs_tell_the_number_of_a_network_namespace(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel itself does not, before Linux 5.14."""
    with netns.netns(namespace):
        told, by_program = netns_cookie.netns_cookie(), netns_cookie.cookie_by_program()
        monkeypatch.setattr(netns_cookie, "_SO_NETNS_COOKIE", 9999)  # no such option
        without = netns_cookie.netns_cookie()
    elsewhere = netns_cookie.cookie_by_program()
    assert told == by_program == without > 0
    assert elsewhere != told


def test_the_limit_on_locked_memory_is_lifted() -> None:
    """Before Linux 5.11 it holds for maps too, and is too small for any."""
    script = (
        "import resource; from dataplane.kernel.ebpf import bpf\n"
        "resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, resource.getrlimit(resource.RLIMIT_MEMLOCK)[1]))\n"
        "bpf.map_create(bpf.MapType.ARRAY, 4, 4096, 16)\n"
        "bpf._lift_memory_limit()\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)\n"
        "print(soft == hard != 0, bpf._lift_memory_limit())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.split() == ["True", "False"]


@pytest.fixture(scope="module")
def old() -> Iterator[Bench]:
    """A node whose programs are compiled for a kernel that lacks everything."""
    with bench(*(f"-D{feature.define}=1" for feature in kernel_features.FEATURES)) as made:
        for family in FAMILIES:
            for protocol in (Protocol.TCP, Protocol.UDP):
                name = f"remote-{family}-{protocol.name}"
                made.install(entry(name, [ADDRESSES[family][2]], node_port=30080, family=family, protocol=protocol))
        yield made


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("hook", ["tc", "xdp"])
def test_without_the_lookup_the_devices_address_is_taken(old: Bench, family: Family, hook: str) -> None:
    client, own, remote, *_ = ADDRESSES[family]
    run = getattr(old, hook)
    role = 0
    sources = []
    for port, (ipv4, ipv6) in ((5000, ("", "")), (5001, tuple(DEVICE_SOURCES.values()))):
        old.describe(old.up, old.up_mac, role, ipv4, ipv6)
        out = run(old.frame(ip(family, client, own, ttl=64) / TCP(sport=port, dport=30080, flags="S")))
        packet = exact(out.data)
        assert (out.result in (b.TC_REDIRECT, b.XDP_TX), packet.dst) == (True, remote)
        sources.append(packet.src)
    assert sources == [own, DEVICE_SOURCES[family]]


def test_without_any_address_the_slow_path_takes_the_flow(old: Bench) -> None:
    client, _, remote, _, _, vip = ADDRESSES[Family.IPV6]
    old.install(entry("vip", [remote], load_balancer=vip, family=Family.IPV6))
    old.describe(old.up, old.up_mac, 0)
    node = node_config()
    old.configure(node_config(addresses=(b.NODE,)))
    try:
        frame = old.frame(ip(Family.IPV6, client, vip) / TCP(sport=5002, dport=80, flags="S"))
        with old.counted() as risen:
            out = old.tc(frame)
    finally:
        old.configure(node)
    assert (out.result, out.data) == (b.TC_NEXT, frame)
    assert risen == {"tc_ingress:fib_miss": 1}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("noted", "told"), [(1400, 1400), (0, 1280)])
def test_a_packet_that_is_too_big_is_told_the_mtu_of_its_device(
    old: Bench, family: Family, noted: int, told: int
) -> None:
    """1400 is not the device's own, so the answer has it from where the control plane noted it."""
    client, own, *_ = ADDRESSES[family]
    fields = {"flags": "DF"} if family is Family.IPV4 else {}
    question = ip(family, client, own, **fields) / UDP(sport=4100 + told, dport=30080)
    role = constant("DEVICE_UPLINK") | constant("DEVICE_XDP_TARGET")
    try:
        assert old.tc(old.frame(question / b"x")).result == b.TC_REDIRECT
        old.describe(old.up, old.up_mac, role, mtu=noted)
        with old.counted() as counted:
            out = old.tc(old.frame(question / (b"x" * 1600)))
    finally:
        old.describe(old.up, old.up_mac, role)
    assert counted == {"tc_ingress:too_big": 1}
    answer = ip_of(out.data)
    assert (answer.src, answer.dst) == (own, client)
    error = answer[ICMP] if family is Family.IPV4 else answer[ICMPv6PacketTooBig]
    assert (error.nexthopmtu if family is Family.IPV4 else error.mtu) == told


@pytest.mark.parametrize("family", FAMILIES)
def test_xdp_holds_packets_against_the_mtu_of_their_device(old: Bench, family: Family) -> None:
    client, own, *_ = ADDRESSES[family]
    question = ip(family, client, own) / UDP(sport=4200, dport=30080)
    for _ in range(2):
        assert old.tc(old.frame(question / b"x")).result == b.TC_REDIRECT
    with old.counted() as counted:
        small = old.xdp(old.frame(question / (b"x" * 1000)))
    assert small.result != b.XDP_PASS
    for _ in range(256):  # of its looks at the next hop, which it takes when time has passed, some are tc's
        if "xdp:mtu" in counted:
            break
        with old.counted() as counted:
            big = old.xdp(old.frame(question / (b"x" * 1600)))
        assert big.result == b.XDP_PASS
        assert counted in ({"xdp:mtu": 1}, {"xdp:left_to_tc": 1})
    assert "xdp:mtu" in counted


PLACES = {
    "the only address": (["172.18.0.1/24", "fd00:172:18::1/64"], "172.18.0.1", "fd00:172:18::1"),
    "another of the same subnet": (["172.18.0.9/24", "172.18.0.1/24", "fd00:172:18::1/64"], "", "fd00:172:18::1"),
    "none of its own": ([], "10.9.9.9", "fd00:9::9"),
}
"""Addresses of the device that packets leave by, and the node's primary ones. "" = another device's."""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("word", PLACES)
def test_masquerading_would_choose_the_same(make_namespace: Callable[[str], str], word: str, family: Family) -> None:
    """A datagram is masqueraded by nftables where `source_addresses` has said with what."""
    own, *primary = PLACES[word]
    names = [make_namespace(part) for part in ("node", "out", "pod")]
    far = "203.0.113.5" if family is Family.IPV4 else "2001:db8::5"
    with Links(names[0]) as node, Links(names[1]) as out, Links(names[2]) as pod:
        _wire(node, out, pod, names, own)
        with netns.netns(names[0]):
            sysctl.write("net/ipv4/ip_forward", 1)
            sysctl.write("net/ipv6/conf/all/forwarding", 1)
            for address in ("10.9.9.9/32", "fd00:9::9/128"):
                node.address("lo", address)
            rules = "table inet t { chain c { type nat hook postrouting priority 100; oifname up0 masquerade\n }\n}"
            subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
            expected = source_addresses(read_network(), primary).get(node.index("up0"), ("", ""))
    chosen = expected[family is Family.IPV6] or primary[family is Family.IPV6]
    kind = family.socket_family
    with netns.netns(names[1]), socket.socket(kind, socket.SOCK_DGRAM) as there:
        there.bind((far, 9))
        there.settimeout(60)
        with netns.netns(names[2]), socket.socket(kind, socket.SOCK_DGRAM) as here:
            here.sendto(b"?", (far, 9))
        assert there.recvfrom(10)[1][0] == chosen


def _wire(node: Links, out: Links, pod: Links, names: list[str], own: list[str]) -> None:
    """A pod behind the node, everybody else behind the node's up0, on which `own` are."""
    for name in names:
        with netns.netns(name):
            for scope in ("all", "default"):
                sysctl.write(f"net/ipv6/conf/{scope}/accept_dad", 0)
    node.add_veth("up0", out, "eth0", 1500)
    node.add_veth("pod0", pod, "eth0", 1500)
    for cidr in own:
        node.address("up0", cidr)
    for links, device, cidr in (
        *((pod, "eth0", cidr) for cidr in ("10.244.1.2/24", "fd00:244:1::2/64")),
        *((node, "pod0", cidr) for cidr in ("10.244.1.1/24", "fd00:244:1::1/64")),
        *((out, "lo", cidr) for cidr in ("203.0.113.5/32", "2001:db8::5/128")),
    ):
        links.address(device, cidr)
    for target in ("203.0.113.0/24", "2001:db8::/64"):
        node.route(target, device="up0")
    for net in ("10.0.0.0/8", "172.18.0.0/24", "fd00::/16"):
        out.route(net, device="eth0", replace=True)
    for via in ("10.244.1.1", "fd00:244:1::1"):
        pod.route("0.0.0.0/0" if "." in via else "::/0", via=via)
    for address in ("203.0.113.5", "2001:db8::5"):
        node.neighbour("up0", address, out.mac("eth0"))


def test_the_devices_addresses_are_kept_in_the_map(make_namespace: Callable[[str], str]) -> None:
    """Those of devices without programs too, since packets may leave there; and they follow the devices."""
    name, other = make_namespace("src"), make_namespace("far")
    pins = PinDirectory(f"test-{name}")
    with Links(name) as links, Links(other) as far, create_maps(b.SIZES) as maps:
        write_node(maps, node_config(), 1, False)
        links.add_veth("up0", far, "eth0", 1500)
        links.add_veth("plain", far, "eth1", 1500)
        links.address("up0", f"{b.NODE}/24")
        links.address("plain", "10.1.1.1/24")
        hook = PacketHook(xdp=False)

        def kept(device: str) -> tuple[bytes, bytes]:
            raw = maps.get("devices", links.index(device).to_bytes(4, "little"))
            assert raw is not None
            found = unpack("device", raw)
            return found["source_ipv4"], found["source_ipv6"]

        with netns.netns(name):
            try:
                hook.attach(maps, pins)
                before = kept("up0"), kept("plain")
                subprocess.run(["ip", "addr", "add", f"{b.NODE_6}/64", "dev", "up0", "nodad"], check=True)
                subprocess.run(["ip", "addr", "del", "10.1.1.1/24", "dev", "plain"], check=True)
                hook.refresh()
                after = kept("up0")
                gone = maps.get("devices", links.index("plain").to_bytes(4, "little"))
            finally:
                hook.detach(pins)
                pins.remove()
    assert before == ((address_bytes(b.NODE), bytes(16)), (address_bytes("10.1.1.1"), bytes(16)))
    assert after == (address_bytes(b.NODE), address_bytes(b.NODE_6))
    assert gone in (None, bytes(len(gone or b"")))


def test_maps_without_batches_go_element_by_element() -> None:
    """As tries did before Linux 5.14. A map of devices has none today; its values are ifindexes (1: the loopback)."""
    fd = bpf.map_create(MapType.DEVMAP_HASH, 4, 4, 8)
    keys, values = (b"\1\0\0\0", b"\2\0\0\0"), (b"\1\0\0\0",) * 2
    try:
        bpf.map_update_batch(fd, b"".join(keys), b"".join(values), 2)
        assert dict(bpf.map_items(fd, 4, 4, 8)) == dict(zip(keys, values, strict=True))
        bpf.map_delete_batch(fd, keys[0], 1)
        with pytest.raises(BpfError) as refusal:
            bpf.map_delete_batch(fd, keys[0], 1)
        assert refusal.value.errno == errno.ENOENT
        assert dict(bpf.map_items(fd, 4, 4, 8)) == {keys[1]: values[1]}
    finally:
        os.close(fd)
