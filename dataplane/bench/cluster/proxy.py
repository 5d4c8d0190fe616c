"""Which Service proxy runs in a cluster, as far as can be seen: by DaemonSets, ConfigMaps and what a node's proxy says.

Where: kube-proxy and hotplane answer /proxyMode and /metrics on port 10249 of the node's loopback address, Cilium keeps
its settings in the ConfigMap kube-system/cilium-config. What may not be read is left out and told.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from dataplane.bench.cluster.kubectl import Kubectl, KubectlError

_KNOWN = ("hotplane", "kube-proxy", "cilium", "kube-router", "antrea", "ovnkube", "calico")
"""Parts of names of DaemonSets that are, or may be, a node's Service proxy."""
_CILIUM = (
    "kube-proxy-replacement", "bpf-lb-sock", "bpf-lb-mode", "bpf-lb-acceleration", "routing-mode", "tunnel-protocol",
)  # fmt: skip
"""Its settings that decide how packets to Services go."""
MODE_URL, METRICS_URL = "http://127.0.0.1:10249/proxyMode", "http://127.0.0.1:10249/metrics"

Ask = Callable[[str], str]
"""Return the body at a URL on a node, or "" where nothing answers."""


class Found(NamedTuple):
    """name: of the proxy, with its mode, or "unknown". told: sentences on how that is known, and what could not be."""

    name: str
    told: tuple[str, ...]


class Seen(NamedTuple):
    """Everything that could be seen. modes, metrics: of each node that was asked. unread: why something was not."""

    daemons: tuple[str, ...] = ()
    kube_proxy: dict[str, str] = {}
    cilium: dict[str, str] = {}
    modes: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


def look(kubectl: Kubectl, asks: Sequence[Ask]) -> Found:
    """What runs there. asks: one for each node that has one of the benchmark's pods in its network."""
    unread: list[str] = []

    def tried(what: str, *arguments: str) -> Any:
        try:
            return kubectl.json(what, "get", *arguments)
        except KubectlError as error:
            if not error.is_missing:
                unread.append(str(error))
            return {}

    daemons = tried("DaemonSets", "daemonsets", "--all-namespaces").get("items", [])
    names = sorted({item["metadata"]["name"] for item in daemons})
    kube_proxy = tried("kube-proxy's settings", "configmap", "kube-proxy", "--namespace", "kube-system")
    cilium = tried("Cilium's settings", "configmap", "cilium-config", "--namespace", "kube-system")
    return judge(
        Seen(
            daemons=tuple(name for name in names if any(part in name for part in _KNOWN)),
            kube_proxy=kube_proxy.get("data", {}),
            cilium=cilium.get("data", {}),
            modes=tuple(filter(None, (ask(MODE_URL).strip() for ask in asks))),
            metrics=tuple(filter(None, (ask(METRICS_URL) for ask in asks))),
            unread=tuple(unread),
        )
    )


def judge(seen: Seen) -> Found:
    """The name of the proxy: what a node says of itself before what objects say."""
    told = [f"DaemonSets: {', '.join(seen.daemons)}."] if seen.daemons else []
    modes = tuple(dict.fromkeys(seen.modes))
    told += [f"A node's proxy says its mode is {' and '.join(modes)}."] if modes else []
    settings = [f"{name}={seen.cilium[name]}" for name in _CILIUM if name in seen.cilium]
    told += [f"Cilium: {', '.join(settings)}."] if settings else []
    told += [f"Not seen: {text}." for text in seen.unread]
    return Found(_name(seen, "/".join(modes)), tuple(told))


def _name(seen: Seen, mode: str) -> str:
    if any(re.search(r"^hotplane_", text, re.MULTILINE) for text in seen.metrics):
        return f"hotplane {mode}".strip()
    replaces = seen.cilium.get("kube-proxy-replacement", "")
    if replaces in ("true", "strict", "partial") and not mode:
        return "cilium" if replaces != "partial" else "cilium (partial)"
    if mode:
        return f"kube-proxy {mode}"
    for part in ("hotplane", "kube-proxy"):
        if any(part in name for name in seen.daemons):
            return f"{part} {_configured(seen) if part == 'kube-proxy' else ''}".strip()
    return seen.daemons[0] + " (perhaps)" if seen.daemons else "unknown"


def _configured(seen: Seen) -> str:
    """The mode in kube-proxy's ConfigMap; its default is iptables."""
    match = re.search(r"^mode:\s*[\"']?(\w*)", seen.kube_proxy.get("config.conf", ""), re.MULTILINE)
    return (match[1] or "iptables") if match else ""
