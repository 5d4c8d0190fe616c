"""Clients and servers in a cluster, and Services in front of them: brought up, measured between, and removed."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import msgspec

from dataplane.bench.cluster import nodes as node_module
from dataplane.bench.cluster import pods as pod_module
from dataplane.bench.cluster import proxy, tables
from dataplane.bench.cluster.kubectl import ClusterError, Kubectl, KubectlError
from dataplane.bench.cluster.manifests import (
    NODE_PORT_SERVICE,
    VOLUME,
    PodShape,
    Role,
    documents,
    inside,
    pod,
    service,
    services,
)
from dataplane.bench.cluster.room import Room
from dataplane.bench.cluster.session import Session
from dataplane.bench.cluster.settings import CLIENT_NODE, CLUSTER_IP, HOST, NODE_PORT, SERVER_NODE, SiteOptions
from dataplane.bench.cluster.ship import Shipped, ship
from dataplane.bench.figures.results import Machine
from dataplane.bench.modes import AGAIN, DIRECT
from dataplane.bench.objects import TCP_PORT, UDP_PORT, service_name
from dataplane.bench.profiles import Settings
from dataplane.bench.scenarios import Scenario
from dataplane.errors import HotplaneError
from dataplane.model.net import Family, family_of, host_port
from dataplane.resource import Resource

Say = Callable[[str], None]
_ANSWER_SECONDS, _PROBE_SECONDS, _PAUSE_SECONDS = 30.0, 0.05, 0.5
_CREATE_SECONDS = 120.0
_SERVICE_SECONDS = 0.05
"""What each Service may take, beyond the time for all, to have its endpoints written and to be removed."""


class Site(Resource):
    """Everything that is measured in. As a context manager it leaves the cluster as it was, unless it is to be kept.

    modes: those of the wanted ones that can be measured. notes: what a reader of the results should know.
    """

    def __init__(self, options: SiteOptions, modes: tuple[str, ...], say: Say) -> None:
        """Raises ClusterError when something is refused or does not come up in time; nothing is left then."""
        self._options, self._say, self.modes = options, say, list(modes)
        self.notes: list[str] = []
        self.skipped: list[str] = []
        self._kubectl = Kubectl(options.kubeconfig, options.context, options.namespace)
        self.version = self._reach()
        found = node_module.nodes(self._kubectl.items("nodes", "nodes"))
        self.pair = node_module.choose(found, options.client_node, options.server_node)
        self._room = Room(self._kubectl, options.namespace, options.timeout, say)
        self._sessions: dict[str, Session] = {}
        self._watches: list[Session] = []
        self._made = 0
        self._targets: dict[str, dict[str, tuple[str, int]]] = {}
        try:
            self._room.make()
            self._start()
        except BaseException as error:
            self._close_after(error)
            raise

    def _reach(self) -> str:
        """Version of the API server."""
        said = self._kubectl.json("the cluster", "version")
        if "serverVersion" not in said:
            raise ClusterError("the cluster: kubectl version tells of no server; is this the right kubeconfig?")
        return str(said["serverVersion"].get("gitVersion", ""))

    def _start(self) -> None:
        pair, shape = self.pair, PodShape(self._options.image, self._options.pull_policy, self._options.port)
        self._say(f"client on node {pair.client.name}, server on node {pair.server.name}, Kubernetes {self.version}")
        if pair.is_one:
            self.notes.append("Client and server were on one node: no network was between them.")
        roles = [role for role in Role if self._create_pod(role, shape)]
        self._pods = pod_module.wait(self._kubectl, roles, self._options.timeout, self._say)
        self.family = self._family(self._pods[Role.SERVER].addresses)
        self.facts = self._facts(Role.CLIENT)
        self.tool = self._ship(roles)
        for role in roles:
            if role.serves:
                self._serve(role)
            else:
                self._sessions[role] = Session(self._kubectl, role, [*self.tool.argv, "run"])
            if role.on_host:
                self._watches.append(Session(self._kubectl, role, inside("tracked")))
        self.proxy = proxy.look(self._kubectl, [self._asker(role) for role in roles if role.on_host])
        self._say(f"Service proxy: {self.proxy.name}")
        if not self._watches:
            self.notes.append("No pod saw the nodes' connection tables, so nobody looked at how full they were.")

    def _create_pod(self, role: Role, shape: PodShape) -> bool:
        """True if the pod could be created; what only some ways need is done without where it is refused."""
        if role.on_host and HOST not in self.modes:
            return False
        node = self.pair.server if role.serves else self.pair.client
        shape = shape._replace(tolerant=node.name in self.pair.named)
        document = msgspec.json.encode(pod(role, node.name, shape))
        try:
            self._create(f"pod {role}", document)
        except KubectlError as error:
            if not role.on_host or not error.is_forbidden:
                raise
            self._leave_out(HOST, str(error))
            return False
        return True

    def _create(self, what: str, document: bytes, seconds: float = _CREATE_SECONDS) -> None:
        self._kubectl.run(what, "create", "--validate=false", "-f", "-", input=document, seconds=seconds)

    def _leave_out(self, mode: str, why: str) -> None:
        if mode in self.modes:
            self.modes.remove(mode)
            self.skipped.append(f"left out: {mode}: {why}")
            self._say(self.skipped[-1])

    def _family(self, addresses: tuple[str, ...]) -> Family:
        """The family that was asked for, else that of the server's first address."""
        if self._options.family:
            return Family.IPV6 if self._options.family == "ipv6" else Family.IPV4
        return family_of(addresses[0])

    def _ship(self, roles: list[Role]) -> Shipped:
        pair, version = (self.pair.client, self.pair.server), str(self.facts["python"])
        found = ship(self._kubectl, roles, pair, python=self._options.python, version=version)
        if found.note:
            self._say(found.note)
            self.notes.append(found.note)
        return found

    def _facts(self, role: Role) -> dict[str, Any]:
        """Return the facts of the client's node that a pod can see."""
        found: dict[str, Any] = msgspec.json.decode(self._kubectl.execute(role, *inside("facts")))
        return found

    def _serve(self, role: Role) -> None:
        argv = inside("start", f"{VOLUME}/server.log", *self.tool.argv, "serve", str(self._options.port), "1")
        try:
            self._kubectl.execute(role, *argv)
        except KubectlError as error:
            where = f"pod {role}: the server does not start on port {self._options.port} (--port)"
            raise ClusterError(f"{where}: {' '.join(error.said.split()) or error}") from error

    def _asker(self, role: Role) -> proxy.Ask:
        """Asks the proxy of a node, from a pod in its network."""

        def ask(url: str) -> str:
            try:
                return self._kubectl.execute(role, *inside("ask", url)).decode(errors="replace")
            except KubectlError:
                return ""  # nobody answers there, which is what was asked

        return ask

    def settled(self, wanted: Settings) -> Settings:
        """The settings with what has turned out since: ways that there are, the family, the load generator."""
        return msgspec.structs.replace(wanted, modes=tuple(self.modes), family=self.family, load_tool=self.tool.kind)

    def serve(self, count: int) -> None:
        """Have so many Services, of which the last is measured from now on; more than before. Raises ClusterError."""
        wanted = list(services(self._made, count, self.family, self._options.port))
        if NODE_PORT in self.modes and NODE_PORT not in self._targets:
            wanted.append(service(NODE_PORT_SERVICE, self.family, self._options.port, node_port=True, udp=True))
        done = 0
        for number, document in documents(wanted):
            self._create(f"Services in {self._options.namespace}", document)
            done += number
            if len(wanted) > number:
                self._say(f"{done:,} of {len(wanted):,} Services made")
        self._made = count
        self._room.seconds = self._options.timeout + count * _SERVICE_SECONDS
        self._aim(service_name(count - 1))
        self._wait_for_endpoints(count + (NODE_PORT in self._targets))
        for mode in list(self.modes):
            self._wait_for_answer(mode)

    def _aim(self, name: str) -> None:
        """Find the addresses of all ways, with the ports of both protocols."""
        port, family = self._options.port, self.family
        direct = (self._pods[Role.SERVER].address(family), port)
        self._targets |= {mode: {"TCP": direct, "UDP": direct} for mode in (DIRECT, AGAIN)}
        if HOST in self.modes:
            host = (self._pods[Role.HOST_SERVER].address(family), port)
            self._targets[HOST] = {"TCP": host, "UDP": host}
        if CLUSTER_IP in self.modes:
            address = self._service(name)["clusterIP"]
            self._targets[CLUSTER_IP] = {"TCP": (address, TCP_PORT), "UDP": (address, UDP_PORT)}
        if NODE_PORT in self.modes:
            address, ports = self.pair.client.address(family), self._service(NODE_PORT_SERVICE)["ports"]
            self._targets[NODE_PORT] = {p.get("protocol", "TCP"): (address, p["nodePort"]) for p in ports}

    def _service(self, name: str) -> Any:
        return self._kubectl.json(f"Service {name}", "get", "service", name)["spec"]

    def _wait_for_endpoints(self, count: int) -> None:
        """Until the control plane has written an EndpointSlice for each Service."""
        seconds = self._options.timeout + count * _SERVICE_SECONDS
        end = time.monotonic() + seconds
        while True:
            said = self._kubectl.run("EndpointSlices", "get", "endpointslices", "--output", "name")
            found = len(said.split())
            if found >= count:
                return
            if time.monotonic() > end:
                raise ClusterError(
                    f"{found} EndpointSlices for {count} Services after {seconds:.0f} s (--timeout): is the controller "
                    "manager at work?"
                )
            time.sleep(_PAUSE_SECONDS)

    def _wait_for_answer(self, mode: str) -> None:
        """Until the server answers by a way, which the proxy may take a while to make. Without direct or the clusterIP
        nothing can be said, so that is an error."""
        end = time.monotonic() + self._options.timeout
        target = self._targets[mode]["TCP"]
        while not self._answers(mode, target):
            if time.monotonic() < end:
                time.sleep(_PAUSE_SECONDS)
                continue
            where = f"no answer from {host_port(*target)} in {self._options.timeout:.0f} s (--timeout)"
            if mode in (DIRECT, AGAIN):
                raise ClusterError(f"{mode}: {where}; does a NetworkPolicy, or a firewall between nodes, forbid it?")
            if mode == CLUSTER_IP:
                raise ClusterError(f"{mode}: {where}; what does the log of node {self.pair.client.name}'s proxy say?")
            self._leave_out(mode, f"{where}; does a firewall, or the proxy's nodePortAddresses, forbid it?")
            return

    def _answers(self, mode: str, target: tuple[str, int]) -> bool:
        return bool(self._ask(mode, "connect", target, _PROBE_SECONDS)["operations"])

    def _ask(self, mode: str, operation: str, target: tuple[str, int], seconds: float) -> dict[str, Any]:
        client = self._sessions[Role.HOST_CLIENT if mode == HOST else Role.CLIENT]
        return client.ask(f"{operation} {target[0]} {target[1]} {seconds} -", seconds + _ANSWER_SECONDS)

    def measure(self, mode: str, scenario: Scenario, seconds: float) -> dict[str, Any]:
        """One measurement; figures as results.Cell has them. Raises ClusterError."""
        if mode not in self.modes:
            raise ClusterError(next((text for text in self.skipped if f": {mode}:" in text), f"{mode} is left out"))
        bulk = scenario.operation.startswith("iperf3")
        operation = "stream" if bulk else scenario.operation
        target = self._targets[mode]["UDP" if operation == "urr" else "TCP"]
        found = self._ask(mode, operation, target, seconds)
        if bulk:
            rate = found["operations"] * 8 / found["seconds"]
            return found | {"operations": found["operations"] / 1e9, "rate": rate}
        return found | {"rate": found["operations"] / found["seconds"]}

    def make_room(self) -> None:
        """Wait while a node's connection table has little room. Raises ClusterError when that does not end."""
        tables.wait(self._watches, 2 * self._options.timeout, self._say)

    def machine(self) -> Machine:
        """The client's node, and what is known of the cluster."""
        node, other = self.pair.client, self.pair.server
        versions = {"kubernetes": self.version, "service proxy": self.proxy.name, "kubelet": node.kubelet}
        versions |= {"container runtime": node.runtime, "image": self._options.image}
        versions |= {CLIENT_NODE: node.name, SERVER_NODE: other.name}
        differs = [f"{name} {theirs}" for name, ours, theirs in zip(
            ("kernel", "system", "architecture"), (node.kernel, node.system, node.architecture),
            (other.kernel, other.system, other.architecture), strict=True,
        ) if ours != theirs]  # fmt: skip
        notes = [f"In a cluster: client on node {node.name}, server on node {other.name}, proxy {self.proxy.name}."]
        notes += [f"The server's node has another {', another '.join(differs)}."] if differs else []
        return Machine(
            started=datetime.now(UTC).isoformat(timespec="seconds"), cpu_model=self.facts["cpu_model"],
            cpus=node.cpus, memory_bytes=node.memory_bytes, kernel=node.kernel, system=node.system,
            load_average=tuple(self.facts["load_average"]), versions={k: v for k, v in versions.items() if v},
            notes=(*notes, *self.proxy.told, *self.notes),
        )  # fmt: skip

    def close(self) -> None:
        """End what runs, and remove the namespace with everything in it. Raises ClusterError when it does not go."""
        for session in (*self._sessions.values(), *self._watches):
            session.close()
        self._sessions.clear()
        self._watches.clear()
        if not self._options.keep:
            self._room.remove()
        elif self._room.may_exist:
            self._say(f"kept: kubectl delete namespace {self._options.namespace} removes everything")

    def _close_after(self, error: BaseException) -> None:
        """Close without hiding what went wrong first; what is not removed is told."""
        if not isinstance(error, HotplaneError):
            self._say(f"removing namespace {self._options.namespace}")
        try:
            self.close()
        except HotplaneError as second:
            self._say(str(second))
        except KeyboardInterrupt:
            self._say(f"not removed: kubectl delete namespace {self._options.namespace}")
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            self._close_after(error)
