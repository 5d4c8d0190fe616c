"""The way of a packet through the ebpf mode's programs and maps, and from there to the slow path.

Source: bpf/connect.c (refuse, admit), bpf/track.h (open_flow), bpf/tc.c and bpf/xdp.c (translate); reasons are those of
bpf/consts.h. Knows neither devices nor programs that did not load: every hook among the options is taken to work, so
who asks about what is loaded leaves out those that are off (Mode.in_effect).
"""

from collections.abc import Iterator, Sequence

from dataplane.model.net import Protocol, family_of, is_loopback
from dataplane.oracle.reasons import why_vxlan
from dataplane.oracle.types import Decision, Verdict
from dataplane.planes.path import At, Kind, Step
from dataplane.policy.endpoints import Backend
from dataplane.policy.node import Source

_FLOWS = {Protocol.TCP: "tcp_flows", Protocol.UDP: "udp_flows"}


def path(decision: Decision, at: At, slow: Sequence[Step]) -> tuple[Step, ...]:
    """The steps of a packet. slow: those of the slow path, for packets that the programs pass on."""
    return tuple(_Walk(decision, at, slow).steps())


class _Walk:
    """One packet's way."""

    def __init__(self, decision: Decision, at: At, slow: Sequence[Step]) -> None:
        self._decision, self._at, self._slow = decision, at, slow
        packet = decision.packet
        self._key = f"{packet.destination} {packet.protocol.text} {packet.port}"
        self._family = family_of(packet.destination).value

    def steps(self) -> Iterator[Step]:
        """All of them."""
        decision, hooks = self._decision, self._at.options.hooks
        if decision.frontend is None and decision.verdict is Verdict.ACCEPT:
            return
        here = decision.source is not Source.OUTSIDE and decision.packet.source not in self._at.keeping.elsewhere
        if self._at.options.at_connect and here:
            why = self._not_at_connect()
            yield from self._connect(why)
            if not why:
                return
        if decision.source is Source.NODE or not {"tc", "xdp"} & set(hooks):
            why = (
                "its packets meet no program" if decision.source is Source.NODE else "no packet programs are asked for"
            )
            yield from self._left(why)
            return
        why = self._not_by_packet()
        uplink = not here
        if "xdp" in hooks and uplink:
            yield from self._xdp(why)
            if not why and not any(map(self._stays, decision.backends)):
                return
        yield from self._tc(why, "uplink" if uplink else "the pod's device")

    def _not_at_connect(self) -> str:
        """The reason for which a socket is not pointed at an endpoint, "" if it is."""
        decision, node = self._decision, self._at.node
        packet, frontend, entry = decision.packet, decision.frontend, decision.entry
        if packet.protocol not in _FLOWS:
            return "protocol"
        if packet.source in self._at.keeping.off:
            return "switched_off"
        if is_loopback(packet.destination):
            if decision.source is not Source.NODE or not node.answers_node_ports(packet.destination):
                return "loopback"
        elif frontend is not None and frontend.key.address in node.addresses:
            return "own_port"
        if frontend is None or entry is None:
            return "not_service"
        if decision.verdict is not Verdict.DNAT and not decision.refused:
            return self._refusal()
        if frontend.source_ranges is not None:
            return "source_unknown"
        if entry.affinity_seconds and not is_loopback(packet.destination):
            return "affinity"
        asked = decision.route is not None and decision.route.masquerade
        parity = node.masquerade_all or self._at.options.kube_proxy_masquerade
        return "masquerade" if asked and decision.source is Source.POD and parity else ""

    def _refusal(self) -> str:
        """The reason for which a packet is passed on to be refused."""
        if self._decision.refused:
            return "source_range"
        return "no_endpoint" if self._decision.verdict is Verdict.REJECT else "policy_drop"

    def _not_by_packet(self) -> str:
        """The reason for which the packet programs pass a packet on, "" if they translate it."""
        decision = self._decision
        if decision.packet.protocol not in _FLOWS:
            return "protocol"
        if is_loopback(decision.packet.destination):
            return "loopback"
        if decision.frontend is None:
            return "not_service"
        if decision.verdict is not Verdict.DNAT:
            return self._refusal()
        remote_pod = decision.packet.source in self._at.keeping.elsewhere
        if remote_pod and not self._at.options.kube_proxy_masquerade:
            return "remote_pod"
        return ""

    def _stays(self, backend: Backend) -> bool:
        """True if a packet to this endpoint keeps its client's address and goes on by the stack, so that tc handles it
        and not XDP."""
        return not self._decision.masquerades(backend) and backend not in self._decision.tunnels

    def _away(self, hook: str) -> Iterator[Step]:
        """How packets leave past the stack: as this node's, or in a tunnel to the endpoint's node."""
        decision = self._decision
        masqueraded = [backend for backend in decision.backends if decision.masquerades(backend)]
        if masqueraded:
            others = len(masqueraded) < len(decision.backends)
            note = "what is masqueraded, past the stack" if others else "as this node, past the stack"
            yield Step(hook, Kind.ROUTING, "redirect", note=note)
        ways = {(to, decision.dispatch(b), why_vxlan(decision, b)): None for b, to in decision.tunnels.items()}
        for address, dispatch, why in ways:
            note = f"with the client's address, in {dispatch.title} to {address}{f' ({why})' if why else ''}"
            yield Step(hook, Kind.ROUTING, decision.forwarding.value, address, note=note)

    def _endpoints(self, hook: str, backends: Sequence[Backend]) -> Iterator[Step]:
        shares = self._decision.shares
        for backend in backends:
            yield Step(hook, Kind.MAP, "backends", str(backend), share=shares.get(backend, ""))

    def _connect(self, why: str) -> Iterator[Step]:
        """Connect time: of TCP and of connected UDP sockets at connect(2), of others at sendmsg(2)."""
        hook = f"cgroup connect{self._family}"
        name = f"connect{self._family}"
        if self._decision.packet.protocol is Protocol.UDP:
            hook, name = f"{hook} or sendmsg{self._family}", f"{name} or sendmsg{self._family}"
        if why:
            yield Step(hook, Kind.PROGRAM, name, result=f"passed on ({why})")
            return
        yield Step(hook, Kind.PROGRAM, name, note="fast path: the socket is pointed at an endpoint")
        yield Step(hook, Kind.MAP, "frontends", self._key)
        yield from self._endpoints(hook, self._decision.backends)
        yield Step(hook, Kind.MAP, "peers", "the socket's cookie", note="for getpeername(2) and recvmsg(2)")

    def _xdp(self, why: str) -> Iterator[Step]:
        hook = "XDP of the uplink"
        if why:
            yield Step(hook, Kind.PROGRAM, "xdp_uplink", result=f"passed on ({why})")
            return
        away = [backend for backend in self._decision.backends if not self._stays(backend)]
        yield Step(hook, Kind.PROGRAM, "xdp_uplink", note="fast path" if away else "")
        yield Step(hook, Kind.MAP, "frontends", self._key)
        yield from self._endpoints(hook, away or self._decision.backends)
        yield Step(hook, Kind.MAP, _FLOWS[self._decision.packet.protocol], "the packet's tuple")
        yield from self._away(hook)
        if len(away) < len(self._decision.backends):
            yield Step(
                hook, Kind.PROGRAM, "xdp_uplink", result="tc (left_to_tc)", note="if the client keeps its address"
            )

    def _tc(self, why: str, device: str) -> Iterator[Step]:
        hook = f"tc ingress of {device}"
        if why:
            yield Step(hook, Kind.PROGRAM, "tc_ingress", result=f"passed on ({why})")
            yield from self._left("")
            return
        decision = self._decision
        away = [backend for backend in decision.backends if not self._stays(backend)]
        yield Step(hook, Kind.PROGRAM, "tc_ingress", note="fast path")
        yield Step(hook, Kind.MAP, "frontends", self._key)
        if decision.affinity_seconds:
            yield Step(hook, Kind.MAP, "affinity", f"{decision.packet.source} {decision.service}")
        yield from self._endpoints(hook, decision.backends)
        yield Step(hook, Kind.MAP, _FLOWS[decision.packet.protocol], "the packet's tuple")
        yield from self._away(hook)
        if len(away) < len(decision.backends):
            yield Step(hook, Kind.ROUTING, "stack", note="with the client's address")
            yield Step(f"tc egress of {device}", Kind.PROGRAM, "tc_egress", note="turns answers back")

    def _left(self, why: str) -> Iterator[Step]:
        """The slow path's steps, which say that they are."""
        if why:
            yield Step("slow path", Kind.ROUTING, "stack", note=why)
        yield from self._slow
