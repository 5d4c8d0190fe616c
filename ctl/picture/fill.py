"""Make a picture of an oracle's decision: who is where, what happens in which node, which packets go between them."""

from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import NamedTuple

from ctl.picture.model import SOURCE, Leg, NodeBox, Picture, PodBox, SourceBox, Step, Tone, Way
from ctl.picture.names import Names
from dataplane.model.net import family_of, host_port
from dataplane.oracle.types import Decision, Verdict
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import NodeConfig, Source
from dataplane.policy.routes import Action

MOST_PODS, MOST_NODES = 6, 5
"""So many endpoints of a node, and other nodes, are drawn one by one; the rest is one box."""
ELSEWHERE = "another node"


class Asked(NamedTuple):
    """A decision and what is known about it besides. node: the deciding one. at_connect: the socket is pointed at its
    endpoint when it connects. reasons: all that are told."""

    decision: Decision
    node: NodeConfig
    names: Names = Names()
    at_connect: bool = False
    reasons: tuple[str, ...] = ()


class _Group(NamedTuple):
    """Endpoints of one other node. chosen: those that get connections; way: of these, None if there are none."""

    node: str
    address: str
    chosen: tuple[Backend, ...]
    rest: tuple[Backend, ...]
    way: Way | None


def picture(asked: Asked) -> Picture:
    """The picture of a decision. Pure: the kernel is not asked."""
    return _Filler(asked).picture()


def own_name(node: NodeConfig) -> str:
    """What the deciding node is called."""
    return node.name or "this node"


class _Filler:
    def __init__(self, asked: Asked) -> None:
        self._asked, self._decision, self._node, self._names = asked, asked.decision, asked.node, asked.names
        self._packet = asked.decision.packet
        self._client = self._packet.source
        self._frontend = host_port(self._packet.destination, self._packet.port)
        self._address = self._node.primary(family_of(self._client))
        self._own = self._address or own_name(self._node)
        self._served = self._decision.verdict is Verdict.DNAT
        self._drawn = Counter(self._decision.drawn)

    def picture(self) -> Picture:
        here, groups = self._local(), self._groups()
        taker = NodeBox(own_name(self._node), self._address, self._steps(groups), here)
        others = tuple(self._other(group) for group in groups)
        return Picture(
            title=str(self._packet),
            headline=self._headline(),
            refused=self._decision.verdict in (Verdict.REJECT, Verdict.DROP),
            source=self._source(),
            nodes=(taker, *others),
            legs=(*self._first_legs(here, groups), *self._other_legs(groups)),
            reasons=self._asked.reasons,
        )

    def _headline(self) -> str:
        decision, frontend = self._decision, self._decision.frontend
        if frontend is None or not decision.service:
            return {Verdict.ACCEPT: "no Service has this address and port", Verdict.REJECT: "rejected"}.get(
                decision.verdict, "dropped"
            )
        service = f"{frontend.kind.value} {frontend.key} of {decision.service}"
        done = {Verdict.DNAT: "goes to", Verdict.REJECT: "is rejected", Verdict.DROP: "is dropped"}[decision.verdict]
        if not self._served:
            return f"{service} {done}"
        number = len(decision.backends)
        return f"{service} {done} {'its endpoint' if number == 1 else f'one of {number} endpoints'}"

    def _source(self) -> SourceBox:
        client, source = self._client, self._decision.source
        if source is Source.NODE:
            return SourceBox("process", f"process of {own_name(self._node)}", client, inside=True)
        if source is Source.POD or client in self._names.pods:
            where = self._names.node(client)
            name = self._names.pods.get(client, "")
            return SourceBox("pod", name or "pod", client, inside=where in ("", self._node.name))
        return SourceBox("client", self._names.outside.get(client, "client"), client)

    # Endpoints

    def _rest(self) -> list[Backend]:
        """Endpoints of the Service that this packet cannot get to."""
        entry = self._decision.entry
        if entry is None:
            return []
        return [backend for backend in sorted({*entry.cluster, *entry.local}) if backend not in self._decision.backends]

    def _local(self) -> tuple[PodBox, ...]:
        chosen = [backend for backend in self._decision.backends if backend.local]
        return self._boxes(chosen, [backend for backend in self._rest() if backend.local])

    def _groups(self) -> list[_Group]:
        """Other nodes with endpoints, those that get packets first."""
        chosen: dict[str, list[Backend]] = {}
        rest: dict[str, list[Backend]] = {}
        for found, backends in ((chosen, self._decision.backends), (rest, self._rest())):
            for backend in backends:
                if not backend.local:
                    found.setdefault(self._place(backend), []).append(backend)
        names = sorted({*chosen, *rest}, key=lambda name: (name not in chosen, name == "", name))
        groups = [self._group(name, chosen.get(name, []), rest.get(name, [])) for name in names]
        if len(groups) <= MOST_NODES:
            return groups
        more = groups[MOST_NODES - 1 :]
        both = [[backend for group in more for backend in each(group)] for each in (_chosen, _not_chosen)]
        return [*groups[: MOST_NODES - 1], self._group(f"{len(more)} more nodes", *both)]

    def _place(self, backend: Backend) -> str:
        """The name of a backend's node, or the node's address, as far as either is known."""
        tunnel = self._decision.tunnels.get(backend, "")
        return self._names.node(backend.address) or self._names.whose(tunnel) or tunnel

    def _group(self, name: str, chosen: Sequence[Backend], rest: Sequence[Backend]) -> _Group:
        way = self._way(chosen[0]) if chosen else None
        tunnel = self._decision.tunnels.get(chosen[0], "") if chosen else ""
        address = tunnel or self._names.address(name, self._client)
        return _Group(name if name and name != address else ELSEWHERE, address, tuple(chosen), tuple(rest), way)

    def _way(self, backend: Backend) -> Way:
        if backend in self._decision.tunnels:
            return Way(self._decision.forwarding.value)
        return Way.SNAT if self._decision.masquerades(backend) else Way.ROUTED

    def _sees(self, backend: Backend) -> str:
        return self._own if self._decision.masquerades(backend) else self._client

    def _boxes(self, chosen: Sequence[Backend], rest: Sequence[Backend]) -> tuple[PodBox, ...]:
        drawn = self._drawn.total()
        boxes = [self._box(backend, Fraction(self._drawn[backend], drawn)) for backend in chosen]
        boxes += [self._box(backend, None) for backend in rest]
        if len(boxes) <= MOST_PODS:
            return tuple(boxes)
        shown, more = boxes[: MOST_PODS - 1], boxes[MOST_PODS - 1 :]
        sees = {box.sees for box in more if box.sees}
        together = sum((box.share for box in more if box.share is not None), Fraction(0))
        text = f"{len(more)} more endpoints"
        seen = sees.pop() if len(sees) == 1 else ""
        return (*shown, PodBox("", text, together or None, seen, len(more)))

    def _box(self, backend: Backend, share: Fraction | None) -> PodBox:
        name = self._names.pods.get(backend.address, "")
        return PodBox(name, str(backend), share, self._sees(backend) if share is not None else "")

    def _other(self, group: _Group) -> NodeBox:
        steps: tuple[Step, ...] = ()
        if group.way in (Way.TUNNEL, Way.DSR):
            lines = [self._frontend, f"→ {_either(group.chosen)}"]
            steps = (Step("unpacked, DNAT", tuple(lines)),)
            if group.way is Way.DSR:
                steps += (Step("answers itself", ("as", self._frontend)),)
        return NodeBox(group.node, group.address, steps, self._boxes(group.chosen, group.rest))

    # What the deciding node does

    def _steps(self, groups: Sequence[_Group]) -> tuple[Step, ...]:
        if self._decision.verdict is Verdict.ACCEPT:
            return (Step("left alone", ("goes on unchanged",), Tone.QUIET),)
        if not self._served:
            title = self._decision.verdict.value.upper()
            return (Step(title, self._cause(), Tone.REFUSED),)
        return (*self._translated(), *self._masqueraded(groups), *self._tunnelled(groups))

    def _cause(self) -> tuple[str, ...]:
        """Why the packet is refused, in a few words."""
        decision = self._decision
        if decision.refused:
            return ("source is not in", "loadBalancer-", "SourceRanges")
        if decision.route is not None:
            if decision.route.action is Action.REJECT:
                return ("no endpoint is", "ready on any node")
            return ("policy Local, and", "no endpoint here")
        if decision.verdict is Verdict.REJECT:
            return ("clusterIP without", f"port {self._packet.port}")
        return ("clusterIP that no", "Service has")

    def _translated(self) -> Iterable[Step]:
        to = f"→ {_either(self._decision.backends)}"
        if self._asked.at_connect:
            yield Step("at connect", ("the socket is pointed", to))
        elif here := self._here():
            yield Step("DNAT", (self._frontend, f"→ {_either(here)}"))

    def _here(self) -> list[Backend]:
        """Endpoints whose address this node itself puts into the packet."""
        return [b for b in self._decision.backends if b.local or self._way(b) not in (Way.TUNNEL, Way.DSR)]

    def _masqueraded(self, groups: Sequence[_Group]) -> Iterable[Step]:
        backends = [backend for backend in self._here() if self._decision.masquerades(backend)]
        if not backends or self._own == self._client:
            return
        lines = [self._client, f"→ {self._own}"]
        if len(backends) < len(self._decision.backends):
            itself = all(backend.address == self._client for backend in backends)
            lines.append("if it meets itself" if itself else _for(backends))
        yield Step("SNAT", tuple(lines))

    # Packets

    def _first_legs(self, here: Sequence[PodBox], groups: Sequence[_Group]) -> Iterable[Leg]:
        out, back = f"{self._client} → {self._frontend}", f"{self._frontend} → {self._client}"
        if self._asked.at_connect:
            out, back = f"connect({self._frontend})", f"getpeername() = {self._frontend}"
        if self._served:
            yield Leg(SOURCE, 0, (out,))
            through = [group for group in groups if group.way not in (None, Way.DSR)]
            if through or any(box.share is not None for box in here):
                yield Leg(0, SOURCE, (back,), answer=True)
            return
        if self._decision.verdict is Verdict.ACCEPT:
            yield Leg(SOURCE, 0, (out,), tone=Tone.QUIET)
            return
        yield Leg(SOURCE, 0, (out,), tone=Tone.REFUSED)
        if self._decision.verdict is Verdict.REJECT:
            yield Leg(0, SOURCE, ("ICMP port unreachable",), answer=True, tone=Tone.REFUSED)
        else:
            yield Leg(0, SOURCE, ("no answer: the client waits",), answer=True, tone=Tone.REFUSED, arrives=False)

    def _other_legs(self, groups: Sequence[_Group]) -> Iterable[Leg]:
        for number, group in enumerate(groups, start=1):
            if group.way is None:
                continue
            if group.way in (Way.TUNNEL, Way.DSR):
                yield from self._tunnel_legs(number, group)
                continue
            to, sees = _either(group.chosen), self._sees(group.chosen[0])
            yield Leg(0, number, (f"{sees} → {to}",))
            yield Leg(number, 0, (f"{to} → {sees}",), answer=True)

    def _tunnelled(self, groups: Sequence[_Group]) -> Iterable[Step]:
        formats = self._formats([b for group in groups if group.way in (Way.TUNNEL, Way.DSR) for b in group.chosen])
        if formats:
            yield Step(f"put into {formats}", ("for other nodes,", "client address kept"))

    def _formats(self, backends: Sequence[Backend]) -> str:
        """What packets to these go in."""
        return " or ".join(dict.fromkeys(self._decision.dispatch(b).title for b in backends))

    def _tunnel_legs(self, number: int, group: _Group) -> Iterable[Leg]:
        out, back = f"{self._client} → {self._frontend}", f"{self._frontend} → {self._client}"
        other, wrapped = group.address or group.node, self._formats(group.chosen)
        yield Leg(0, number, (f"{wrapped} {self._own} → {other}", f"[{out}]"), tunnelled=True)
        if group.way is Way.DSR:
            yield Leg(number, SOURCE, (back,), answer=True)
        else:
            texts = (f"{wrapped} {other} → {self._own}", f"[{back}]")
            yield Leg(number, 0, texts, answer=True, tunnelled=True)


def _chosen(group: _Group) -> tuple[Backend, ...]:
    return group.chosen


def _not_chosen(group: _Group) -> tuple[Backend, ...]:
    return group.rest


def _either(backends: Sequence[Backend]) -> str:
    return str(backends[0]) if len(backends) == 1 else f"one of {len(backends)} endpoints"


def _for(backends: Sequence[Backend]) -> str:
    return "for endpoints here" if all(backend.local for backend in backends) else "for other nodes"
