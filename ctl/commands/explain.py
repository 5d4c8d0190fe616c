"""`hotplane explain`: what happens to a packet in the chosen mode, and why."""

import argparse
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ctl.config import EXTERNAL_IPS_GATE
from ctl.live import Live
from ctl.output import add_output_option, print_records, terminal_width
from ctl.service_option import add_service_option
from dataplane.errors import UsageError
from dataplane.malformed import MALFORMED
from dataplane.model.decode import Decoded
from dataplane.model.forwarding import SERVICE_ANNOTATION
from dataplane.model.net import contains
from dataplane.model.objects import EndpointSlice, ModelObject, Node, Problem, Service
from dataplane.oracle.decide import Decision, Oracle, Packet, Verdict
from dataplane.oracle.flow import FORM, parse_flow
from dataplane.oracle.keeps import NOTHING, Keeping
from dataplane.oracle.notes import endpoint_notes
from dataplane.oracle.reasons import tunnel_text, why_vxlan
from dataplane.plan.planner import Planner
from dataplane.plan.types import EntryKey, FrontendKind
from dataplane.planes.decisions import matches
from dataplane.planes.options import PlaneOptions
from dataplane.planes.path import At, Step, lines
from dataplane.planes.registry import mode_of
from dataplane.policy.endpoints import Backend
from dataplane.policy.forwarding import LbMode
from dataplane.policy.node import Source

if TYPE_CHECKING:
    from ctl.context import Context
    from ctl.explain_loaded import Scene
    from ctl.explain_routes import Way, Ways
    from ctl.flow_names import Names

_PAGE, _NARROWEST = 100, 40
"""Columns that are folded to where there is no terminal, and at least."""
_WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}


class Flow(NamedTuple):
    """A packet and the text that described it. asked: the text with names, if there were any."""

    text: str
    packet: Packet
    asked: str = ""


class Explained(msgspec.Struct, frozen=True):
    """One flow as a script reads it. endpoints: those that it may be sent to. affinity: seconds, 0 for none; service
    and frontend are null for a packet that no frontend claims; masquerade: whichever endpoint is chosen. forwarding: by
    endpoint, the way to those of other nodes that see the client's address, such as "dsr by node2 (192.0.2.2) in
    VXLAN", with the reason in parentheses where --lb-dispatch asks for another format. path: the kernel's own way.
    asked: as it was asked for, where names stood for addresses. live: what a packet of it met, null without --live."""

    flow: str
    verdict: str
    endpoints: tuple[str, ...]
    masquerade: bool
    service: str | None
    frontend: str | None
    affinity: int
    forwarding: dict[str, str]
    reasons: tuple[str, ...]
    path: tuple[Step, ...] = ()
    asked: str | None = None
    live: Live | None = None


class Answer(NamedTuple):
    """What is told of a flow, and the decision that it is told of."""

    explained: Explained
    decision: Decision


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    from ctl.commands.trace import add_sender_options
    from ctl.context import add_manifest_option

    parser = subparsers.add_parser(
        "explain",
        help="what happens to a packet, and why",
        description="Say what the chosen mode does with a packet, and why: under the manifests of -f, else under what "
        "was loaded last in this network namespace. The kernel's tables are neither read nor written, and nothing is "
        "sent without --live.",
    )
    add_manifest_option(parser, required=False)
    parser.add_argument("flow", nargs="*", action="extend", metavar="FLOW", help="as --flow")
    parser.add_argument(
        "--flow",
        action="append",
        default=[],
        metavar="FLOW",
        help=f"{FORM}; names of Services, Pods, Nodes and the lab's places stand for their addresses, as in "
        "'pod1-1 -> web:80' and 'node1 -> default/web:http'; @FILE.json reads a JSON list of such texts; repeatable",
    )
    add_service_option(parser, "packets to all its frontends; repeatable", repeatable=True)
    parser.add_argument(
        "--from",
        dest="sources",
        action="append",
        default=[],
        metavar="ADDRESS",
        help="with --service: from here; repeatable (default: a pod, the node, an outside client)",
    )
    parser.add_argument(
        "--live",
        action="store_true",
        help="also send each packet, follow it as `trace --send` does, and compare: TCP is opened and closed, of UDP "
        "one datagram is sent, which the endpoint gets; exit status 1 if something differs",
    )
    add_sender_options(parser)
    parser.add_argument(
        "--picture",
        metavar="FILE.svg|-",
        help="draw the paths into this file, too; -: on standard output, in place of the text",
    )
    add_output_option(parser)


def read_flows(arguments: Iterable[str]) -> list[Flow]:
    """The flows of the command line, all of addresses, `@FILE` replaced by what it lists. Raises UsageError."""
    return [Flow(text, parse_flow(text)) for text in flow_texts(arguments)]


def flow_texts(arguments: Iterable[str]) -> list[str]:
    """The texts of flows, `@FILE` replaced by what it lists; those of addresses alone are known to be right. Raises
    UsageError."""
    from ctl.flow_names import only_addresses

    texts: list[str] = []
    for argument in arguments:
        if not argument.startswith("@"):
            texts.append(argument)
            continue
        path = argument[1:]
        try:
            data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
            texts += msgspec.json.decode(data, type=list[str])
        except OSError as error:
            raise UsageError(f"--flow {argument}: cannot be read: {error.strerror}") from error
        except MALFORMED as error:
            raise UsageError(f"--flow {argument}: is not a JSON list of flow texts: {error}") from error
    for text in filter(only_addresses, texts):
        parse_flow(text)
    return texts


def named_flows(texts: Iterable[str], names: "Names") -> list[Flow]:
    """Flows with their names looked up, each family its own. Raises UsageError."""
    found = [named for text in texts for named in names.expand(text)]
    return [Flow(n.text, parse_flow(n.text), n.asked if n.asked != n.text else "") for n in found]


def explained(
    flow: Flow,
    decision: Decision,
    more: Sequence[str] = (),
    path: Sequence[Step] = (),
    node_names: Mapping[str, str] = MappingProxyType({}),
) -> Explained:
    """One decision in the command's output form; `more` reasons are put after the oracle's. node_names: by address."""
    frontend, way = decision.frontend, decision.forwarding.value
    return Explained(
        flow=flow.text,
        verdict=decision.verdict.value,
        endpoints=(str(decision.chosen),) if decision.chosen else tuple(map(str, decision.backends)),
        masquerade=decision.masquerade,
        service=decision.service or None,
        frontend=f"{frontend.kind.value} {frontend.key}" if frontend else None,
        affinity=decision.affinity_seconds,
        forwarding={str(b): f"{way} by {_tunnel(decision, b, node_names)}" for b in decision.tunnels},
        reasons=(*decision.reasons, *more),
        path=tuple(path),
        asked=flow.asked or None,
    )


def _tunnel(decision: Decision, backend: Backend, node_names: Mapping[str, str]) -> str:
    why = why_vxlan(decision, backend)
    return f"{tunnel_text(decision, backend, node_names)}{f' ({why})' if why else ''}"


def answer(
    flow: Flow,
    decision: Decision,
    more: Sequence[str],
    path: Sequence[Step],
    ways: "Sequence[Way]",
    node_names: Mapping[str, str] = MappingProxyType({}),
) -> Answer:
    """One decision with all that is told of it, see `explained`. ways: which its packets go, past the node's stack or
    by it."""
    reasons, steps = [*more, *(way.text for way in ways)], [*path, *(way.step for way in ways)]
    return Answer(explained(flow, decision, reasons, steps, node_names), decision)


def explain(
    planner: Planner,
    flows: Iterable[Flow],
    mode: str,
    keeping: Keeping = NOTHING,
    ways: "Ways" = lambda _: (),
    options: PlaneOptions = PlaneOptions(),  # noqa: B008 - it is frozen
) -> list[Explained]:
    """Explain flows under a planner's plan, see `answers`."""
    return [each.explained for each in answers(planner, flows, mode, keeping, ways, options)]


def answers(
    planner: Planner,
    flows: Iterable[Flow],
    mode: str,
    keeping: Keeping = NOTHING,
    ways: "Ways" = lambda _: (),
    options: PlaneOptions = PlaneOptions(),  # noqa: B008 - it is frozen
) -> list[Answer]:
    """Explain flows under a planner's plan. keeping: whose address the mode leaves alone. ways: which way packets go,
    past the node's stack or by it. options: of the plane."""

    def notes(key: EntryKey) -> Sequence[str]:
        if any(f.kind is FrontendKind.HOST_PORT for f in planner.plan.entries[key].frontends):
            return ()  # a Pod's port needs no EndpointSlice
        return endpoint_notes(planner.candidates(key), planner.sets(key), planner.plan.node)

    names = planner.tunnels.names()
    oracle = Oracle(planner.plan, notes, keeping, names)
    conflicts = [problem for problems in planner.problems.values() for problem in problems]
    at = At(planner.plan.node, options, keeping)
    found = []
    for flow in flows:
        decision = oracle.decide(flow.packet)
        more = (
            *_conflicts(decision, conflicts),
            *_gated(decision, planner),
            *_snat_only(decision, planner, mode),
            *_connect_time(decision, planner, keeping),
        )
        found.append(answer(flow, decision, more, mode_of(mode).path(decision, at), ways(decision), names))
    return found


def _conflicts(decision: Decision, conflicts: Iterable[Problem]) -> Iterable[str]:
    """Yield a note for each other object that claims the frontend of the packet."""
    frontend = decision.frontend
    if frontend is None:
        return
    for problem in conflicts:
        if problem.field.endswith(f" {frontend.key}"):
            pods = problem.ref.kind == "Pod"
            who = "a Service or an older Pod has it" if pods else "the older Service has it"
            yield f"{problem.ref} wants {frontend.key} too, but {who}"


def _gated(decision: Decision, planner: Planner) -> Iterable[str]:
    """Yield a note for each Service that has the destination as an externalIP, if externalIPs are off."""
    if planner.plan.node.external_ips or decision.frontend is not None:
        return
    address = decision.packet.destination
    for service in planner.with_external_ip(address):
        name = f"{service.namespace}/{service.name}"
        yield f"{address} is an externalIP of Service {name}, but {EXTERNAL_IPS_GATE} is false"


def _snat_only(decision: Decision, planner: Planner, mode: str) -> Iterable[str]:
    """Yield a note if the Service asks for a way that the mode does not have."""
    if not planner.plan.node.snat_only or decision.entry is None or decision.source is not Source.OUTSIDE:
        return
    service = planner.service(decision.entry.key.namespace, decision.entry.key.name)
    if service is not None and service.forwarding_mode not in ("", LbMode.SNAT.value):
        asked = f"{SERVICE_ANNOTATION}: {service.forwarding_mode}"
        yield f"{asked} has no effect: the {mode} mode as it is here can only do SNAT (ebpf with tc or xdp does more)"


def _connect_time(decision: Decision, planner: Planner, keeping: Keeping) -> Iterable[str]:
    """Yield a note if a pod's packet exists only because its connection was not balanced at connect time."""
    source = decision.packet.source
    if decision.frontend is None or source not in keeping.off:
        return
    for pod in planner.plan.connect_off.values():
        if source in pod.addresses:
            who = f"Pod {pod.namespace}/{pod.name} ({pod.why})"
            yield (
                f"connect time is off for {who}: its packets carry {decision.packet.destination} and are balanced on "
                "their way, by tc or by the slow path"
            )


def pods_elsewhere(objects: Iterable[ModelObject], here: str, sources: Iterable[str]) -> frozenset[str]:
    """Which of these source addresses are pods of other nodes, by the Nodes' pod ranges and by endpoints' nodes."""
    asked = frozenset(sources)
    found: set[str] = set()
    for item in objects:
        if isinstance(item, Node) and item.name != here:
            found.update(source for source in asked if contains(item.pod_cidrs, source))
        elif isinstance(item, EndpointSlice):
            found.update(e.address for e in item.endpoints if e.node and e.node != here and e.address in asked)
    return frozenset(found)


def print_blocks(flows: Sequence[Explained]) -> None:
    """One block a flow, for people."""
    terminal = terminal_width(sys.stdout)
    width = max(_NARROWEST, terminal or _PAGE)
    for number, flow in enumerate(flows):
        if number:
            print()
        print(f"{flow.asked}  ({flow.flow})" if flow.asked else flow.flow)
        _print_folded(headline(flow), "  ", terminal)
        for reason in flow.reasons:
            _print_folded(reason, "    - ", terminal)
        if told := list(lines(flow.path)):
            print("  in the kernel:")
            for line in told:
                print(textwrap.fill(line, width, initial_indent=" " * 4, subsequent_indent=" " * 8, **_WHOLE_WORDS))
        if flow.live is not None:
            _print_live(flow.live, width)


def _print_folded(text: str, head: str, width: int | None) -> None:
    """A sentence, folded to a terminal; in a pipe it is whole, so that grep finds it."""
    if width is None:
        print(f"{head}{text}")
    else:
        under = " " * (len(head) + 2)
        print(textwrap.fill(text, max(_NARROWEST, width), initial_indent=head, subsequent_indent=under, **_WHOLE_WORDS))


def _print_live(live: Live, width: int) -> None:
    """What a packet met, beside what was said of it."""
    print(textwrap.fill(live.outcome, width, initial_indent="  live: ", subsequent_indent=" " * 8, **_WHOLE_WORDS))
    for each in live.compared:
        text = f"agreed: {each.saw}" if each.agrees else f"DIFFERS: said {each.said}, saw {each.saw}"
        head = f"    - {each.what}: "
        print(textwrap.fill(text, width, initial_indent=head, subsequent_indent=" " * 8, **_WHOLE_WORDS))


def headline(flow: Explained) -> str:
    """The verdict in one line."""
    if flow.verdict != Verdict.DNAT.value:
        return f"{flow.verdict.upper()}{f'  by {flow.service}' if flow.service else ''}"
    masquerade = ", masqueraded" if flow.masquerade else ""
    if flow.forwarding:
        masquerade = f", forwarded by {next(iter(flow.forwarding.values())).partition(' ')[0]}"
    return f"DNAT to {', '.join(flow.endpoints)}{masquerade}  by {flow.service}, {flow.frontend}"


def run(args: argparse.Namespace) -> int:
    """Explain every flow; 0 also when some objects had problems, which are told on stderr. 1: with --live, if what
    happened differs from what was said."""
    if not args.flow and not args.service:
        raise UsageError("explain: nothing is asked: name a packet with --flow, or a Service with --service")
    if (args.from_netns or args.from_pid) and not args.live:
        raise UsageError("explain: --from-netns and --from-pid say where to send from: add --live")
    if args.live and args.filename:
        raise UsageError("explain: --live sends packets through what is loaded: leave -f out, or --live")
    if args.picture == "-" and args.output != "table":
        raise UsageError(f"explain: --picture - and -o {args.output} both want standard output; name a file")
    given, scene = _under_manifests(args) if args.filename else _as_loaded(args)
    flows = [each.explained for each in given]
    if args.picture:
        from ctl.explain_picture import write_picture

        write_picture(args.picture, given, scene)
    if args.picture == "-":
        pass  # which has the text's place
    elif args.output == "table":
        print_blocks(flows)
    else:
        print_records([msgspec.to_builtins(flow) for flow in flows], args.output, ())
    return int(any(flow.live is not None and not flow.live.agreed for flow in flows))


def _as_loaded(args: argparse.Namespace) -> "tuple[list[Answer], Scene]":
    """Explain under the plan that was loaded last here."""
    from ctl.explain_loaded import Scene, flows_to, loaded
    from ctl.explain_routes import ways_now
    from ctl.flow_names import Names, enter_node, lab_here

    asked = flow_texts(args.flow)  # before anything else is complained of
    for text in asked[:1]:
        enter_node(text)
    held, ways = loaded(args), ways_now(args)
    flows = named_flows(asked, Names(held.plan, places=lab_here()))
    flows += read_flows(text for name in args.service for text in flows_to(held.plan, name, args.sources))
    scene = Scene(held.plan.node, held.keeping, places=lab_here())
    decisions = [held.decide(flow.packet) for flow in flows]
    paths = [held.path(decision) for decision in decisions]
    asked_for = [*zip(flows, decisions, paths, strict=True)]
    found = [answer(flow, decision, (), path, ways(decision)) for flow, decision, path in asked_for]
    if not args.live:
        return found, scene
    from ctl.trace.live import send_all
    from ctl.trace.seen import Target

    targets = [Target(flow.asked, flow.text, held.mode, decision, path) for flow, decision, path in asked_for]
    lives = send_all(args, held.mode, targets)
    return [
        each._replace(explained=msgspec.structs.replace(each.explained, live=live))
        for each, live in zip(found, lives, strict=True)
    ], scene


def _under_manifests(args: argparse.Namespace) -> "tuple[list[Answer], Scene]":
    """Explain under what the manifests say."""
    from ctl.context import build_context, report_problems
    from ctl.explain_loaded import Scene, flows_to, keeping_of
    from ctl.flow_names import Names, lab_here
    from ctl.manifests import place_notes
    from ctl.plane_options import unchecked_options
    from ctl.sources.manifests import ALL_PORTS, NODE_PORTS, outside, read_manifests

    texts = flow_texts(args.flow)  # before anything else is complained of
    # Objects of a cluster with another range of node ports are explained as well: nothing is taken here.
    default = args.node_ports is NODE_PORTS
    decoded = read_manifests(args.filename, ALL_PORTS if default else args.node_ports)
    services = (item for item in decoded.objects if isinstance(item, Service) and default)
    strange = [note._replace(field=f"apply: {note.field}") for note in outside(services, NODE_PORTS)]
    report_problems([*decoded.problems, *decoded.notes, *strange])
    context = build_context(args, decoded.objects, offline=True)
    planner = Planner(context.node, vouched=False)
    planner.update(decoded.objects)
    report_problems(place_notes(planner))
    names = Names(planner.plan, decoded.objects, lab_here())
    asked = named_flows(texts, names)
    for item in args.service:
        served = any(matches(key.service, item) for key in planner.plan.entries)
        if not served and (why := names.why_no_address(item)):
            raise UsageError(f"--service {item}: {why}")
    named = (text for name in args.service for text in flows_to(planner.plan, name, args.sources))
    asked += read_flows(named)
    mode, options = mode_of(context.mode), unchecked_options(args)
    sources = (flow.packet.source for flow in asked)
    elsewhere = pods_elsewhere(decoded.objects, context.node.name, sources)
    keeping = keeping_of(mode, options, planner.plan, elsewhere)
    ways = _ways(args, context, decoded)
    scene = Scene(context.node, keeping, decoded.objects, lab_here())
    return answers(planner, asked, context.mode, keeping, ways, options), scene


def _ways(args: argparse.Namespace, context: "Context", decoded: Decoded) -> "Ways":
    """Return what says which way packets go; of a mode that takes none past the stack, nothing."""
    from ctl.explain_routes import RouteNotes
    from ctl.plane_options import host_routing, unchecked_options

    if not mode_of(context.mode).routes_past_stack(unchecked_options(args)):
        return lambda _: ()
    read = {item.ref for item in decoded.objects}
    unreadable = (problem.ref for problem in decoded.problems if problem.ref not in read)
    choice = host_routing(args, context.config)
    return RouteNotes(context.node.name, choice, decoded.objects, unreadable).ways
