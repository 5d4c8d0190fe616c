"""Connect time off for some processes of a node: their packets carry the Service's address and are balanced on the way,
everybody else is pointed at a backend as before."""

import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dataplane.kernel.namespaces import netns
from dataplane.kernel.namespaces.netns_cookie import netns_cookie
from dataplane.kernel.namespaces.pod_groups import hierarchy_of
from dataplane.model.net import Family, Protocol
from dataplane.plan.change import PlanChange, diff
from dataplane.plan.types import OffPod, Plan
from dataplane.planes.ebpf.attach import devices
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.attach.programs import ConnectHook, Hook
from dataplane.planes.ebpf.connect_time import off
from dataplane.planes.ebpf.connect_time.off import ConnectOff
from dataplane.planes.ebpf.connect_time.off_targets import OffSelection, find_targets
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.ebpf.views.records import counters
from dataplane.planes.nftables.plane import NftablesPlane
from tests.kernel.ebpf_lab import (
    BACKENDS,
    CLUSTER_IP,
    POD_ADDRESSES,
    SMALL,
    Node,
    Process,
    built_node,
    plan_of,
    service,
)

FAMILIES = pytest.mark.parametrize("family", list(Family), ids=lambda family: family.name)
SERVICES = [service(f"s{p}", p, f) for f in Family for p in (Protocol.TCP, Protocol.UDP)]


class Bench:
    """A node with connect time, tc and a slow path; `make` replaces the plane."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.told: list[str] = []
        self.changed = False
        self.plan: Plan = plan_of(*SERVICES)
        self.plane = self.make()
        declared, rules = "", "type filter hook output priority 0\n"
        for family in Family:
            declared += f"counter v{family.value} {{\n}}\n"
            word = "ip" if family is Family.IPV4 else "ip6"
            rules += f"{word} daddr {CLUSTER_IP[family]} counter name v{family.value}\n"
        text = f"table inet seen {{\n{declared}chain out {{\n{rules}}}\n}}\n"
        with netns.netns(node.names["pod"]):
            subprocess.run(["nft", "-f", "-"], input=text, text=True, check=True)

    def make(self, selection: OffSelection | None = None, *, watch: bool = False) -> EbpfPlane:
        with netns.netns(self.node.names["node"]):
            off = ConnectOff(hierarchy_of(self.node.group), selection, warn=self.told.append, watch=watch)
            hooks: list[Hook] = [
                ConnectHook(self.node.group),
                PacketHook(devices.DeviceSelection(pods=("to-pod",)), xdp=False),
            ]
            plane = EbpfPlane(NftablesPlane(), hooks, SMALL, off=off)
            plane.load(self.plan)
        return plane

    def again(self, selection: OffSelection | None = None, *, watch: bool = False) -> None:
        """As when the daemon is started again with other options."""
        self.plane.close()
        self.told.clear()
        self.plane = self.make(selection, watch=watch)
        self.changed = selection is not None or watch

    def off(self, *pods: OffPod) -> None:
        """Become a plan in which connect time is off for these Pods alone."""
        new = Plan(self.plan.node, self.plan.entries, connect_off={(pod.namespace, pod.name): pod for pod in pods})
        change: PlanChange = diff(self.plan, new)
        self.plan = new
        with netns.netns(self.node.names["node"]):
            self.plane.apply(change)

    def carried(self, family: Family) -> int:
        """Packets that left the pod with the Service's address, since the last call."""
        with netns.netns(self.node.names["pod"]):
            text = subprocess.run(
                ["nft", "reset", "counter", "inet", "seen", f"v{family.value}"],
                capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
        return int(text.split("packets ")[1].split()[0])

    def counted(self, hook: str, reason: str) -> int:
        return counters(self.plane.tables.maps).get(hook, {}).get(reason, 0)

    def process(self, group: Path | None = None, part: str = "pod") -> Process:
        return self.node.process(part, group)


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    with built_node("off") as node:
        bench = Bench(node)
        try:
            yield bench
        finally:
            with netns.netns(node.names["node"]):
                bench.plane.cleanup()


@pytest.fixture(autouse=True)
def clean(bench: Bench) -> Iterator[None]:
    bench.told.clear()
    yield
    bench.off()
    if bench.changed:
        bench.again()


def pod(uid: str = "", *addresses: str, host_network: bool = False) -> OffPod:
    return OffPod("shop", "web", uid, addresses, host_network, "annotation of the Pod")


def cgroupfs(top: Path, uid: str) -> Path:
    return top / "kubepods" / "burstable" / f"pod{uid}"


def systemd(top: Path, uid: str) -> Path:
    name = f"kubepods-besteffort-pod{uid.replace('-', '_')}.slice"
    return top / "kubepods.slice" / "kubepods-besteffort.slice" / name


def guaranteed(top: Path, uid: str) -> Path:
    return top / "kubelet-kubepods.slice" / f"kubelet-kubepods-pod{uid.replace('-', '_')}.slice"


def fetch(process: Process, family: Family) -> tuple[str, str, tuple[str, int]]:
    found: tuple[str, str, tuple[str, int]] = process.call("fetch", family.socket_family, CLUSTER_IP[family], 80)
    return found


def is_off(bench: Bench, process: Process, family: Family = Family.IPV4) -> bool:
    """Whether a new connection's packets carry the Service's address; in either case it must work and be named right,
    and the server sees the pod."""
    bench.carried(family)
    server, client, peer = fetch(process, family)
    assert server in BACKENDS[family]
    assert peer == (CLUSTER_IP[family], 80)
    assert client == POD_ADDRESSES[0 if family is Family.IPV4 else 1]
    return bench.carried(family) > 0


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@FAMILIES
@pytest.mark.parametrize("driver", [cgroupfs, systemd, guaranteed], ids=lambda driver: driver.__name__)
def test_a_pod_by_its_control_group(bench: Bench, family: Family, driver: Callable[[Path, str], Path]) -> None:
    uid = str(uuid.uuid4())
    container = driver(bench.node.group, uid) / "container" / "init.scope"
    container.mkdir(parents=True)
    inside, outside = bench.process(container), bench.process()
    assert not is_off(bench, inside, family)
    bench.off(pod(uid))
    passed, balanced = bench.counted("connect", "switched_off"), bench.counted("tc_ingress", "new_flow")
    assert is_off(bench, inside, family)
    assert not is_off(bench, outside, family), "nobody else is concerned"
    assert bench.counted("connect", "switched_off") == passed + 1
    assert bench.counted("tc_ingress", "new_flow") == balanced + 1, "tc balances it, on the pod's device"
    later = bench.process(container)
    assert is_off(bench, later, family), "a process that came later is in the group too"
    bench.off()
    assert not is_off(bench, inside, family)
    assert bench.told == []


@FAMILIES
def test_a_pod_by_its_address_where_its_group_is_not_to_be_found(bench: Bench, family: Family) -> None:
    process = bench.process()
    bench.off(pod("nobody-has-this", POD_ADDRESSES[0 if family is Family.IPV4 else 1]))
    assert is_off(bench, process, family)
    bench.off(pod("nobody-has-this", "10.99.99.99"))
    assert not is_off(bench, process, family)
    [text] = bench.told
    assert text == (
        "connect time is not off for Pod shop/web (annotation of the Pod): no control group of cgroup v2 for uid "
        "nobody-has-this, nor a network namespace with its address"
    )


def test_a_pod_in_the_nodes_network_has_no_namespace_of_its_own(bench: Bench) -> None:
    """Its address is the node's: taking that would switch connect time off for all of the node."""
    own = bench.process(part="node")
    bench.off(pod("", "10.244.0.1", host_network=True))
    before = bench.counted("connect", "connected")
    assert fetch(own, Family.IPV4)[0] in BACKENDS[Family.IPV4]
    assert bench.counted("connect", "connected") == before + 1
    assert "nor a network namespace" not in bench.told[0]


@FAMILIES
def test_a_pod_in_the_nodes_network_is_served_by_the_slow_path(bench: Bench, family: Family) -> None:
    uid = str(uuid.uuid4())
    group = cgroupfs(bench.node.group, uid)
    group.mkdir(parents=True)
    process = bench.process(group, "node")
    bench.off(pod(uid, host_network=True))
    way = ["route", "replace", CLUSTER_IP[family], "dev", "to-back"]  # as by a node's default route
    subprocess.run(["ip", "-n", bench.node.names["node"], *way], check=True)
    before = bench.counted("connect", "switched_off")
    server, _, peer = fetch(process, family)
    assert server in BACKENDS[family]
    assert peer == (CLUSTER_IP[family], 80)
    assert bench.counted("connect", "switched_off") == before + 1


def test_by_option(bench: Bench) -> None:
    group = bench.node.group / "sandboxes"
    root = hierarchy_of(bench.node.group)
    bench.again(OffSelection((f"/{group.relative_to(root)}",)))
    [text] = bench.told
    assert text.endswith("is not there")
    (group / "deeper").mkdir(parents=True)
    inside, outside = bench.process(group / "deeper"), bench.process()
    bench.again(OffSelection((str(group),)))
    assert bench.told == []
    assert is_off(bench, inside)
    assert not is_off(bench, outside)
    with netns.netns(bench.node.names["pod"]):
        cookie = netns_cookie()
    name = bench.node.names["pod"]
    forms = find_targets(root, OffSelection(netns=(str(cookie), name, f"/run/netns/{name}")), {}).targets
    assert len({target.key for target in forms}) == 1
    bench.again(OffSelection(netns=(name, "nobody")))
    assert is_off(bench, outside)
    own = bench.process(part="node")
    before = bench.counted("connect", "connected")
    fetch(own, Family.IPV4)
    assert bench.counted("connect", "connected") == before + 1, "another namespace"
    [text] = bench.told
    assert "/run/netns/nobody cannot be entered" in text


def test_what_comes_up_later_and_is_made_anew(bench: Bench) -> None:
    """The kubelet makes a pod's group before there is a process in it; a service manager makes a unit's anew."""
    uid = str(uuid.uuid4())
    unit = bench.node.group / "unit"
    (bench.node.group / "kubepods" / "burstable").mkdir(parents=True, exist_ok=True)
    bench.again(OffSelection((str(unit),)), watch=True)
    bench.off(pod(uid))
    for _ in range(2):
        started = time.monotonic()
        for group in (cgroupfs(bench.node.group, uid), unit):
            group.mkdir()
            process = bench.process(group)
            until(lambda p=process: is_off(bench, p))  # type: ignore[misc]
            process.end()
            bench.node.processes.remove(process)
            until(lambda g=group: not (g / "cgroup.procs").read_text())  # type: ignore[misc]
            group.rmdir()
        assert time.monotonic() - started < off._LOOK_SECONDS, "not by the look that comes sooner or later"
    until(lambda: len(list(bench.plane.tables.maps.items("connect_off"))) == 0)


@FAMILIES
def test_sockets_from_before_keep_what_they_were_told(bench: Bench, family: Family) -> None:
    process = bench.process()
    frontend = (CLUSTER_IP[family], 80)
    for name, kind in (("tcp", socket.SOCK_STREAM), ("udp", socket.SOCK_DGRAM), ("free", socket.SOCK_DGRAM)):
        process.call("open", name, family.socket_family, kind)
    assert process.call("connect", "tcp", *frontend) == frontend
    process.call("connect", "udp", *frontend)
    first, sender = process.call("ask", "udp")
    assert sender == frontend
    assert process.call("ask_at", "free", *frontend)[1] == frontend
    bench.off(pod("", *POD_ADDRESSES))
    bench.carried(family)
    assert process.call("ask", "udp") == (first, frontend), "connected before: it stays with its endpoint"
    assert process.call("peer", "tcp") == process.call("peer", "udp") == frontend
    assert bench.carried(family) == 0
    server, sender = process.call("ask_at", "free", *frontend)
    assert sender == frontend
    assert server in BACKENDS[family]
    assert bench.carried(family) == 1, "a datagram of its own goes the new way"
    assert process.call("connect", "udp", server, 8080) == (server, 8080), "no name from before"
    assert process.call("connect", "udp", *frontend) == frontend
    assert process.call("ask", "udp")[1] == frontend
    assert bench.carried(family) == 1
    for name in ("tcp", "udp", "free"):
        process.call("close", name)


def test_a_connected_socket_that_names_its_own_frontend_hears_its_answers(bench: Bench) -> None:
    process = bench.process()
    process.call("open", "s", socket.AF_INET, socket.SOCK_DGRAM)
    frontend = (CLUSTER_IP[Family.IPV4], 80)
    process.call("connect", "s", *frontend)
    bench.off(pod("", *POD_ADDRESSES))
    for _ in range(3):
        assert process.call("ask_at", "s", *frontend)[1] == frontend
    process.call("close", "s")


def test_a_restart_takes_over_and_forgets_what_is_no_longer_asked_for(bench: Bench) -> None:
    process = bench.process()
    bench.off(pod("", POD_ADDRESSES[0]))
    with netns.netns(bench.node.names["pod"]):
        cookie = netns_cookie()
    bench.again(OffSelection(netns=(str(cookie + 1000),)))
    assert is_off(bench, process)
    assert len(list(bench.plane.tables.maps.items("connect_off"))) == 2
    node = bench.plan.node
    with netns.netns(bench.node.names["node"]):
        bench.plane.apply(PlanChange(node=node))
    assert is_off(bench, process), "the node's settings are written without it"
    bench.off()
    bench.again()
    assert not is_off(bench, process)
    assert list(bench.plane.tables.maps.items("connect_off")) == []
