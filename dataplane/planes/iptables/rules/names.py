"""Names of chains, identical to kube-proxy's."""

import hashlib
from typing import NamedTuple

from dataplane.model.net import Protocol

SERVICES = "KUBE-SERVICES"
EXTERNAL_SERVICES = "KUBE-EXTERNAL-SERVICES"
NODEPORTS = "KUBE-NODEPORTS"
FORWARD = "KUBE-FORWARD"
PROXY_FIREWALL = "KUBE-PROXY-FIREWALL"
POSTROUTING = "KUBE-POSTROUTING"
MARK_MASQ = "KUBE-MARK-MASQ"
# Shared with the kubelet, which keeps an identical copy of its one rule.
FIREWALL = "KUBE-FIREWALL"

# Chains by which kube-proxy and the kubelet notice that somebody flushed the tables; hotplane compares instead
# (`read_back`), so it makes none, and only removes what a kube-proxy left.
PROXY_CANARY = "KUBE-PROXY-CANARY"
KUBELET_CANARY = "KUBE-KUBELET-CANARY"

CLUSTER_PREFIX = "KUBE-SVC-"
LOCAL_PREFIX = "KUBE-SVL-"
EXTERNAL_PREFIX = "KUBE-EXT-"
SOURCE_RANGES_PREFIX = "KUBE-FW-"
ENDPOINT_PREFIX = "KUBE-SEP-"
SERVICE_PREFIXES = (CLUSTER_PREFIX, LOCAL_PREFIX, ENDPOINT_PREFIX, SOURCE_RANGES_PREFIX, EXTERNAL_PREFIX)

FILTER_CHAINS = (SERVICES, EXTERNAL_SERVICES, FORWARD, NODEPORTS, PROXY_FIREWALL)
NAT_CHAINS = (SERVICES, NODEPORTS, POSTROUTING, MARK_MASQ)


_BASE32 = "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"
_PAIRS = tuple(a + b for a in _BASE32 for b in _BASE32)


def chain_hash(text: str) -> str:
    """Return the first 16 characters of base32(sha256(text)): chain names have at most 28 characters.

    Encoded two characters at a time by a table, because a load makes one name for every endpoint, and base64.b32encode
    would take half of its time.
    """
    bits = int.from_bytes(hashlib.sha256(text.encode()).digest()[:10], "big")
    return "".join([_PAIRS[bits >> shift & 1023] for shift in range(70, -1, -10)])


class ServiceChains(NamedTuple):
    """The chains of one Service port: all carry the hash of `namespace/name[:port]` + protocol in lower case."""

    cluster: str
    local: str
    external: str
    source_ranges: str


def service_chains(service: str, protocol: Protocol) -> ServiceChains:
    """Chain names of a Service port; `service` is EntryKey.service."""
    digest = chain_hash(service + protocol.text)
    return ServiceChains(
        CLUSTER_PREFIX + digest, LOCAL_PREFIX + digest, EXTERNAL_PREFIX + digest, SOURCE_RANGES_PREFIX + digest
    )


def endpoint_chain(service: str, protocol: Protocol, endpoint: str) -> str:
    """Chain name of an endpoint (`address:port`, IPv6 in brackets) of a Service port."""
    return ENDPOINT_PREFIX + chain_hash(service + protocol.text + endpoint)


def is_service_chain(name: str) -> bool:
    """True if a chain belongs to one Service, so that it is deleted when unused."""
    return name.startswith(SERVICE_PREFIXES)
