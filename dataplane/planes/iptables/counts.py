"""What the rules of the iptables plane counted: connections to each frontend, and packets that were refused, by reason.

A rule's counter begins again when the rule is written anew, which each change does with the chains that lead to
Services, as in kube-proxy.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from dataplane.model.net import Family, Protocol
from dataplane.plan.types import FrontendKey
from dataplane.planes.answers import FATES, Counted, Refused
from dataplane.planes.iptables.clients import saved_counts
from dataplane.planes.iptables.rules import names

_RULE = re.compile(
    r"\[(?P<packets>\d+):\d+\] -A (?P<chain>KUBE-SERVICES|KUBE-NODEPORTS|KUBE-EXTERNAL-SERVICES|KUBE-PROXY-FIREWALL) "
    r"(?:-d (?P<address>\S+)/\d+ )?-p (?P<protocol>tcp|udp|sctp) .*--dport (?P<port>\d+) .*?-j (?P<target>\S+)"
)
GUARDS = {
    names.FORWARD: ("invalid", "dropped: part of no connection that is tracked (conntrack state INVALID)"),
    names.FIREWALL: ("localnet", "dropped: from elsewhere to a loopback address of this node"),
}
"""Chains that drop packets whatever their Service: the reason, and what it means."""

_GUARD = re.compile(
    rf"\[(?P<packets>\d+):\d+\] -A "
    rf"(?P<chain>{names.FORWARD}|{names.FIREWALL}(?= (?:.* )?-d 127\.0\.0\.0/8 )) .*-j DROP"
)
WHERE = "iptables"

SavedTables = Mapping[Family, str]
"""What iptables-save -c prints of a table, of each family."""


class Packets(NamedTuple):
    """A rule for one frontend. reason: for which it refuses, "" if it leads on. times: packets that it had. chain: in
    which it stands."""

    frontend: FrontendKey
    reason: str
    times: int
    chain: str


def _reason(chain: str, target: str) -> str:
    """Return why a rule of the filter table refuses."""
    if chain == names.PROXY_FIREWALL:
        return "source_range"
    return "policy_drop" if target == "DROP" else "no_endpoint"


def rules(family: Family, table: str, text: str) -> Iterator[Packets]:
    """Yield the rules of the nat table that lead to Services, or those of the filter table that refuse."""
    for match in _RULE.finditer(text):
        if table == "filter" and match["target"] not in ("DROP", "REJECT"):  # a health check port's lets packets in
            continue
        key = FrontendKey(family, match["address"] or "", Protocol[match["protocol"].upper()], int(match["port"]))
        reason = _reason(match["chain"], match["target"]) if table == "filter" else ""
        yield Packets(key, reason, int(match["packets"]), match["chain"])


def saved_tables(table: str) -> SavedTables:
    """Return a table of each family with its counters. Raises PlaneError."""
    return {family: saved_counts(family, table) for family in Family}


def packet_counts(nat: SavedTables, filters: SavedTables) -> dict[FrontendKey, Counted]:
    """Return the counts of each frontend since its rules were last written. A packet that source ranges keep out passes
    the rule of the nat table, too; it opened no connection."""
    opened, refused, kept_out = Counter[FrontendKey](), Counter[FrontendKey](), Counter[FrontendKey]()
    for table, tables in (("nat", nat), ("filter", filters)):
        for family, text in tables.items():
            for frontend, reason, times, _ in rules(family, table, text):
                (refused if reason else opened)[frontend] += times
                kept_out[frontend] += times if reason == "source_range" else 0
    keys = opened.keys() | refused.keys()
    return {key: Counted(max(0, opened[key] - kept_out[key]), refused[key]) for key in sorted(keys)}


def refused_packets(filters: SavedTables) -> list[Refused]:
    """Return the packets that rules refused since they were last written, by frontend and reason; then those that were
    dropped whatever their Service. Only what there was."""
    found: list[Refused] = []
    guards = Counter[str]()
    for family, text in filters.items():
        packets: Mapping[tuple[FrontendKey, str], int] = _summed(rules(family, "filter", text))
        found += [Refused(WHERE, why, times, FATES[why], key) for (key, why), times in packets.items() if times]
        guards.update(guarded(family, text))
    return [*found, *(Refused(WHERE, GUARDS[chain][0], n, GUARDS[chain][1]) for chain, n in guards.items() if n)]


def guarded(family: Family, text: str) -> Counter[str]:
    """Return the packets that a guard dropped, by its chain, for those that are in a family's saved filter table.

    Of KUBE-FIREWALL, which the kubelet writes in, too, only IPv4's guard of 127.0.0.0/8 counts: older kubelets drop
    packets there by a mark, in both families.
    """
    sums = Counter[str]()
    for match in _GUARD.finditer(text):
        if match["chain"] != names.FIREWALL or family is Family.IPV4:
            sums[match["chain"]] += int(match["packets"])
    return sums


def _summed(packets: Iterator[Packets]) -> Counter[tuple[FrontendKey, str]]:
    sums = Counter[tuple[FrontendKey, str]]()
    for frontend, reason, times, _ in packets:
        sums[frontend, reason] += times
    return sums
