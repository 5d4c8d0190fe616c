"""Convert the output of iptables-save to the plan's terms.

Services are identified by the comments of their dispatch rules, which kube-proxy never leaves out; everything else is
read from the rules themselves.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from fractions import Fraction
from math import gcd, lcm
from typing import NamedTuple

from dataplane.model.net import Family, Protocol
from dataplane.plan.types import FrontendKey, Row, SourceRanges
from dataplane.planes.iptables.rules import names
from dataplane.planes.iptables.rules.chances import probability
from dataplane.planes.iptables.rules.skeleton import JUMPS
from dataplane.policy.routes import DROP, DROP_ALL, REJECT_ALL, Action, Route, Routes, Scope
from dataplane.policy.weights import MOST_PLACES

_DISPATCH = re.compile(
    r"(?:! -s \S+ )?(?:-d (?P<address>[^/ ]+)/\d+ )?(?:! -i \S+ )?-p (?P<protocol>\w+) -m comment --comment "
    r'"(?P<comment>[^"]*)" .*?--dport (?P<port>\d+) -j (?P<target>\S+)'
)
_SECONDS = re.compile(r"--rcheck --seconds (\d+)")
_SOURCE = re.compile(r"-s (\S+)")
_DESTINATION = re.compile(r"--to-destination (\S+)")
_PROBABILITY = re.compile(r"--probability (\S+)")
_CHAIN = re.compile(r"^:(\S+)", re.MULTILINE)

Rules = Mapping[str, list[str]]
Endpoint = tuple[str, int]


def chains_of(saved: str) -> set[str]:
    """Return the names of all chains in iptables-save text."""
    return set(_CHAIN.findall(saved))


def rules_of(saved: str) -> Rules:
    """chain -> its rules, each without `-A CHAIN`; chains without rules are absent."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for line in saved.splitlines():
        if line.startswith("-A "):
            _, chain, rule = line.split(" ", 2)
            found[chain].append(rule)
    return found


class _Dispatch(NamedTuple):
    """A rule that jumps to a target for one frontend's packets. `service` is the first word of its comment."""

    key: FrontendKey
    service: str
    target: str


class _Balancer(NamedTuple):
    """A KUBE-SVC or KUBE-SVL chain: its endpoints, with weights as often as they are drawn, and which clusterIPs it
    masquerades (True: pods too)."""

    endpoints: tuple[Endpoint, ...]
    affinity_seconds: int
    masquerades: Mapping[tuple[str, int], bool]


_NO_BALANCER = _Balancer((), 0, {})


def _drawn(balanced: list[tuple[str, list[Endpoint]]]) -> Iterator[Endpoint]:
    """Yield endpoints as often as the rules draw them. balanced: in the order of the rules, the probability of each, ""
    = all that is left, and its endpoints."""
    count = len(balanced)
    if all(chance in ("", probability(count - at)) for at, (chance, _) in enumerate(balanced)):
        yield from (endpoint for _, endpoints in balanced for endpoint in endpoints)
        return
    # From the last rule on: what it takes is its part of all that is left. 31 bits tell any two such parts apart.
    left, shares = Fraction(0), list[Fraction]()
    for chance, _ in reversed(balanced):
        part = Fraction(chance or "1").limit_denominator(MOST_PLACES)
        share = left * part / (1 - part) if left and 0 < part < 1 else Fraction(1)
        shares.append(share)
        left += share
    unit = lcm(*(share.denominator for share in shares))
    wholes = [int(share * unit) for share in reversed(shares)]
    divisor = gcd(*wholes)
    for whole, (_, endpoints) in zip(wholes, balanced, strict=True):
        yield from endpoints * min(whole // divisor, MOST_PLACES)


class FamilyReader:
    """Reads one family's filter and nat tables into rows.

    answers: node ports answer on some address of the family; otherwise no jump leads to their rules.
    """

    def __init__(self, family: Family, filter_text: str, nat_text: str, *, answers: bool = True) -> None:
        self.family = family
        self._answers = answers
        self._filter = rules_of(filter_text)
        self._nat = rules_of(nat_text)
        nat = self._nat
        self._masquerades = any("--set-xmark" in r for r in nat.get(names.MARK_MASQ, ())) and any(
            "-j MASQUERADE" in r for r in nat.get(names.POSTROUTING, ())
        )
        self._balancers: dict[str, _Balancer] = {}

    def rows(self) -> dict[FrontendKey, Row]:
        """Return every frontend that the tables serve: none if a jump from a built-in chain is missing, since not all
        packets are served then."""
        held = {"filter": self._filter, "nat": self._nat}
        if any(f"{jump.match}-j {jump.target}" not in held[jump.table].get(jump.source, ()) for jump in JUMPS):
            return {}
        refused = {d.key: d for chain in (names.SERVICES, names.EXTERNAL_SERVICES) for d in self._of("filter", chain)}
        found: dict[FrontendKey, Row] = {}
        for dispatch in self._reachable():
            routed = self._row(dispatch, refused.get(dispatch.key))
            if routed is not None:
                found[dispatch.key] = routed
        for key, dispatch in refused.items():
            if key not in found and not self._translated(key):
                found[key] = Row(dispatch.service, REJECT_ALL if dispatch.target == "REJECT" else DROP_ALL)
        return found

    def _reachable(self) -> Iterator[_Dispatch]:
        self._dispatched: dict[FrontendKey, _Dispatch] = {d.key: d for d in self._of("nat", names.SERVICES)}
        led = any(rule.endswith(f"-j {names.NODEPORTS}") for rule in self._nat.get(names.SERVICES, ()))
        if led or not self._answers:
            self._dispatched |= {d.key: d for d in self._of("nat", names.NODEPORTS)}
        self._restricted = {d.key for d in self._of("filter", names.PROXY_FIREWALL) if d.target == "DROP"}
        return iter(self._dispatched.values())

    def _translated(self, key: FrontendKey) -> bool:
        return key in self._dispatched

    def _of(self, table: str, chain: str) -> Iterator[_Dispatch]:
        for rule in (self._nat if table == "nat" else self._filter).get(chain, ()):
            match = _DISPATCH.match(rule)
            if match is not None:
                key = FrontendKey(
                    self.family, match["address"] or "", Protocol[match["protocol"].upper()], int(match["port"])
                )
                yield _Dispatch(key, match["comment"].split(" ", 1)[0], match["target"])

    def _row(self, dispatch: _Dispatch, refused: _Dispatch | None) -> Row | None:
        """Return the row of a frontend that nat translates, or None if the rules are inconsistent."""
        chain, ranges = dispatch.target, None
        if chain.startswith(names.SOURCE_RANGES_PREFIX):
            if dispatch.key not in self._restricted:
                return None
            ranges, chain = self._source_ranges(chain), names.EXTERNAL_PREFIX + chain.rpartition("-")[2]
        if chain.startswith(names.EXTERNAL_PREFIX):
            routes = self._external_routes(chain, dropped=refused is not None and refused.target == "DROP")
        else:
            routes = self._internal_routes(chain, dispatch.key)
        if routes is None:
            return None
        digest = chain.rpartition("-")[2]
        scopes = {route.scope for route in routes if route.action is Action.FORWARD}
        cluster = self._balancer(names.CLUSTER_PREFIX + digest) if Scope.CLUSTER in scopes else _NO_BALANCER
        local = self._balancer(names.LOCAL_PREFIX + digest) if Scope.LOCAL in scopes else _NO_BALANCER
        affinity = max(cluster.affinity_seconds, local.affinity_seconds)
        return Row(dispatch.service, routes, cluster.endpoints, local.endpoints, affinity, ranges)

    def _internal_routes(self, chain: str, key: FrontendKey) -> Routes:
        scope = Scope.LOCAL if chain.startswith(names.LOCAL_PREFIX) else Scope.CLUSTER
        everybody = self._balancer(chain).masquerades.get((key.address, key.port))
        off_pod = Route(Action.FORWARD, scope, everybody is not None and self._masquerades)
        return Routes(Route(Action.FORWARD, scope, bool(everybody) and self._masquerades), off_pod, off_pod)

    def _external_routes(self, chain: str, *, dropped: bool) -> Routes | None:
        """Return the routes of a KUBE-EXT chain; `dropped`: the filter table drops what leaves it untranslated."""
        masquerade, final, short_way, short_masquerade = False, "", False, False
        for rule in self._nat.get(chain, ()):
            target = rule.rpartition(" ")[2]
            if "--src-type LOCAL" in rule:
                short_masquerade |= target == names.MARK_MASQ
                short_way |= target.startswith(names.CLUSTER_PREFIX)
            elif target == names.MARK_MASQ:
                masquerade = True
            elif rule.startswith("-j "):
                final = target
        if not short_way:
            everyone = Route(Action.FORWARD, Scope.CLUSTER, masquerade and self._masquerades)
            return Routes(everyone, everyone, everyone) if final.startswith(names.CLUSTER_PREFIX) else None
        if not final and not dropped:
            return None
        return Routes(
            pod=Route(Action.FORWARD, Scope.CLUSTER, masquerade=False),
            node=Route(Action.FORWARD, Scope.CLUSTER, short_masquerade and self._masquerades),
            outside=Route(Action.FORWARD, Scope.LOCAL, masquerade=False) if final else DROP,
        )

    def _source_ranges(self, chain: str) -> SourceRanges:
        everything = "0.0.0.0/0" if self.family is Family.IPV4 else "::/0"
        found = []
        for rule in self._nat.get(chain, ()):
            if "-j " in rule:
                source = _SOURCE.match(rule)
                found.append(source[1] if source else everything)
        return SourceRanges(tuple(sorted(set(found))))

    def _balancer(self, chain: str) -> _Balancer:
        known = self._balancers.get(chain)
        if known is None:
            known = self._balancers[chain] = self._read_balancer(chain)
        return known

    def _read_balancer(self, chain: str) -> _Balancer:
        affinity, masquerades = 0, {}
        balanced: list[tuple[str, list[Endpoint]]] = []
        for rule in self._nat.get(chain, ()):
            target = rule.rpartition(" ")[2]
            if target == names.MARK_MASQ:
                match = _DISPATCH.match(rule)
                if match is not None:
                    limited = rule.startswith("! -s ") or " ! -i " in rule
                    masquerades[(match["address"] or "", int(match["port"]))] = not limited
            elif "--rcheck" in rule:
                seconds = _SECONDS.search(rule)
                affinity = int(seconds[1]) if seconds else affinity
            else:
                chance = _PROBABILITY.search(rule)
                balanced.append((chance[1] if chance else "", self._destinations(target)))
        return _Balancer(tuple(sorted(_drawn(balanced))), affinity, masquerades)

    def _destinations(self, chain: str) -> list[Endpoint]:
        found = []
        for rule in self._nat.get(chain, ()):
            match = _DESTINATION.search(rule)
            if match is not None:
                address, _, port = match[1].rpartition(":")
                found.append((address.strip("[]"), int(port)))
        return found
