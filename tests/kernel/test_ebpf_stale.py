"""What is left of nodes whose network namespace went without a clean-up, and how it is swept away."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.main import main
from ctl.store import state
from dataplane.kernel.ebpf import bpf
from dataplane.kernel.namespaces import cgroup, netns
from dataplane.kernel.namespaces.netns_alive import living_cookies
from dataplane.kernel.namespaces.netns_cookie import netns_cookie
from dataplane.kernel.netlink.links import Links
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.attach.programs import CONNECT_PROGRAMS, ConnectHook, Hook, remove_instances
from dataplane.planes.ebpf.flows import stale
from dataplane.planes.ebpf.flows.stale import remove_stale, stale_instances
from dataplane.planes.ebpf.maps.pins import PinDirectory, default_instance, instance_names
from dataplane.planes.ebpf.plane import EbpfPlane
from tests.kernel.daemon_lab import until
from tests.kernel.ebpf_lab import SMALL, NoSlowPath, plan_of, service

PREFIX = f"hp-{os.getpid()}-stale-"


@pytest.fixture
def group() -> Iterator[Path]:
    path = cgroup.ensure_root() / f"hotplane-test-stale-{os.getpid()}"
    path.mkdir()
    yield path
    cgroup.remove(path)


@pytest.fixture
def place() -> Iterator[str]:
    """A namespace that the test may remove, whatever is pinned for it."""
    name = f"hp-stale-{os.getpid()}"
    netns.create(name)
    yield name
    netns.remove(name)
    remove_instances(PREFIX)


def load(where: str, instance: str, *hooks: Hook) -> None:
    """A node that was loaded by a process which has ended."""
    with netns.netns(where):
        plane = EbpfPlane(NoSlowPath(), hooks, SMALL, instance=instance)
        plane.load(plan_of(service("a")))
        plane.close()
    for hook in hooks:
        if isinstance(hook, PacketHook):
            hook.close()


def attached(group: Path) -> int:
    """Programs on a control group."""
    fd = os.open(group, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return sum(len(bpf.attached_programs(fd, attach)) for attach in CONNECT_PROGRAMS.values())
    finally:
        os.close(fd)


def test_programs_of_a_namespace_that_went_are_taken_off(place: str, namespace: str, group: Path) -> None:
    load(place, PREFIX + "gone", ConnectHook(group))
    load(namespace, PREFIX + "here")
    assert stale_instances(PREFIX) == []
    netns.remove(place)
    assert stale_instances(PREFIX) == [PREFIX + "gone"]
    assert attached(group) == len(CONNECT_PROGRAMS)
    assert remove_stale(PREFIX) == [PREFIX + "gone"]
    assert attached(group) == 0
    assert [name for name in instance_names() if name.startswith(PREFIX)] == [PREFIX + "here"]


def test_links_whose_device_and_control_group_went_are_no_obstacle(place: str, group: Path) -> None:
    other = group / "other"
    other.mkdir()
    with Links(place) as links:
        links.add_veth("up0", links, "far0", 1500)
        links.address("up0", "172.18.0.1/24")
        links.route("0.0.0.0/0", via="172.18.0.254")
    load(place, PREFIX + "gone", ConnectHook(other), PacketHook())
    assert len(PinDirectory(PREFIX + "gone").links()) == len(CONNECT_PROGRAMS) + 3
    other.rmdir()
    netns.remove(place)
    until(lambda: stale_instances(PREFIX) != [], "the kernel takes the devices away")
    assert remove_stale(PREFIX) == [PREFIX + "gone"]
    assert [name for name in instance_names() if name.startswith(PREFIX)] == []


def test_maps_of_another_layout_are_judged_by_their_devices(place: str) -> None:
    with Links(place) as links:
        links.add_veth("up0", links, "far0", 1500)
        links.address("up0", "172.18.0.1/24")
        links.route("0.0.0.0/0", via="172.18.0.254")
    load(place, PREFIX + "old", PacketHook())
    [version] = PinDirectory(PREFIX + "old").map_versions()
    maps = PinDirectory(PREFIX + "old").maps(version)
    maps.rename(maps.with_name("maps-0123456789abcdef-01234567"))
    assert stale_instances(PREFIX) == []
    netns.remove(place)
    until(lambda: stale_instances(PREFIX) == [PREFIX + "old"], "the kernel takes the devices away")


@pytest.mark.parametrize("holder", ["name", "process", "descriptor"])
def test_whoever_holds_a_namespace_keeps_it(place: str, holder: str) -> None:
    load(place, PREFIX + "held")
    with netns.netns(place):
        cookie = netns_cookie()
        process = subprocess.Popen(["sleep", "600"]) if holder == "process" else None
    descriptor = os.open(netns.NETNS_DIR / place, os.O_RDONLY) if holder == "descriptor" else -1
    if holder != "name":
        netns.remove(place)
    try:
        assert cookie in living_cookies()
        assert stale_instances(PREFIX) == []
    finally:
        if process is not None:
            process.kill()
            process.wait()
        if descriptor >= 0:
            os.close(descriptor)
    netns.remove(place)
    assert cookie not in living_cookies()
    assert stale_instances(PREFIX) == [PREFIX + "held"]


def test_the_command_clears_up(
    place: str,
    namespace: str,
    group: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with netns.netns(place):
        gone = default_instance()
        cookie = netns_cookie()
    load(place, gone, ConnectHook(group))
    (tmp_path / f"netns-c{cookie}.msgpack").write_bytes(b"")
    (tmp_path / f"netns-c{netns_cookie()}.msgpack").write_bytes(b"")
    netns.remove(place)
    monkeypatch.setattr(stale, "instance_names", lambda: [gone])  # other tests have dead namespaces of their own
    with netns.netns(namespace):
        assert main(["--state-dir", str(tmp_path), "cleanup", "--stale", "-o", "json"]) == 0
    found = {(record["kind"], record["name"]) for record in json.loads(capsys.readouterr().out)}
    assert {("pins", gone), ("state", f"netns-c{cookie}.msgpack")} <= found
    assert attached(group) == 0
    assert [path.name for path in tmp_path.iterdir()] == [f"netns-c{netns_cookie()}.msgpack"]
    assert state.forget_gone(state.of_namespaces(tmp_path), living_cookies()) == []


def test_state_and_pins_are_named_by_the_same_number() -> None:
    assert state.namespace_id() == f"c{netns_cookie()}"
