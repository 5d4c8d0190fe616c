"""Host routing against the stack, by chance: flows of every kind between pods, Services and the outside go on while
pods are taken out and put back. What is taken out is dropped by a rule in the forward chain, so each answer tells by
which way packets went: an exchange must succeed exactly where no rule drops it."""

import contextlib
import random
import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from dataplane.model.net import Family
from dataplane.planes.exclusions import Exclusions
from tests.kernel.host_lab import CLUSTER_IP, FAMILIES, LOCAL, PORT, HostLab, ask, host_lab

TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM
MOST_FLOWS, SILENCE = 24, 0.25
STEPS, SOAK_STEPS = 60, 4000
PODS = ("pod1-1", "pod1-2")
RULES = """table inet denied {
    set ipv4 { type ipv4_addr; }
    set ipv6 { type ipv6_addr; }
    chain forward {
        type filter hook forward priority 0;
        ip saddr @ipv4 drop
        ip daddr @ipv4 drop
        ip6 saddr @ipv6 drop
        ip6 daddr @ipv6 drop
    }
}"""


class Flow(NamedTuple):
    """An open socket, the pod that answers it, and the pods of node 1 that are concerned."""

    sock: socket.socket
    kind: socket.SocketKind
    server: str
    pods: frozenset[str]


class Walk:
    """One random walk. Each step opens, uses or closes a flow, or takes a pod of node 1 out or puts it back."""

    def __init__(self, lab: HostLab, seed: int) -> None:
        self.lab, self.random = lab, random.Random(seed)
        self.flows: list[Flow] = []
        self.denied: set[str] = set()
        self.exchanges = self.dropped = 0

    def step(self) -> None:
        self.random.choices((self.open, self.use, self.close, self.switch), (6, 10, 2, 2))[0]()

    def open(self) -> None:
        if len(self.flows) >= MOST_FLOWS:
            return
        family, kind = self.random.choice(FAMILIES), self.random.choice((TCP, UDP))
        client, target, server = self.random.choice(self._pairs(family))
        pods = frozenset({client, server} & set(PODS))
        if kind is TCP and pods & self.denied:
            return
        self.flows.append(Flow(self.lab.connected(client, target, kind), kind, server, pods))

    def _pairs(self, family: Family) -> list[tuple[str, tuple[str, int], str]]:
        """Client, target, and who answers."""
        of = {name: (self.lab.address(name, family), PORT) for name in ("pod1-1", "pod1-2", "pod2-1")}
        local, remote = ((CLUSTER_IP[name][family], 80) for name in ("local", "remote"))
        return [
            *((one, of[other], other) for one in of for other in of if one != other),
            ("pod1-1", local, "pod1-2"), ("pod2-1", local, "pod1-2"), ("pod1-2", remote, "pod2-1"),
            ("client", (self.lab.node.addresses[family], LOCAL), "pod1-2"), ("client", of["pod1-1"], "pod1-1"),
        ]  # fmt: skip

    def use(self) -> None:
        if not self.flows:
            return
        flow = self.random.choice(self.flows)
        if not flow.pods & self.denied:
            assert ask(flow.sock)[0] == flow.server, flow
            self.exchanges += 1
        elif flow.kind is UDP:
            flow.sock.settimeout(SILENCE)
            with pytest.raises(TimeoutError):
                ask(flow.sock)
            flow.sock.settimeout(5)
            self.dropped += 1

    def close(self) -> None:
        if self.flows:
            self.flows.pop(self.random.randrange(len(self.flows))).sock.close()

    def switch(self) -> None:
        """Out before the rule comes, back after it has gone."""
        pod = self.random.choice(PODS)
        verb = "delete" if pod in self.denied else "add"
        addresses = [self.lab.address(pod, family) for family in FAMILIES]
        if verb == "add":
            self.denied.add(pod)
            self._exclude()
        commands = [
            f"{verb} element inet denied {name} {{ {address} }}"
            for name, address in zip(("ipv4", "ipv6"), addresses, strict=True)
        ]
        self.lab.lab.run(self.lab.node, ["nft", "; ".join(commands)])
        if verb == "delete":
            self.denied.remove(pod)
            self._exclude()

    def _exclude(self) -> None:
        out = {self.lab.address(pod, family): "denied" for pod in self.denied for family in FAMILIES}
        self.lab.host().exclude(Exclusions(addresses=out))

    def end(self) -> None:
        for flow in self.flows:
            flow.sock.close()
        for _ in list(self.denied):
            while self.denied:
                self.switch()


@pytest.fixture(scope="module")
def lab() -> Iterator[HostLab]:
    with host_lab() as made:
        made.lab.run(made.node, ["nft", "-f", "-"], input=RULES)
        yield made


def test_a_random_walk(lab: HostLab, request: pytest.FixtureRequest) -> None:
    seed = random.randrange(1 << 32) if request.config.getoption("--soak") else 7
    print(f"seed {seed}")
    walk = Walk(lab, seed)
    with contextlib.ExitStack() as stack:
        stack.callback(walk.end)
        with lab.ways() as ways:
            for _ in range(SOAK_STEPS if request.config.getoption("--soak") else STEPS):
                walk.step()
        assert walk.exchanges > 10
        assert walk.dropped > 0
        assert ways["into_pod"] > 20
        assert ways["forwarded"] > 0
