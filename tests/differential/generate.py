"""Random clusters as Kubernetes writes them, and packets to try on them. Everything comes from one `random.Random`, so
a seed names a cluster for good.

Names, addresses and ports are few, so that things often collide; every optional field is often unset.
"""

import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from dataplane.model.forwarding import SERVICE_ANNOTATION
from dataplane.policy.node import NodeConfig
from dataplane.policy.settings import LocalMode, Masquerading, Promises, ProxySettings, node_config
from tests.differential import ground as g

Object = dict[str, Any]

CLUSTER_IPS = {4: [f"10.96.0.{n}" for n in range(1, 7)], 6: [f"fd00:96::{n}" for n in range(1, 7)]}
EXTERNAL_IPS = {4: ["203.0.113.1", "203.0.113.2", "172.18.0.1"], 6: ["fd00:203::1", "fd00:203::2", "fd00:18::1"]}
LB_IPS = {4: ["192.0.2.1", "192.0.2.2", "203.0.113.1", "172.18.1.1"], 6: ["fd00:192::1", "fd00:203::1", "fd00:18::11"]}
UNUSED = {4: ["10.96.0.99", "203.0.113.99"], 6: ["fd00:96::99", "fd00:203::99"]}
NODE_PORTS = (31000, 31001, 31002, 31003)
PORTS = (80, 443, 53)
RANGES: tuple[list[str] | None, ...] = (
    None,
    None,
    [],
    ["198.51.100.0/25", "fd00:198::/112"],
    ["198.51.100.2/32"],
    [" 10.244.0.0/16 ", "fd00:244::/32"],
    ["172.18.0.0/24", "fd00:18::/64"],
    ["0.0.0.0/0", "::/0"],
    ["198.51.100.0/25", "not a range"],
)


FORWARDING = (None, None, "snat", "tunnel", "dsr", "hybrid", "direct")
"""What Services ask for. The other node is none that speaks it, so it gets SNAT whatever is asked for."""


class Flow(NamedTuple):
    """Packets to try. place: where they are sent from. source: the address they are sent from; the sender is bound to
    it where `bound` says so."""

    place: str
    source: str
    bound: bool
    destination: str
    port: int
    protocol: str


class Cluster(NamedTuple):
    """objects: as an API server gives them. node: a NodeConfig by mode. flows: what to send."""

    name: str
    objects: tuple[Object, ...]
    settings: ProxySettings
    zone: str
    flows: tuple[Flow, ...]

    def node(self, mode: Promises) -> NodeConfig:
        """This node in a mode."""
        return node_config(
            mode,
            self.settings,
            node_name="node1",
            zone=self.zone,
            node_ips=g.NODE_IPS,
            interface_addresses=g.NODE_ADDRESSES,
            node_pod_cidrs=g.NODE_POD_CIDRS,
        )


class Generator:
    """Makes one cluster. by_device: pods may be recognised by their device."""

    def __init__(self, seed: int, number: int, *, by_device: bool = True) -> None:
        self.name = f"{seed}:{number}"
        self._chance = random.Random(self.name)
        self._asked = random.Random(f"forwarding {self.name}")
        self._by_device = by_device

    def cluster(self) -> Cluster:
        """The cluster of this seed and number."""
        services = [self._service(index) for index in range(self._chance.choice((1, 2, 3, 4)))]
        objects: list[Object] = [
            self._chance.choice(
                (
                    {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "node1"}},
                    {"kind": "Node", "apiVersion": "v1", "metadata": {"name": "n3"}},
                )
            )
        ]
        if self._often(0.7):
            cidrs = self._chance.choice((["10.96.0.0/16"], ["10.96.0.0/16", "fd00:96::/112"]))
            objects.append(
                {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
                 "spec": {"cidrs": cidrs}}
            )  # fmt: skip
        for service in services:
            objects.append(service)
            objects += self._slices(service)
        settings, zone = self._settings(), self._chance.choice(("za", "zb", ""))
        return Cluster(self.name, tuple(objects), settings, zone, tuple(self._flows(services)))

    def _often(self, share: float) -> bool:
        return self._chance.random() < share

    def _maybe(self, target: Object, key: str, *values: Any) -> None:
        """Set a field to one of these values; None leaves it unset."""
        value = self._chance.choice(values)
        if value is not None:
            target[key] = value

    def _settings(self) -> ProxySettings:
        chance = self._chance
        cidrs = chance.choice((("10.244.0.0/16", "fd00:244::/32"), ("10.244.0.0/16",), (), ("10.244.1.0/24",)))
        local = LocalMode.CLUSTER_CIDR
        if self._by_device and self._often(0.2):
            local = chance.choice((LocalMode.INTERFACE_NAME_PREFIX, LocalMode.NODE_CIDR))
        everything = Masquerading(everything=self._often(0.2))
        return ProxySettings(
            detect_local=local,
            cluster_cidrs=cidrs,
            interface_name_prefix="pod",
            nodeport_addresses=chance.choice(
                ((), (), ("primary",), ("172.18.1.0/24",), ("172.18.0.0/16", "fd00:18::/64"), ("0.0.0.0/0", "::/0"),
                 ("127.0.0.0/8", "172.18.0.0/24"), ("203.0.113.0/24",))
            ),
            localhost_node_ports=self._often(0.7),
            iptables=everything,
            nftables=everything,
            external_ips=self._often(0.9),
        )  # fmt: skip

    def _service(self, index: int) -> Object:
        chance = self._chance
        kind = chance.choice(("ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer", "LoadBalancer", "ExternalName"))
        if kind == "ExternalName" and self._often(0.7):
            kind = "NodePort"
        metadata: Object = {"namespace": chance.choice(("a", "b")), "name": f"s{index}"}
        self._maybe(metadata, "creationTimestamp", None, "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z")
        self._maybe(metadata, "labels", *[None] * 12, {"service.kubernetes.io/service-proxy-name": "x"}, {"app": "x"})
        if (way := self._asked.choice(FORWARDING)) is not None:
            metadata["annotations"] = {SERVICE_ANNOTATION: way}
        spec: Object = {"type": kind}
        made: Object = {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}
        if kind == "ExternalName":
            spec["externalName"] = "x.example"
            return made
        versions = chance.choice(((4,), (4,), (6,), (4, 6), (6, 4)))
        spec["clusterIPs"] = [CLUSTER_IPS[v][index if self._often(0.93) else 0] for v in versions]
        if self._often(0.05):
            spec["clusterIPs"] = ["None"]
        spec["clusterIP"] = spec["clusterIPs"][0]
        spec["ipFamilies"] = [f"IPv{v}" for v in versions]
        spec["ports"] = self._ports(kind)
        self._maybe(spec, "internalTrafficPolicy", None, "Cluster", "Local")
        self._maybe(spec, "publishNotReadyAddresses", None, None, True, False)
        self._maybe(spec, "trafficDistribution", None, None, "PreferClose")
        if self._often(0.3):
            spec["externalIPs"] = chance.sample([ip for v in (4, 6) for ip in EXTERNAL_IPS[v]], chance.choice((1, 2)))
        if kind != "ClusterIP" or spec.get("externalIPs"):
            self._maybe(spec, "externalTrafficPolicy", None, "Cluster", "Local", "Local")
        if self._often(0.25):
            spec["sessionAffinity"] = chance.choice(("ClientIP", "ClientIP", "None"))
            if spec["sessionAffinity"] == "ClientIP":
                self._maybe(spec, "sessionAffinityConfig", None, {"clientIP": {"timeoutSeconds": 60}})
        if kind == "LoadBalancer":
            self._balanced(made, versions, index)
        return made

    def _balanced(self, made: Object, versions: Sequence[int], index: int) -> None:
        chance, spec = self._chance, made["spec"]
        ips = [ip for v in (4, 6) if v in versions or self._often(0.1) for ip in chance.sample(LB_IPS[v], 1)]
        ingress: list[Object] = [{"ip": ip} for ip in ips] or [{"hostname": "x.example"}]
        for entry in ingress:
            self._maybe(entry, "ipMode", None, None, "VIP", "Proxy")
        made["status"] = {"loadBalancer": {"ingress": ingress}}
        self._maybe(spec, "loadBalancerSourceRanges", *RANGES)
        self._maybe(spec, "allocateLoadBalancerNodePorts", None, True)
        if spec.get("externalTrafficPolicy") == "Local":
            spec["healthCheckNodePort"] = 32000 + index

    def _ports(self, kind: str) -> list[Object]:
        chance = self._chance
        names = chance.choice((("",), ("",), ("web",), ("web", "dns"), ("web", "dns", "alt")))
        ports: list[Object] = []
        for name in names:
            port: Object = {"port": chance.choice(PORTS)}
            if name:
                port["name"] = name
            self._maybe(port, "protocol", None, "TCP", "UDP", "UDP", "UDP", "SCTP")
            if kind != "ClusterIP" and self._often(0.8):
                port["nodePort"] = chance.choice(NODE_PORTS)
            # The API server lets no two ports of one Service be the same.
            mine = {(port.get("protocol", "TCP"), port[k]) for k in ("port", "nodePort") if k in port}
            if not any(
                mine & {(p.get("protocol", "TCP"), p[k]) for k in ("port", "nodePort") if k in p} for p in ports
            ):
                ports.append(port)
        return ports

    def _slices(self, service: Object) -> list[Object]:
        found: list[Object] = []
        ports = service["spec"].get("ports", [])
        for version in (4, 6):
            wanted = any((":" in ip) == (version == 6) for ip in service["spec"].get("clusterIPs", []))
            for number in range(self._chance.choice((1, 1, 1, 2, 2, 3, 0) if wanted else (0, 0, 0, 0, 1))):
                found.append(self._slice(service, version, f"-{version}-{number}", ports))
        return found

    def _slice(self, service: Object, version: int, suffix: str, ports: list[Object]) -> Object:
        chance = self._chance
        meta = service["metadata"]
        labels = {"kubernetes.io/service-name": meta["name"]}
        if self._often(0.03):
            labels["service.kubernetes.io/headless"] = ""
        listed: list[Object] = []
        for port in ports:
            if self._often(0.95):
                entry: Object = {"port": chance.choice((8080, 8080, 8081))}
                if "name" in port:
                    entry["name"] = port["name"]
                elif self._often(0.5):
                    entry["name"] = ""
                if "protocol" in port or self._often(0.5):
                    entry["protocol"] = port.get("protocol", "TCP")
                listed.append(entry)
        hint = chance.choice(("", "", "zones", "nodes", "both"))
        endpoints = [self._endpoint(version, hint) for _ in range(chance.choice((0, 1, 1, 2, 2, 3)))]
        return {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"namespace": meta["namespace"], "name": f"{meta['name']}{suffix}", "labels": labels},
            "addressType": f"IPv{version}", "ports": listed, "endpoints": endpoints,
        }  # fmt: skip

    def _endpoint(self, version: int, hint: str) -> Object:
        chance = self._chance
        address, place = chance.choice(g.ENDPOINTS[version])
        endpoint: Object = {"addresses": [address]}
        mood = chance.choice(("unset", "ready", "ready", "terminating", "unready", "any"))
        flags: Object = {}
        if mood == "ready":
            flags = {"ready": True, "serving": True, "terminating": False}
        elif mood == "terminating":
            flags = {"ready": False, "serving": True, "terminating": True}
        elif mood == "unready":
            flags = {"ready": False, "serving": False, "terminating": False}
        elif mood == "any":
            for name in ("ready", "serving", "terminating"):
                self._maybe(flags, name, None, True, False)
        if flags or self._often(0.5):
            endpoint["conditions"] = flags
        self._maybe(endpoint, "nodeName", *[place] * 8, None, "nobody")
        hints: Object = {}
        if hint in ("zones", "both"):
            self._maybe(hints, "forZones", [{"name": "za"}], [{"name": "zb"}], [{"name": "za"}, {"name": "zb"}], [])
        if hint in ("nodes", "both"):
            self._maybe(hints, "forNodes", [{"name": "node1"}], [{"name": "node2"}], [{"name": "node1"}], [])
        if hints:
            endpoint["hints"] = hints
        return endpoint

    def _flows(self, services: list[Object]) -> list[Flow]:
        """One from everywhere to each way in, as far as there are not too many."""
        ways = list(dict.fromkeys(way for service in services for way in self._ways(service)))
        ways = self._chance.sample(ways, min(len(ways), MOST_WAYS))
        ways.append((self._chance.choice(UNUSED[self._chance.choice((4, 6))]), 80, "UDP"))
        flows = []
        for way in ways:
            mine = self._from_places(*way)
            flows += self._chance.sample(mine, min(len(mine), FLOWS_A_WAY))
        return flows

    def _ways(self, service: Object) -> list[tuple[str, int, str]]:
        spec = service["spec"]
        ingress = service.get("status", {}).get("loadBalancer", {}).get("ingress", [])
        addresses = [
            *spec.get("clusterIPs", []),
            *spec.get("externalIPs", []),
            *(e["ip"] for e in ingress if "ip" in e),
        ]
        found = []
        for port in spec.get("ports", []):
            protocol = port.get("protocol", "TCP")
            if protocol == "SCTP":  # no test kernel speaks it
                continue
            found += [(address, port["port"], protocol) for address in addresses if address != "None"]
            if "nodePort" in port:
                mine = [a for a in g.NODE_ADDRESSES if any((":" in a) == (":" in ip) for ip in addresses)]
                mine = self._chance.sample([*mine, "127.0.0.1"], min(2, len(mine)))
                found += [(address, port["nodePort"], protocol) for address in mine]
            if self._often(0.2) and addresses and addresses[0] != "None":
                found.append((addresses[0], 81, protocol))
        return found

    def _from_places(self, destination: str, port: int, protocol: str) -> list[Flow]:
        version = 6 if ":" in destination else 4
        flows = []
        for place, source, bound in g.CLIENTS[version]:
            here = source or g.source_of(destination)
            if destination == "127.0.0.1" and (place != "node" or bound):
                continue
            flows.append(Flow(place, here, bound, destination, port, protocol))
        return flows


MOST_WAYS, FLOWS_A_WAY = 10, 4
"""Ways in (address, port and protocol) that are tried of a cluster, and clients of each; each is some packets."""
