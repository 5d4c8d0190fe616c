"""What each mode promises on a node: node ports, local detection, masquerade marks."""

import pytest

from dataplane.model.net import Family
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses, Source
from dataplane.policy.settings import LocalMode, Masquerading, Promises, ProxySettings, node_config, node_ports

IPS = ("192.168.0.2", "192.168.1.2", "192.168.99.11", "2001:db8::1", "2001:db8:1::2")
NON_IPTABLES = (Promises.NFTABLES, Promises.CONNECT_TIME)


def config(mode: Promises, *cidrs: str, localhost: bool = True, ips: tuple[str, ...] = IPS) -> NodeConfig:
    settings = ProxySettings(nodeport_addresses=cidrs, localhost_node_ports=localhost)
    return node_config(mode, settings, node_name="n", node_ips=ips)


def answering(node: NodeConfig) -> set[str]:
    candidates = (*IPS, "127.0.0.1", "127.5.5.5", "::1", "192.0.2.1", "2001:db8:9::9")
    return {address for address in candidates if node.answers_node_ports(address)}


V4, V6, LOOPBACK = set(IPS[:3]), set(IPS[3:]), {"127.0.0.1", "127.5.5.5"}
IPTABLES_CASES: list[tuple[tuple[str, ...], bool, set[str]]] = [
    ((), True, V4 | V6 | LOOPBACK),
    ((), False, V4 | V6),
    (("0.0.0.0/0",), True, V4 | V6 | LOOPBACK),
    (("0.0.0.0/0",), False, V4 | V6),
    (("192.168.0.0/24", "127.0.0.1/32"), True, {"192.168.0.2"} | V6 | LOOPBACK),
    (("192.168.0.0/24", "127.0.0.1/32"), False, {"192.168.0.2"} | V6),
    (("192.168.0.0/24", "192.168.1.0/24"), True, {"192.168.0.2", "192.168.1.2"} | V6),
    (("::/0",), True, V4 | V6 | LOOPBACK),
    (("2001:db8::/64",), False, V4 | {"2001:db8::1"}),
    (("2001:db8::/64",), True, V4 | {"2001:db8::1"} | LOOPBACK),
    (("127.0.0.0/8",), True, V6 | LOOPBACK),
    (("127.0.0.0/8",), False, V6),
    (("127.5.0.0/16",), True, V6),
    (("primary",), True, {"192.168.0.2", "2001:db8::1"}),
    (("localhost",), True, LOOPBACK),
    (("localhost", "primary"), True, {"192.168.0.2", "2001:db8::1"} | LOOPBACK),
    (("all",), True, V4 | V6 | LOOPBACK),
]


@pytest.mark.parametrize(("cidrs", "localhost", "expected"), IPTABLES_CASES)
def test_node_ports_of_the_iptables_mode(cidrs: tuple[str, ...], localhost: bool, expected: set[str]) -> None:
    assert answering(config(Promises.IPTABLES, *cidrs, localhost=localhost)) == expected


@pytest.mark.parametrize("mode", NON_IPTABLES)
@pytest.mark.parametrize(
    ("cidrs", "expected"),
    [
        ((), {"192.168.0.2", "2001:db8::1"}),
        (("primary",), {"192.168.0.2", "2001:db8::1"}),
        (("0.0.0.0/0",), V4 | V6),
        (("0.0.0.0/0", "2001:db8:1::/64"), V4 | {"2001:db8:1::2"}),
        (("192.168.0.0/16", "::/0"), V4 | V6),
        (("192.168.1.0/24", "127.0.0.0/8", "2001:db8::/64"), {"192.168.1.2", "2001:db8::1"} | LOOPBACK),
        (("primary", "127.0.0.1/32"), {"192.168.0.2", "2001:db8::1"} | LOOPBACK),
        (("primary", "127.5.0.0/16"), {"192.168.0.2", "2001:db8::1"}),
        (("0.0.0.0/0", "127.0.0.1/32"), V4 | V6 | LOOPBACK),
        (("all",), V4 | V6),
        (("126.0.0.0/7", "::/0"), V6),
    ],
)
def test_node_ports_of_the_other_modes_are_on_loopback_where_it_is_named(
    mode: Promises, cidrs: tuple[str, ...], expected: set[str]
) -> None:
    assert answering(config(mode, *cidrs)) == expected


@pytest.mark.parametrize(
    ("mode", "cidrs", "at_connect", "expected"),
    [
        (Promises.NFTABLES, ("localhost",), True, LOOPBACK),
        (Promises.CONNECT_TIME, ("localhost",), True, {*LOOPBACK, "::1"}),
        (Promises.CONNECT_TIME, ("localhost",), False, LOOPBACK),
        (Promises.CONNECT_TIME, ("primary", "::1/128"), True, {"192.168.0.2", "2001:db8::1", "::1"}),
        (Promises.CONNECT_TIME, ("primary", "localhost"), True, {"192.168.0.2", "2001:db8::1", *LOOPBACK, "::1"}),
        (Promises.CONNECT_TIME, ("all",), True, V4 | V6),
    ],
)
def test_only_connect_time_leads_away_from_the_ipv6_loopback_address(
    mode: Promises, cidrs: tuple[str, ...], at_connect: bool, expected: set[str]
) -> None:
    settings = ProxySettings(nodeport_addresses=cidrs)
    node = node_config(mode, settings, node_name="n", node_ips=IPS, at_connect=at_connect)
    assert answering(node) == expected


def test_open_node_ports_need_no_list_of_addresses() -> None:
    assert node_ports(Promises.IPTABLES, ProxySettings(), IPS) == NodePortAddresses(any_local=True, loopback=True)
    both = ProxySettings(nodeport_addresses=("0.0.0.0/0", "::/0"))
    assert node_ports(Promises.NFTABLES, both, IPS) == NodePortAddresses(any_local=True)


def test_a_family_without_a_node_address_has_no_primary() -> None:
    node = config(Promises.NFTABLES, ips=("192.168.0.2",))
    assert node.nodeports == NodePortAddresses(addresses=("192.168.0.2",))
    assert node.primary(Family.IPV6) == ""


def test_addresses_are_canonical_and_the_primary_ones_lead() -> None:
    node = node_config(
        Promises.NFTABLES,
        ProxySettings(),
        node_name="n",
        zone="a",
        node_ips=("192.168.0.2", "192.168.1.2", "2001:DB8::1"),
        interface_addresses=("127.0.0.1", "::1", "10.42.0.1", "192.168.0.2", "2001:db8:0::1"),
    )
    assert node.addresses == ("192.168.0.2", "2001:db8::1", "192.168.1.2", "10.42.0.1")
    assert (node.name, node.zone) == ("n", "a")
    assert node.source("10.42.0.1") is Source.NODE
    with pytest.raises(ValueError, match="is not an IP address"):
        node_config(Promises.NFTABLES, ProxySettings(), node_name="n", node_ips=("node-1",))


@pytest.mark.parametrize(
    ("settings", "detector"),
    [
        (ProxySettings(), LocalDetector()),
        (ProxySettings(cluster_cidrs=("10.1.2.3/8", "fd00::/48")), LocalDetector(("10.0.0.0/8", "fd00::/48"))),
        (
            ProxySettings(detect_local=LocalMode.NODE_CIDR, cluster_cidrs=("10.0.0.0/8",)),
            LocalDetector(("10.42.0.0/24",)),
        ),
        (
            ProxySettings(detect_local=LocalMode.BRIDGE_INTERFACE, bridge_interface="cni0"),
            LocalDetector(interface="cni0"),
        ),
        (
            ProxySettings(detect_local=LocalMode.INTERFACE_NAME_PREFIX, interface_name_prefix="veth"),
            LocalDetector(interface="veth", interface_is_prefix=True),
        ),
    ],
)
def test_local_detection(settings: ProxySettings, detector: LocalDetector) -> None:
    node = node_config(Promises.CONNECT_TIME, settings, node_name="n", node_ips=IPS, node_pod_cidrs=("10.42.0.0/24",))
    assert node.detector == detector


def test_each_mode_takes_its_own_masquerade_settings() -> None:
    settings = ProxySettings(iptables=Masquerading(True, 14), nftables=Masquerading(False, 31))
    seen = {mode: node_config(mode, settings, node_name="n", node_ips=IPS) for mode in Promises}
    assert {mode: (node.masquerade_all, node.masquerade_mark) for mode, node in seen.items()} == {
        Promises.IPTABLES: (True, 0x4000),
        Promises.NFTABLES: (False, 1 << 31),
        Promises.CONNECT_TIME: (False, 1 << 31),
    }
    assert {mode: node.reject_unknown_ports for mode, node in seen.items()} == {
        Promises.IPTABLES: False,
        Promises.NFTABLES: True,
        Promises.CONNECT_TIME: True,
    }
