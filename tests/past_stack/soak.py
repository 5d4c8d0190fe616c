"""A soak of host routing under a daemon: connections that live and new ones, while everything around them changes.

    python -m tests.past_stack.soak [--minutes 15] [--seed 1] [--log docs/host-routing-soak.log]

As root, in a lab of its own with an API server and a daemon on each node, in ebpf mode with host routing. Clients (pods
of both nodes, from outside; by pods' addresses, clusterIP and node port) open 50 connections a second each, hold some
to the end, and send datagrams. Meanwhile, by chance: the first node's daemon is restarted or killed (SIGKILL), it
changes to another mode and back, host routing is switched off and on, a pod's device is replaced under the same index,
NetworkPolicies and another program's rules come and go, endpoints leave and come back. None of it is a reason for a
connection to fail or break: any that does is printed, and the exit status is 1 then. Datagrams that are under way at
such a moment may be lost; they are counted.

What is held is opened before the first change, and so in ebpf mode: a connection that began in another mode is
masqueraded towards its pod, and the kernel itself forgets it when that device goes (docs/decisions.md, source ports).
"""

import argparse
import random
import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from dataplane.kernel.namespaces.netns import in_netns, netns
from dataplane.lab.lab import Lab
from dataplane.lab.spec import CLUSTER_CIDR, LabSpec
from dataplane.model.net import Family
from dataplane.planes.ebpf.host_routing.table import WAYS, counts, permitted
from dataplane.planes.ebpf.maps.pins import default_instance
from dataplane.planes.ebpf.views.records import open_instance
from tests.apiserver.objects import endpoint, endpoint_slice, network_policy, pod, service
from tests.kernel.daemon_lab import PORT, VIP, DaemonLab, NodeDaemon, daemon_lab, until
from tests.kernel.pod_device import add_device, remove_device
from tests.kernel.traffic import MOST_HELD, Traffic, lost

BACKENDS = ("pod1-1", "pod1-2", "pod2-1", "pod2-2")
NODE_PORT = 30088
PAUSE = (0.5, 4.0)
REPORT_SECONDS = 60.0
AWAY_SECONDS = 0.3
STRANGER = """table inet stranger {
    chain c { type filter hook forward priority 5; ct state invalid counter drop; }
}"""
"""It drops nothing of a connection, but would if one were not as connection tracking wants it."""


class Site:
    """The lab, its daemons and what is changed about them. counted: changes by kind. seen: packets by way, of all the
    times in which somebody looked."""

    def __init__(self, cluster: DaemonLab, seed: int) -> None:
        self.cluster, self.lab = cluster, cluster.lab
        self.random = random.Random(seed)
        self.counted: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self._before: Counter[str] = Counter()
        self._routing = dict.fromkeys((each.node for each in cluster.daemons), "auto")

    def configure(self, daemon: NodeDaemon, mode: str, routing: str) -> None:
        self._routing[daemon.node] = routing
        (daemon.folder / "config.yaml").write_text(
            "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
            f"clusterCIDR: {CLUSTER_CIDR[Family.IPV4]}\nmode: {mode}\nhostRouting: {routing}\n"
        )

    def start(self, daemon: NodeDaemon) -> None:
        daemon.start(
            "--master", self.cluster.server.url, "--config", str(daemon.folder / "config.yaml"),
            "--cgroup", str(self.lab.cgroup(daemon.node)),
        )  # fmt: skip

    def allowed(self, daemon: NodeDaemon) -> int:
        """How many addresses may go past the stack by the kernel's maps."""
        with netns(daemon.netns):
            maps = open_instance(default_instance())
        if maps is None:
            return 0
        with maps:
            return len(permitted(maps))

    def look(self) -> None:
        """Add up the packets by way of the first node."""
        with netns(self.cluster.daemons[0].netns):
            maps = open_instance(default_instance())
        if maps is None:
            return
        with maps:
            now = Counter(counts(maps))
        if any(now[way] < self._before[way] for way in WAYS):  # new maps
            self._before.clear()
        self.seen.update(now - self._before)
        self._before = now

    def endpoints(self, pods: tuple[str, ...]) -> None:
        """These pods are behind the Service. All of them live on, whoever is chosen."""
        for protocol in ("TCP", "UDP"):
            items = [endpoint(self.lab.place(p).addresses[Family.IPV4], f"node{p[3]}") for p in pods]
            self.cluster.server.apply(endpoint_slice(f"echo-{protocol.lower()}", items, protocol=protocol))

    def one_change(self) -> None:
        """Any of those that `soak` names, to its end."""
        change = self.random.choice((
            self._restart, self._kill, self._mode, self._switch, self._pod, self._policy, self._rules, self._rollout,
        ))  # fmt: skip
        change()
        self.counted[change.__name__.strip("_")] += 1

    def _daemon(self) -> NodeDaemon:
        return self.cluster.daemons[0]

    def _restart(self) -> None:
        daemon = self._daemon()
        assert daemon.stop() == 0, daemon.text
        time.sleep(self.random.uniform(0, 1))
        self.start(daemon)

    def _kill(self) -> None:
        daemon = self._daemon()
        daemon.kill()
        time.sleep(self.random.uniform(0, 1))
        self.start(daemon)

    def _mode(self) -> None:
        """Into another mode, and back."""
        daemon, other = self._daemon(), self.random.choice(("nftables", "iptables"))
        for mode in (other, "ebpf"):
            said = daemon.text.count("replaced mode")
            self.configure(daemon, mode, "auto")
            daemon.hangup()
            until(lambda said=said: daemon.text.count("replaced mode") > said, f"{mode}: {daemon.text}")  # type: ignore[misc]
            time.sleep(self.random.uniform(0, 2))

    def _switch(self) -> None:
        """Host routing off, on without asking anybody, and as usual again."""
        daemon = self._daemon()
        for routing in (self.random.choice(("off", "on")), "auto"):
            self.configure(daemon, "ebpf", routing)
            said = daemon.text.count("configuration reloaded")
            daemon.hangup()
            until(lambda said=said: daemon.text.count("configuration reloaded") > said, "it is read")  # type: ignore[misc]
            time.sleep(self.random.uniform(0, 1))

    def _pod(self) -> None:
        """Its packets go nowhere for a moment, as a refusal would end connections that rightly go on."""
        name = self.random.choice(("pod1-1", "pod1-2"))
        node = self._daemon().node
        route = f"{self.lab.place(name).addresses[Family.IPV4]}/32"
        self.lab.run(node, ["ip", "route", "add", "blackhole", route, "metric", "9999"])
        index = remove_device(self.lab, name)
        time.sleep(self.random.choice((0, AWAY_SECONDS)))
        add_device(self.lab, name, index)
        self.lab.run(node, ["ip", "route", "del", "blackhole", route, "metric", "9999"])

    def _policy(self) -> None:
        self.cluster.server.apply(network_policy("closed", matchLabels={"pod": self.random.choice(BACKENDS)}))
        time.sleep(self.random.uniform(0, 1))
        self.cluster.server.delete("NetworkPolicy", "default", "closed")

    def _rules(self) -> None:
        node = self._daemon().node
        self.lab.run(node, ["nft", STRANGER])
        time.sleep(self.random.uniform(0, 1))
        self.lab.run(node, ["nft", "delete table inet stranger"])

    def _rollout(self) -> None:
        gone = self.random.choice(BACKENDS)
        self.endpoints(tuple(name for name in BACKENDS if name != gone))
        time.sleep(self.random.uniform(0, 1))
        self.endpoints(BACKENDS)


def _ways(lab: Lab) -> dict[str, tuple[str, str, int]]:
    node1 = lab.place("node1").addresses[Family.IPV4]
    at = {name: lab.place(name).addresses[Family.IPV4] for name in BACKENDS}
    return {
        "pod to clusterIP": ("pod1-3", VIP, 80),
        "pod to pod of its node": ("pod1-3", at["pod1-1"], PORT),
        "pod to pod of another node": ("pod1-3", at["pod2-1"], PORT),
        "another node's pod to pod": ("pod2-3", at["pod1-2"], PORT),
        "another node's pod to clusterIP": ("pod2-3", VIP, 80),
        "outside to node port": ("client", node1, NODE_PORT),
        "outside to pod": ("client", at["pod1-2"], PORT),
    }


def _prepare(cluster: DaemonLab, site: Site) -> None:
    """Objects, daemons, and hardware addresses that the nodes know."""
    lab = cluster.lab
    for each in lab.pods:
        cluster.server.apply(pod(each.name, each.node, *each.addresses.values(), labels={"pod": each.name}))
    for protocol in ("TCP", "UDP"):
        ports = [{"port": 80, "protocol": protocol, "nodePort": NODE_PORT, "targetPort": PORT}]
        cluster.server.apply(service(f"echo-{protocol.lower()}", VIP, type="NodePort", ports=ports))
    site.endpoints(BACKENDS)
    for daemon in cluster.daemons:
        daemon.mode = ""
        site.configure(daemon, "ebpf", "auto")
        site.start(daemon)
    for each in lab.pods:
        for address in each.addresses.values():
            in_netns(lab.place(each.node).netns, socket.create_connection, (address, PORT), 5).close()
    until(lambda: all(site.allowed(daemon) == 3 for daemon in cluster.daemons), "all pods may go past the stack")


def soak(minutes: float, seed: int, out: TextIO) -> int:
    """Run it; returns how much was lost."""

    def say(text: str) -> None:
        print(text, file=out, flush=True)

    with tempfile.TemporaryDirectory() as folder, Lab.up(LabSpec("past", nodes=2, pods=3)) as lab:
        lab.start_echo(lab.pods, [PORT])
        with daemon_lab(lab, Path(folder), "ebpf") as cluster:
            site = Site(cluster, seed)
            _prepare(cluster, site)
            traffic = Traffic(lab, _ways(lab), "--hold=1", f"--enough={MOST_HELD}")
            try:
                traffic.until_used()
                _change(site, minutes * 60, say)
                reports = traffic.end()
            finally:
                traffic.kill()
    say("changes: " + ", ".join(f"{name} {count}" for name, count in sorted(site.counted.items())))
    say("packets of node1 that were looked at: " + ", ".join(f"{way} {site.seen[way]}" for way in WAYS))
    for name, report in reports.items():
        say(f"{name}: {report.opened} connections, {report.held} held to the end with {report.exchanges} exchanges, "
            f"{len(report.failed)} failed, {len(report.broken)} broken; {report.asked} datagrams, "
            f"{report.unanswered} unanswered")  # fmt: skip
    problems = lost(reports)
    for name, words in problems.items():
        for word in words:
            say(f"  {name}: {word}")
    total = sum(len(words) for words in problems.values())
    say(f"{sum(report.opened for report in reports.values())} connections, {total} lost")
    return total


def _change(site: Site, seconds: float, say: Callable[[str], None]) -> None:
    began = told = time.monotonic()
    while time.monotonic() < began + seconds:
        time.sleep(site.random.uniform(*PAUSE))
        site.look()
        at = time.monotonic()
        site.one_change()
        site.look()
        if time.monotonic() > told + REPORT_SECONDS:
            told = time.monotonic()
            say(f"{at - began:6.0f} s: {sum(site.counted.values())} changes; "
                + ", ".join(f"{way} {site.seen[way]}" for way in WAYS))  # fmt: skip


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.past_stack.soak")
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path)
    options = parser.parse_args()
    out = options.log.open("a") if options.log else sys.stdout
    print(f"{options.minutes:g} minutes, seed {options.seed}", file=out, flush=True)
    return 1 if soak(options.minutes, options.seed, out) else 0


if __name__ == "__main__":
    raise SystemExit(main())
