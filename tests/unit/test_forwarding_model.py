"""Annotations about forwarding: what a Service asks for, what a Node speaks, and what is said of malformed ones."""

import json

import pytest

from dataplane.model.decode import DecodedObject, decode_object
from dataplane.model.forwarding import (
    MODES,
    MORE,
    NODE_ANNOTATION,
    SERVICE_ANNOTATION,
    Dispatch,
    TunnelOffer,
    parse_offer,
)
from dataplane.model.net import Protocol
from dataplane.model.objects import Node, Service
from dataplane.policy.forwarding import Forwarding, LbMode, forwarding_of


def _decode(kind: str, annotations: object, **more: object) -> DecodedObject:
    item = {"kind": kind, "metadata": {"name": "x", "annotations": annotations}, **more}
    return decode_object(json.dumps(item).encode())


def _service(annotations: object) -> DecodedObject:
    return _decode("Service", annotations, spec={"clusterIP": "10.0.0.1", "ports": [{"port": 80}]})


@pytest.mark.parametrize("mode", MODES)
def test_a_service_asks_for_a_way(mode: str) -> None:
    found = _service({SERVICE_ANNOTATION: mode, "other": "x"})
    assert isinstance(found.value, Service)
    assert (found.value.forwarding_mode, found.problems) == (mode, ())


@pytest.mark.parametrize("annotations", [None, {}, {"other": "dsr"}, {SERVICE_ANNOTATION: ""}])
def test_a_service_that_asks_for_nothing(annotations: object) -> None:
    found = _service(annotations)
    assert isinstance(found.value, Service)
    assert (found.value.forwarding_mode, found.problems) == ("", ())


@pytest.mark.parametrize("wrong", ["DSR", "direct", "dsr\n\x1b[2J", "x" * 10000])
def test_a_mode_that_there_is_not_is_reported_and_the_node_s_is_used(wrong: str) -> None:
    found = _service({SERVICE_ANNOTATION: wrong})
    assert isinstance(found.value, Service)
    assert found.value.forwarding_mode == ""
    [problem] = found.problems
    text = str(problem)
    assert text.startswith("Service default/x: metadata.annotations[service.hotplane.io/forwarding-mode]: is '")
    assert "snat, tunnel, dsr, hybrid (the node's --lb-mode is used)" in text
    assert len(text) < 400
    assert text.isprintable()


def test_a_node_says_what_it_speaks() -> None:
    offer = TunnelOffer(8473, 77)
    found = _decode("Node", {NODE_ANNOTATION: str(offer)})
    assert found.value == Node("x", forwarding=offer, announced="vxlan,port=8473,vni=77")
    assert not found.problems
    silent = _decode("Node", {"other": "x"})
    assert silent.value == Node("x")


def test_a_node_says_what_else_it_opens() -> None:
    """Behind what earlier versions read, which pass it over; and so do these over what is of a later one."""
    offer = TunnelOffer(8473, 77, MORE)
    assert str(offer).startswith("vxlan,port=8473,vni=77,also=geneve")
    assert parse_offer(str(offer)) == offer
    assert parse_offer("vxlan,also=gue+geneve+x9,port=8473,vni=77") == TunnelOffer(8473, 77, (Dispatch.GENEVE,))
    assert parse_offer("vxlan,also=vxlan,port=8473,vni=77") == TunnelOffer(8473, 77)
    assert offer.meets(TunnelOffer(8473, 77))
    assert not offer.meets(TunnelOffer(8473, 78, MORE))
    assert not offer.meets(None)


@pytest.mark.parametrize("text", ["vxlan,port=1,vni=16777215", " vxlan , vni=16777215, port=1, mtu=1400"])
def test_fields_may_come_in_any_order_and_later_versions_may_have_more(text: str) -> None:
    assert parse_offer(text) == TunnelOffer(1, 0xFFFFFF)


def test_another_encapsulation_is_no_fault_and_not_spoken() -> None:
    found = _decode("Node", {NODE_ANNOTATION: "geneve,port=6081"})
    assert isinstance(found.value, Node)
    assert (found.value.forwarding, found.problems) == (None, ())


WRONG = ["vxlan", "vxlan,port=0,vni=1", "vxlan,port=65536,vni=1", "vxlan,port=1,vni=16777216", "vxlan,port=1,port=2"]
WRONG += [
    "vxlan,port=1,vni",
    "vxlan,port=1,vni=1,also=",
    "vxlan,port=1,vni=1,also=geneve+",
    "vxlan,port=1,vni=1,also=Geneve geneve",
    "vxlan,port=\u0661,vni=1",
    ",,",
    "true!",
    "vxlan,port=1e3,vni=1",
    "vxlan,port=" + "9" * 5000,
]


@pytest.mark.parametrize("text", WRONG)
def test_what_cannot_be_read_is_reported_and_nobody_forwards_there(text: str) -> None:
    found = _decode(
        "Node", {NODE_ANNOTATION: text}, status={"addresses": [{"type": "InternalIP", "address": "10.0.0.9"}]}
    )
    assert isinstance(found.value, Node)
    assert found.value.forwarding is None
    assert found.value.addresses == ("10.0.0.9",), "the rest of the Node counts"
    [problem] = found.problems
    assert "Node x: metadata.annotations[node.hotplane.io/forwarding]: is" in str(problem)
    assert len(str(problem)) < 400


def test_every_mode_of_the_annotation_is_one_of_the_option() -> None:
    assert tuple(mode.value for mode in LbMode) == MODES


def test_hybrid_takes_tcp_by_dsr_and_the_rest_by_snat() -> None:
    assert forwarding_of("", LbMode.HYBRID, Protocol.TCP) is Forwarding.DSR
    assert forwarding_of("", LbMode.HYBRID, Protocol.UDP) is Forwarding.SNAT
    assert forwarding_of("tunnel", LbMode.HYBRID, Protocol.UDP) is Forwarding.TUNNEL
    assert forwarding_of("snat", LbMode.DSR, Protocol.TCP) is Forwarding.SNAT
    for mode in LbMode:
        assert forwarding_of("", mode, Protocol.SCTP) is Forwarding.SNAT, "the packet programs leave SCTP alone"
