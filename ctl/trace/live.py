"""`explain --live`: sends a packet, and puts what was said of it beside what happened to it."""

import argparse
from collections.abc import Iterator, Sequence

from ctl.commands.trace import SEND_SECONDS
from ctl.live import Comparison, Live
from ctl.loaded import loaded_plane
from ctl.trace.follow import check_rights, follow
from ctl.trace.origin import origin_of
from ctl.trace.seen import Layer, Target
from ctl.trace.timeline import Trace
from dataplane.model.net import host_port
from dataplane.oracle.types import Verdict
from dataplane.planes.mode import Mode
from dataplane.planes.path import Kind, Step
from dataplane.policy.node import Source


def send_all(args: argparse.Namespace, mode: Mode, targets: Sequence[Target]) -> list[Live]:
    """Send a packet to each target, one after another, and compare. mode: that of the targets. Raises HotplaneError,
    UsageError for a source that nothing can be sent from."""
    check_rights()
    origins = [origin_of(each.decision.packet, args.from_netns, args.from_pid) for each in targets]
    plane = loaded_plane(mode.name, args.state_dir)
    return [
        compare(follow(target, plane, SEND_SECONDS, origin)) for target, origin in zip(targets, origins, strict=True)
    ]


def compare(trace: Trace) -> Live:
    """Compare what the oracle and the mode said with what the trace saw."""
    compared = (_verdict(trace), *_endpoint(trace), *_way(trace))
    return Live(all(each.agrees for each in compared), trace.outcome.text, compared)


_WANTED = {
    Verdict.DNAT: {"answered", "unanswered", "rejected"},
    Verdict.REJECT: {"rejected", "dropped"},
    Verdict.DROP: {"dropped", "unanswered"},
    Verdict.ACCEPT: {"answered", "unanswered", "rejected", "error"},
}
"""What may be seen of each verdict: an endpoint may have no listener, and not answer datagrams; a sender on the node
itself is told EPERM of what its own rules refuse."""


def _verdict(trace: Trace) -> Comparison:
    said, saw = trace.target.decision.verdict, trace.outcome.verdict
    agrees = saw in _WANTED[said]
    if said in (Verdict.REJECT, Verdict.DROP):  # no endpoint may have got it
        agrees = agrees and trace.outcome.endpoint in ("", _frontend(trace))
    return Comparison("verdict", said.value, saw, agrees)


def _frontend(trace: Trace) -> str:
    return host_port(*trace.target.frontend)


def _endpoint(trace: Trace) -> Iterator[Comparison]:
    """The endpoint, and the source that it saw."""
    decision, outcome = trace.target.decision, trace.outcome
    if decision.verdict is Verdict.ACCEPT and outcome.endpoint:
        untouched = _frontend(trace)
        yield Comparison("destination", untouched, outcome.endpoint, outcome.endpoint == untouched)
    if decision.verdict is not Verdict.DNAT or not outcome.endpoint:
        return
    said = [str(backend) for backend in decision.backends]
    yield Comparison("endpoint", " or ".join(said), outcome.endpoint, outcome.endpoint in said)
    chosen = next((b for b in decision.backends if str(b) == outcome.endpoint), None)
    if chosen is None:
        return
    masqueraded = decision.masquerades(chosen)
    source = decision.packet.source
    own = f"the client's address {source}"
    saw = own if outcome.seenAs == source else f"masqueraded as {outcome.seenAs}"
    # What the node itself sends has one of its addresses, masqueraded or not.
    agrees = decision.source is Source.NODE or masqueraded == (outcome.seenAs != source)
    yield Comparison("source", "masqueraded" if masqueraded else own, saw, agrees)


def _way(trace: Trace) -> Iterator[Comparison]:
    """The chains that were said, if rules told theirs; and the program that was said to decide, if programs tell."""
    told = [step.hook.rpartition(" ")[2] for step in trace.steps if step.layer in (Layer.NFTABLES, Layer.IPTABLES)]
    said = [step.name for step in trace.target.path if step.kind is Kind.CHAIN and _unconditional(step)]
    if said and told:
        seen = " -> ".join(dict.fromkeys(told))
        yield Comparison("chains", " -> ".join(said), seen, set(said) <= set(told))
    programs = [s.name for s in trace.target.path if s.kind is Kind.PROGRAM and not s.result and s.name in _HOOKS]
    first = [s for s in trace.steps if s.layer is Layer.EBPF and not s.answer and not s.later and s.after is not None]
    if programs and not trace.limits:
        wanted = {hook for name in programs for hook in _HOOKS[name]}
        hook = first[0].hook if first else "none"
        yield Comparison("program", " or ".join(programs), hook, hook in wanted)


_HOOKS = {"xdp_uplink": {"xdp"}, "tc_ingress": {"tc_ingress"}}
_HOOKS |= {f"connect{version}": {"connect"} for version in (4, 6)}
_HOOKS |= {f"connect{version} or sendmsg{version}": {"connect", "sendmsg"} for version in (4, 6)}
"""What events call the hook of a program, by the program's name in a path."""


def _unconditional(step: Step) -> bool:
    """True for chains that every such packet meets: none of one endpoint, none of a pod that meets itself."""
    return not step.share and not step.note.startswith("if ")
