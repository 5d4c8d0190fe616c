"""An uplink that goes down and comes back, or loses its addresses for a moment as when a network manager sets it up
anew: connections that the packet programs translate outlive it."""

import socket
import time
from collections.abc import Iterator

import pytest

from dataplane.kernel.namespaces.netns import netns
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.plane import EbpfPlane
from tests.kernel.host_lab import FAMILIES, LOCAL, REMOTE, HostLab, ask, host_lab

_SETTLED = 0.3
"""Seconds: the watch waits for the end of a burst of notifications, and then looks."""


@pytest.fixture(scope="module", params=["tc and xdp", "past the stack"])
def lab(request: pytest.FixtureRequest) -> Iterator[HostLab]:
    past_stack = request.param == "past the stack"
    with host_lab(past_stack=past_stack, xdp=not past_stack) as made, made.watching():
        yield made


def _ip(lab: HostLab, *words: str) -> str:
    return lab.lab.run(lab.node, ["ip", *words]).stdout


def _set_up(lab: HostLab) -> str:
    """What brings up node 1's uplink as it is now, as a script: all at once, as a network manager does."""
    listed = _ip(lab, "-o", "address", "show", "dev", "eth0", "scope", "global").splitlines()
    addresses = [line.split()[3] for line in listed]
    routes = [
        f"ip {version} route replace {line}"
        for version in ("-4", "-6")
        for line in _ip(lab, version, "route", "show").splitlines()
        if "proto kernel" not in line
    ]
    added = [f"ip address replace {each} dev eth0{' nodad' if ':' in each else ''}" for each in addresses]
    return "\n".join(["set -e", "ip link set eth0 up", *added, *routes])


def _programs(lab: HostLab) -> set[str]:
    plane = lab.proxy.nodes["node1"].plane
    assert isinstance(plane, EbpfPlane)
    [hook] = [hook for hook in plane.hooks if isinstance(hook, PacketHook)]
    with netns(lab.node.netns):
        return {device.name for device in hook.status()}


@pytest.mark.parametrize("what", ["down", "without addresses"])
def test_connections_outlive_it(lab: HostLab, what: str) -> None:
    held = [
        lab.connected("client", (lab.node.addresses[family], port), socket.SOCK_STREAM)
        for family in FAMILIES
        for port in (LOCAL, REMOTE)
        for _ in range(4)
    ]
    servers = [ask(sock) for sock in held]
    for _ in range(3):
        set_up = _set_up(lab)
        if what == "down":
            _ip(lab, "link", "set", "eth0", "down")
        else:
            _ip(lab, "address", "flush", "dev", "eth0", "scope", "global")
        time.sleep(_SETTLED)
        lab.lab.run(lab.node, ["sh", "-c", set_up])
        for sock in held:  # at once: they meet the node as it is
            sock.send(b"?\n")
        for sock in held:
            sock.recv(4096)
        assert [ask(sock) for sock in held] == servers
    assert "eth0" in _programs(lab)
    for sock in held:
        sock.close()
