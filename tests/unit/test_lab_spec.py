"""A lab's shape: names and addresses follow from the spec alone."""

import pytest

from dataplane.lab.spec import (
    CLUSTER_CIDR,
    LabSpec,
    LabSpecError,
    PodLink,
    Routing,
    owns_namespace,
    topology,
)
from dataplane.model.net import Family, canonical_address, contains


def test_default_lab_is_three_nodes_of_two_pods_without_ipv6() -> None:
    plan = topology(LabSpec())
    assert [place.name for place in plan.places()] == [
        "node1", "pod1-1", "pod1-2", "node2", "pod2-1", "pod2-2", "node3", "pod3-1", "pod3-2", "client", "net"
    ]  # fmt: skip
    assert all(set(place.addresses) == {Family.IPV4} for place in plan.places())
    assert plan.nodes[1].pods[0].addresses == {Family.IPV4: "10.244.2.11"}


@pytest.mark.parametrize("routing", Routing)
@pytest.mark.parametrize("pod_link", PodLink)
def test_devices_follow_routing_and_pod_link(routing: Routing, pod_link: PodLink) -> None:
    node = topology(LabSpec(routing=routing, pod_link=pod_link)).nodes[0]
    assert (node.overlay != "") == (routing is Routing.VXLAN)
    assert (node.bridge != "") == (pod_link is PodLink.BRIDGE)


def test_largest_lab_has_distinct_canonical_addresses_and_pods_in_their_nodes_cidr() -> None:
    plan = topology(LabSpec(nodes=50, pods=200, ipv6=True))
    addresses = [a for place in plan.places() for a in place.addresses.values()]
    addresses += [a for node in plan.nodes for a in node.second.values()]
    addresses += [a for via in plan.client.via.values() for a in via.values()]
    assert len(set(addresses)) == len(addresses)
    assert [canonical_address(a) for a in addresses] == addresses
    for node in plan.nodes:
        for pod in node.pods:
            for family, address in pod.addresses.items():
                assert contains([node.pod_cidrs[family]], address)
                assert contains([CLUSTER_CIDR[family]], address)


def test_pod_counts_may_differ_by_node() -> None:
    assert [len(node.pods) for node in topology(LabSpec(nodes=2, pods=(1, 3))).nodes] == [1, 3]


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        (LabSpec(name="Bad Name"), "lab name"),
        (LabSpec(name="../x"), "lab name"),
        (LabSpec(name=""), "lab name"),
        (LabSpec(nodes=0), "0 nodes"),
        (LabSpec(nodes=51), "51 nodes"),
        (LabSpec(pods=-1), "-1 pods on node 1"),
        (LabSpec(nodes=2, pods=(1, 201)), "201 pods on node 2"),
        (LabSpec(nodes=3, pods=(1, 2)), "2 pod counts for 3 nodes"),
    ],
)
def test_impossible_specs_are_refused_by_name(spec: LabSpec, names: str) -> None:
    with pytest.raises(LabSpecError, match=names):
        topology(spec)


def test_namespaces_of_a_lab_are_told_from_those_of_labs_with_similar_names() -> None:
    for lab in ("a", "a-b", "a-node1", "a-pod1"):
        for place in topology(LabSpec(name=lab)).places():
            owners = [other for other in ("a", "a-b", "a-node1", "a-pod1", "b") if owns_namespace(other, place.netns)]
            assert owners == [lab]
