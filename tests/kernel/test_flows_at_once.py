"""Two processors open one flow at the same time, as two threads of a pod do that send by one socket."""

import socket
from collections.abc import Iterator

import pytest
from scapy.layers.inet import TCP, UDP

from dataplane.model.net import Family, Protocol
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, bench, entry, ip, ip_of

FAMILIES = (Family.IPV4, Family.IPV6)
KINDS = {Protocol.TCP: (TCP, socket.IPPROTO_TCP), Protocol.UDP: (UDP, socket.IPPROTO_UDP)}
ADDRESSES = {
    Family.IPV4: (b.CLIENT, b.NODE, b.POD, b.REMOTE),
    Family.IPV6: (b.CLIENT_6, b.NODE_6, b.POD_6, b.REMOTE_6),
}


@pytest.fixture(scope="module", params=[0, 1], ids=["same choice", "another choice"])
def node(request: pytest.FixtureRequest) -> Iterator[tuple[Bench, bool]]:
    """A node whose programs find that another processor stored the flow in between, and whether to the same place."""
    with bench(f"-DOTHER_PROCESSOR={request.param}") as made:
        yield made, request.param == 0


@pytest.mark.parametrize("hook", ["tc", "xdp"])
@pytest.mark.parametrize("remote", [False, True], ids=["client's address", "SNAT"])
@pytest.mark.parametrize("protocol", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_flow_that_stays_has_both_entries(
    node: tuple[Bench, bool], family: Family, protocol: Protocol, remote: bool, hook: str
) -> None:
    made, same = node
    (client, own, local, other), (transport, number) = ADDRESSES[family], KINDS[protocol]
    endpoint = other if remote else local
    made.forget()
    made.install(entry("one", [endpoint], protocol=protocol, node_port=30090, family=family))
    flags = {"flags": "S"} if transport is TCP else {}
    run = made.tc if hook == "tc" else made.xdp
    out = run(made.frame(ip(family, client, own) / transport(sport=4000, dport=30090, **flags)))
    forward = made.flow(client, 4000, own, 30090, number)
    assert forward is not None, "the other processor's"
    target, source = (socket.ntohs(forward[f"{end}_port"]) for end in ("destination", "source"))
    assert (target == 8080) is same
    if hook == "tc":
        assert ip_of(out.data).dst == endpoint
        assert ip_of(out.data)[transport].dport == target
    back = made.flow(endpoint, target, own if remote else client, source, number)
    assert (back is not None) is same, "the other processor stores its own entry of the answers, where it has another"
    assert made.flows() == 1 + same
