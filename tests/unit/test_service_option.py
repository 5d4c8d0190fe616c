"""What is said of a Service that there is not."""

import pytest

from ctl.service_option import require_service
from dataplane.errors import HotplaneError

PORTS = ("default/web:http", "default/web:metrics", "shop/web:", "kube-system/kube-dns:dns", "default/echo:")


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
