"""kube-proxy's flags for `hotplane run`: each is a field of the configuration, and wins over the file's."""

import argparse
from typing import Any, NamedTuple

import msgspec

from ctl.config import (
    API_VERSION,
    KIND,
    SECTIONS,
    ConfigError,
    Duration,
    KubeProxyConfiguration,
    LoadedConfig,
    Section,
    load_config,
    parse_config,
)
from dataplane.errors import UsageError

COMMAND_LINE = "command line"


class Flag(NamedTuple):
    """A flag and the configuration field it sets ("" for none). kind: text, bool, int, float, list (a,b) or map
    (a=true,b=false). idle: it has no effect here, and is taken so that a command line can be kept."""

    name: str
    path: str
    kind: str = "text"
    help: str = ""
    idle: bool = False


FLAGS = (
    Flag("--proxy-mode", "mode", help="nftables | iptables | ebpf (as --mode)"),
    Flag("--cluster-cidr", "clusterCIDR", help="pod range(s) of the cluster, comma separated"),
    Flag("--detect-local-mode", "detectLocalMode", help="ClusterCIDR | NodeCIDR | BridgeInterface | ..."),
    Flag("--pod-bridge-interface", "detectLocal.bridgeInterface"),
    Flag("--pod-interface-name-prefix", "detectLocal.interfaceNamePrefix"),
    Flag("--nodeport-addresses", "nodePortAddresses", "list", "CIDRs or the word primary"),
    Flag("--masquerade-all", "*.masqueradeAll", "bool", "masquerade all traffic to cluster IPs"),
    Flag("--iptables-masquerade-bit", "iptables.masqueradeBit", "int"),
    Flag("--iptables-localhost-nodeports", "iptables.localhostNodePorts", "bool"),
    Flag("--iptables-sync-period", "iptables.syncPeriod"),
    Flag("--iptables-min-sync-period", "iptables.minSyncPeriod"),
    Flag("--nftables-masquerade-bit", "nftables.masqueradeBit", "int"),
    Flag("--nftables-sync-period", "nftables.syncPeriod"),
    Flag("--nftables-min-sync-period", "nftables.minSyncPeriod"),
    Flag("--hostname-override", "hostnameOverride", help="this node's name (as --node-name)"),
    Flag("--bind-address", "bindAddress", help="family of the default addresses of health and metrics"),
    Flag("--bind-address-hard-fail", "bindAddressHardFail", "bool", "fail when a port cannot be opened"),
    Flag("--healthz-bind-address", "healthzBindAddress", help="default 0.0.0.0:10256"),
    Flag("--metrics-bind-address", "metricsBindAddress", help="default 127.0.0.1:10249"),
    Flag("--conntrack-max-per-core", "conntrack.maxPerCore", "int"),
    Flag("--conntrack-min", "conntrack.min", "int"),
    Flag("--conntrack-tcp-be-liberal", "conntrack.tcpBeLiberal", "bool"),
    Flag("--conntrack-tcp-timeout-established", "conntrack.tcpEstablishedTimeout"),
    Flag("--conntrack-tcp-timeout-close-wait", "conntrack.tcpCloseWaitTimeout"),
    Flag("--conntrack-udp-timeout", "conntrack.udpTimeout"),
    Flag("--conntrack-udp-timeout-stream", "conntrack.udpStreamTimeout"),
    Flag("--config-sync-period", "configSyncPeriod", idle=True),
    Flag("--oom-score-adj", "oomScoreAdj", "int"),
    Flag("--profiling", "enableProfiling", "bool", idle=True),
    Flag("--feature-gates", "featureGates", "map"),
    Flag("--kube-api-qps", "clientConnection.qps", "float", idle=True),
    Flag("--kube-api-burst", "clientConnection.burst", "int", idle=True),
    Flag("--kube-api-content-type", "clientConnection.contentType", idle=True),
    Flag("--show-hidden-metrics-for-version", "showHiddenMetricsForVersion", idle=True),
    Flag("--ipvs-exclude-cidrs", "ipvs.excludeCIDRs", "list", idle=True),
    Flag("--ipvs-min-sync-period", "ipvs.minSyncPeriod", idle=True),
    Flag("--ipvs-scheduler", "ipvs.scheduler", idle=True),
    Flag("--ipvs-strict-arp", "ipvs.strictARP", "bool", idle=True),
    Flag("--ipvs-sync-period", "ipvs.syncPeriod", idle=True),
    Flag("--ipvs-tcp-timeout", "ipvs.tcpTimeout", idle=True),
    Flag("--ipvs-tcpfin-timeout", "ipvs.tcpFinTimeout", idle=True),
    Flag("--ipvs-udp-timeout", "ipvs.udpTimeout", idle=True),
    Flag("--proxy-port-range", "portRange", idle=True),
    Flag("--boot-id-file", "", idle=True),
    Flag("--machine-id-file", "", idle=True),
    Flag("--log-flush-frequency", "", idle=True),
    Flag("--log-json-info-buffer-size", "", idle=True),
    Flag("--log-json-split-stream", "", "bool", idle=True),
    Flag("--log-text-info-buffer-size", "", idle=True),
    Flag("--log-text-split-stream", "", "bool", idle=True),
    Flag("--vmodule", "", idle=True),
)


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags; one that is not given is None."""
    group = parser.add_argument_group("kube-proxy's flags (each wins over the field of --config)")
    for flag in FLAGS:
        what = f"sets {flag.path.replace('*.', 'every mode: ')}" if flag.path else "nothing here"
        what += "; no effect" if flag.idle else ""
        kwargs: dict[str, Any] = {"default": None, "help": f"{flag.help}; {what}" if flag.help else what}
        if flag.kind == "bool":
            kwargs |= {"nargs": "?", "const": "true", "metavar": "true|false"}
        else:
            kwargs["metavar"] = flag.kind.upper()
        group.add_argument(flag.name, **kwargs)


def effective(args: argparse.Namespace) -> LoadedConfig:
    """The configuration that file and flags make together. Raises ConfigError, UsageError."""
    loaded = load_config(args.config) if args.config else LoadedConfig(KubeProxyConfiguration())
    given = {flag: text for flag in FLAGS if flag.path and (text := getattr(args, _dest(flag))) is not None}
    if not given:
        return loaded
    document = to_document(loaded.config)
    for flag, text in given.items():
        value = _value(flag, str(text))
        paths = [flag.path] if "*" not in flag.path else [flag.path.replace("*", m) for m in SECTIONS]
        for path in paths:
            _set(document, path, value)
    try:
        return LoadedConfig(parse_config(msgspec.json.encode(document), COMMAND_LINE).config, loaded.unknown)
    except ConfigError as error:
        names = [flag.name for flag in given if error.field and error.field.startswith(flag.path)]
        raise UsageError(f"{names[0]}: {error.reason}" if names else str(error)) from error


def idle_flags(args: argparse.Namespace) -> list[str]:
    """Names of the flags that were given and have no effect here."""
    return [flag.name for flag in FLAGS if flag.idle and getattr(args, _dest(flag)) is not None]


def to_document(config: KubeProxyConfiguration) -> dict[str, Any]:
    """The configuration as the file would spell it, every field in it."""
    return {**_section(config), "apiVersion": API_VERSION, "kind": KIND}


def _section(section: Section) -> dict[str, Any]:
    return {field.encode_name: _plain(getattr(section, field.name)) for field in msgspec.structs.fields(type(section))}


def _plain(value: Any) -> Any:
    match value:
        case Section():
            return _section(value)
        case Duration():
            return go_duration(value)
        case tuple():
            return list(value)
    return value


def go_duration(seconds: float) -> str:
    """Seconds in Go's notation: 86400 is 24h0m0s."""
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    text = f"{rest:g}s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return f"{hours}h{text}" if hours else text


def _dest(flag: Flag) -> str:
    return flag.name.removeprefix("--").replace("-", "_")


def _set(document: dict[str, Any], path: str, value: Any) -> None:
    *sections, name = path.split(".")
    for section in sections:
        document = document[section]
    document[name] = value


def _value(flag: Flag, text: str) -> Any:
    """A flag's text as the field's type. Raises UsageError."""
    try:
        match flag.kind:
            case "int":
                return int(text)
            case "float":
                return float(text)
            case "bool":
                return _boolean(text)
            case "list":
                return [item.strip() for item in text.split(",") if item.strip()]
            case "map":
                pairs = (item.partition("=") for item in text.split(",") if item)
                return {name.strip(): _boolean(value) for name, _, value in pairs}
    except ValueError as error:
        raise UsageError(f"{flag.name}: {text!r} is no {flag.kind}: {error}") from error
    return text


def _boolean(text: str) -> bool:
    """As Go's strconv.ParseBool."""
    if text in ("1", "t", "T", "true", "TRUE", "True"):
        return True
    if text in ("0", "f", "F", "false", "FALSE", "False"):
        return False
    raise ValueError("write true or false")
