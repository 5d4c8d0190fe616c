"""Host routing under a daemon: policies and other programs' rules that come and go while pods talk."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec
import pytest

from ctl.probes.ways import probe_routes
from dataplane.kernel.namespaces.netns import in_netns, netns
from dataplane.kernel.netlink.links import Links
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from dataplane.model.net import Family
from dataplane.planes.ebpf.host_routing.table import counts, permitted
from dataplane.planes.ebpf.maps.pins import default_instance
from dataplane.planes.ebpf.views.records import open_instance
from dataplane.planes.registry import mode_of
from tests.apiserver.objects import network_policy, pod, service
from tests.json_views import check_output
from tests.kernel.daemon_lab import PORT, VIP, DaemonLab, Traffic, daemon_lab, http, until

STREAM_PORT = 9999
METRICS = 10249
PLUGIN = f"""table inet plugin {{
    chain forward {{
        type filter hook forward priority 0; policy accept;
        ct state established,related tcp dport != {STREAM_PORT} accept
        ct state invalid counter drop
        udp dport {STREAM_PORT} counter drop
    }}
}}"""
"""What a network plugin might make of a policy: one port is closed, for running flows, too."""


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(f"hroute-{os.getpid()}", nodes=1, pods=2, ipv6=True)) as lab:
        lab.start_echo(lab.pods, [PORT])
        yield lab


class Node:
    """The node's daemon, and its configuration."""

    def __init__(self, cluster: DaemonLab, lab: Lab, folder: Path) -> None:
        self.cluster, self.lab, self.config = cluster, lab, folder / "config.yaml"
        [self.daemon] = cluster.daemons
        self.choose("auto")

    def choose(self, word: str) -> None:
        """Write what the daemon reads at its start and at a reload."""
        self.config.write_text(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nclusterCIDR: 10.244.0.0/16\n"
            f"hostRouting: {word}\nmetricsBindAddress: 127.0.0.1:{METRICS}\n"
        )

    def reload(self, word: str, wanted: Callable[[], bool]) -> None:
        self.choose(word)
        self.daemon.hangup()
        until(wanted, f"hostRouting {word} after a reload")

    def doctor(self) -> dict[str, str]:
        """What doctor says of host routing, by check; without all else that it tries."""
        state = self.daemon.folder / "state"
        found = in_netns(self.daemon.netns, lambda: list(probe_routes(mode_of("ebpf"), state)))
        return {each.check: each.detail for each in found}

    def show(self, view: str) -> list[dict[str, Any]]:
        words = self.daemon.command("show", view, "-o", "json")
        done = in_netns(self.daemon.netns, subprocess.run, words, capture_output=True, check=False)
        found: list[dict[str, Any]] = check_output(("show", view), done.stdout.decode())
        return found

    def nft(self, *words: str, text: str = "") -> None:
        in_netns(self.daemon.netns, subprocess.run, ["nft", *words], input=text, text=True, check=True)

    @contextlib.contextmanager
    def plugin(self) -> Iterator[None]:
        """PLUGIN is on the node meanwhile."""
        self.nft("-f", "-", text=PLUGIN)
        try:
            yield
        finally:
            self.nft("delete", "table", "inet", "plugin")

    @contextlib.contextmanager
    def policy(self) -> Iterator[None]:
        """A NetworkPolicy selects pod 1 meanwhile, and not when the next test begins."""
        self.cluster.server.apply(network_policy("closed", matchLabels={"n": "1"}))
        try:
            yield
        finally:
            self.cluster.server.delete("NetworkPolicy", "default", "closed")

    def seen(self) -> tuple[list[str], dict[str, int]]:
        """Addresses that may go past the stack by the kernel's maps, and the packets by way."""
        with netns(self.daemon.netns):
            maps = open_instance(default_instance())
        if maps is None:
            return [], {}
        with maps:
            return sorted(permitted(maps)), dict(counts(maps))

    def allowed(self) -> list[str]:
        return self.seen()[0]

    def into_pods(self) -> int:
        return self.seen()[1]["into_pod"]

    def flows_past(self) -> bool:
        before = self.into_pods()
        time.sleep(0.1)
        return self.into_pods() > before + 20


@pytest.fixture(scope="module")
def started(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    folder = tmp_path_factory.mktemp("daemon")
    with daemon_lab(lab, folder, "ebpf") as cluster:
        name = lab.nodes[0].name
        for number, each in enumerate(lab.pods):
            cluster.server.apply(pod(f"p{number}", name, *each.addresses.values(), labels={"n": str(number)}))
        cluster.server.apply(service("echo", VIP))
        cluster.serve((lab.pods[1], "ready"))
        # So that the node knows its pods' hardware addresses: it would forget those that it has not used for a minute,
        # where there are many neighbours in all network namespaces together (net.ipv6.neigh.default.gc_thresh1).
        with Links(lab.nodes[0].netns) as links:
            for each in lab.pods:
                with Links(each.netns) as inside:
                    for address in each.addresses.values():
                        links.neighbour(each.device, address, inside.mac("eth0"))
        yield Node(cluster, lab, folder)


@pytest.fixture
def node(started: Node) -> Node:
    """A node of which all pods may go past the stack."""
    if not started.daemon.alive:
        started.cluster.start("--config", str(started.config))
    until(lambda: started.allowed() == addresses(started.lab), "all pods may go past the stack")
    return started


def addresses(lab: Lab) -> list[str]:
    return sorted(address for each in lab.pods for address in each.addresses.values())


class Stream:
    """Datagrams from one pod to another, one a millisecond, each with the time at which it was sent. arrived: the time
    of sending of all that were received."""

    def __init__(self, lab: Lab) -> None:
        target = lab.pods[1].addresses[Family.IPV4]
        self._receiver = in_netns(lab.pods[1].netns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self._receiver.bind((target, STREAM_PORT))
        self._receiver.settimeout(0.1)
        self._sender = in_netns(lab.pods[0].netns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        self._sender.connect((target, STREAM_PORT))
        self._end = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._send, self._receive)]
        self.arrived: list[float] = []
        self.sent = 0

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        until(lambda: len(self.arrived) > 20, "the stream flows")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
        self._receiver.close()
        self._sender.close()

    def _send(self) -> None:
        while not self._end.is_set():
            self._sender.send(repr(time.monotonic()).encode())
            self.sent += 1
            time.sleep(0.001)

    def _receive(self) -> None:
        while not self._end.is_set():
            try:
                self.arrived.append(float(self._receiver.recv(100)))
            except TimeoutError:
                continue

    def later_than(self, moment: float) -> int:
        """How many datagrams arrived that were sent after a time."""
        return sum(each > moment for each in self.arrived)

    def goes_on(self) -> bool:
        now = time.monotonic()
        until(lambda: self.later_than(now) > 20, "the stream flows again")
        return True


def test_a_policy_takes_its_pods_out_and_gives_them_back(node: Node, lab: Lab) -> None:
    """What the plugin's rule is to drop is dropped, from the first packet on; all else goes on."""
    target, others = lab.pods[1].addresses[Family.IPV4], sorted(lab.pods[0].addresses.values())
    here = lab.pods[0].netns
    direct = Traffic(here, target, PORT, lasting=4, ports=(33000, 46999))
    with direct as traffic, Traffic(here, lasting=2, ports=(47000, 60999)) as served, Stream(lab) as stream:
        for _ in range(2):
            until(node.flows_past, "packets go past the stack")
            with node.policy():
                until(lambda: node.allowed() == others, "the selected pod is out")
                before = node.into_pods()
                assert stream.goes_on()
                assert node.into_pods() == before, "nothing goes past the stack any more"
                with node.plugin():
                    closed = time.monotonic()
                    time.sleep(0.2)
                    assert stream.later_than(closed) == 0, "each packet that the rule would drop is dropped"
                    until(lambda: node.allowed() == [], "a chain takes all pods out")
                assert stream.goes_on()
            until(lambda: node.allowed() == addresses(lab), "all pods may go past the stack again")
        until(node.flows_past, "packets go past the stack again")
    assert traffic.failures + served.failures == []
    assert min(traffic.made, served.made) > 10


def test_a_chain_is_noticed_at_once(node: Node, lab: Lab) -> None:
    with Stream(lab) as stream:
        until(node.flows_past, "packets go past the stack")
        with node.plugin():
            until(lambda: node.allowed() == [], "the kernel tells of the chain, which nobody would look for")
            closed = time.monotonic()
            time.sleep(0.2)
            assert stream.later_than(closed) == 0
            assert "nftables chain inet plugin forward (forward) has rules" in node.doctor()["host routing"]
        until(lambda: node.allowed() == addresses(lab), "all pods may go past the stack again")


HASTY = """
import signal, time
from ctl.daemon.host_routing import router
from dataplane.planes.ebpf.attach import packet_hooks
from dataplane.planes.ebpf.host_routing import table
table.LEASE_SECONDS, packet_hooks.RENEW_SECONDS, router.TELL_SECONDS = 1.2, 0.2, 0.2
goes_on = True
def hang(*_):
    global goes_on
    goes_on = False
    while not goes_on:
        time.sleep(0.02)
def go_on(*_):
    global goes_on
    goes_on = True
signal.signal(signal.SIGUSR2, hang)
signal.signal(signal.SIGCONT, go_on)
from ctl.main import main
raise SystemExit(main())
"""
"""A daemon with a short lease, whose event loop SIGUSR2 blocks, and nothing else of it, until SIGCONT."""


@contextlib.contextmanager
def hasty(node: Node) -> Iterator[None]:
    """The daemon is another one meanwhile."""
    usual = node.daemon.program
    node.daemon.stop()
    try:
        node.daemon.program = ("-P", "-c", HASTY)
        node.cluster.start("--config", str(node.config))
        until(lambda: node.allowed() == addresses(node.lab), "all pods may go past the stack")
        yield
    finally:
        node.daemon.program = usual
        node.daemon.stop()


@contextlib.contextmanager
def halted(node: Node, halt: signal.Signals) -> Iterator[None]:
    """The daemon stands still meanwhile, however long that is."""
    os.kill(node.daemon.pid, halt)
    try:
        yield
    finally:
        os.kill(node.daemon.pid, signal.SIGCONT)


def by_stack(node: Node, traffic: Traffic) -> bool:
    """Whether connections are made of which no packet goes past the stack."""
    before, made = node.into_pods(), traffic.made
    until(lambda: traffic.made > made + 20, "connections are made")
    return node.into_pods() == before


def test_a_daemon_that_stands_still_lets_nobody_past_the_stack(node: Node, lab: Lab) -> None:
    """Stopped altogether, or hung where it would hear of policies while its threads go on. No connection notices, and
    what comes meanwhile is heeded from when it goes on again."""
    target, others = lab.pods[1].addresses[Family.IPV4], sorted(lab.pods[0].addresses.values())
    with hasty(node), Traffic(lab.pods[0].netns, target, PORT, lasting=4) as traffic:
        for halt in (signal.SIGSTOP, signal.SIGUSR2):
            until(node.flows_past, "packets go past the stack")
            with contextlib.ExitStack() as policy:
                with halted(node, halt):
                    until(lambda: node.allowed() == [], "the lease ends")
                    # A daemon that had to wait for a processor may end what it was at, the lease renewed by that.
                    until(lambda: by_stack(node, traffic), "all goes by the stack")
                    policy.enter_context(node.policy())
                    assert by_stack(node, traffic), "all goes by the stack"
                until(lambda: node.allowed() == others, "the policy is heeded")
            until(lambda: node.allowed() == addresses(lab), "all pods may go past the stack again")
    assert traffic.failures == []


def test_connections_are_shown_with_the_way_that_they_go_now(node: Node, lab: Lab) -> None:
    """Not with that of new ones: what the stack got stays there when its pod may go past it again."""
    there = lab.pods[1].addresses[Family.IPV4]
    why = "NetworkPolicy default/closed selects Pod default/p1"

    def opened() -> tuple[socket.socket, str]:
        made = in_netns(lab.pods[0].netns, socket.create_connection, (VIP, 80), 60)
        made.send(b"?\n")
        assert made.recv(4096)
        return made, "{}:{}".format(*made.getsockname()[:2])

    def ways() -> dict[str, Any]:
        return {each["client"]: each["way"] for each in node.show("connections")}

    def goes(sock: socket.socket) -> bool:
        """True if an exchange goes past the stack."""
        before = node.into_pods()
        sock.send(b"?\n")
        assert sock.recv(4096)
        return node.into_pods() > before

    node.cluster.server.apply(network_policy("closed", matchLabels={"n": "1"}))
    until(lambda: there not in node.allowed(), "a selected pod may not")
    old, old_end = opened()
    with old:
        assert ways()[old_end] == {"past": False, "out": None, "reason": why}
        node.cluster.server.delete("NetworkPolicy", "default", "closed")
        until(lambda: node.allowed() == addresses(lab), "all pods may go past the stack again")
        new, new_end = opened()
        with new:
            found = ways()
            assert (goes(old), goes(new)) == (False, True)
    stays = "the stack has had packets of it, and has it until its end"
    assert found[old_end] == {"past": False, "out": None, "reason": stays}
    assert found[new_end] == {"past": True, "out": "pod", "reason": None}


def test_views_and_settings(node: Node, lab: Lab) -> None:
    with node.policy():
        here, there = (each.addresses[Family.IPV4] for each in lab.pods)
        until(lambda: there not in node.allowed(), "a selected pod may not")
        why = "NetworkPolicy default/closed selects Pod default/p1"
        found = node.doctor()
        assert found["host routing"] == "past the node's stack"
        assert found[f"host routing, address {there}"] == f"by the node's stack: {why}"
        assert found[f"host routing, address {here}"] == "past the node's stack"
        assert found["host routing, device veth1"] == "past the node's stack"
        with Traffic(lab.pods[0].netns, VIP, 80, lasting=1):
            ways = [each["way"] for each in node.show("connections")]
        assert ways
        assert all(way == {"past": False, "out": None, "reason": why} for way in ways)
        flow = ("--flow", f"{here} -> {VIP}:80/tcp", "-o", "json")
        words = node.daemon.command("explain", *flow)
        done = in_netns(node.daemon.netns, subprocess.run, words, capture_output=True, check=True)
        assert f"its packets to {there} go by the stack: {why}" in msgspec.json.decode(done.stdout)[0]["reasons"]
        counted = {each["reason"] for each in node.show("decisions") if each["hook"] == "host routing"}
        assert counted == {"into_pod", "out_of_node", "by_stack"}
        _, _, body = http(node.daemon.netns, "127.0.0.1", METRICS, "/metrics")
        assert b'hotplane_host_routing_addresses{way="stack"} 2.0' in body
        assert b'hotplane_host_routing_packets_total{way="into_pod"}' in body
        node.reload("on", lambda: len(node.allowed()) == 4)
        assert "--host-routing on" in node.doctor()["host routing"]
        node.reload("off", lambda: not node.allowed())
        node.reload("auto", lambda: here in node.allowed() and there not in node.allowed())
    assert node.daemon.stop() == 0
    assert node.allowed() == [], "nobody would see a policy now"
    assert "no daemon runs" in node.doctor()["host routing"]
