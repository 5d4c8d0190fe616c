"""The rules of one Service port, as kube-proxy 1.36's iptables mode writes them."""

from collections import Counter

from dataplane.model.net import network
from dataplane.plan.types import Frontend, FrontendKind, PlanEntry
from dataplane.planes.iptables.rules import names
from dataplane.planes.iptables.rules.chances import probability
from dataplane.planes.iptables.settings import FamilySettings
from dataplane.policy.routes import Scope


class ServiceRules:
    """Renders one plan entry as rules. Short-lived: made, read and discarded.

    health_check_port: the Service's healthCheckNodePort or 0. large: leave out the comments of endpoint rules.
    """

    def __init__(self, entry: PlanEntry, settings: FamilySettings, health_check_port: int, *, large: bool) -> None:
        self.entry = entry
        self.settings = settings
        self.health_check_port = health_check_port
        self.service = entry.key.service
        self.protocol = entry.key.protocol.text
        self.chains = names.service_chains(self.service, entry.key.protocol)
        self._comments = not large
        self._cluster_ips = [f for f in entry.frontends if f.kind is FrontendKind.CLUSTER_IP]
        self._external_ips = [f for f in entry.frontends if f.kind is FrontendKind.EXTERNAL_IP]
        self._load_balancer_ips = [f for f in entry.frontends if f.kind is FrontendKind.LOAD_BALANCER]
        self._node_ports = [f for f in entry.frontends if f.kind is FrontendKind.NODE_PORT]
        self._host_ports = [f for f in entry.frontends if f.kind is FrontendKind.HOST_PORT]
        self._has_external_frontends = len(self._cluster_ips) + len(self._host_ports) < len(entry.frontends)
        self._has_endpoints = bool(entry.cluster or entry.local)
        self._has_internal = bool(entry.local if entry.internal_local else entry.cluster)
        self._has_external = bool(entry.local if entry.external_local else entry.cluster)
        ranges = self._load_balancer_ips[0].source_ranges if self._load_balancer_ips else None
        self._source_ranges = ranges if self._has_endpoints else None
        uses_cluster = not entry.internal_local or self._has_external_frontends
        self._cluster = self._ordered(Scope.CLUSTER) if uses_cluster else {}
        uses_local = entry.internal_local or (entry.external_local and self._has_external_frontends)
        self._local = self._ordered(Scope.LOCAL) if uses_local else {}
        self._places = {scope: Counter(map(str, entry.drawn(scope))) for scope in Scope} if entry.weighted else {}

    def _ordered(self, scope: Scope) -> dict[str, str]:
        """endpoint text -> its chain, in kube-proxy's order: by the text `address:port`."""
        protocol, backends = self.entry.key.protocol, self.entry.backends(scope)
        return {text: names.endpoint_chain(self.service, protocol, text) for text in sorted(map(str, backends))}

    def _to(self, frontend: Frontend, chain: str, comment: str, target: str) -> str:
        """Return a rule that matches one frontend; a node port matches any address (its caller adds the address
        type)."""
        key = frontend.key
        destination = f"-d {key.address}/{self.settings.host_bits} " if key.address else ""
        local = "" if key.address or chain == names.NODEPORTS else "-m addrtype --dst-type LOCAL "
        return (
            f'-A {chain} {destination}-p {self.protocol} -m comment --comment "{comment}" {local}'
            f"-m {self.protocol} --dport {key.port} -j {target}"
        )

    @property
    def written_chains(self) -> tuple[str, ...]:
        """Return the chains of this Service port in the nat table."""
        if not (self._has_endpoints and self.entry.frontends):
            return ()
        found = [self.chains.external] if self._has_external_frontends else []
        found += [self.chains.source_ranges] if self._source_ranges is not None else []
        found += [self.chains.cluster] if self._cluster else []
        found += [self.chains.local] if self._local else []
        return (*found, *(self._cluster | self._local).values())

    def nat_dispatch(self) -> list[str]:
        """KUBE-SERVICES and KUBE-NODEPORTS in nat: jumps from the frontends to this Service's chains."""
        chains, service = self.chains, self.service
        internal = chains.local if self.entry.internal_local else chains.cluster
        found = []
        if self._has_internal:
            found += [self._to(f, names.SERVICES, f"{service} cluster IP", internal) for f in self._cluster_ips]
        found += [self._to(f, names.SERVICES, f"{service} host port", chains.cluster) for f in self._host_ports]
        if not self._has_endpoints:
            return found
        for f in self._external_ips:
            found.append(self._to(f, names.SERVICES, f"{service} external IP", chains.external))
        lb_chain = chains.external if self._source_ranges is None else chains.source_ranges
        found += [self._to(f, names.SERVICES, f"{service} loadbalancer IP", lb_chain) for f in self._load_balancer_ips]
        return found + [self._to(f, names.NODEPORTS, service, chains.external) for f in self._node_ports]

    def filter_dispatch(self) -> list[str]:
        """The filter table: reject without endpoints, drop without local ones, source ranges, health check ports."""
        refused, why = ("DROP", "has no local endpoints") if self._has_endpoints else (
            self.settings.reject,
            "has no endpoints",
        )  # fmt: skip
        comment = f"{self.service} {why}"
        found = []
        if not self._has_internal:
            found += [self._to(f, names.SERVICES, comment, refused) for f in self._cluster_ips]
        if not self._has_external:
            found += [self._to(f, names.EXTERNAL_SERVICES, comment, refused) for f in self._external_ips]
        if self._source_ranges is not None:
            firewall = f"{self.service} traffic not accepted by {self.chains.source_ranges}"
            found += [self._to(f, names.PROXY_FIREWALL, firewall, "DROP") for f in self._load_balancer_ips]
        if not self._has_external:
            late = [*self._load_balancer_ips, *self._node_ports]
            found += [self._to(f, names.EXTERNAL_SERVICES, comment, refused) for f in late]
        if self.health_check_port:
            found.append(
                f'-A {names.NODEPORTS} -p tcp -m comment --comment "{self.service} health check node port" '
                f"-m tcp --dport {self.health_check_port} -j ACCEPT"
            )
        return found

    def nat_rules(self) -> list[str]:
        """The rules inside this Service's own chains, for `written_chains`."""
        if not self.written_chains:
            return []
        found = self._internal_rules()
        if self._has_external_frontends:
            found += self._external_rules()
        if self._source_ranges is not None:
            found += self._source_range_rules()
        found += self._balancing_rules(self.chains.cluster, self._cluster, Scope.CLUSTER)
        found += self._balancing_rules(self.chains.local, self._local, Scope.LOCAL)
        for endpoint, chain in (self._cluster | self._local).items():
            found += self._endpoint_rules(endpoint, chain)
        return found

    def _internal_rules(self) -> list[str]:
        """Masquerade clusterIP traffic that does not come from a pod, or all of it; of a Pod's hostPort, which
        kube-proxy does not handle, traffic to a loopback address."""
        settings = self.settings
        if self._host_ports:
            return [
                self._to(f, self.chains.cluster, f"{self.service} host port", names.MARK_MASQ)
                for f in self._host_ports
                if f.routes.node.masquerade
            ]
        match = settings.off_pod
        if not self._has_internal or (match is None and not settings.masquerade_all):
            return []
        source, interface = ("", "") if settings.masquerade_all or match is None else match
        chain = self.chains.local if self.entry.internal_local else self.chains.cluster
        return [
            f"-A {chain} {source}-d {f.key.address}/{settings.host_bits} {interface}-p {self.protocol} "
            f'-m comment --comment "{self.service} cluster IP" -m {self.protocol} --dport {f.key.port} '
            f"-j {names.MARK_MASQ}"
            for f in self._cluster_ips
        ]

    def _external_rules(self) -> list[str]:
        """KUBE-EXT: policy Cluster masquerades all sources; policy Local short-circuits pods and this node.

        Until Kubernetes 1.23 this was KUBE-XLB, for policy Local alone, with the balancing rules that are in KUBE-SVL
        now; and KUBE-MARK-DROP dropped what the filter table drops now.
        """
        chains, what = self.chains, f'traffic for {self.service} external destinations"'
        head = f"-A {chains.external} "
        if not self.entry.external_local:
            return [
                f'{head}-m comment --comment "masquerade {what} -j {names.MARK_MASQ}',
                f"{head}-j {chains.cluster}",
            ]
        found = []
        if self.settings.pod is not None:
            match = "".join(self.settings.pod)
            found.append(f'{head}{match}-m comment --comment "pod {what} -j {chains.cluster}')
        local = "-m addrtype --src-type LOCAL -j"
        found.append(f'{head}-m comment --comment "masquerade LOCAL {what} {local} {names.MARK_MASQ}')
        found.append(f'{head}-m comment --comment "route LOCAL {what} {local} {chains.cluster}')
        return found + ([f"{head}-j {chains.local}"] if self._has_external else [])

    def _source_range_rules(self) -> list[str]:
        """KUBE-FW: sources in a range go on; the others end here untranslated and KUBE-PROXY-FIREWALL drops them."""
        ranges = self._source_ranges
        assert ranges is not None, "only called for a restricted load balancer"
        head = f"-A {self.chains.source_ranges} "
        allowed = [network(cidr).with_prefixlen for cidr in ranges.cidrs]
        rest = f'-m comment --comment "{self.service} loadbalancer IP" -j {self.chains.external}'
        # iptables prints no match for a range that holds every address.
        found = [f"{head}{'' if c.endswith('/0') else f'-s {c} '}{rest}" for c in allowed]
        dropped = f"other traffic to {self.service} will be dropped by {names.PROXY_FIREWALL}"
        return [*found, f'{head}-m comment --comment "{dropped}"']

    def _balancing_rules(self, chain: str, endpoints: dict[str, str], scope: Scope) -> list[str]:
        """Endpoints that a client is known to, then one of all at random: each rule takes 1/n of what reaches it, with
        weights its own part of those that are left."""
        found, seconds, mask = [], self.entry.affinity_seconds, self.settings.recent_mask
        weights = self._places.get(scope) or dict.fromkeys(endpoints, 1)
        remaining = sum(weights.values())
        balanced = []
        for endpoint, target in endpoints.items():
            places = weights[endpoint]
            comment = f'-m comment --comment "{self.service} -> {endpoint}" ' if self._comments else ""
            if seconds:
                found.append(
                    f"-A {chain} {comment}-m recent --rcheck --seconds {seconds} --reap "
                    f"--name {target} --mask {mask} --rsource -j {target}"
                )
            share = probability(remaining, places) if remaining > places else ""
            chance = f"-m statistic --mode random --probability {share} " if share else ""
            balanced.append(f"-A {chain} {comment}{chance}-j {target}")
            remaining -= places
        return found + balanced

    def _endpoint_rules(self, endpoint: str, chain: str) -> list[str]:
        """KUBE-SEP: masquerade what loops back to its sender, remember the client, translate."""
        settings = self.settings
        comment = f'-m comment --comment "{self.service}" ' if self._comments else ""
        remember = f"-m recent --set --name {chain} --mask {settings.recent_mask} --rsource "
        address = endpoint.rpartition(":")[0].strip("[]")
        return [
            f"-A {chain} -s {address}/{settings.host_bits} {comment}-j {names.MARK_MASQ}",
            f"-A {chain} -p {self.protocol} {comment}{remember if self.entry.affinity_seconds else ''}"
            f"-m {self.protocol} -j DNAT --to-destination {endpoint}",
        ]
