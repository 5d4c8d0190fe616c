"""What the tests' own API server must do as a real one does, or the daemon would be tested against something else."""

import msgspec

from tests.apiserver.objects import service
from tests.apiserver.store import Store


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
