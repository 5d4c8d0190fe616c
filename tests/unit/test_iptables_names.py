"""Chain names against those of real clusters, and against the plain definition."""

from base64 import b32encode
from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.model.net import Protocol
from dataplane.planes.iptables.rules.chances import probability
from dataplane.planes.iptables.rules.names import chain_hash, endpoint_chain, is_service_chain, service_chains

TCP, UDP = Protocol.TCP, Protocol.UDP


@pytest.mark.parametrize(
    ("service", "protocol", "digest"),
    [
        ("default/echo", TCP, "HV6DMF63W6MGLRDE"),
        ("default/echo-session", TCP, "ZACZRH37NSSVE74M"),
        ("default/echo-np", TCP, "XS3QDOAWI6R6C3NX"),
        ("default/echo-extip", TCP, "VICMHRUMYETMHGPR"),
        ("default/echo-local", TCP, "TTO3CLWIB2CZNJXW"),
        ("default/kubernetes:https", TCP, "NPX46M4PTMTKRN6Y"),
        ("kube-system/kube-dns:dns", UDP, "TCOU7JCQXEZGVUNU"),
        ("kube-system/kube-dns:dns-tcp", TCP, "ERIFXISQEP7F7OF4"),
        ("kube-system/kube-dns:metrics", TCP, "JD5MR3NA4I4DYORP"),
        ("kube-system/metrics-server:https", TCP, "Z4ANX4WAEWEBLCTM"),
        ("kube-system/traefik:web", TCP, "UQMCRMJZLI3FTLDP"),
        ("kube-system/traefik:websecure", TCP, "CVG3OEGEH7H5P3HQ"),
    ],
)
def test_service_chains_have_the_names_of_real_clusters(service: str, protocol: Protocol, digest: str) -> None:
    assert service_chains(service, protocol) == tuple(f"KUBE-{kind}-{digest}" for kind in ("SVC", "SVL", "EXT", "FW"))


@pytest.mark.parametrize(
    ("service", "endpoint", "chain"),
    [
        ("default/echo", "10.42.0.10:8080", "KUBE-SEP-QKHRHCLFVYAPNTMT"),
        ("default/echo", "10.42.0.11:8080", "KUBE-SEP-H5H4EIE4RL3K23M2"),
        ("default/echo", "10.42.0.9:8080", "KUBE-SEP-E74O23K3CEWRBTQR"),
        ("default/echo-session", "10.42.0.10:8080", "KUBE-SEP-5S4SOT7OIG3HMTHM"),
        ("default/echo-session", "10.42.0.11:8080", "KUBE-SEP-RBDR2NWVDKJFF37X"),
        ("default/echo-session", "10.42.0.9:8080", "KUBE-SEP-ZYFM7UQEEXHOQCCO"),
    ],
)
def test_endpoint_chains_have_the_names_of_real_clusters(service: str, endpoint: str, chain: str) -> None:
    assert endpoint_chain(service, TCP, endpoint) == chain


def test_clusters_of_2020_hashed_an_unnamed_port_with_a_colon() -> None:
    """Same hash, another text: kube-proxy then wrote `namespace/name:` for an unnamed port, today `namespace/name`."""
    assert chain_hash("default/test:" + "tcp") == "IOIC7CRUMQYLZ32S"
    assert endpoint_chain("default/test:", TCP, "10.244.1.2:8080") == "KUBE-SEP-DZ6OGOAFZ2YMFV35"
    assert endpoint_chain("default/test:", TCP, "10.244.2.2:8080") == "KUBE-SEP-PHU2ZXK3DXEO46Q2"
    assert service_chains("default/test", TCP).cluster == "KUBE-SVC-" + chain_hash("default/testtcp")


@given(st.text())
def test_the_hash_is_base32_of_sha256(text: str) -> None:
    assert chain_hash(text) == b32encode(sha256(text.encode()).digest()).decode()[:16]


def test_only_chains_of_services_count_as_such() -> None:
    assert all(is_service_chain(f"KUBE-{kind}-X") for kind in ("SVC", "SVL", "EXT", "FW", "SEP"))
    assert not any(map(is_service_chain, ("KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-FORWARD", "KUBE-FIREWALL")))


def test_probabilities_are_printed_as_the_kernel_keeps_them() -> None:
    assert [probability(n) for n in (2, 3, 5, 7)] == [
        "0.50000000000",
        "0.33333333349",
        "0.20000000019",
        "0.14285714272",
    ]
