"""Which settings of the node differ from those of the last load: why routes differ though no manifest does."""

from collections.abc import Callable, Iterable, Iterator

from dataplane.model.net import Family, family_of
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses

_NO_PODS = "; no source counts as a pod then, and clusterIPs masquerade no client but pods that meet themselves"


def settings_changes(before: NodeConfig, after: NodeConfig) -> Iterator[str]:
    """A sentence for each setting of the user's that differs: its option or field, both values, and what follows where
    that is not plain. What only a mode decides is left out, since the mode itself is told."""
    for field, (name, text) in _NAMES.items():
        was, comes = getattr(before, field), getattr(after, field)
        if text(was) != text(comes) and not (field == "maglev_table_size" and 0 in (was, comes)):
            lost = any(before.detector.implemented(f) and not after.detector.implemented(f) for f in Family)
            yield f"{name}: {text(was)} -> {text(comes)}{_NO_PODS if field == 'detector' and lost else ''}"


def _pods(detector: LocalDetector) -> str:
    if detector.interface:
        return f"devices {detector.interface}*" if detector.interface_is_prefix else f"device {detector.interface}"
    return ", ".join(detector.cidrs) or "none"


def _addresses(addresses: Iterable[str]) -> str:
    """Family by family, since only the order within one says which address is primary."""
    return ", ".join(sorted(addresses, key=lambda address: family_of(address).value)) or "none"


def _node_ports(where: NodePortAddresses) -> str:
    places = ["every address of the node"] if where.any_local else [_addresses(where.addresses)]
    loopback = (("127.0.0.0/8", where.loopback), ("::1", where.loopback_ipv6))
    return ", ".join([*places, *(address for address, answers in loopback if answers)])


def _plain(value: object) -> str:
    match value:
        case bool():
            return "on" if value else "off"
        case tuple():
            return ", ".join(str(getattr(each, "name", each)) for each in value) or "none"
    return str(getattr(value, "value", value)) or "none"


_NAMES: dict[str, tuple[str, Callable[..., str]]] = {
    "name": ("--node-name", _plain),
    "zone": ("--zone", _plain),
    "addresses": ("addresses of the node (--node-ip)", _addresses),
    "detector": ("pods (clusterCIDR, detectLocalMode)", _pods),
    "nodeports": ("node ports answer at (nodePortAddresses)", _node_ports),
    "masquerade_all": ("masqueradeAll", _plain),
    "external_ips": ("externalIPs (AllowServiceExternalIPs)", _plain),
    "host_ports": ("--host-ports", _plain),
    "answer_ping": ("--answer-ping", _plain),
    "flowtable": ("--flowtable", _plain),
    "lb_algorithm": ("--lb-algorithm", _plain),
    "maglev_table_size": ("--maglev-table-size", _plain),
    "hash_seed": ("--hash-seed", _plain),
    "lb_mode": ("--lb-mode", _plain),
    "lb_dispatch": ("--lb-dispatch", _plain),
    "lb_port": ("--lb-port", _plain),
    "lb_vni": ("--lb-vni", _plain),
    "lb_peers": ("--lb-peer", _plain),
}
