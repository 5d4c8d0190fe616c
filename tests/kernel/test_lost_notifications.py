"""More notifications than the kernel keeps for a listener: what they said is looked for instead."""

import subprocess
import threading

from dataplane.kernel import sysctl
from dataplane.kernel.namespaces import netns
from dataplane.kernel.netlink.links import Links
from dataplane.planes.ebpf.attach.packet_hooks import DeviceWatch
from dataplane.planes.ebpf.host_routing.surroundings import NeighbourNews
from tests.kernel.daemon_lab import until

NEIGHBOURS = 4000
"""More than a socket keeps notifications of by default."""


class Host:
    """Host routing to which no neighbour is news."""

    def __init__(self) -> None:
        self.heard = 0

    def is_news(self, _: NeighbourNews) -> bool:
        self.heard += 1
        return False

    def renew(self) -> None:
        return


class Hook:
    """A hook that is busy until it may go on."""

    name = "tc"

    def __init__(self) -> None:
        self.host = Host()
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.looks = 0

    def refresh(self) -> None:
        self.begun.set()
        self.go_on.wait()
        self.looks += 1


def _neighbours(namespace: str, count: int, mac: str) -> None:
    lines = (f"neigh replace 10.9.{n >> 8}.{n & 255} lladdr {mac} dev up0\n" for n in range(count))
    subprocess.run(["ip", "-n", namespace, "-batch", "-"], input="".join(lines), text=True, check=True)


def _shown(namespace: str) -> str:
    return subprocess.run(["ip", "-n", namespace, "link"], capture_output=True, text=True, check=True).stdout


def test_neighbours_that_nobody_could_be_told_of(namespace: str, make_namespace) -> None:  # type: ignore[no-untyped-def]
    hook = Hook()
    with Links(namespace) as links, Links(make_namespace("far")) as far:
        with netns.netns(namespace):
            sysctl.write("net/ipv6/conf/default/disable_ipv6", "1")
        links.add_veth("up0", far, "eth0", 1500)
        with netns.netns(namespace):
            until(lambda: "state UP" in _shown(namespace), "nothing more is to be told of the device")
            watch = DeviceWatch(hook, None)  # type: ignore[arg-type]
        try:
            links.address("up0", "10.9.0.1/16")
            assert hook.begun.wait(30)
            _neighbours(namespace, NEIGHBOURS, "02:00:00:00:00:02")
            hook.go_on.set()
            until(lambda: hook.looks > 1, "it looks for itself", 20)
            assert hook.host.heard < NEIGHBOURS
        finally:
            hook.go_on.set()
            watch.close()
