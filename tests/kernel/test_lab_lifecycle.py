"""A lab comes up over any ruin, goes without a trace, and leaves other labs and this process alone."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.kernel.namespaces import cgroup, netns
from dataplane.kernel.netlink.links import LinkError
from dataplane.lab import build, state
from dataplane.lab.lab import CGROUP_PREFIX, Lab
from dataplane.lab.spec import LabError, LabSpec, PodLink, Routing, owns_namespace
from dataplane.lab.traffic.probe import Outcome, Probe
from dataplane.model.net import Family, Protocol
from tests.kernel.daemon_lab import until

NET_ADDR_SET = 3
PORT = 8080
PATIENCE = 60.0


def small(name: str) -> LabSpec:
    return LabSpec(name, nodes=2, pods=1)


def traces(name: str) -> list[str]:
    """Everything on this machine that belongs to a lab of this name."""
    found = [f"netns {n}" for n in netns.names() if owns_namespace(name, n)]
    mounted = [Path(line.split(" ")[1]) for line in Path("/proc/self/mounts").read_text().splitlines()]
    found += [f"mount {path}" for path in mounted if owns_namespace(name, path.name)]
    group = cgroup.root() / (CGROUP_PREFIX + name)
    found += [f"cgroup {group}", f"pids {cgroup.pids(group)}"] if group.exists() else []
    found += [f"state {path}" for path in state.STATE_DIR.glob(f"{name}.*")]
    return found


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"life-{os.getpid()}"
    yield name
    Lab.remove(name)


def alive(process: "subprocess.Popen[bytes]") -> bool:
    return process.poll() is None


def inode() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


@pytest.mark.parametrize("pod_link", PodLink)
def test_down_leaves_nothing_and_is_fine_twice(name: str, pod_link: PodLink) -> None:
    lab = Lab.up(LabSpec(name, 2, 1, Routing.VXLAN, pod_link, ipv6=True))
    started = [*lab.start_echo(lab.pods, [PORT]).values(), lab.spawn("node1", ["sleep", "600"])]
    started += [lab.spawn("pod1-1", ["sleep", "600"], in_cgroup=False)]
    lab.probe("client", Probe(lab.pods[0].addresses[Family.IPV4], PORT, timeout=PATIENCE))
    assert all(alive(process) for process in started)
    assert len(traces(name)) > 10
    lab.down()
    assert traces(name) == []
    assert not any(alive(process) for process in started)
    lab.down()
    Lab.remove(name)
    assert traces(name) == []


CRASH = """
import os, signal, sys
from dataplane.kernel.namespaces import netns
from dataplane.kernel.netlink.links import Links
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
stages = {"netns": (netns, "create", 3), "veth": (Links, "add_veth", 2), "route": (Links, "route", 9)}
cls, attribute, left = stages[sys.argv[2]]
original = getattr(cls, attribute)
def counted(*args, **kwargs):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
setattr(cls, attribute, counted)
Lab.up(LabSpec(sys.argv[1], nodes=4, pods=1))
"""


@pytest.mark.parametrize("stage", ["netns", "veth", "route"])
def test_up_works_after_a_predecessor_was_killed_in_the_middle(name: str, stage: str) -> None:
    crashed = subprocess.run([sys.executable, "-c", CRASH, name, stage], check=False)
    assert crashed.returncode == -signal.SIGKILL
    assert traces(name) != []
    with pytest.raises(LabError, match="was not finished"):
        Lab.open(name)
    with Lab.up(small(name)) as lab:
        lab.start_echo(lab.pods, [PORT])
        [result] = lab.probe("client", Probe(lab.pods[1].addresses[Family.IPV4], PORT, timeout=PATIENCE))
        assert result.servers == {"pod2-1": 1}
        assert not netns.exists(f"hp-{name}-node4")
    assert traces(name) == []


def test_up_works_over_every_kind_of_leftover(name: str) -> None:
    (netns.NETNS_DIR / f"hp-{name}-node1").touch()  # killed between making the file and mounting on it
    netns.create(f"hp-{name}-pod7-7")
    group = cgroup.ensure_root() / (CGROUP_PREFIX + name) / "node9" / "deeper"
    group.mkdir(parents=True)
    in_group = subprocess.Popen(["sh", "-c", f"echo 0 > {group}/cgroup.procs; exec sleep 600"])
    with netns.netns(f"hp-{name}-pod7-7"):
        in_netns = subprocess.Popen(["sleep", "600"])
    until(lambda: str(in_group.pid) in (group / "cgroup.procs").read_text().split(), "the process is in its group")
    with state.locked():
        state.path_of(name).write_text("{damaged")
    with pytest.raises(LabError, match="damaged"):
        Lab.open(name)
    with Lab.up(small(name)) as lab:
        assert in_group.wait(PATIENCE) == in_netns.wait(PATIENCE) == -signal.SIGKILL
        lab.start_echo(lab.pods, [PORT])
        [result] = lab.probe("node1", Probe(lab.pods[1].addresses[Family.IPV4], PORT, timeout=PATIENCE))
        assert result.servers == {"pod2-1": 1}
    assert traces(name) == []


def test_up_replaces_a_lab_of_the_same_name(name: str) -> None:
    first = Lab.up(LabSpec(name, nodes=3, pods=2))
    sleeper = first.spawn("pod3-2", ["sh", "-c", "echo there; exec sleep 600"], stdout=subprocess.PIPE)
    with sleeper.stdout or pytest.fail("no pipe") as output:
        assert output.readline() == b"there\n"
    with Lab.up(small(name)):
        assert sleeper.wait(PATIENCE) == -signal.SIGKILL
        assert not netns.exists(f"hp-{name}-pod3-2")
    first.down()


def test_failure_in_the_middle_leaves_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise LinkError("refused")

    monkeypatch.setattr(build, "make_node", refuse)
    with pytest.raises(LinkError, match="refused"):
        Lab.up(small(name))
    assert traces(name) == []
    with pytest.raises(LabError, match="there is no lab"):
        Lab.open(name)


def test_two_labs_side_by_side_do_not_meet(name: str) -> None:
    with Lab.up(small(name)) as one, Lab.up(small(name + "-b")) as two:
        one.start_echo(one.pods, [PORT])
        two.start_echo(two.pods, [PORT + 1])
        address = one.pods[1].addresses[Family.IPV4]
        probes = [Probe(address, port, timeout=PATIENCE) for port in (PORT, PORT + 1)]
        assert [list(r.outcomes) for r in one.probe("client", *probes)] == [[Outcome.ANSWERED], [Outcome.REFUSED]]
        assert [list(r.outcomes) for r in two.probe("client", *probes)] == [[Outcome.REFUSED], [Outcome.ANSWERED]]
        assert {name, name + "-b"} <= set(Lab.names())
        one.down()
        assert traces(name) == []
        assert two.probe("client", probes[1])[0].servers == {"pod2-1": 1}


def test_open_finds_a_lab_and_closing_it_leaves_it_up(name: str) -> None:
    spec = LabSpec(name, nodes=2, pods=(1, 2), routing=Routing.VXLAN, pod_link=PodLink.BRIDGE, ipv6=True)
    with Lab.up(spec) as lab:
        echo = lab.start_echo(["pod2-2"], [PORT])["pod2-2"]
        with Lab.open(name) as again:
            assert again.spec == spec
            assert again.processes()["pod2-2"] == [echo.pid]
            probe = Probe(again.place("pod2-2").addresses[Family.IPV6], PORT, Protocol.UDP, timeout=PATIENCE)
            assert again.probe("node1", probe)[0].servers == {"pod2-2": 1}
        assert lab.probe("node1", probe)[0].servers == {"pod2-2": 1}


def test_processes_are_in_their_namespace_and_their_nodes_cgroup(name: str) -> None:
    with Lab.up(small(name)) as lab:
        for place, group in (("node2", "node2"), ("pod2-1", "node2"), ("pod1-1", "node1"), ("client", "client")):
            script = "grep ^0:: /proc/self/cgroup; readlink /proc/self/ns/net"
            member, namespace = lab.run(place, ["sh", "-c", script]).stdout.split()
            assert member == f"0::/{CGROUP_PREFIX}{name}/{group}"
            assert lab.cgroup(place) == cgroup.root() / f"{CGROUP_PREFIX}{name}/{group}"
            assert namespace == f"net:[{(netns.NETNS_DIR / lab.place(place).netns).stat().st_ino}]"
        outside = lab.run("pod1-1", ["grep", "^0::", "/proc/self/cgroup"], in_cgroup=False).stdout
        assert name not in outside


def test_run_reports_failure_and_time_limits(name: str) -> None:
    with Lab.up(LabSpec(name, nodes=1, pods=0)) as lab:
        with pytest.raises(LabError, match=r"node1: sh -c.*exit status 3: broken"):
            lab.run("node1", ["sh", "-c", "echo broken >&2; exit 3"])
        assert lab.run("node1", ["sh", "-c", "exit 3"], check=False).returncode == 3
        assert lab.run("node1", ["cat"], input="in and out").stdout == "in and out"
        with pytest.raises(LabError, match="not done after"):
            lab.run("node1", ["sleep", "600"], timeout=0.1)
        assert lab.processes() == {}


def test_entering_a_namespace_is_undone_exactly_and_is_this_threads_alone(name: str) -> None:
    with Lab.up(small(name)) as lab:
        home = inode()
        elsewhere: list[int] = []
        one, two = ((netns.NETNS_DIR / node.netns).stat().st_ino for node in lab.nodes)
        with netns.netns(lab.nodes[0].netns):
            assert inode() == one
            with netns.netns(lab.nodes[1].netns):
                assert inode() == two
            assert inode() == one
            assert netns.in_netns(lab.nodes[1].netns, inode) == two
        assert inode() == home
        entered, leave = threading.Event(), threading.Event()

        def visit() -> None:
            with netns.netns(lab.nodes[0].netns):
                elsewhere.append(inode())
                entered.set()
                leave.wait()

        visitor = threading.Thread(target=visit)
        visitor.start()
        entered.wait()
        assert (inode(), elsewhere) == (home, [one])
        leave.set()
        visitor.join()
        with pytest.raises(ZeroDivisionError), netns.netns(lab.nodes[0].netns):
            raise ZeroDivisionError
        assert inode() == home
        with pytest.raises(FileNotFoundError), netns.netns(f"hp-{name}-nobody"):
            raise AssertionError("entered a namespace that does not exist")


def test_making_namespaces_never_multiplies_mounts(name: str) -> None:
    """Binding a shared /run/netns on itself once too often doubles every mount below it, each time."""

    def mounts() -> int:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
        return sum(1 for line in lines if line.split()[4] in (str(netns.NETNS_DIR), f"{netns.NETNS_DIR}/hp-{name}-net"))

    netns.create(f"hp-{name}-net")
    before = mounts()
    netns.create(f"hp-{name}-client")
    assert mounts() == before
    with pytest.raises(FileExistsError):
        netns.create(f"hp-{name}-net")
    assert mounts() == before


WITHOUT_CGROUP2 = """
import subprocess, sys
from dataplane.kernel.namespaces import cgroup
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
for mounted in reversed(cgroup.mount_points()):
    subprocess.run(["umount", "-l", str(mounted)], check=True)
with Lab.up(LabSpec(sys.argv[1], nodes=1, pods=1)) as lab:
    assert cgroup.root() == cgroup.PRIVATE_ROOT
    print(lab.run("pod1-1", ["grep", "^0::", "/proc/self/cgroup"]).stdout)
assert cgroup.mount_points() == []
assert not cgroup.PRIVATE_ROOT.exists()
"""


def test_cgroup_hierarchy_is_mounted_for_the_lab_where_nobody_did(name: str) -> None:
    group = cgroup.root() / f"test-{name}"  # the root of a hierarchy of its own, without the groups of other labs
    group.mkdir()
    command = ["unshare", "--mount", "--cgroup", sys.executable, "-c", WITHOUT_CGROUP2, name]
    enter = ["sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(group)]
    done = subprocess.run([*enter, *command], check=False, capture_output=True, text=True)
    cgroup.remove(group)  # what was killed there last may still be ending
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [f"0::/{CGROUP_PREFIX}{name}/node1"]
    assert traces(name) == []


@pytest.mark.parametrize("pod_link", PodLink)
def test_hardware_addresses_are_the_labs_own_choice(name: str, pod_link: PodLink) -> None:
    """udevd changes those that the kernel chose (NET_ADDR_RANDOM) later on, and neighbours would know a wrong one."""
    with Lab.up(LabSpec(name=name, nodes=1, pods=1, pod_link=pod_link, routing=Routing.VXLAN)) as lab:
        found = {}
        for place in lab.topology.places():
            words = "cd /sys/class/net && grep -H . */addr_assign_type"
            argv = ["ip", "netns", "exec", place.netns, "sh", "-c", words]
            for line in subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines():
                device, kind = line.split("/addr_assign_type:")
                found[place.name, device] = int(kind)
    made = {where: kind for where, kind in found.items() if where[1] not in ("lo", "sit0", "ip6tnl0", "tunl0")}
    assert len(made) >= 6
    assert set(made.values()) == {NET_ADDR_SET}, made
