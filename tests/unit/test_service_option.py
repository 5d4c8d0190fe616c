"""Services by name, as commands take them, and what is said of one that there is not."""

import pytest

from ctl.service_option import named, require_service
from dataplane.errors import HotplaneError, UsageError

PORTS = ("default/web:http", "default/web:metrics", "shop/web:", "kube-system/kube-dns:dns", "default/echo:")
NAMES = {"default/web:http", "shop/web:http", "shop/db:pg", "a/twin", "b/twin"}


@pytest.mark.parametrize("asked", ["default/web", "default/web:http", "shop/web", "default/echo:"])
def test_one_that_there_is(asked: str) -> None:
    require_service(asked, PORTS)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("web", "here; did you mean default/web or shop/web?"),
        ("default/kube-dns", "here; did you mean kube-system/kube-dns?"),
        ("default/wbe", "here; did you mean default/web or shop/web?"),
        ("default/other", "here; show services lists them"),
        ("other", "here; write NAMESPACE/NAME[:PORT]; show services lists them"),
        ("default/web:https", "here: Service default/web has no port 'https', only 'http', 'metrics'"),
    ],
)
def test_one_that_there_is_not(asked: str, said: str) -> None:
    with pytest.raises(HotplaneError) as refused:
        require_service(asked, PORTS)
    assert str(refused.value) == f"--service {asked}: there is no such Service {said}"


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
