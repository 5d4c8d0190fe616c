"""A trace put together from what different sources told: order, times, verdict, and the comparison with explain."""

from typing import Any

import pytest

from ctl.main import main
from ctl.trace.live import compare
from ctl.trace.seen import Layer, Seen, Target, rank
from ctl.trace.send import Sent
from ctl.trace.show import lines, records
from ctl.trace.timeline import finish, ordered
from dataplane.kernel.nft.trace import Ends
from dataplane.oracle.decide import Oracle
from dataplane.oracle.flow import parse_flow
from dataplane.plan.planner import Planner
from dataplane.planes.path import At
from dataplane.planes.registry import mode_of
from tests.unit.test_explain_reasons import NODE, WEB, endpoint, slice_of

CLIENT, FRONTEND, ENDPOINT, OWN = ("10.9.0.1", 4711), ("172.30.0.41", 80), ("10.1.0.1", 8080), ("192.168.0.2", 999)
SENT = Sent("answered", "", CLIENT[1], 100.0, 100.001)


def target(source: str = CLIENT[0], mode: str = "nftables", port: int = 80) -> Target:
    planner = Planner(NODE)
    planner.update([WEB, slice_of(endpoint(1, "n1"))])
    decision = Oracle(planner.plan).decide(parse_flow(f"{source} -> {FRONTEND[0]}:{port}/tcp"))
    found = mode_of(mode)
    return Target("", f"{source} -> {FRONTEND[0]}:{port}/tcp", found, decision, found.path(decision, At(NODE)))


def seen(hook: str, seconds: float, decision: str = "x", **fields: Any) -> Seen:
    more = {"rank": rank(hook), "client": CLIENT[1], **fields}
    return Seen(seconds, more.pop("layer", Layer.STACK), hook, decision, **more)


def test_the_first_packet_comes_before_its_answer_whenever_it_was_read() -> None:
    """Messages of nftables are read late; the programs' events have the kernel's own time."""
    steps = [
        seen("tc_egress", 1.004, exact=True, answer=True),
        seen("postrouting", 1.009),
        seen("prerouting", 1.008),
        seen("xdp", 1.001, exact=True),
        seen("prerouting", 1.010, answer=True),
    ]
    found = ordered(steps)
    assert [(step.hook, step.answer) for step in found] == [
        ("xdp", False), ("prerouting", False), ("postrouting", False), ("prerouting", True), ("tc_egress", True),
    ]  # fmt: skip
    times = [step.seconds for step in found]
    assert times == sorted(times)
    assert times[0] == 1.001
    assert times[-1] == 1.004


def _request() -> list[Seen]:
    return [
        seen("prerouting", 100.0001, before=Ends(CLIENT, FRONTEND)),
        seen("prerouting", 100.0002, "is translated", before=Ends(CLIENT, FRONTEND), after=Ends(CLIENT, ENDPOINT)),
        seen("postrouting", 100.0003, before=Ends(CLIENT, ENDPOINT)),
    ]


def test_answered_and_another_client_left_out() -> None:
    other = seen("postrouting", 100.0002, before=Ends(CLIENT, ("10.1.0.9", 8080)), client=4712)
    trace = finish(target(), [*_request(), other], [], SENT)
    assert (trace.outcome.verdict, trace.outcome.endpoint, trace.outcome.seenAs) == (
        "answered", "10.1.0.1:8080", CLIENT[0],
    )  # fmt: skip
    assert other not in trace.steps
    told = list(records(trace))
    assert told[0]["microseconds"] == 0
    assert told[-1]["text"] == "ANSWERED by 10.1.0.1:8080, which saw the client with its own address"
    live = compare(trace)
    assert live.agreed
    assert [each.what for each in live.compared] == ["verdict", "endpoint", "source"]


@pytest.mark.parametrize(
    ("outcome", "detail", "answers", "verdict"),
    [
        ("refused", "ECONNREFUSED", [], "rejected"),
        ("silence", "", [], "unanswered"),
        ("silence", "", [seen("prerouting", 101, "comes in: an ICMP error", answer=True)], "rejected"),
        ("error", "EPERM", [], "dropped"),
        ("error", "EHOSTUNREACH", [], "error"),
    ],
)
def test_verdicts(outcome: str, detail: str, answers: list[Seen], verdict: str) -> None:
    sent = SENT._replace(outcome=outcome, detail=detail)
    assert finish(target(), [*_request(), *answers], [], sent).outcome.verdict == verdict
    assert finish(target(), answers, [], sent).outcome.verdict == verdict or answers


def test_a_drop_is_told_with_its_place() -> None:
    dropped = seen(
        "prerouting", 100.0002, "rule 3: drop", layer=Layer.NFTABLES, before=Ends(CLIENT, FRONTEND), refused=True
    )
    trace = finish(target(), [_request()[0], dropped], [], None)
    assert trace.outcome.verdict == "dropped"
    assert trace.outcome.text == "DROPPED at prerouting (rule 3: drop): no endpoint got it"
    live = compare(trace)
    assert not live.agreed
    assert (live.compared[0].said, live.compared[0].saw, live.compared[0].agrees) == ("dnat", "dropped", False)


def test_another_endpoint_and_another_source_differ() -> None:
    steps = [
        seen("prerouting", 100.0001, before=Ends(CLIENT, FRONTEND), after=Ends(OWN, ENDPOINT)),
        seen("postrouting", 100.0003, before=Ends(OWN, ENDPOINT)),
    ]
    (source,) = [each for each in compare(finish(target(), steps, [], SENT)).compared if not each.agrees]
    assert source.what == "source"
    assert (source.said, source.saw) == ("the client's address 10.9.0.1", "masqueraded as 192.168.0.2")


def test_what_passes_this_node_by_is_no_endpoint_of_it() -> None:
    """The sender's own word is not taken for what was seen on this node."""
    start = Seen(99.0, Layer.SENDER, "socket", "connects", before=Ends(CLIENT, FRONTEND), client=CLIENT[1])
    outcome = finish(target(), [start], [], SENT).outcome
    assert (outcome.verdict, outcome.endpoint) == ("answered", "")
    assert "no hook told of it" in outcome.text


def test_nothing_seen() -> None:
    assert finish(target(), [], [], None).outcome.verdict == "nothing"


def test_lines_fit_80_columns() -> None:
    wide = Ends(("fd00:10:244:1::11", 41234), ("fd00:10:96::80", 80))
    steps = [seen("prerouting", 100.0, "goto lb-2", before=wide, after=wide._replace(destination=("fd00:1::1", 8080)))]
    found = list(lines(finish(target(), steps, ["no program told"], None), 80))
    assert max(map(len, found)) <= 80
    assert found[-1] == "not told: no program told"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["trace", "10.0.0.1 -> 10.0.0.2"], "the protocol is missing"),
        (["trace", "x"], "the arrow '->' is missing"),
        (["trace", "10.0.0.1 -> 10.0.0.2:1/udp", "--timeout", "0"], "'0' is no number of seconds"),
        (["trace", "10.0.0.1 -> 10.0.0.2:1/udp", "--from-pid", "1"], "add --send"),
        (["explain", "--flow", "10.0.0.1 -> 10.0.0.2:1/udp", "--from-pid", "1"], "add --live"),
        (["explain", "-f", "x", "--live", "--flow", "10.0.0.1 -> 10.0.0.2:1/udp"], "leave -f out"),
    ],
)
def test_wrong_usage(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err


def test_an_error_of_the_network_is_told_from_one_of_the_sender() -> None:
    """A router's ICMP error is not the sender's doing: the trace names the router."""
    failed = SENT._replace(outcome="error", detail="EHOSTUNREACH")
    back = seen(
        "prerouting", 100.0004, "comes in: an ICMP error", answer=True, before=Ends(("172.18.0.254", 0), CLIENT)
    )
    for steps, why in (
        ([*_request(), back], "FAILED (EHOSTUNREACH): 172.18.0.254 answered with an ICMP error"),
        (_request(), "FAILED on the sending side (EHOSTUNREACH)"),
    ):
        assert finish(target(), steps, [], failed).outcome.text == f"{why}; it had gone to 10.1.0.1:8080"
