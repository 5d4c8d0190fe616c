"""Which devices and pods host routing uses, from what the kernel has, and the keys of its flows."""

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.planes.ebpf.attach.devices import OVERLAY, POD, UPLINK, Device, Link, Network, Route
from dataplane.planes.ebpf.flows.direct import direct_key
from dataplane.planes.ebpf.host_routing.devices import Judgement, LocalPod, judge
from dataplane.planes.ebpf.host_routing.surroundings import Surroundings

MAC, OTHER, BRIDGE = (bytes([2, 0, 0, 0, 0, number]) for number in (1, 2, 3))
ENDS = st.tuples(st.ip_addresses().map(str), st.integers(0, 65535))


@dataclass
class Place:
    """A node with an uplink, and a pod 10.244.1.11 behind veth1 with its own route."""

    link: dict[str, Any] = field(default_factory=dict)
    around: dict[str, Any] = field(default_factory=dict)
    device: dict[str, Any] = field(default_factory=dict)
    links: tuple[Link, ...] = ()
    mtu: int = 0

    def judged(self) -> Judgement:
        veth: dict[str, Any] = {"kind": "veth", "mtu": 1500, "leads_away": True, "mac": BRIDGE.hex(":")} | self.link
        network = Network(
            links=(Link("eth0", 2, mtu=1500), Link("veth1", 3, **veth), *self.links),
            routes=frozenset({Route("10.244.1.11/32", 3, self.mtu), Route("", 2), Route("fe80::1/128", 3)}),
        )
        own: dict[str, Any] = {"flags": POD, "mac": BRIDGE, "veth": True, "routed": 3} | self.device
        device = Device("veth1", 3, **own)
        around = Surroundings(**({"neighbours": {(3, "10.244.1.11"): MAC}} | self.around))
        return judge(network, [Device("eth0", 2, UPLINK, routed=2), device], around)


def test_a_pod_behind_a_device_of_its_own() -> None:
    found = Place().judged()
    assert found.reasons == {"eth0": None, "veth1": None}
    assert found.usable == {2, 3}
    assert found.pods == {"10.244.1.11": LocalPod(3, 3, False, 1500, MAC, BRIDGE)}
    assert found.problems == {}


def test_the_route_s_mtu_counts() -> None:
    assert Place(mtu=1300).judged().pods["10.244.1.11"].mtu == 1300
    assert Place(mtu=9000).judged().pods["10.244.1.11"].mtu == 1500


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (Place(link={"kind": "macvlan"}), "it is no veth, but macvlan"),
        (Place(link={"kind": ""}), "it is no veth, but a device of unknown kind"),
        (Place(link={"leads_away": False}), "its other end is in the node's own network namespace"),
        (Place(link={"isolated": True}), "its port of the bridge is isolated"),
        (Place(link={"master": 9}, links=(Link("red", 9, "vrf"),)), "it belongs to red (vrf)"),
        (Place(link={"master": 9}, links=(Link("br", 9, "bridge", vlan_aware=True),)), "bridge br filters VLANs"),
        (Place(around={"qdiscs": {3: ["tbf"]}}), "queueing discipline tbf limits what goes to the pod"),
        (Place(around={"qdiscs": {3: ["noqueue", "clsact"]}, "filters": {3: "a tc filter"}}), "a tc filter"),
        (Place(around={"ipsec": True}), "the node has IPsec policies, which the stack applies"),
        (Place(device={"raw_ip": True}), "it has no link-layer header"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_devices_that_are_not_used(place: Place, reason: str) -> None:
    found = place.judged()
    assert found.reasons["veth1"] == reason
    assert 3 not in found.usable
    assert found.pods == {}
    assert found.problems == {"10.244.1.11": f"device veth1: {reason}"}


@pytest.mark.parametrize("kind", ["noqueue", "pfifo_fast", "fq", "fq_codel", "mq", "clsact"])
def test_usual_queueing_disciplines_limit_nobody(kind: str) -> None:
    assert Place(around={"qdiscs": {3: [kind]}}).judged().pods


@pytest.mark.parametrize("role", [UPLINK, OVERLAY])
def test_what_leaves_passes_its_queue(role: int) -> None:
    """So an uplink may have any, and be of any kind."""
    place = Place({"kind": "", "leads_away": False}, {"qdiscs": {3: ["htb"]}}, {"flags": role})
    assert place.judged().reasons["veth1"] is None


def test_a_pod_without_a_known_hardware_address() -> None:
    found = Place(around={"neighbours": {}}).judged()
    assert found.pods == {}
    assert found.problems == {"10.244.1.11": "its hardware address on veth1 is not known yet"}


def test_pods_of_a_bridge() -> None:
    links = (
        Link("cni0", 9, "bridge", mac=BRIDGE.hex(":"), mtu=1450),
        Link("veth1", 3, "veth", master=9, mtu=1500, leads_away=True),
    )
    devices = [Device("veth1", 3, POD, routed=9)]
    network = Network(links, frozenset({(9, "10.244.1.1")}), frozenset({Route("10.244.1.0/24", 9)}))
    around = Surroundings(
        neighbours={(9, "10.244.1.11"): MAC, (9, "10.244.1.12"): OTHER, (9, "10.244.1.1"): BRIDGE, (9, "ff02::1"): MAC},
        stations={(9, MAC): 3, (8, OTHER): 3},
    )
    found = judge(network, devices, around)
    assert found.pods == {"10.244.1.11": LocalPod(3, 9, True, 1450, MAC, BRIDGE)}
    assert found.problems == {"10.244.1.12": "bridge cni0 does not know the port of 02:00:00:00:00:02"}


@given(ENDS, ENDS, st.sampled_from((6, 17)))
def test_a_flow_has_one_key(one: tuple[str, int], other: tuple[str, int], protocol: int) -> None:
    assert direct_key(one, other, protocol) == direct_key(other, one, protocol)
