"""Which settings differ from those of the last load."""

import msgspec
import pytest

from ctl.store.settings import settings_changes
from dataplane.policy.forwarding import LbMode
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses

LOADED = NodeConfig(
    name="node1",
    addresses=("172.18.0.1",),
    detector=LocalDetector(cidrs=("10.244.0.0/16", "fd00:10:244::/56")),
    nodeports=NodePortAddresses(addresses=("172.18.0.1",)),
)


def test_the_same_settings_are_no_reason() -> None:
    assert [*settings_changes(LOADED, LOADED)] == []


def test_a_lost_pod_range_says_why_nothing_is_masqueraded_any_more() -> None:
    (said,) = settings_changes(LOADED, msgspec.structs.replace(LOADED, detector=LocalDetector()))
    assert said.startswith("pods (clusterCIDR, detectLocalMode): 10.244.0.0/16, fd00:10:244::/56 -> none; ")
    assert "clusterIPs masquerade no client" in said
    (back,) = settings_changes(msgspec.structs.replace(LOADED, detector=LocalDetector()), LOADED)
    assert back == "pods (clusterCIDR, detectLocalMode): none -> 10.244.0.0/16, fd00:10:244::/56"


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("name", "node2", "--node-name: node1 -> node2"),
        ("zone", "a", "--zone: none -> a"),
        ("masquerade_all", True, "masqueradeAll: off -> on"),
        ("detector", LocalDetector(interface="cali", interface_is_prefix=True),
         "pods (clusterCIDR, detectLocalMode): 10.244.0.0/16, fd00:10:244::/56 -> devices cali*"),
        ("nodeports", NodePortAddresses(any_local=True, loopback=True),
         "node ports answer at (nodePortAddresses): 172.18.0.1 -> every address of the node, 127.0.0.0/8"),
        ("lb_mode", LbMode.DSR, "--lb-mode: snat -> dsr"),
    ],
)  # fmt: skip
def test_each_setting_is_named_as_its_user_gives_it(field: str, value: object, said: str) -> None:
    assert [*settings_changes(LOADED, msgspec.structs.replace(LOADED, **{field: value}))] == [said]


def test_only_the_order_within_a_family_tells_addresses_apart() -> None:
    loaded = msgspec.structs.replace(LOADED, addresses=("172.18.0.1", "fd00::1", "172.18.1.1"))
    mixed = msgspec.structs.replace(loaded, addresses=("fd00::1", "172.18.0.1", "172.18.1.1"))
    assert [*settings_changes(loaded, mixed)] == []
    other = msgspec.structs.replace(loaded, addresses=("172.18.1.1", "fd00::1", "172.18.0.1"))
    (said,) = settings_changes(loaded, other)
    assert said.endswith("172.18.0.1, 172.18.1.1, fd00::1 -> 172.18.1.1, 172.18.0.1, fd00::1")


def test_what_a_mode_alone_decides_is_no_setting() -> None:
    other = msgspec.structs.replace(LOADED, reject_unknown_ports=False, most_backends=0, maglev_table_size=0)
    assert [*settings_changes(LOADED, other)] == []
