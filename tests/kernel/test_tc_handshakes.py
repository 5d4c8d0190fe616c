"""Beginnings of connections that are not three segments in a row, and flows that lost one of their entries."""

import pytest
from scapy.layers.inet import TCP

from dataplane.model.net import Family
from dataplane.planes.ebpf.flows.entries import own_tuple
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.ebpf.maps.layout import constant
from tests.kernel.bpf_packets.bench import Bench
from tests.kernel.bpf_packets.talk import OPEN, Talk
from tests.kernel.test_tc_packets import FAMILIES, _bench, node

__all__ = ["_bench", "node"]

CLOSE = "ask FA, answer FA, ask A"


def established(flow: Talk) -> bool:
    """Whether both entries say so."""
    return all(e is not None and e["facts"] & constant("FLOW_ESTABLISHED") for e in flow.entries())


@pytest.mark.parametrize("acknowledged", [0, 500], ids=["without its data", "with its data"])
@pytest.mark.parametrize("again", ["", "plain", "same"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_syn_with_data(node: Bench, family: Family, again: str, acknowledged: int) -> None:
    """TCP Fast Open (RFC 7413). It is sent again without the data, while the answer to the first is on its way."""
    flow = Talk(node, family, TCP)
    first = 0xFFFFFF00
    flow.ask("S", b"d" * 500, seq=first)
    if again:
        flow.ask("S", b"d" * 500 if again == "same" else b"", seq=first)
    following = (first + 1 + acknowledged) % 2**32
    flow.answer("SA", ack=following)
    flow.ask("A", seq=following)
    assert established(flow)
    if not acknowledged:
        flow.ask("PA", b"d" * 500, seq=following)
    following = (first + 501) % 2**32
    flow.answer("A", ack=following)
    flow.ask("FA", seq=following)
    flow.answer("FA", ack=(following + 1) % 2**32)
    flow.ask("A", seq=(following + 1) % 2**32)
    assert node.flows() == 0


@pytest.mark.parametrize(
    "script",
    [
        "ask S, answer SA, answer SA, ask A",
        "ask S, answer SA, ask PA",
        f"{OPEN}, ask S",
        "ask S, answer SA, ask FA, answer A",
    ],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_other_beginnings(node: Bench, family: Family, script: str) -> None:
    """An answer that comes twice, data or a FIN with the last of the three, and the SYN again as the backend sees it
    after all."""
    flow = Talk(node, family, TCP)
    for step in script.split(", "):
        who, flags = step.split()
        if flags in ("S", "SA"):  # a SYN that comes again has the number that it had
            number = {"ask": 0xFFFFFF00, "answer": 1000}[who]
            again = flow.numbers.sent(client=who == "ask") != number
            say = flow.ask if who == "ask" else flow.answer
            say(flags, seq=number) if again else say(flags)
        else:
            flow.play(step)
    assert established(flow)
    flow.play(CLOSE if "FA" not in script else "answer FA, ask A")
    assert node.flows() == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_an_entry_that_is_made_again_follows_on(node: Bench, family: Family) -> None:
    """The entry of answers is made again by the client's packets when it is missing; and the end is seen all the
    same."""
    flow = Talk(node, family, TCP)
    flow.play(f"{OPEN}, ask PA, answer PA, ask A")
    entries, remote = node.maps.items("tcp_flows"), address_bytes(flow.remote)
    [answers] = [key for key, value in entries if own_tuple(value).startswith(remote)]
    node.maps.remove("tcp_flows", [answers])
    for _ in range(256):
        flow.ask("A")
    assert node.flows() == 2
    flow.play("answer PA, ask A")
    assert established(flow)
    flow.play(CLOSE)
    assert node.flows() == 0
