"""Rules of other programs that come and go on a node: what is loaded, what it drops, and how it is taken back."""

import random
from typing import NamedTuple

from dataplane.lab.spec import Pod
from dataplane.model.net import Family, Protocol
from tests.kernel.host_lab import PORT, HostLab
from tests.past_stack.denials import Denial

Command = tuple[str, ...]


class Stranger(NamedTuple):
    """What a program loads, and takes away again. denial: what it drops, None if nothing that is tested here."""

    name: str
    load: tuple[Command, ...]
    remove: tuple[Command, ...]
    denial: Denial | None


def _nft(name: str, table: str, chains: str, denial: Denial | None) -> Stranger:
    load = ("nft", f"table {table} stranger {{\n{chains}\n}}")
    return Stranger(name, (load,), (("nft", f"delete table {table} stranger"),), denial)


def _hook(hook: str, priority: int, rules: str) -> str:
    return f"chain c {{ type filter hook {hook} priority {priority}; {rules}\n}}"


class Strangers:
    """Draws one. lab: whose node 1 it is for."""

    def __init__(self, lab: HostLab, draw: random.Random) -> None:
        self._lab, self._random = lab, draw

    def draw(self) -> Stranger:
        """One of all kinds."""
        pod = self._random.choice(("pod1-1", "pod1-2"))
        place = self._lab.lab.place(pod)
        assert isinstance(place, Pod)
        ipv4, ipv6 = place.addresses[Family.IPV4], place.addresses[Family.IPV6]
        end = self._random.choice(("saddr", "daddr"))
        rules = f"ip {end} {ipv4} drop; ip6 {end} {ipv6} drop;"
        where = f"of {pod} as {end}"
        only = frozenset({pod})
        known = "ct state established,related accept;"
        makers = (
            lambda: _nft("forward", "inet", _hook("forward", 5, rules), Denial(f"forward, {where}", only)),
            lambda: _nft("prerouting", "inet", _hook("prerouting", -300, rules), Denial(f"prerouting, {where}", only)),
            lambda: _nft("postrouting", "inet", _hook("postrouting", 0, rules), Denial(f"postrouting, {where}", only)),
            lambda: self._device(pod, place.device, end, rules),
            lambda: _nft(
                "protocol", "inet", _hook("forward", 5, f"udp dport {PORT} drop;"),
                Denial("forward, UDP", None, Protocol.UDP),
            ),
            lambda: _nft(
                "new alone", "inet", _hook("forward", 5, f"policy drop; {known}"), Denial("new", None, fresh=True)
            ),
            lambda: _nft("invalid", "inet", _hook("forward", 5, f"{known} ct state invalid drop;"), None),
            lambda: self._legacy(pod, ipv4, "-s" if end == "saddr" else "-d"),
        )  # fmt: skip
        return self._random.choice(makers)()

    @staticmethod
    def _device(pod: str, device: str, end: str, rules: str) -> Stranger:
        """At the pod's own device: what it sends comes in there, and what it gets leaves there."""
        hook = "ingress" if end == "saddr" else "egress"
        name = f"{hook} of a device"
        return _nft(name, "netdev", _hook(f'{hook} device "{device}"', 0, rules), Denial(name, frozenset({pod})))

    @staticmethod
    def _legacy(pod: str, address: str, option: str) -> Stranger:
        rule = ("FORWARD", option, address, "-j", "DROP")
        denial = Denial(f"legacy, {option} {pod}", frozenset({pod}), family=Family.IPV4)
        tool = ("iptables-legacy", "-w")
        return Stranger("legacy", ((*tool, "-I", *rule),), ((*tool, "-D", *rule),), denial)
