"""Endpoints and clients behind a device without a link-layer header, as WireGuard's and tun's are."""

import fcntl
import os
import select
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.model.decode import decode
from dataplane.model.net import Family
from tests.kernel.packet_lab import FAMILIES, LOCAL, REMOTE, counted, look_for_devices, packet_lab
from tests.kernel.test_tc_traffic import PORT, Server, transfer
from tests.namespaces import namespaces

VPN = 30085
NEAR = {Family.IPV4: "10.9.0.1", Family.IPV6: "fd00:9::1"}
FAR = {Family.IPV4: "10.9.0.2", Family.IPV6: "fd00:9::2"}
_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
_SERVICE = f"""
kind: Service
apiVersion: v1
metadata: {{name: vpn}}
spec:
  type: NodePort
  clusterIPs: [10.96.9.9, "fd00:10:96::999"]
  clusterIP: 10.96.9.9
  ipFamilies: [IPv4, IPv6]
  ports:
  - {{name: tcp, port: 80, targetPort: {PORT}, nodePort: {VPN}}}
  - {{name: udp, protocol: UDP, port: 80, targetPort: {PORT}, nodePort: {VPN}}}
"""
_SLICE = """---
kind: EndpointSlice
apiVersion: discovery.k8s.io/v1
metadata: {{name: vpn-{number}, labels: {{kubernetes.io/service-name: vpn}}}}
addressType: IPv{number}
ports: [{{name: tcp, port: {port}}}, {{name: udp, protocol: UDP, port: {port}}}]
endpoints: [{{addresses: ["{address}"], conditions: {{ready: true}}, nodeName: node9}}]
"""


def _open_tun(namespace: str) -> int:
    with netns(namespace):
        sock = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(sock, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _IFF_TUN | _IFF_NO_PI))
    return sock


@contextmanager
def _tunnel(one: str, other: str) -> Iterator[None]:
    """A tun0 in each of two namespaces; what goes into one comes out of the other."""
    ends = [_open_tun(one), _open_tun(other)]
    stop, wake = os.pipe()

    def relay() -> None:
        while stop not in (ready := select.select([*ends, stop], [], [])[0]):
            for end in ready:
                data = os.read(end, 70000)
                try:
                    os.write(ends[1 - ends.index(end)], data)
                except OSError:  # the other end is not up yet
                    continue

    thread = threading.Thread(target=relay, daemon=True)
    thread.start()
    try:
        yield
    finally:
        os.write(wake, b"x")
        thread.join()
        for descriptor in (*ends, stop, wake):
            os.close(descriptor)


@pytest.fixture(scope="module", params=[False, True], ids=["tc", "xdp"])
def lab(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, LabProxy, str]]:
    """Node 1 has a tun0 to another namespace, where an endpoint and a client are."""
    with packet_lab(request.param) as (lab, proxy), namespaces() as make:
        near, far = lab.nodes[0].netns, make("far")
        with _tunnel(near, far):
            for namespace, addresses in ((near, NEAR), (far, FAR)):
                _ip(namespace, "link", "set", "tun0", "up")
                _ip(namespace, "address", "add", f"{addresses[Family.IPV4]}/24", "dev", "tun0")
                _ip(namespace, "address", "add", f"{addresses[Family.IPV6]}/64", "dev", "tun0", "nodad")
            for flag in ("-4", "-6"):
                _ip(far, flag, "route", "add", "default", "dev", "tun0")
            slices = "".join(
                _SLICE.format(number=4 if family is Family.IPV4 else 6, port=PORT, address=FAR[family])
                for family in FAMILIES
            )
            proxy.update(decode((_SERVICE + slices).encode(), "vpn").objects)
            server = Server([far])
            look_for_devices(proxy)
            try:
                yield lab, proxy, far
            finally:
                server.close()


def _ip(namespace: str, *command: str) -> None:
    subprocess.run(["ip", "-n", namespace, *command], check=True, capture_output=True)


def ask(namespace: str, family: Family, address: str, port: int) -> tuple[int, int]:
    """How many of six datagrams and of three connections were answered."""
    datagrams = connections = 0
    with netns(namespace):
        for number in range(6):
            with socket.socket(family.socket_family, socket.SOCK_DGRAM) as sock:
                sock.settimeout(60)
                sock.connect((address, port))
                sock.send(b"%d" % number)
                try:
                    datagrams += sock.recv(100) == b"%d" % number
                except OSError:
                    continue
        for _ in range(3):
            try:
                with socket.create_connection((address, port), 60):
                    connections += 1
            except OSError:
                continue
    return datagrams, connections


def handled(reasons: dict[str, int]) -> int:
    """How many packets of clients tc translated."""
    return reasons.get("tc_ingress:new_flow", 0) + reasons.get("tc_ingress:flow", 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_much_goes_through_a_tun(lab: tuple[Lab, LabProxy, str], family: Family) -> None:
    transfer(lab[0], family, VPN)


@pytest.mark.parametrize("family", FAMILIES)
def test_endpoint_behind_a_tun(lab: tuple[Lab, LabProxy, str], family: Family) -> None:
    the_lab, proxy, _ = lab
    with counted(proxy) as reasons:
        assert ask(the_lab.client.netns, family, the_lab.nodes[0].addresses[family], VPN) == (6, 3)
    assert handled(reasons) >= 9


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("port", [REMOTE, LOCAL, VPN], ids=["remote", "local", "itself"])
def test_client_behind_a_tun(lab: tuple[Lab, LabProxy, str], family: Family, port: int) -> None:
    the_lab, proxy, far = lab
    with counted(proxy) as reasons:
        assert ask(far, family, the_lab.nodes[0].addresses[family], port) == (6, 3)
    assert handled(reasons) >= 9
