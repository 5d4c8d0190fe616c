"""The steps of one connection in their order, and what they come to."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from ctl.trace.seen import Layer, Seen, Target, end_text, ends_text, rank
from ctl.trace.send import Sent
from dataplane.kernel.nft.trace import Ends
from dataplane.oracle.types import Verdict

_ICMP_ERROR = "an ICMP error"
_REFUSALS = (_ICMP_ERROR, "a reset")


class Outcome(msgspec.Struct, frozen=True):
    """What became of the connection. verdict: answered, rejected, dropped, unanswered, error, nothing (no packet of it
    was seen). endpoint: where its first packet went at last, "" if nowhere. seenAs: the source that it had there. text:
    a sentence."""

    verdict: str
    endpoint: str = ""
    seenAs: str = ""
    text: str = ""


class Trace(NamedTuple):
    """A connection that was followed. limits: what was not told, and why."""

    target: Target
    steps: Sequence[Seen]
    outcome: Outcome
    limits: Sequence[str]


def ordered(steps: Sequence[Seen]) -> list[Seen]:
    """Steps in the order in which they happened: the first packet through all hooks, then its answer, then the rest.

    The kernel's own times are exact, the others are when a message was read: not before it happened, so no later than
    the next exact one; a time that is later than the next step's becomes that.
    """
    found = sorted(steps, key=lambda step: (step.later, step.answer and not step.later, _rank(step), step.seconds))
    latest = float("inf")
    for place in range(len(found) - 1, -1, -1):
        latest = min(latest, found[place].seconds)
        found[place] = found[place]._replace(seconds=latest)
    return found


def _rank(step: Seen) -> int:
    return 0 if step.later else step.rank


def of_one_client(steps: Sequence[Seen], sent: Sent | None) -> list[Seen]:
    """The steps of one connection: the sender's own, else the one that was seen first."""
    port = sent.port if sent is not None else next((step.client for step in steps if step.client), 0)
    return [step for step in steps if step.client in (0, port)]


def finish(target: Target, seen: Sequence[Seen], limits: Sequence[str], sent: Sent | None) -> Trace:
    """Put together what was seen. sent: what became of what was sent here, None if nothing was."""
    mine = of_one_client(seen, sent)
    if sent is not None and sent.outcome in ("answered", "refused", "error"):
        mine.append(_end(sent))
    steps = ordered(mine)
    return Trace(target, steps, _outcome(target, steps, sent), list(dict.fromkeys(limits)))


def _end(sent: Sent) -> Seen:
    detail = f" ({sent.detail})" if sent.detail else ""
    what = {"answered": "has its answer", "refused": "is refused", "error": "is told an error"}[sent.outcome]
    return Seen(sent.ended, Layer.SENDER, "socket", f"{what}{detail}", exact=True, answer=True, rank=rank("socket"))


def _last_ends(steps: Sequence[Seen]) -> Ends | None:
    """The ends of the first packet when it was seen last."""
    requests = [s for s in steps if not s.answer and not s.later and s.layer not in (Layer.CONNTRACK, Layer.SENDER)]
    return next((each for s in reversed(requests) if (each := s.after or s.before) is not None), None)


def _outcome(target: Target, steps: Sequence[Seen], sent: Sent | None) -> Outcome:
    ends = _last_ends(steps)
    if ends is None:
        return _unseen(target, sent)
    endpoint, source = end_text(ends.destination), ends.source[0]
    refused = next((step for step in steps if step.refused), None)
    verdict = _verdict(steps, sent, refused)
    refusing = target.decision.verdict is not Verdict.ACCEPT
    if verdict in ("rejected", "dropped") and refusing and ends.destination == target.frontend:
        where = f" at {refused.hook} ({refused.decision})" if refused is not None else ""
        return Outcome(verdict, text=f"{verdict.upper()}{where}: no endpoint got it")
    own = source == target.decision.packet.source
    seen_as = "with its own address" if own else f"as {source}"
    words = {
        "answered": f"ANSWERED by {endpoint}, which saw the client {seen_as}",
        "rejected": f"REJECTED: {endpoint} or one on the way to it refused it; it went there {seen_as}",
        "dropped": f"DROPPED on the way to {endpoint}{f' at {refused.hook}' if refused is not None else ''}",
        "unanswered": f"NO ANSWER was seen: it went to {endpoint} {seen_as}",
        "error": f"FAILED {_why_failed(steps, sent)}; it had gone to {endpoint}",
    }
    return Outcome(verdict, endpoint, source, words[verdict])


def _why_failed(steps: Sequence[Seen], sent: Sent | None) -> str:
    """What the sender was told, and who told it: the network by an ICMP error that came back, or its own node."""
    detail = f"({sent.detail})" if sent is not None else ""
    for step in steps:
        ends = step.before or step.after
        if step.answer and step.decision.endswith(_ICMP_ERROR) and ends is not None:
            return f"{detail}: {ends.source[0]} answered with {_ICMP_ERROR}"
    return f"on the sending side {detail}"


def _verdict(steps: Sequence[Seen], sent: Sent | None, refused: Seen | None) -> str:
    if sent is not None and sent.outcome != "silence":
        return {"refused": "rejected"}.get(sent.outcome, "dropped" if sent.detail == "EPERM" else sent.outcome)
    answers = [step for step in steps if step.answer]
    if any(step.decision.endswith(_REFUSALS) for step in answers):
        return "rejected"
    if any(step.layer in (Layer.STACK, Layer.EBPF) for step in answers):
        return "answered"
    return "dropped" if refused is not None else "unanswered"


def _unseen(target: Target, sent: Sent | None) -> Outcome:
    """Nothing was seen of it here; the sender may know more."""
    if sent is None:
        return Outcome("nothing", text=f"NOTHING SEEN: no packet of {target.text} came by")
    if sent.outcome == "answered":
        return Outcome(
            "answered", text="ANSWERED, but no hook told of it: its packets go past the stack, or by another node"
        )
    detail = f" ({sent.detail})" if sent.detail else ""
    words = {"refused": "REJECTED", "silence": "NO ANSWER", "error": f"FAILED{detail}"}
    verdict = {"refused": "rejected", "silence": "unanswered", "error": "error"}[sent.outcome]
    if sent.detail == "EPERM":
        return Outcome("dropped", text="DROPPED on this node (EPERM): its rules told the sender")
    return Outcome(verdict, text=f"{words[sent.outcome]}, and no packet was seen on this node")


def route_text(step: Seen) -> str:
    """The packet's ends at a step, and what became of them."""
    before = ends_text(step.before) if step.before is not None else ""
    after = ends_text(step.after) if step.after is not None and step.after != step.before else ""
    return f"{before} => {after}" if before and after else before or after
