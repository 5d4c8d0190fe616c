"""NetworkPolicies: how they are read, and which pods they isolate, compared with a naive reading of the API."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.model.decode import decode, decode_object
from dataplane.model.objects import NetworkPolicy, ObjectRef, Operator, Pod, Requirement
from dataplane.policy.network_policies import IsolatedPods, selects
from tests.apiserver.objects import network_policy, pod

NODE = "n1"


def read(item: dict[str, Any]) -> tuple[Any, list[str]]:
    found = decode_object(msgspec.json.encode(item))
    return found.value, [str(problem) for problem in found.problems]


def policy(name: str, namespace: str = "default", **selector: Any) -> NetworkPolicy:
    value, problems = read(network_policy(name, namespace=namespace, **selector))
    assert problems == []
    assert isinstance(value, NetworkPolicy)
    return value


def known(name: str, address: str, node: str = NODE, **more: Any) -> Pod:
    value, problems = read(pod(name, node, address, **more))
    assert problems == []
    assert isinstance(value, Pod)
    return value


def test_what_is_read_of_a_policy() -> None:
    terms = [{"key": "tier", "operator": "NotIn", "values": ["db", "cache"]}, {"key": "old", "operator": "Exists"}]
    assert policy("p", "shop", matchLabels={"app": "web"}, matchExpressions=terms) == NetworkPolicy(
        "shop", "p",
        (
            Requirement("app", Operator.IN, frozenset({"web"})),
            Requirement("tier", Operator.NOT_IN, frozenset({"db", "cache"})), Requirement("old", Operator.EXISTS),
        ),
    )  # fmt: skip


@pytest.mark.parametrize("spec", [None, {}, {"podSelector": None}, {"podSelector": {"matchLabels": None}}])
def test_a_policy_without_a_selector_selects_every_pod(spec: dict[str, Any] | None) -> None:
    value, problems = read({**network_policy("p"), "spec": spec})
    assert (problems, selects(value, {}), selects(value, {"a": "b"})) == ([], True, True)


@pytest.mark.parametrize(
    ("term", "problem"),
    [
        ({"operator": "Exists"}, ".key: is missing; write the key of a label"),
        ({"key": "a", "operator": "Equals"}, ".operator: is 'Equals'; write In, NotIn, Exists, DoesNotExist"),
        ({"key": "a", "operator": "In"}, ".values: has none; write at least one with the operator In"),
        ({"key": "a", "operator": "Exists", "values": ["b"]}, ".values: must be left out with the operator Exists"),
        ({"key": "a", "operator": "In", "values": [1]}, ".values[0]: must be a string, not a whole number"),
        (None, ": is null; remove the item or fill it in"),
    ],
)
def test_a_fault_costs_the_policy_and_is_told(term: dict[str, Any] | None, problem: str) -> None:
    value, [text] = read(network_policy("p", matchExpressions=[term]))
    assert value is None
    assert text.startswith(f"NetworkPolicy default/p: spec.podSelector.matchExpressions[0]{problem}")


def test_policies_of_other_groups_are_not_taken_for_these() -> None:
    found = decode(msgspec.json.encode({**network_policy("p"), "apiVersion": "projectcalico.org/v3"}), "p.json")
    assert (found.objects, found.problems) == ([], [])


def test_labels_of_a_pod() -> None:
    assert known("a", "10.0.0.1", labels={"b": "", "a": "x"}).labels == (("a", "x"), ("b", ""))
    value, [problem] = read(pod("a", NODE, labels={"version": 1}))
    assert value.labels is None
    assert problem == "Pod default/a: metadata.labels[version]: must be a string; put it in quotes"


def test_pods_that_are_selected_and_pods_that_are_free() -> None:
    pods = IsolatedPods(NODE)
    for each in (
        known("web", "10.0.0.1", labels={"app": "web"}), known("db", "10.0.0.2", labels={"app": "db"}),
        known("far", "10.0.1.1", "n2", labels={"app": "db"}), known("host", "172.18.0.1", host_network=True),
        known("going", "10.0.0.3", deletionTimestamp="2026-01-01T00:00:00Z"),
    ):  # fmt: skip
        assert pods.put(each)
    assert not pods.any_policy
    assert pods.addresses() == ({}, frozenset({"10.0.0.1", "10.0.0.2"}))
    assert pods.put(policy("p", matchLabels={"app": "db"}))
    assert not pods.put(policy("p", matchLabels={"app": "db"}))
    reason = "NetworkPolicy default/p selects Pod default/db"
    assert pods.addresses() == ({"10.0.0.2": reason}, frozenset({"10.0.0.1"}))
    assert pods.put(known("db", "10.0.0.2", labels={"app": "web"}))
    assert pods.addresses() == ({}, frozenset({"10.0.0.1", "10.0.0.2"}))
    assert pods.put(policy("all"))
    assert set(pods.addresses()[0]) == {"10.0.0.1", "10.0.0.2"}
    assert pods.remove(policy("all").ref)
    assert pods.addresses()[0] == {}


def test_what_cannot_be_read_selects() -> None:
    pods = IsolatedPods(NODE)
    pods.put(known("web", "10.0.0.1"))
    pods.put(known("other", "10.0.0.2", namespace="shop"))
    ref = ObjectRef("NetworkPolicy", "default", "bad")
    assert pods.unreadable(ref)
    assert pods.addresses() == (
        {"10.0.0.1": "NetworkPolicy default/bad cannot be read, and may select it"}, frozenset({"10.0.0.2"}),
    )  # fmt: skip
    assert pods.put(policy("bad", matchLabels={"app": "nobody"}))
    assert pods.addresses()[0] == {}
    value, _ = read(pod("web", NODE, "10.0.0.1", labels={"app": ["x"]}))
    pods.put(value)
    assert "labels of Pod default/web cannot be read" in pods.addresses()[0]["10.0.0.1"]
    assert pods.unreadable(value.ref), "a Pod that cannot be read at all is not known"
    assert pods.addresses() == ({}, frozenset({"10.0.0.2"}))


def test_an_address_that_two_pods_claim_stays_if_one_of_them_is_selected() -> None:
    pods = IsolatedPods(NODE)
    pods.put(known("a", "10.0.0.1", labels={"app": "db"}))
    pods.put(known("b", "10.0.0.1"))
    pods.put(policy("p", matchLabels={"app": "db"}))
    assert pods.addresses() == ({"10.0.0.1": "NetworkPolicy default/p selects Pod default/a"}, frozenset())


KEYS, VALUES = ("app", "tier"), ("", "a", "b")
LABELS = st.dictionaries(st.sampled_from(KEYS), st.sampled_from(VALUES))
TERMS = st.one_of(
    st.fixed_dictionaries(
        {
            "key": st.sampled_from(KEYS), "operator": st.sampled_from(("In", "NotIn")),
            "values": st.lists(st.sampled_from(VALUES), min_size=1),
        }
    ),
    st.fixed_dictionaries({"key": st.sampled_from(KEYS), "operator": st.sampled_from(("Exists", "DoesNotExist"))}),
)  # fmt: skip
SELECTORS = st.fixed_dictionaries({}, optional={"matchLabels": LABELS, "matchExpressions": st.lists(TERMS, max_size=3)})
NAMES, NAMESPACES = st.sampled_from(("p", "q")), st.sampled_from(("default", "shop"))
CHANGES = st.lists(
    st.one_of(
        st.builds(lambda name, ns, chosen: network_policy(name, namespace=ns, **chosen), NAMES, NAMESPACES, SELECTORS),
        st.builds(
            lambda name, ns, labels, last, gone: pod(
                name, NODE, f"10.0.0.{last}", namespace=ns, labels=labels, deletionTimestamp="2026" if gone else None,
            ),
            NAMES, NAMESPACES, LABELS, st.integers(1, 4), st.booleans(),
        ),
        st.tuples(st.sampled_from(("Pod", "NetworkPolicy")), NAMESPACES, NAMES),
    ),
    max_size=12,
)  # fmt: skip


def naively_meets(labels: dict[str, str], term: dict[str, Any]) -> bool:
    """As apimachinery's labels.Requirement.Matches says it."""
    here = term["key"] in labels
    if term["operator"] == "In":
        return here and labels[term["key"]] in term["values"]
    if term["operator"] == "NotIn":
        return not here or labels[term["key"]] not in term["values"]
    return here if term["operator"] == "Exists" else not here


def naively_selected(objects: dict[Any, dict[str, Any]]) -> tuple[set[str], set[str]]:
    """Addresses of running pods that a policy selects, and all other ones, from the objects as they are."""
    selected, free = set[str](), set[str]()
    for item in objects.values():
        meta = item["metadata"]
        if item["kind"] != "Pod" or meta["deletionTimestamp"]:
            continue
        hit = any(
            all(
                meta["labels"].get(key) == value
                for key, value in by["spec"]["podSelector"].get("matchLabels", {}).items()
            )
            and all(naively_meets(meta["labels"], t) for t in by["spec"]["podSelector"].get("matchExpressions", ()))
            for by in objects.values()
            if by["kind"] == "NetworkPolicy" and by["metadata"]["namespace"] == meta["namespace"]
        )
        (selected if hit else free).add(item["status"]["podIP"])
    return selected, free - selected


@given(CHANGES)
def test_any_order_of_changes_ends_in_what_the_objects_say(changes: list[Any]) -> None:
    pods, objects = IsolatedPods(NODE), dict[Any, dict[str, Any]]()
    for change in changes:
        if isinstance(change, tuple):
            known_before = objects.pop(change, None) is not None
            assert pods.remove(ObjectRef(*change)) == known_before
        else:
            value, problems = read(change)
            assert problems == []
            pods.put(value)
            objects[value.ref[:]] = change
        selected, free = pods.addresses()
        assert (set(selected), set(free)) == naively_selected(objects)
        assert pods.any_policy == any(item["kind"] == "NetworkPolicy" for item in objects.values())
