"""KubeProxyConfiguration v1alpha1, read as kube-proxy reads it.

Fields and defaults: kubeproxy.config.k8s.io/v1alpha1 of Kubernetes 1.36. Null counts as not given (kubeadm writes many
nulls), durations are Go's ("2h45m") and become seconds. This project's own additions are `mode: ebpf`,
`hostRouting`, `lbMode`, `lbDispatch`, `lbPort`, `lbVNI`, `lbPeers`, `lbAlgorithm`, `maglevTableSize` and `hashSeed`.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from dataplane.errors import HotplaneError
from dataplane.malformed import MALFORMED
from dataplane.model.algorithm import ALGORITHMS
from dataplane.model.forwarding import DISPATCHES, MOST_PORT, MOST_VNI
from dataplane.model.forwarding import MODES as FORWARDING_MODES
from dataplane.model.net import canonical_address
from dataplane.model.report import canonical_cidr
from dataplane.planes.host_routes import CHOICES
from dataplane.planes.registry import MODES
from dataplane.policy.algorithm import TABLE_SIZES
from dataplane.policy.forwarding import parse_peers
from dataplane.policy.settings import ALL, LOCALHOST, PRIMARY, LocalMode, Masquerading, Promises, ProxySettings

API_VERSION = "kubeproxy.config.k8s.io/v1alpha1"
KIND = "KubeProxyConfiguration"
EXTERNAL_IPS_GATE = "AllowServiceExternalIPs"
NO_EXTERNAL_IPS = f"featureGates: {EXTERNAL_IPS_GATE} is false, so externalIPs of Services make no frontends"
NO_PODS = (
    "clusterCIDR is not set, so no source counts as a pod: clusterIPs masquerade no client but pods that meet "
    "themselves, and policy Local takes pods for clients outside; set it, or another detectLocalMode"
)
HEALTHZ_PORT = 10256
METRICS_PORT = 10249

_MOST_SECONDS = 2.0**63 / 1e9  # Go's time.Duration counts nanoseconds in 64 bits
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION_PART = re.compile(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)(ns|us|µs|μs|ms|s|m|h)")
# What the kernel lets a device be called (IFNAMSIZ - 1 bytes), less what rules and terminals could trip over.
_DEVICE = re.compile(r"[A-Za-z0-9._@+=#-]{1,15}", re.ASCII)
_INITIALISMS = {"Ip": "IP", "Cidr": "CIDR", "Cidrs": "CIDRs", "Arp": "ARP", "Oom": "OOM", "Dsr": "DSR", "Vni": "VNI"}


SECTIONS = ("iptables", "nftables")
"""Sections of the file that hold settings of kube-proxy's modes of these names: the file's format, which is why they
are named here. Which of them a plane goes by follows from its `promises`."""


class ConfigError(HotplaneError):
    """A configuration that cannot be used; `field` is its path ("" for the whole file), the message a full sentence."""

    def __init__(self, source: str, field: str, reason: str) -> None:
        super().__init__(f"{source}: {field}: {reason}" if field else f"{source}: {reason}")
        self.source = source
        self.field = field
        self.reason = reason


class Duration(float):
    """Seconds, written in Go's notation."""


def parse_duration(text: str) -> Duration:
    """Seconds of a Go duration such as "30s", "2h45m", "1.5h" or "0". Raises ValueError."""
    body = text[1:] if text[:1] in ("-", "+") else text
    if body == "0":
        return Duration(0)
    parts, at = [], 0
    while part := _DURATION_PART.match(body, at):
        parts.append(part)
        at = part.end()
    if not body or at < len(body):
        raise ValueError(f"{text[:40]!r} is not a duration; write a number and a unit, such as 30s, 5m or 2h45m")
    seconds = sum(float(part[1]) * _UNITS[part[2]] for part in parts)
    if seconds >= _MOST_SECONDS:
        raise ValueError(f"{text[:40]!r} is longer than 292 years, the longest duration of Go")
    return Duration(-seconds if text[0] == "-" else seconds)


def _field_name(name: str) -> str:
    """`node_port_addresses` -> `nodePortAddresses`, `cluster_cidr` -> `clusterCIDR`."""
    first, *rest = name.split("_")
    return first + "".join(_INITIALISMS.get(word.capitalize(), word.capitalize()) for word in rest)


class Section(msgspec.Struct, frozen=True, rename=_field_name):
    """Base of all sections: camel case on the wire, every field has a default."""


class ClientConnection(Section, frozen=True):
    kubeconfig: str = ""
    accept_content_types: str = ""
    content_type: str = "application/vnd.kubernetes.protobuf"
    qps: float = 5.0
    burst: int = 10


class DetectLocal(Section, frozen=True):
    bridge_interface: str = ""
    interface_name_prefix: str = ""


class IPTables(Section, frozen=True):
    masquerade_bit: int = 14
    masquerade_all: bool = False
    localhost_node_ports: bool = True
    sync_period: Duration = Duration(30)
    min_sync_period: Duration = Duration(1)


class NFTables(Section, frozen=True):
    """As kube-proxy's, but syncs need no shortest interval: here one costs what changed, not what there is."""

    masquerade_bit: int = 14
    masquerade_all: bool = False
    sync_period: Duration = Duration(30)
    min_sync_period: Duration = Duration(0)


class IPVS(Section, frozen=True):
    """Accepted so that an existing file is read; the ipvs mode is not offered."""

    sync_period: Duration = Duration(30)
    min_sync_period: Duration = Duration(1)
    scheduler: str = ""
    exclude_cidrs: tuple[str, ...] = ()
    strict_arp: bool = False
    tcp_timeout: Duration = Duration(0)
    tcp_fin_timeout: Duration = Duration(0)
    udp_timeout: Duration = Duration(0)


class Winkernel(Section, frozen=True):
    """Accepted so that an existing file is read; it concerns Windows alone."""

    network_name: str = ""
    source_vip: str = ""
    enable_dsr: bool = False
    root_hns_endpoint_name: str = ""
    forward_health_check_vip: bool = False


class Conntrack(Section, frozen=True):
    """Limits and timeouts of connection tracking; 0 leaves the kernel's value as it is."""

    max_per_core: int = 32768
    min: int = 131072
    tcp_established_timeout: Duration = Duration(86400)
    tcp_close_wait_timeout: Duration = Duration(3600)
    tcp_be_liberal: bool = False
    udp_timeout: Duration = Duration(0)
    udp_stream_timeout: Duration = Duration(0)


class KubeProxyConfiguration(Section, frozen=True):
    """The whole file. mode "" leaves the choice to the program; bind addresses are `address:port`."""

    api_version: str = ""
    kind: str = ""
    feature_gates: dict[str, bool] = {}
    client_connection: ClientConnection = ClientConnection()
    logging: dict[str, Any] = {}
    hostname_override: str = ""
    bind_address: str = "0.0.0.0"
    healthz_bind_address: str = f"0.0.0.0:{HEALTHZ_PORT}"
    metrics_bind_address: str = f"127.0.0.1:{METRICS_PORT}"
    bind_address_hard_fail: bool = False
    enable_profiling: bool = False
    show_hidden_metrics_for_version: str = ""
    mode: str = ""
    iptables: IPTables = IPTables()
    ipvs: IPVS = IPVS()
    nftables: NFTables = NFTables()
    winkernel: Winkernel = Winkernel()
    detect_local_mode: str = ""
    detect_local: DetectLocal = DetectLocal()
    cluster_cidr: str = ""
    node_port_addresses: tuple[str, ...] = ()
    oom_score_adj: int = -999
    conntrack: Conntrack = Conntrack()
    config_sync_period: Duration = Duration(900)
    port_range: str = ""
    windows_run_as_service: bool = False
    host_routing: str = ""
    lb_mode: str = ""
    lb_dispatch: str = ""
    lb_port: int = 0
    lb_vni: int = 0
    lb_peers: tuple[str, ...] = ()
    lb_algorithm: str = ""
    maglev_table_size: int = 0
    hash_seed: str = ""

    def section(self, promises: Promises) -> IPTables | NFTables:
        """The section of kube-proxy's mode whose promises a plane keeps."""
        return self.iptables if promises is Promises.IPTABLES else self.nftables

    def knows_pods(self) -> bool:
        """True if something tells pods from other clients: the pod range, or another detectLocalMode."""
        return bool(self.cluster_cidr) or self.detect_local_mode not in ("", LocalMode.CLUSTER_CIDR.value)

    def proxy_settings(self) -> ProxySettings:
        """The part that policy needs, as plain values."""
        return ProxySettings(
            detect_local=LocalMode(self.detect_local_mode) if self.detect_local_mode else LocalMode.CLUSTER_CIDR,
            cluster_cidrs=_split(self.cluster_cidr),
            bridge_interface=self.detect_local.bridge_interface,
            interface_name_prefix=self.detect_local.interface_name_prefix,
            nodeport_addresses=tuple(entry.strip() for entry in self.node_port_addresses),
            localhost_node_ports=self.iptables.localhost_node_ports,
            iptables=Masquerading(self.iptables.masquerade_all, self.iptables.masquerade_bit),
            nftables=Masquerading(self.nftables.masquerade_all, self.nftables.masquerade_bit),
            external_ips=self.feature_gates.get(EXTERNAL_IPS_GATE, True),
        )


class LoadedConfig(NamedTuple):
    """A configuration, and the paths of fields in the file that have no meaning here (to be reported, not fatal)."""

    config: KubeProxyConfiguration
    unknown: tuple[str, ...] = ()


def load_config(path: str) -> LoadedConfig:
    """Read a configuration file. Raises ConfigError when it cannot be read or used."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(path, "", f"cannot be read: {error.strerror}; check --config") from error
    return parse_config(data, path)


def parse_config(data: bytes, source: str) -> LoadedConfig:
    """Read a configuration from YAML or JSON. Raises ConfigError, with the field's path, when it cannot be used."""
    value = _without_zeros(_one_document(data, source), KubeProxyConfiguration)
    for field, expected in (("apiVersion", API_VERSION), ("kind", KIND)):
        if value.get(field) != expected:
            found = f"is {value[field]!r}" if field in value else "is missing"
            raise ConfigError(source, field, f"{found}; it must be {expected}")
    try:
        config = msgspec.convert(value, KubeProxyConfiguration, dec_hook=_decode_hook)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        raise ConfigError(source, path.rstrip("`").removeprefix("."), _plain(reason)) from error
    config = _with_bind_defaults(config, value, source)
    _check(config, source)
    return LoadedConfig(config, tuple(_unknown(value, KubeProxyConfiguration, "")))


def _one_document(data: bytes, source: str) -> dict[str, Any]:
    """The single mapping that the file holds, without nulls."""
    from dataplane.model.yamlload import documents, without_nulls

    try:
        value: Any = without_nulls(msgspec.json.decode(data))
    except MALFORMED:
        value = None  # not JSON, or nested too deeply; YAML's reader says what is wrong with it
    if isinstance(value, dict):
        return value
    found = list(documents(data.removeprefix(b"\xef\xbb\xbf")))
    for document in found:
        if document.error:
            raise ConfigError(source, "", f"is neither valid YAML nor JSON: {document.error}")
    if len(found) != 1 or not isinstance(found[0].value, dict):
        raise ConfigError(source, "", f"must hold exactly one {KIND} object")
    given: dict[str, Any] = without_nulls(found[0].value)
    return given


# Where kube-proxy cannot tell zero or "" from "not given", and takes the default; kubeadm writes such zeros.
_ZERO_IS_DEFAULT = frozenset(
    {"syncPeriod", "minSyncPeriod", "configSyncPeriod", "bindAddress", "contentType", "qps", "burst"}
)


def _without_zeros(value: dict[str, Any], kind: type[msgspec.Struct]) -> dict[str, Any]:
    """Drop the zeros that mean "not given"."""
    sections = _sections(kind)
    result: dict[str, Any] = {}
    for name, item in value.items():
        if name in _ZERO_IS_DEFAULT and not isinstance(item, bool) and item in ("", "0", "0s", 0):
            continue
        inner = sections.get(name)
        result[name] = _without_zeros(item, inner) if inner and isinstance(item, dict) else item
    return result


def _sections(kind: type[msgspec.Struct]) -> dict[str, type[Section]]:
    """The fields of a section that are sections themselves, by their name on the wire."""
    fields = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    return {name: type_ for name, type_ in fields.items() if isinstance(type_, type) and issubclass(type_, Section)}


def _decode_hook(kind: type, value: Any) -> Any:
    """msgspec's hook for types of our own: durations are strings, as in Kubernetes."""
    assert kind is Duration, f"{kind}: durations are the only type here that msgspec does not know"
    if not isinstance(value, str):
        raise ValueError(f'is {value!r}; write a duration as a string with a unit, such as "30s"')
    duration = parse_duration(value)
    if duration < 0:
        raise ValueError(f"{value!r} is negative; write 0s or more")
    return duration


_TYPE_NAMES = {"int": "a whole number", "float": "a number", "str": "a string", "bool": "true or false"}
_TYPE_NAMES |= {"array": "a list", "object": "a mapping"}


def _plain(reason: str) -> str:
    """msgspec's "Expected `int`, got `str`" in plain words; other reasons are sentences already."""
    expected = re.fullmatch(r"Expected `([a-z]+)`, got `([a-z]+)`", reason)
    if not expected:
        return reason
    wanted, got = (_TYPE_NAMES.get(word, word) for word in expected.groups())
    return f"must be {wanted}, not {got}"


def _split(text: str) -> tuple[str, ...]:
    """Items of a comma-separated list, without spaces and empty ones."""
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _with_bind_defaults(config: KubeProxyConfiguration, given: dict[str, Any], source: str) -> KubeProxyConfiguration:
    """Fill in bind addresses: every address for health, loopback for metrics, of bindAddress' family."""
    try:
        bind = canonical_address(config.bind_address)
    except ValueError as error:
        raise ConfigError(source, "bindAddress", f"{error}; write an IP address, or leave it out") from error
    everywhere, loopback = ("::", "::1") if ":" in bind else ("0.0.0.0", "127.0.0.1")
    healthz = _bind(given.get("healthzBindAddress", ""), everywhere, HEALTHZ_PORT, source, "healthzBindAddress")
    metrics = _bind(given.get("metricsBindAddress", ""), loopback, METRICS_PORT, source, "metricsBindAddress")
    return msgspec.structs.replace(
        config, bind_address=bind, healthz_bind_address=healthz, metrics_bind_address=metrics
    )


def _bind(text: str, address: str, port: int, source: str, field: str) -> str:
    """`address:port` in full; an address alone gets the usual port, and an empty text the usual address too."""
    number = str(port)
    if text:
        host, colon, tail = text.rpartition(":")
        alone = not colon or (":" in host and not host.endswith("]"))
        host, number = (text, number) if alone else (host, tail)
        address = host.strip("[]")
    try:
        address = canonical_address(address)
        if not (number.isascii() and number.isdigit() and int(number) <= 65535):
            raise ValueError(f"{number!r} is not a port")
    except ValueError as error:
        raise ConfigError(source, field, f"{error}; write address:port, such as 127.0.0.1:{port}") from error
    return f"[{address}]:{number}" if ":" in address else f"{address}:{number}"


def _check(config: KubeProxyConfiguration, source: str) -> None:
    """Check what the types do not. Raises ConfigError."""
    _check_mode(config, source)
    for field, bit in (
        ("iptables.masqueradeBit", config.iptables.masquerade_bit),
        ("nftables.masqueradeBit", config.nftables.masquerade_bit),
    ):
        if not 0 <= bit <= 31:
            raise ConfigError(source, field, f"is {bit}; the packet mark has bits 0 to 31")
    if not -1000 <= config.oom_score_adj <= 1000:
        raise ConfigError(source, "oomScoreAdj", f"is {config.oom_score_adj}; write -1000 to 1000")
    for field, number in (
        ("conntrack.maxPerCore", config.conntrack.max_per_core),
        ("conntrack.min", config.conntrack.min),
    ):
        if number < 0:
            raise ConfigError(source, field, f"is {number}; write 0 or more (0 leaves the kernel's value)")
    for field, device in (
        ("detectLocal.bridgeInterface", config.detect_local.bridge_interface),
        ("detectLocal.interfaceNamePrefix", config.detect_local.interface_name_prefix),
    ):
        if device and not _DEVICE.fullmatch(device):
            raise ConfigError(source, field, f"is {device!r}; write a device's name: up to 15 letters, digits, . - _ @")
    _check_cidrs(_split(config.cluster_cidr), source, "clusterCIDR")
    cidrs = [entry for entry in config.node_port_addresses if entry.strip() not in (PRIMARY, LOCALHOST, ALL)]
    _check_cidrs(cidrs, source, "nodePortAddresses")


def _check_mode(config: KubeProxyConfiguration, source: str) -> None:
    offered = ", ".join(MODES)
    if config.mode == "ipvs":  # known to kube-proxy, and to the files that people bring
        raise ConfigError(source, "mode", f"ipvs is not offered; choose one of {offered}")
    if config.mode and config.mode not in MODES:
        raise ConfigError(source, "mode", f"is {config.mode!r}; choose one of {offered}")
    if config.host_routing and config.host_routing not in CHOICES:
        raise ConfigError(source, "hostRouting", f"is {config.host_routing!r}; choose one of {', '.join(CHOICES)}")
    _check_forwarding(config, source)
    detect = config.detect_local_mode
    if detect and detect not in {mode.value for mode in LocalMode}:
        known = ", ".join(mode.value for mode in LocalMode)
        raise ConfigError(source, "detectLocalMode", f"is {detect!r}; choose one of {known}")
    if detect == LocalMode.BRIDGE_INTERFACE.value and not config.detect_local.bridge_interface:
        raise ConfigError(source, "detectLocal.bridgeInterface", f"is missing; detectLocalMode {detect} needs it")
    if detect == LocalMode.INTERFACE_NAME_PREFIX.value and not config.detect_local.interface_name_prefix:
        raise ConfigError(source, "detectLocal.interfaceNamePrefix", f"is missing; detectLocalMode {detect} needs it")


def _check_forwarding(config: KubeProxyConfiguration, source: str) -> None:
    if config.lb_mode and config.lb_mode not in FORWARDING_MODES:
        raise ConfigError(source, "lbMode", f"is {config.lb_mode!r}; choose one of {', '.join(FORWARDING_MODES)}")
    if config.lb_dispatch and config.lb_dispatch not in DISPATCHES:
        raise ConfigError(source, "lbDispatch", f"is {config.lb_dispatch!r}; choose one of {', '.join(DISPATCHES)}")
    for field, number, most in (("lbPort", config.lb_port, MOST_PORT), ("lbVNI", config.lb_vni, MOST_VNI)):
        if not 0 <= number <= most:
            raise ConfigError(source, field, f"is {number}; write 1 to {most}, or leave it out")
    if config.lb_algorithm and config.lb_algorithm not in ALGORITHMS:
        raise ConfigError(source, "lbAlgorithm", f"is {config.lb_algorithm!r}; choose one of {', '.join(ALGORITHMS)}")
    if config.maglev_table_size and config.maglev_table_size not in TABLE_SIZES:
        sizes = ", ".join(map(str, TABLE_SIZES))
        raise ConfigError(source, "maglevTableSize", f"is {config.maglev_table_size}; choose one of {sizes}")
    try:
        parse_peers(config.lb_peers)
    except ValueError as error:
        raise ConfigError(source, "lbPeers", str(error)) from error


def _check_cidrs(cidrs: tuple[str, ...] | list[str], source: str, field: str) -> None:
    for cidr in cidrs:
        try:
            canonical_cidr(cidr)
        except ValueError as error:
            raise ConfigError(source, field, str(error)) from error


def _unknown(value: dict[str, Any], kind: type[msgspec.Struct], prefix: str) -> list[str]:
    """Paths of the fields that a section does not have, in the order of the file."""
    known = {field.encode_name for field in msgspec.structs.fields(kind)}
    sections = _sections(kind)
    paths: list[str] = []
    for name, item in value.items():
        if name not in known:
            paths.append(prefix + name)
        elif isinstance(item, dict) and name in sections:
            paths += _unknown(item, sections[name], f"{prefix}{name}.")
    return paths
