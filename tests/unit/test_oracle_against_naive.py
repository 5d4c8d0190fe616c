"""The oracle over the planner's plan and a naive second implementation say the same of any packet."""

from typing import Any

from hypothesis import given, settings

from dataplane.model.net import Protocol
from dataplane.oracle.decide import Decision, Oracle, Packet, Verdict
from dataplane.plan.planner import Planner
from tests.unit.clusters import decoded, node_config, scenes
from tests.unit.naive import Answer, NaiveNode, NaivePacket, answer

Scene = tuple[list[dict[str, Any]], NaiveNode, list[NaivePacket]]


def as_packet(packet: NaivePacket) -> Packet:
    return Packet(packet.source, packet.destination, packet.port, Protocol[packet.protocol], packet.device)


def as_answer(decision: Decision) -> Answer:
    targets = {(b.address, b.port): decision.masquerades(b) for b in decision.backends}
    return Answer(decision.verdict.value, targets, decision.service)


@settings(max_examples=400, deadline=None)
@given(scenes())
def test_oracle_and_naive_agree(scene: Scene) -> None:
    objects, node, tried = scene
    planner = Planner(node_config(node))
    planner.update(decoded(objects))
    oracle = Oracle(planner.plan)
    for packet in tried:
        decision = oracle.decide(as_packet(packet))
        assert as_answer(decision) == answer(objects, node, packet), (packet, decision.reasons)


@settings(max_examples=100, deadline=None)
@given(scenes())
def test_every_decision_is_explained(scene: Scene) -> None:
    objects, node, tried = scene
    planner = Planner(node_config(node))
    planner.update(decoded(objects))
    oracle = Oracle(planner.plan)
    for packet in tried:
        decision = oracle.decide(as_packet(packet))
        told = "; ".join(decision.reasons)
        assert packet.destination in told
        words = {"reject": "rejected", "drop": "dropped", "accept": "left alone", "dnat": "sent to"}
        assert words.pop(decision.verdict.value) in told
        assert not any(word in told for word in words.values())
        assert (decision.verdict is Verdict.DNAT) == ("masqueraded" in told)
        assert decision.masquerade == ("; masqueraded as this node" in told)
