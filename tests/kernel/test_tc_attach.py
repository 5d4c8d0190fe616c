"""Packet programs on devices: pinned, replaced in place, picked up, taken off; also the older ways of attaching."""

import os
import platform
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bcc_loader import SOURCE_DIR, CompileError
from dataplane.kernel.namespaces import netns
from dataplane.kernel.netlink import clsact
from dataplane.kernel.netlink.clsact import ClsactError
from dataplane.kernel.netlink.links import Links
from dataplane.plan.types import Plan
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.attach import packet_hooks, programs, tc
from dataplane.planes.ebpf.attach.devices import DeviceSelection, Network, read_network
from dataplane.planes.ebpf.attach.optional import OptionalHook
from dataplane.planes.ebpf.attach.packet_hooks import PacketHook
from dataplane.planes.ebpf.attach.xdp import veth_problem
from dataplane.planes.ebpf.host_routing import table
from dataplane.planes.ebpf.host_routing.surroundings import read_surroundings
from dataplane.planes.ebpf.host_routing.table import HostRouting
from dataplane.planes.ebpf.maps.mapset import MapSet, create_maps
from dataplane.planes.ebpf.maps.node_settings import write_node
from dataplane.planes.ebpf.maps.pins import PinDirectory
from dataplane.planes.ebpf.plane import EbpfPlane
from dataplane.planes.nftables.plane import NftablesPlane
from tests.kernel.bpf_packets.bench import NODE, SIZES, node_config
from tests.kernel.ebpf_lab import NoSlowPath

READS_ANYWHERE = """
PROGRAM(tc_host)(struct __sk_buff *skb) {
    return ((__u8 *)(long)skb->data)[1500];
}
"""


class Place:
    """A namespace with an uplink `up0`, its pins and its maps."""

    def __init__(self, name: str, other: str, links: Links, far: Links) -> None:
        self.name, self.other, self.links, self.far = name, other, links, far
        self.pins = PinDirectory(f"test-{name}")
        self.maps: MapSet = create_maps(SIZES)
        write_node(self.maps, node_config(), 1, False)

    def pod(self, number: int) -> str:
        """One more pod device."""
        device = f"veth{number}"
        self.links.add_veth(device, self.far, f"pod{number}", 1500)
        self.links.route(f"10.244.1.{number}/32", device=device)
        return device

    def pinned(self) -> list[str]:
        return sorted(self.pins.links())


@pytest.fixture
def place(make_namespace: Callable[[str], str]) -> Iterator[Place]:
    name, other = make_namespace("att"), make_namespace("far")
    with Links(name) as links, Links(other) as far:
        links.add_veth("up0", far, "eth0", 1500)
        links.address("up0", f"{NODE}/24")
        links.route("0.0.0.0/0", via="172.18.0.254")
        made = Place(name, other, links, far)
        try:
            yield made
        finally:
            made.maps.close()
            made.pins.remove()


def attached(place: Place, hook: PacketHook) -> PacketHook:
    with netns.netns(place.name):
        hook.attach(place.maps, place.pins)
    return hook


def test_programs_are_on_what_needs_them_and_go_without_a_trace(place: Place) -> None:
    pod = place.pod(11)
    hook = attached(place, PacketHook())
    status = {s.name: s for s in hook.status()}
    assert {n: (tuple(s.roles), s.tc, s.xdp) for n, s in status.items()} == {
        "up0": (("uplink",), "tcx", "native"),
        pod: (("pod",), "tcx", ""),
    }
    with netns.netns(place.name):
        hook.detach(place.pins)
        rules = subprocess.run(["nft", "list", "ruleset"], capture_output=True, text=True, check=True).stdout
    assert place.pinned() == []
    assert "hotplane" not in rules
    qdiscs = subprocess.run(["tc", "-n", place.name, "qdisc"], capture_output=True, text=True, check=True).stdout
    assert "clsact" not in qdiscs
    link = subprocess.run(["ip", "-n", place.name, "link"], capture_output=True, text=True, check=True).stdout
    assert "xdp" not in link


def test_a_new_daemon_replaces_the_programs_in_place(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has programs of another version."""
    first = attached(place, PacketHook())
    before = {name: _link(place, name) for name in place.pinned()}
    first.close()  # the daemon dies; links and programs stay
    monkeypatch.setattr(programs, "program_name", lambda name, *_: f"{name}-later")
    second = attached(place, PacketHook())
    after = {name: _link(place, name) for name in place.pinned()}
    assert before.keys() == after.keys()
    assert len(before) == 3
    for name, link in after.items():
        assert link.id == before[name].id
        assert link.program_id != before[name].program_id
    with netns.netns(place.name):
        second.detach(place.pins)


def _link(place: Place, name: str) -> bpf.LinkInfo:
    fd = bpf.obj_get(str(place.pins.links()[name]))
    try:
        return bpf.link_info(fd)
    finally:
        os.close(fd)


def test_devices_come_and_go(place: Place) -> None:
    hook = attached(place, PacketHook(xdp=False))
    with netns.netns(place.name):
        watch = hook.watch()
    with watch:
        device = place.pod(12)
        _until(lambda: device in {s.name for s in hook.status()} and len(place.pinned()) == 4)
        subprocess.run(["ip", "-n", place.name, "link", "del", device], check=True)
        _until(lambda: device not in {s.name for s in hook.status()} and len(place.pinned()) == 2)
        assert watch.problems == []
    with netns.netns(place.name):
        hook.detach(place.pins)


@pytest.mark.parametrize("begins", [True, False], ids=["attach", "refresh"])
@pytest.mark.parametrize("tcx", [True, False], ids=["tcx", "clsact"])
def test_a_device_that_goes_while_it_gets_its_programs_is_no_error(
    place: Place, monkeypatch: pytest.MonkeyPatch, *, tcx: bool, begins: bool
) -> None:
    """Pods come and go while a node with many attaches: the others must get theirs."""
    hook = PacketHook(xdp=False, tcx=tcx)
    if not begins:
        attached(place, hook)
    going, stays = place.pod(12), place.pod(13)
    where, name = (tc, "_attach_tcx") if tcx else (clsact, "attach")
    attach, index = getattr(where, name), place.links.index(going)

    def attach_and_delete(device: int, *arguments: Any, **more: Any) -> Any:
        done = attach(device, *arguments, **more)
        if device == index:
            subprocess.run(["ip", "-n", place.name, "link", "del", going], check=False, capture_output=True)
        return done

    monkeypatch.setattr(where, name, attach_and_delete)
    with netns.netns(place.name):
        if begins:
            hook.attach(place.maps, place.pins)
        else:
            hook.refresh()
        assert {status.name for status in hook.status()} == {"up0", stays}
        assert not any(pin.endswith(f"-{index}") for pin in place.pinned())
        assert place.maps.get("devices", index.to_bytes(4, "little")) is None
        hook.detach(place.pins)


def test_a_device_that_goes_while_its_programs_are_taken_off_is_no_error(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = place.pod(12)
    hook = attached(place, PacketHook(xdp=False, tcx=False))
    index, mark = place.links.index(going), clsact._mark

    def look_and_delete(netlink: IPRoute, device: int) -> int:
        found = mark(netlink, device)
        if device == index:
            subprocess.run(["ip", "-n", place.name, "link", "del", going], check=True)
        return found

    monkeypatch.setattr(clsact, "_mark", look_and_delete)
    with netns.netns(place.name):
        hook.detach(place.pins)
        assert clsact.devices() == frozenset()


@pytest.mark.parametrize(
    "error",
    [NetlinkError(19), ClsactError("a filter"), CompileError("a program")],
    ids=["netlink", "clsact", "compile"],
)
def test_devices_are_followed_after_an_error(place: Place, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    hook = attached(place, PacketHook(xdp=False))

    def fail() -> Network:
        monkeypatch.setattr(packet_hooks, "read_network", read_network)  # it happens once
        raise error

    with netns.netns(place.name):
        watch = hook.watch()
    with watch:
        monkeypatch.setattr(packet_hooks, "read_network", fail)
        place.pod(12)
        _until(lambda: watch.problems == [str(error)])
        device = place.pod(13)
        _until(lambda: device in {s.name for s in hook.status()})
    with netns.netns(place.name):
        hook.detach(place.pins)


@pytest.mark.parametrize("how", [["qdisc", "del", "dev", "up0", "clsact"], ["filter", "del", "dev", "up0", "egress"]])
def test_filters_that_somebody_deleted_come_back(place: Place, how: list[str]) -> None:
    """Where there is no tcx, anybody's `tc` takes a filter off, or the qdisc with all of them."""
    hook = attached(place, PacketHook(tcx=False, xdp=False))
    with netns.netns(place.name):
        (device,) = hook.status()
        assert (device.tc, hook.mend()) == ("clsact", [])
        subprocess.run(["tc", *how], check=True)
        lost = hook.mend()
        assert hook.mend() == []
        sides = [clsact.filters(device.ifindex, egress=egress) for egress in (False, True)]
        hook.detach(place.pins)
    assert "program tc_egress on up0" in lost
    assert len(lost) == (2 if how[0] == "qdisc" else 1)
    assert sides == [["tc_ingress"], ["tc_egress"]]


def test_a_device_in_the_place_of_another_has_programs(place: Place) -> None:
    """It has the number, name and address of the one before, so nothing tells them apart but what is missing."""
    hook = attached(place, PacketHook(xdp=False))
    far = ["peer", "name", "again", "netns", place.other]
    with netns.netns(place.name):
        (device,) = hook.status()
        mac = place.links.mac("up0")
        subprocess.run(["ip", "link", "del", "up0"], check=True)
        new = ["name", "up0", "index", str(device.ifindex), "address", mac, "type", "veth"]
        subprocess.run(["ip", "link", "add", *new, *far], check=True)
        subprocess.run(["ip", "-n", place.other, "link", "set", "again", "up"], check=True)
        place.links.up("up0")
        place.links.address("up0", f"{NODE}/24")
        place.links.route("0.0.0.0/0", via="172.18.0.254")
        hook.refresh()
        lost = hook.mend()
        found = bpf.attached_programs(device.ifindex, bpf.AttachType.TCX_INGRESS)
        hook.detach(place.pins)
    assert lost == ["program tc_egress on up0", "program tc_ingress on up0"]
    assert len(found) == 1


def test_a_plane_that_gives_way_looks_for_no_more_devices(place: Place) -> None:
    """Its maps are closed by then: their descriptors may be anything."""
    told: list[str] = []
    hook = OptionalHook(PacketHook(xdp=False), warn=told.append, watch=True)
    with netns.netns(place.name):
        plane = EbpfPlane(NftablesPlane(), [hook], SIZES, instance=f"test-{place.name}")
        before = set(threading.enumerate())
        plane.load(Plan(node_config()))
        [watcher] = set(threading.enumerate()) - before
        plane.give_way(())
    assert not watcher.is_alive()
    assert told == []


def test_links_that_the_watching_thread_removes_first_are_no_error(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load removes links of devices that went while no daemon ran; those of one that goes meanwhile, the other."""
    going = [place.pod(12), place.pod(13)]
    first = EbpfPlane(NoSlowPath(), [PacketHook(xdp=False)], SIZES, instance=f"test-{place.name}")
    with netns.netns(place.name):
        first.load(Plan(node_config()))
        first.close()
        for device in going:
            subprocess.run(["ip", "link", "del", device], check=True)
    remove = programs.remove_link
    late: list[Path] = []

    def remove_all_others(path: Path) -> None:
        remove(path)
        if not late:
            late.extend(other for name, other in place.pins.links().items() if name not in second.pins.wanted_links)
            for other in late:
                remove(other)

    monkeypatch.setattr("dataplane.planes.ebpf.plane.remove_link", remove_all_others)
    with netns.netns(place.name):
        second = EbpfPlane(NoSlowPath(), [PacketHook(xdp=False)], SIZES, instance=f"test-{place.name}")
        second.load(Plan(node_config()))
        assert len(late) == 3
        assert {name.partition("-")[0] for name in place.pinned()} == {"tc_ingress", "tc_egress"}
        second.cleanup()


@pytest.mark.parametrize("error", [OSError(12, "no memory"), NetlinkError(19)], ids=["system", "netlink"])
def test_nobody_goes_past_the_stack_when_nobody_can_look(
    place: Place, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    device, host = place.pod(12), HostRouting(lasting=True)
    place.links.neighbour(device, "10.244.1.12", "02:00:00:00:00:12")
    hook = attached(place, PacketHook(xdp=False, host=host))
    assert host.reason("10.244.1.12") is None

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("dataplane.planes.ebpf.host_routing.table.read_surroundings", fail)
    with netns.netns(place.name):
        with pytest.raises(PlaneError, match="host routing"):
            hook.refresh()
        assert host.reason("10.244.1.12") is not None
        assert list(place.maps.items("pods")) == []
        hook.detach(place.pins)


def test_programs_are_at_work_also_when_nobody_can_look_who_may_pass_the_stack(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hook that cannot be attached stays off until the next start, and this may be over with the next look."""
    device, host = place.pod(12), HostRouting(lasting=True)
    place.links.neighbour(device, "10.244.1.12", "02:00:00:00:00:12")

    def fail(*_: object) -> None:
        monkeypatch.setattr(table, "read_surroundings", read_surroundings)  # it happens once
        raise OSError(105, "no buffer space")

    monkeypatch.setattr(table, "read_surroundings", fail)
    hook = attached(place, PacketHook(xdp=False, host=host))
    assert {status.name for status in hook.status()} == {"up0", device}
    assert host.reason("10.244.1.12") is not None
    with netns.netns(place.name):
        hook.refresh()
        assert host.reason("10.244.1.12") is None
        hook.detach(place.pins)


def test_without_its_program_host_routing_is_off_and_the_hook_at_work(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses the program: it reads behind the packet without having looked where that ends."""
    wrong = tmp_path / "host.c"
    wrong.write_text(f'#include "{SOURCE_DIR}/skb.h"\n' + READS_ANYWHERE)
    monkeypatch.setattr(packet_hooks, "HOST_SOURCE", str(wrong))
    told: list[str] = []
    host = HostRouting()
    hook = OptionalHook(PacketHook(xdp=False, host=host), warn=told.append)
    with netns.netns(place.name):
        plane = EbpfPlane(NftablesPlane(), [hook], SIZES, instance=f"test-{place.name}", host_routing=host)
        plane.load(Plan(node_config()))
        routes = plane.host_routes()
        assert isinstance(hook.used, PacketHook)
        [status] = hook.used.status()
        plane.cleanup()
    assert status.name == "up0"
    assert status.tc
    assert routes is not None
    assert routes.refused.endswith("host.c: program tc_host was refused: prog_load tc_host: Permission denied")
    assert told == []


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline, "it did not happen within a minute"
        time.sleep(0.02)


def test_clsact_and_generic_xdp_where_nothing_better_is(place: Place) -> None:
    hook = attached(place, PacketHook(tcx=False, xdp_modes=("generic",)))
    [status] = hook.status()
    assert (status.tc, status.xdp) == ("clsact", "generic")
    with netns.netns(place.name):
        assert [clsact.filters(status.ifindex, egress=egress) for egress in (False, True)] == [
            ["tc_ingress"],
            ["tc_egress"],
        ]
    hook.close()
    again = attached(place, PacketHook(tcx=False, xdp_modes=("generic",)))
    with netns.netns(place.name):
        assert clsact.filters(status.ifindex, egress=False) == ["tc_ingress"]  # replaced, not added
    again.close()
    better = attached(place, PacketHook(xdp_modes=("generic",)))
    with netns.netns(place.name):
        assert clsact.filters(status.ifindex, egress=False) == []
        assert better.status()[0].tc == "tcx"
        better.detach(place.pins)
        assert clsact.filters(status.ifindex, egress=False) == []


@pytest.mark.parametrize("tcx", [True, False])
@pytest.mark.parametrize("with_filter", [True, False])
def test_another_tool_s_qdisc_and_filters_stay(place: Place, *, tcx: bool, with_filter: bool) -> None:
    def tc(*arguments: str) -> str:
        return subprocess.run(["tc", "-n", place.name, *arguments], capture_output=True, text=True, check=True).stdout

    tc("qdisc", "add", "dev", "up0", "clsact")
    if with_filter:  # of classic BPF, which has no name
        tc("filter", "add", "dev", "up0", "ingress", "prio", "7", "bpf", "bytecode", "1,6 0 0 0", "classid", "1:9")
    before = tc("filter", "show", "dev", "up0", "ingress")
    for _ in range(2):  # a second run finds the first one's filters, and still knows whose the qdisc is
        hook = attached(place, PacketHook(tcx=tcx, xdp=False))
        hook.close()
    with netns.netns(place.name):
        hook.detach(place.pins)
    assert "clsact" in tc("qdisc", "show", "dev", "up0")
    assert tc("filter", "show", "dev", "up0", "ingress") == before
    if not with_filter:
        return
    tc("qdisc", "del", "dev", "up0", "clsact")
    hook = attached(place, PacketHook(tcx=tcx, xdp=False))
    with netns.netns(place.name):
        hook.detach(place.pins)
    assert "clsact" not in tc("qdisc", "show", "dev", "up0"), "what hotplane made goes"


def test_another_xdp_program_is_left_alone(place: Place) -> None:
    hook = attached(place, PacketHook())
    other = PinDirectory(f"other-{place.name}")
    try:
        with netns.netns(place.name):
            rival = PacketHook()
            rival.attach(place.maps, other)
            [status] = rival.status()
        assert status.xdp == ""
        assert "up0" in status.problem
    finally:
        with netns.netns(place.name):
            rival.detach(other)
            hook.detach(place.pins)
        other.remove()


@pytest.mark.parametrize(("release", "mode"), [("5.12.19-amd64", ""), ("5.13.0-amd64", "native"), ("6.1", "native")])
def test_xdp_is_not_on_a_veth_that_takes_no_frames(
    place: Place, monkeypatch: pytest.MonkeyPatch, release: str, mode: str
) -> None:
    monkeypatch.setattr(platform, "release", lambda: release)
    hook = attached(place, PacketHook())
    [status] = hook.status()
    assert (status.xdp, status.tc) == (mode, "tcx")
    assert status.problem == ("" if mode else "XDP on up0: " + veth_problem() + "; tc does its work there")
    with netns.netns(place.name):
        hook.detach(place.pins)


def test_selected_devices_are_attached(place: Place) -> None:
    place.pod(13)
    hook = attached(place, PacketHook(DeviceSelection(uplinks=("up*",), pods=("none*",)), xdp=False))
    assert [s.name for s in hook.status()] == ["up0"]
    with netns.netns(place.name):
        hook.detach(place.pins)
