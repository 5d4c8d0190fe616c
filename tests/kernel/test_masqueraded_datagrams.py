"""A pod's datagrams to the outside, masqueraded by somebody else to a port that a Service serves at the same address:
what comes back is an answer, though it looks like a request."""

from collections.abc import Iterator

import pytest

from dataplane.lab.lab import Lab
from dataplane.lab.proxy import LabProxy
from dataplane.lab.spec import CLUSTER_CIDR
from dataplane.model.net import Family
from tests.kernel.packet_lab import FAMILIES, OWN_PORT, counted, open_socket, packet_lab

_MASQUERADE = """table {nft} plugin {{
  chain postrouting {{
    type nat hook postrouting priority 100;
    {nft} saddr {cidr} {nft} daddr != {cidr} masquerade
  }}
}}
"""


@pytest.fixture(scope="module", params=[False, True], ids=["tc", "xdp"])
def lab(request: pytest.FixtureRequest) -> Iterator[tuple[Lab, LabProxy]]:
    """Node 1 masquerades its pods' packets to the outside, as network plugins do."""
    with packet_lab(request.param) as (lab, proxy):
        for family in FAMILIES:
            rules = _MASQUERADE.format(nft="ip" if family is Family.IPV4 else "ip6", cidr=CLUSTER_CIDR[family])
            lab.run(lab.nodes[0].name, ["nft", "-f", "-"], input=rules)
        yield lab, proxy


@pytest.mark.parametrize("family", FAMILIES)
def test_a_masqueraded_pod_hears_its_answers(lab: tuple[Lab, LabProxy], family: Family) -> None:
    the_lab, proxy = lab
    own = the_lab.nodes[0].addresses[family]
    outside = the_lab.client.addresses[family]
    with open_socket(the_lab, "pod1-2", family) as pod, open_socket(the_lab, the_lab.client.name, family) as server:
        server.bind((outside, 0))
        pod.bind((the_lab.place("pod1-2").addresses[family], OWN_PORT))
        with counted(proxy) as reasons:
            for number in range(5):
                pod.sendto(b"q%d" % number, server.getsockname()[:2])
                data, asker = server.recvfrom(100)
                assert asker[:2] == (own, OWN_PORT)
                server.sendto(b"a" + data, asker)
                assert pod.recvfrom(100)[0] == b"aq%d" % number
        assert sum(reasons.get(f"{hook}:left_flow", 0) for hook in ("tc_ingress", "xdp")) >= 5


@pytest.mark.parametrize("family", FAMILIES)
def test_requests_to_that_port_are_still_served_by_the_programs(lab: tuple[Lab, LabProxy], family: Family) -> None:
    the_lab, proxy = lab
    with open_socket(the_lab, the_lab.client.name, family) as client, counted(proxy) as reasons:
        client.connect((the_lab.nodes[0].addresses[family], OWN_PORT))
        for number in range(3):
            client.send(b"r%d" % number)
            assert client.recv(100) == b"r%d" % number
    assert reasons.get("tc_ingress:new_flow", 0) + reasons.get("tc_ingress:flow", 0) == 3
    assert not [name for name in reasons if name.endswith(":left_flow")]
