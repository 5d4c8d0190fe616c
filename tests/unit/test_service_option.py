"""Services by name, as commands take them."""

import pytest

from ctl.service_option import named
from dataplane.errors import UsageError

NAMES = {"default/web:http", "shop/web:http", "shop/db:pg", "a/twin", "b/twin"}


@pytest.mark.parametrize(
    ("asked", "namespace", "found"),
    [
        ("shop/db", None, "shop/db"),
        ("shop/db:pg", "default", "shop/db:pg"),
        ("web", None, "default/web"),
        ("web:http", None, "default/web:http"),
        ("web", "shop", "shop/web"),
        ("db:pg", None, "shop/db:pg"),
        ("nobody", None, "default/nobody"),
    ],
)
def test_a_name_alone_is_of_the_default_namespace_or_of_the_only_one(
    asked: str, namespace: str | None, found: str
) -> None:
    assert named(asked, NAMES, namespace) == found


def test_a_name_of_several_namespaces_needs_one() -> None:
    with pytest.raises(UsageError, match="there are Services a/twin, b/twin: name one with its namespace"):
        named("twin", NAMES, None)
