"""Traffic policies: which set, masqueraded or not, for each source class."""

import pytest

from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses, Source
from dataplane.policy.routes import (
    DROP,
    DROP_ALL,
    REJECT_ALL,
    Action,
    Route,
    Routes,
    Scope,
    cluster_ip_routes,
    external_routes,
)

CLUSTER = Route(Action.FORWARD, Scope.CLUSTER)
CLUSTER_MASQ = Route(Action.FORWARD, Scope.CLUSTER, True)
LOCAL = Route(Action.FORWARD, Scope.LOCAL)
LOCAL_MASQ = Route(Action.FORWARD, Scope.LOCAL, True)


@pytest.mark.parametrize(
    ("has_cluster", "has_local", "internal_local", "detects", "all_", "expected"),
    [
        (False, False, False, True, False, REJECT_ALL),
        (False, False, True, True, False, REJECT_ALL),
        (True, False, True, True, False, DROP_ALL),
        (True, False, False, True, False, Routes(CLUSTER, CLUSTER_MASQ, CLUSTER_MASQ)),
        (True, True, True, True, False, Routes(LOCAL, LOCAL_MASQ, LOCAL_MASQ)),
        (True, True, False, False, False, Routes(CLUSTER, CLUSTER, CLUSTER)),
        (True, True, False, False, True, Routes(CLUSTER_MASQ, CLUSTER_MASQ, CLUSTER_MASQ)),
        (True, True, True, True, True, Routes(LOCAL_MASQ, LOCAL_MASQ, LOCAL_MASQ)),
    ],
)
def test_cluster_ip(
    has_cluster: bool, has_local: bool, internal_local: bool, detects: bool, all_: bool, expected: Routes
) -> None:
    routes = cluster_ip_routes(
        has_cluster=has_cluster,
        has_local=has_local,
        internal_local=internal_local,
        detects_pods=detects,
        masquerade_all=all_,
    )
    assert routes == expected


@pytest.mark.parametrize(
    ("has_cluster", "has_local", "external_local", "expected"),
    [
        (False, False, False, REJECT_ALL),
        (False, False, True, REJECT_ALL),
        (True, False, False, Routes(CLUSTER_MASQ, CLUSTER_MASQ, CLUSTER_MASQ)),
        (True, True, False, Routes(CLUSTER_MASQ, CLUSTER_MASQ, CLUSTER_MASQ)),
        (True, False, True, Routes(CLUSTER, CLUSTER_MASQ, DROP)),
        (True, True, True, Routes(CLUSTER, CLUSTER_MASQ, LOCAL)),
    ],
)
def test_external(has_cluster: bool, has_local: bool, external_local: bool, expected: Routes) -> None:
    assert external_routes(has_cluster=has_cluster, has_local=has_local, external_local=external_local) == expected


@pytest.mark.parametrize(
    ("address", "interface", "detector", "expected"),
    [
        ("10.244.1.7", "", LocalDetector(cidrs=("10.244.0.0/16",)), Source.POD),
        # A bridge's own address inside the pod range counts as a pod: the range is tested first.
        ("10.244.1.1", "", LocalDetector(cidrs=("10.244.0.0/16",)), Source.POD),
        ("10.244.1.1", "", LocalDetector(), Source.NODE),
        ("172.18.0.2", "", LocalDetector(cidrs=("10.244.0.0/16",)), Source.NODE),
        ("127.0.0.1", "", LocalDetector(), Source.NODE),
        ("::1", "", LocalDetector(cidrs=("10.244.0.0/16",)), Source.NODE),
        ("fd00::9", "", LocalDetector(cidrs=("10.244.0.0/16",)), Source.OUTSIDE),
        ("192.0.2.1", "cni0", LocalDetector(interface="cni0"), Source.POD),
        ("192.0.2.1", "cni01", LocalDetector(interface="cni0"), Source.OUTSIDE),
        ("192.0.2.1", "veth12", LocalDetector(interface="veth", interface_is_prefix=True), Source.POD),
        ("192.0.2.1", "", LocalDetector(interface="veth", interface_is_prefix=True), Source.OUTSIDE),
    ],
)
def test_source(address: str, interface: str, detector: LocalDetector, expected: Source) -> None:
    node = NodeConfig(addresses=("172.18.0.2", "10.244.1.1"), detector=detector)
    assert node.source(address, interface) is expected


@pytest.mark.parametrize(
    ("nodeports", "address", "expected"),
    [
        (NodePortAddresses(addresses=("172.18.0.2",)), "172.18.0.2", True),
        (NodePortAddresses(addresses=("172.18.0.2",)), "172.18.0.3", False),
        (NodePortAddresses(addresses=("172.18.0.2",)), "127.0.0.1", False),
        (NodePortAddresses(any_local=True), "172.18.0.3", True),
        (NodePortAddresses(any_local=True), "192.0.2.1", False),
        (NodePortAddresses(any_local=True), "127.0.0.1", False),
        (NodePortAddresses(any_local=True, loopback=True), "127.0.0.1", True),
        (NodePortAddresses(any_local=True, loopback=True), "::1", False),
    ],
)
def test_node_port_addresses(nodeports: NodePortAddresses, address: str, expected: bool) -> None:
    node = NodeConfig(addresses=("172.18.0.2", "172.18.0.3", "::1"), nodeports=nodeports)
    assert node.answers_node_ports(address) is expected
