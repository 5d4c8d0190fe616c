"""Which devices carry packet programs, as a table of networks."""

from pathlib import Path

import pytest

from dataplane.planes.ebpf.attach.devices import (
    DETECTED,
    OVERLAY,
    POD,
    UPLINK,
    Device,
    DeviceSelection,
    Link,
    Network,
    Route,
    choose_devices,
)
from dataplane.planes.ebpf.flows.port_split import other_ports, ruleset
from dataplane.planes.ebpf.flows.ports import runs_beside, snat_fields, snat_ports, snat_runs
from dataplane.policy.node import LocalDetector

LO = Link("lo", 1, type=772)
ETH0 = Link("eth0", 2, mac="02:00:00:00:00:01")
VETH1 = Link("veth1", 3, "veth", mac="02:00:00:00:00:02")
CNI0 = Link("cni0", 4, "bridge", mac="02:00:00:00:00:03")
PORT = Link("veth2", 5, "veth", mac="02:00:00:00:00:04", master=4)
FLANNEL = Link("flannel.1", 6, "vxlan", mac="02:00:00:00:00:05")
TUNNEL = Link("tunl0", 7, "ipip", type=768)
PRIMARY = ("172.18.0.1",)
ADDRESSES = frozenset({(1, "127.0.0.1"), (2, "172.18.0.1"), (4, "10.244.1.1")})
ROUTES = frozenset({Route("", 2), Route("10.244.1.11/32", 3), Route("10.244.1.0/24", 4), Route("fe80::/64", 3)})
NETWORK = Network((LO, ETH0, VETH1, CNI0, PORT, FLANNEL, TUNNEL), ADDRESSES, ROUTES)


def chosen(network: Network = NETWORK, selection: DeviceSelection | None = None) -> dict[str, int]:
    return {d.name: d.flags for d in choose_devices(network, PRIMARY, selection or DeviceSelection())}


def test_roles_are_found() -> None:
    assert chosen() == {"eth0": UPLINK, "veth1": POD, "veth2": POD, "flannel.1": OVERLAY, "tunl0": OVERLAY}


def test_a_device_without_link_layer_header_is_a_tunnel() -> None:
    tun, tap = Link("tun0", 8, "tun", type=65534), Link("tap0", 9, "tun", mac="02:00:00:00:00:06")
    devices = choose_devices(NETWORK._replace(links=(*NETWORK.links, tun, tap)), PRIMARY, DeviceSelection())
    assert {d.name: d.flags for d in devices if d.raw_ip} == {"tunl0": OVERLAY, "tun0": OVERLAY}
    assert "tap0" not in {d.name for d in devices}


def test_a_second_default_route_makes_an_uplink() -> None:
    network = NETWORK._replace(routes=ROUTES | {Route("", 3)})
    assert chosen(network)["veth1"] == UPLINK


def test_the_bridge_of_the_uplink_gives_no_pods() -> None:
    network = NETWORK._replace(addresses=frozenset({(4, "172.18.0.1")}), routes=frozenset({Route("", 4)}))
    assert chosen(network) == {"cni0": UPLINK, "flannel.1": OVERLAY, "tunl0": OVERLAY}


def test_globs_decide_where_given() -> None:
    assert chosen(selection=DeviceSelection(uplinks=("fl*",), pods=("veth[2-9]",))) == {
        "veth2": POD, "flannel.1": UPLINK, "tunl0": OVERLAY,
    }  # fmt: skip


def test_a_device_that_is_down_waits() -> None:
    assert "veth1" not in chosen(NETWORK._replace(links=(LO, ETH0, VETH1._replace(up=False))))


def test_headers_and_xdp() -> None:
    by_name = {d.name: d for d in choose_devices(NETWORK, PRIMARY, DeviceSelection())}
    assert by_name["eth0"] == Device("eth0", 2, UPLINK, b"\x02\0\0\0\0\x01", xdp=True, routed=2)
    assert by_name["tunl0"].raw_ip
    assert not by_name["flannel.1"].raw_ip
    assert [name for name, device in by_name.items() if device.xdp] == ["eth0"]


@pytest.mark.parametrize(
    ("interface", "prefix", "detected"),
    [("cni0", False, {"veth2"}), ("veth", True, {"veth1", "veth2"}), ("veth1", False, {"veth1"}), ("", False, set())],
)
def test_pods_by_device(interface: str, prefix: bool, detected: set[str]) -> None:
    selection = DeviceSelection(detector=LocalDetector(interface=interface, interface_is_prefix=prefix))
    assert {name for name, flags in chosen(selection=selection).items() if flags & DETECTED} == detected


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        ([(1024, 29999), (61000, 65535)], (32768, 60999)),
        ([(61000, 65535)], (1024, 29999)),
        ([(10000, 29999)], (32768, 65535)),
        ([(32768, 65535)], (1024, 29999)),
    ],
)
def test_the_slow_path_gets_other_ports(taken: list[tuple[int, int]], left: tuple[int, int]) -> None:
    assert other_ports(taken) == left
    assert f"masquerade to :{left[0]}-{left[1]} fully-random" in ruleset(0x4000, taken)


@pytest.mark.parametrize(
    ("ephemeral", "ports"),
    [
        ("32768\t60999\n", ((1024, 29999), (61000, 65535))),
        ("1024\t65535\n", ((10000, 29999),)),
        ("10000 29999", ((1024, 9999), (32768, 65535))),
        ("1024 33000", ((33001, 65535),)),
    ],
)
def test_the_programs_get_what_is_nobody_elses(
    ephemeral: str, ports: tuple[tuple[int, int], ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "range"
    file.write_text(ephemeral)
    monkeypatch.setattr("dataplane.planes.ebpf.flows.ports._EPHEMERAL", file)
    assert snat_ports() == ports
    names = ("snat_ports", "snat_first", "snat_first_count", "snat_second", "pad")
    assert snat_runs(dict(zip(names, snat_fields(ports), strict=True))) == ports


def test_the_kernels_defaults_leave_28000_ports_an_endpoint() -> None:
    assert sum(last - first + 1 for first, last in runs_beside([(32768, 60999), (30000, 32767)])) >= 28000


def test_the_nodes_own_flows_change_ports_within_the_run_they_are_in() -> None:
    rules = ruleset(0x4000, [(61000, 65535)])
    for ip in ("ip", "ip6"):
        for run in ("1024-29999", "32768-60999"):
            assert f"iif 0 meta l4proto {{ 6, 17 }} th sport {run} snat {ip} to {ip} saddr:{run}\n" in rules
    assert rules.count("snat") == 4
