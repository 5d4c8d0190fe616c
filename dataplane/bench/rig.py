"""The lab that a benchmark runs in: a node for each mode, one more for remote backends, processes that send and serve.

Each mode's node holds only that mode's rules, so all modes are there at the same time and can take turns; where that
is wanted a second one with a single Service (modes.alone). Pod 1 of a node serves, pod 2 is the client there; the
outside client is the lab's own. A mode that keeps clients' addresses has its remote backends on a node of its own, too,
which has the same rules: those take out what the tunnel brings.
"""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from dataplane.bench.agent import Request
from dataplane.bench.helper import Helper
from dataplane.bench.load.generator import Generator, take_frames, udp_frame, uplink_ends, uplink_macs
from dataplane.bench.load.iperf import bulk
from dataplane.bench.load.native import Tool, watch_tool
from dataplane.bench.load.watcher import Watcher
from dataplane.bench.modes import ALONE, CONNTRACK, MODES, Mode, alone, has_alone
from dataplane.bench.objects import (
    BULK_PORT,
    FLOWS_PORT,
    LOCAL_NODE_PORT,
    REMOTE_NODE_PORT,
    SERVER_PORT,
    TCP_PORT,
    UDP_PORT,
    Backend,
    Form,
    Shape,
    cluster_ip,
    flows_ip,
)
from dataplane.bench.peer.control import PeerControl
from dataplane.bench.peer.process import remove_folders
from dataplane.bench.processors import servers_of
from dataplane.bench.profiles import Settings, flow_endpoints, with_alone
from dataplane.bench.program import Way as PacketWay
from dataplane.bench.scenarios import Position, Scenario, Way, index
from dataplane.errors import HotplaneError
from dataplane.kernel import sysctl
from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.netlink.links import Links
from dataplane.lab import build
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabError, LabSpec, Node, Pod
from dataplane.model.net import Family, family_of

PATIENCE = 30.0
LOAD_PATIENCE = 900.0
_DIRECT_RULE = 50
_LIVE_PORT = 40000
_QUERY, _ANSWER_SECONDS = bytes(40), 5.0
_TRACKED = "add table inet bench; add chain inet bench c { type filter hook prerouting priority -150; }; "
_TRACKED += "add rule inet bench c ct state invalid counter"
CONNTRACK_SECONDS = {
    "net/netfilter/nf_conntrack_tcp_timeout_close": 1,
    "net/netfilter/nf_conntrack_udp_timeout": 2,
    "net/netfilter/nf_conntrack_tcp_timeout_time_wait": 1,
}
"""Short, on all nodes alike: tens of thousands of connections a second would otherwise fill the connection table."""

_TIMESTAMPS = {"net/ipv4/tcp_timestamps": 2}
"""From one clock, whatever the addresses: TCP_CRR leaves connections in TIME_WAIT at the server, who knows them by the
client's port. A later one from that port, to another Service of that server, is refused as an old duplicate where its
timestamps begin elsewhere, and then modes that translate are slow for the sake of another scenario."""


def lab_name() -> str:
    """Name of this process's lab."""
    return f"bench-{os.getpid()}"


def remove_abandoned() -> None:
    """Take down labs of earlier benchmarks that were killed before they could do so themselves."""
    for name in Lab.names():
        owner = re.fullmatch(r"bench-(\d+)", name)
        if owner and not Path("/proc", owner[1]).exists():
            Lab.remove(name)
            remove_folders(name)


def pinned(role: int, argv: Sequence[str]) -> list[str]:
    """The command on one processor of its own: clients (role 0) and servers (role 1) never get in each other's way, nor
    does the scheduler's choice of where they run differ from round to round. On a single processor just the command.
    role: the number of one of the processors that this process may run on."""
    processors = sorted(os.sched_getaffinity(0))
    if len(processors) < 2 or shutil.which("taskset") is None:
        return list(argv)
    return ["taskset", "-c", str(processors[role]), *argv]


def _mode(node: str) -> Mode:
    return MODES[node.removesuffix(ALONE)]


def tune(namespace: str, values: Mapping[str, int]) -> None:
    """Set these sysctls, those of them that this kernel has, in a network namespace."""
    with netns(namespace):
        for key, value in values.items():
            sysctl.write_if_present(key, value)


def exchange(namespace: str, source: tuple[str, int], target: tuple[str, int]) -> None:
    """Two datagrams from an address and port in a network namespace to another, and the answers to them, so that the
    way between knows the flow. Raises LabError without answers."""
    with netns(namespace):
        sock = socket.socket(family_of(source[0]).socket_family, socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(_ANSWER_SECONDS)
        sock.bind(source)
        for _ in range(2):
            sock.sendto(_QUERY, target)
            try:
                sock.recv(len(_QUERY))
            except TimeoutError as error:
                raise LabError(f"{target[0]} port {target[1]}: no answer to a datagram from outside") from error


class Rig:
    """The lab with everything in it; as a context manager it goes without a trace. `mode` in its methods is a mode's
    node: its name, or that of its node with one Service."""

    def __init__(self, name: str, settings: Settings, tool: Tool) -> None:
        self._tool, self._settings, self._family = tool, settings, settings.family
        names, ipv6 = list(settings.modes), settings.family is Family.IPV6
        if with_alone(settings):
            names += [alone(mode) for mode in settings.modes if has_alone(mode)]
        forwarding = [mode for mode in settings.modes if MODES[mode].forwards]
        count = len(names) + len(forwarding) + 1
        self.lab = Lab.up(LabSpec(name=name, nodes=count, pods=2, routing=settings.routing, ipv6=ipv6))
        self._clients: dict[str, Helper] = {}
        self._agents: dict[str, Helper] = {}
        self._home_agents: dict[str, Helper] = {}
        self._peers: dict[str, PeerControl] = {}
        self._watchers: dict[str, Watcher] = {}
        self._servers: dict[str, list[int]] = {}
        try:
            self.nodes: Mapping[str, Node] = dict(zip(names, self.lab.nodes, strict=False))
            self.homes: Mapping[str, Node] = dict(zip(forwarding, self.lab.nodes[len(names) :], strict=False))
            self.remote = self.lab.nodes[-1]
            self._start()
        except BaseException:
            self.lab.down()
            remove_folders(name)
            raise

    def _start(self) -> None:
        for node in self.lab.nodes:
            tune(node.netns, CONNTRACK_SECONDS)
            for pod in node.pods:
                tune(pod.netns, _TIMESTAMPS)
            self._serve(node)
        flows = flow_endpoints(self._settings)
        for mode, node in self.nodes.items():
            if flows and not _mode(mode).reference:
                self._servers[node.name].append(self._server(node.pods[0], FLOWS_PORT, 2 * flows, 1, "tcp").pid)
            self._clients[mode] = self._client(node.pods[1].name)
            take_frames(node, self.home(mode), self._family)
            if _mode(mode).reference:
                self._through(node)
        if CONNTRACK in self.nodes:
            self.lab.run(self.nodes[CONNTRACK], ["nft", _TRACKED])
        self._clients[""] = self._client("client")
        peers = {peer.name: peer for peer in self._settings.peers}
        for mode, node in self.nodes.items():
            if _mode(mode).is_peer:
                self._peers[mode] = PeerControl(self.lab, node, self.remote, peers[_mode(mode).name], self._settings)

    def _through(self, node: Node) -> None:
        """Packets that the outside client sends from its address for this node pass by the node, to any pod."""
        with Links(self.lab.topology.underlay.netns) as links:
            source = self.lab.client.via[node.name][self._family]
            table = build.ENTRY_TABLE + node.number
            links.rule(self._family, _DIRECT_RULE, table, incoming="client", source=source)

    def _serve(self, node: Node) -> None:
        pod = node.pods[0]
        process = self._server(pod, SERVER_PORT, self._settings.endpoints, 1)
        self._servers[node.name] = [process.pid]
        if shutil.which("iperf3"):
            process = self.lab.spawn(
                pod, pinned(1, ["iperf3", "-s", "-p", str(BULK_PORT)]),
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            self._servers[node.name].append(process.pid)

    def _server(self, pod: Pod, port: int, count: int, processor: int, *options: str) -> "subprocess.Popen[bytes]":
        process = self.lab.spawn(
            pod, pinned(processor, [*self._tool.argv, "serve", str(port), str(count), *options]),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None, "it was started with a pipe"
        if process.stdout.readline() != b"ready\n":
            raise LabError(f"{pod.name}: the server on port {port} does not start; its words are above")
        return process

    def client(self, mode: str, processor: int) -> Helper:
        """One more client in the mode's client pod, on a processor by its number."""
        return self._client(self.nodes[mode].pods[1].name, processor)

    def home(self, mode: str) -> Node:
        """The node that has a mode's remote backend: one that speaks its tunnel, else that of all."""
        return self.homes.get(mode, self.remote)

    def server(self, mode: str, port: int, processor: int) -> "subprocess.Popen[bytes]":
        """One more server in the mode's server pod, of one port, on a processor by its number."""
        return self._server(self.nodes[mode].pods[0], port, 1, processor)

    def _client(self, place: str, processor: int = 0) -> Helper:
        process = self.lab.spawn(
            place,
            pinned(processor, [*self._tool.argv, "run"]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        return Helper(process, f"{place}: the load generator")

    def watcher(self, place: str) -> Watcher:
        """The load of watch.c in a place of the lab. Raises LabError where it cannot be compiled."""
        if place in self._watchers and not self._watchers[place].is_alive:
            self._watchers.pop(place).close()
        if place not in self._watchers:
            tool = watch_tool()
            if tool is None:
                raise LabError(f"{place}: this load needs a C compiler: apt-get install gcc libc6-dev")
            process = self.lab.spawn(
                place, pinned(0, [str(tool)]), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
            self._watchers[place] = Watcher(Helper(process, f"{place}: the load generator"))
        return self._watchers[place]

    def client_of(self, mode: str) -> str:
        """The place of a mode's client."""
        return self.nodes[mode].pods[1].name

    @property
    def group(self) -> Path:
        """Control group of the whole lab."""
        return self.lab.cgroup(self.lab.client).parent

    def ends(self, mode: str, scenario: Scenario) -> tuple[list[int], list[int]]:
        """Processes that send and that serve in a scenario of a mode's node."""
        outside = scenario.way in (Way.NODE_PORT_LOCAL, Way.NODE_PORT_REMOTE)
        server = self.home(mode) if scenario.way is Way.NODE_PORT_REMOTE else self.nodes[mode]
        if scenario.at_once:
            return [self.watcher(self.client_of(mode)).pid], self._servers[server.name]
        return [self._clients["" if outside else mode].process.pid], self._servers[server.name]

    def agent(self, mode: str) -> Helper:
        """The mode's control plane. Raises KeyError when none was started."""
        return self._agents[mode]

    def peer(self, mode: str) -> PeerControl:
        """The peer of a mode's node. Raises KeyError where there is none."""
        return self._peers[mode]

    @property
    def notes(self) -> list[str]:
        """What a reader should know about peers: what they left behind, how they had to be ended."""
        found: dict[str, str] = {}
        for peer in self._peers.values():
            found = peer.notes | found  # those of a peer's second node are the same
        return list(found.values())

    def has_agent(self, mode: str) -> bool:
        """True if the mode's control plane was started and not ended."""
        return mode in self._agents

    def end_agent(self, mode: str) -> None:
        """End the mode's control plane, if there is one, and leave nothing of it on the node."""
        for agents in (self._agents, self._home_agents):
            if mode in agents:
                agent = agents.pop(mode)
                try:
                    agent.ask(msgspec.json.encode(Request("cleanup")), LOAD_PATIENCE)
                finally:
                    agent.close()

    def restart_agent(self, mode: str) -> None:
        """End the mode's control plane, leave nothing of it on the node, start it anew; a peer is only ended."""
        if mode in self._peers:
            self._peers[mode].leave()
            return
        self.end_agent(mode)
        self._agents[mode] = self._agent(mode, self.nodes[mode], self.homes.get(mode))
        if mode in self.homes:
            self._home_agents[mode] = self._agent(mode, self.homes[mode], self.nodes[mode])

    def _agent(self, mode: str, node: Node, other: Node | None) -> Helper:
        """A control plane of a mode on a node. other: the node that it forwards to, or takes forwarded packets from."""
        words = [self.lab.spec.name, node.name, _mode(mode).name, *([other.name] if other else [])]
        process = self.lab.python(
            node, "dataplane.bench.agent", words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        return Helper(process, f"{node.name}: the control plane of {mode}")

    def objects(self, mode: str, services: int) -> tuple[Shape, Backend, Backend]:
        """What the mode's node serves: see objects.chunks."""
        local = Backend(self._pod(self.nodes[mode]), self.nodes[mode].name)
        home = self.home(mode)
        remote = Backend(self._pod(home), home.name)
        settings = self._settings
        servers, flows = servers_of(settings), flow_endpoints(settings)
        return Shape(services, settings.endpoints, self._family, servers, flows, settings.form), local, remote

    def load(self, mode: str, services: int) -> dict[str, float]:
        """A cold start of the mode with so many Services; its figures, which are not those of its second node."""
        if mode in self._peers:
            return self._peers[mode].load(services)
        shape, local, remote = self.objects(mode, services)
        request = Request(
            "load", services, shape.endpoints, shape.family, local, remote,
            servers=shape.servers, flows=shape.flows, form=shape.form,
        )  # fmt: skip
        if mode in self._home_agents:
            self._home_agents[mode].ask(msgspec.json.encode(request), LOAD_PATIENCE)
        return self._agents[mode].ask(msgspec.json.encode(request), LOAD_PATIENCE)

    def _pod(self, node: Node) -> str:
        return node.pods[0].addresses[self._family]

    def pod(self, mode: str) -> str:
        """Address of the mode's server pod."""
        return self._pod(self.nodes[mode])

    def target(self, mode: str, scenario: Scenario, services: int, position: Position) -> tuple[str, int]:
        """Address and port that a scenario's packets are sent to."""
        udp = scenario.operation in ("dns", "udp", "urr")
        node = self.nodes[mode]
        if scenario.way is Way.CLUSTER_IP:
            port = BULK_PORT if scenario.operation.startswith("iperf3") else UDP_PORT if udp else TCP_PORT
            if self._settings.form is Form.LARGE and port == TCP_PORT and not _mode(mode).reference:
                return flows_ip(self._family), port
            if not _mode(mode).reference:
                return cluster_ip(index(position, services), self._family), port
            return self._pod(node), BULK_PORT if port == BULK_PORT else SERVER_PORT
        if scenario.way is Way.POD:
            return self._pod(node), SERVER_PORT
        remote = scenario.way is Way.NODE_PORT_REMOTE
        if _mode(mode).reference:
            return self._pod(self.remote if remote else node), SERVER_PORT
        return node.addresses[self._family], REMOTE_NODE_PORT if remote else LOCAL_NODE_PORT

    def traffic(
        self, mode: str, operation: str, target: tuple[str, int], seconds: float, outside: bool, rate: float = 0.0
    ) -> dict[str, Any]:
        """Let the client of a mode, or the outside client, do an operation for so long; what load.c answers. rate: as
        load.c takes it."""
        source = "-"
        if outside and MODES[mode].reference:
            source = self.lab.client.via[self.nodes[mode].name][self._family]
        request = f"{operation} {target[0]} {target[1]} {seconds} {source} {rate:.6g}"
        return self._clients["" if outside else mode].ask(request.encode(), seconds + PATIENCE)

    def live(
        self, mode: str, target: tuple[str, int], seconds: float, processors: Sequence[int] = ()
    ) -> dict[str, float]:
        """Let packets of the kernel's own making enter the mode's node, to a remote backend; count what leaves it. They
        belong to a flow that was answered before, as nearly all packets do. processors: send on each of them, a flow
        each; see Generator.run_on."""
        ports = [_LIVE_PORT + number for number in processors or (0,)]
        addresses = self.lab.client.addresses[self._family], target[0]
        for number in () if MODES[mode].reference else ports:
            exchange(self.lab.client.netns, (addresses[0], number), target)
        node = self.nodes[mode]
        ends = uplink_ends(self.lab.topology.underlay.netns, node)
        frame = udp_frame(uplink_macs(*ends), addresses, (_LIVE_PORT, target[1]))
        with Generator(*ends, frame, by_port=bool(processors)) as generator:
            return generator.run_on(processors, seconds) if processors else generator.run(seconds)

    def program(self, mode: str) -> dict[str, float]:
        """Return the cost of a packet to a remote backend in the mode's XDP program; see bench.program."""
        node = self.nodes[mode]
        with Links(self.remote.netns) as other:
            mac = other.mac(self.remote.uplink)
        addresses = (self.lab.client.addresses[self._family], node.addresses[self._family])
        remote = self.remote.addresses[self._family]
        way = PacketWay(node.netns, node.uplink, remote, mac, *addresses, REMOTE_NODE_PORT, self._pod(self.remote))
        return self._agents[mode].ask(msgspec.json.encode(Request("program", way=way)), PATIENCE)

    def bulk(self, mode: str, streams: int, target: tuple[str, int], size: int) -> dict[str, float]:
        """Send `size` bytes in so many streams with iperf3; rate is bits a second as the server saw them."""
        what = f"iperf3 to {target[0]} port {target[1]} in {mode} mode"
        client = self.nodes[mode].pods[1]
        limit = ["-P", str(streams), "-n", str(size)]
        return bulk(lambda argv: self.lab.run(client, pinned(0, argv), check=False), target, limit, what)

    def close(self) -> None:
        """Take everything down; the planes clean up first, since what eBPF pins outlives a namespace."""
        failure: LabError | None = None
        for agent in (*self._agents.values(), *self._home_agents.values()):
            try:
                agent.ask(msgspec.json.encode(Request("cleanup")), LOAD_PATIENCE)
            except LabError as error:
                failure = error
        for peer in self._peers.values():
            try:
                peer.close()
            except HotplaneError as error:
                failure = LabError(str(error))
        try:
            for helper in (*self._agents.values(), *self._home_agents.values(), *self._clients.values()):
                helper.close()
            for watcher in self._watchers.values():
                watcher.close()
            self._agents.clear()
            self._home_agents.clear()
            self._clients.clear()
            self._watchers.clear()
        finally:
            self.lab.down()
            remove_folders(self.lab.spec.name)
        if failure:
            raise failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except LabError:
            if error is None:  # else the first failure is the one to tell of
                raise
