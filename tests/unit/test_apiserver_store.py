"""What the tests' own API server must do as a real one does, or the daemon would be tested against something else."""

import msgspec
import pytest

from dataplane.lab.apiserver.store import Refused, Store, selected
from tests.apiserver.objects import node, service


def test_pages_of_a_list_are_all_of_one_version() -> None:
    """An object that goes between two pages must not push another one out of the list (etcd reads one revision)."""
    store = Store()
    store.apply([service(f"s{number}", f"10.96.0.{number}") for number in range(1, 5)])
    listed, more, versions = [], "", set()
    while True:
        page = msgspec.json.decode(store.page("Service", "", "", 2, more))
        listed += [item["metadata"]["name"] for item in page["items"]]
        versions.add(page["metadata"]["resourceVersion"])
        if not listed[2:]:
            store.delete("Service", "default", "s1")
        more = page["metadata"].get("continue", "")
        if not more:
            break
    assert listed == ["s1", "s2", "s3", "s4"]
    assert versions == {"1004"}


WEB = service("web", "10.96.0.1", namespace="shop", type="NodePort")
HEADLESS = service("peers", "None")


@pytest.mark.parametrize(
    ("item", "fields", "matches"),
    [
        (WEB, "", True),
        (WEB, "metadata.name=web", True),
        (WEB, "metadata.name==web,metadata.namespace=shop", True),
        (WEB, "metadata.namespace!=shop", False),
        (WEB, "spec.clusterIP!=None", True),
        (HEADLESS, "spec.clusterIP!=None", False),
        (HEADLESS, "spec.clusterIP=None,metadata.name=peers", True),
        (WEB, "spec.type=NodePort", True),
        (WEB, "spec.type!=NodePort", False),
        (node("n"), "metadata.name=n", True),
        (node("n"), "spec.unschedulable!=true", True),
    ],
)
def test_field_selectors(item: dict[str, object], fields: str, matches: bool) -> None:
    assert selected(item, "", fields) is matches


@pytest.mark.parametrize(
    ("item", "fields"), [(WEB, "spec.selector=x"), (WEB, "spec.clusterIP"), (node("n"), "spec.clusterIP!=None")]
)
def test_a_field_that_cannot_be_selected_by_is_refused(item: dict[str, object], fields: str) -> None:
    with pytest.raises(Refused) as refusal:
        selected(item, "", fields)
    assert refusal.value.code == 400


def test_a_watch_sees_objects_come_into_its_selection_and_go_from_it() -> None:
    store = Store()
    store.apply([service("a", "10.96.0.1"), service("b", "None")])
    store.apply([service("a", "None"), service("b", "10.96.0.2")])
    store.apply([service("b", "10.96.0.2", type="NodePort")])
    store.delete("Service", "default", "a")
    store.delete("Service", "default", "b")
    seen = [(event.object["metadata"]["name"], event.seen_by("", "spec.clusterIP!=None")) for event in store.events]
    assert seen == [
        *(("a", "ADDED"), ("b", "")),
        *(("a", "DELETED"), ("b", "ADDED")),
        ("b", "MODIFIED"),
        *(("a", ""), ("b", "DELETED")),
    ]
