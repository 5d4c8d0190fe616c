"""What a load would change, by Service."""

import msgspec

from ctl.store.changes import ServiceChange, changes
from dataplane.model.net import Family, Protocol
from dataplane.plan.types import FrontendKey, Row
from dataplane.policy.routes import Action, Route, Routes

DROP = Route(Action.DROP)


def _row(service: str, *backends: tuple[str, int]) -> Row:
    forward = Route(Action.FORWARD)
    return Row(service=service, routes=Routes(forward, forward, DROP), cluster=backends)


def _key(address: str, port: int = 80) -> FrontendKey:
    return FrontendKey(Family.IPV4, address, Protocol.TCP, port)


WEB, DNS = _row("default/web:http", ("10.0.0.1", 8080)), _row("kube-system/dns")


def test_nothing_differs() -> None:
    table = {_key("10.96.0.1"): WEB}
    assert [*changes(table, dict(table))] == []


def test_services_that_come_and_go() -> None:
    have = {_key("10.96.0.1"): WEB, _key("10.96.0.1", 443): WEB}
    assert [*changes({_key("10.96.0.2"): DNS}, have)] == [
        ServiceChange("default/web", "removed", 2),
        ServiceChange("kube-system/dns", "added", 1),
    ]


def test_a_service_that_changes_says_how() -> None:
    new = msgspec.structs.replace(
        WEB, cluster=(("10.0.0.2", 8080),), affinity_seconds=10800, routes=WEB.routes._replace(outside=WEB.routes.pod)
    )
    have = {_key("10.96.0.1"): WEB, _key("10.96.0.1", 443): WEB}
    (change,) = changes({_key("10.96.0.1"): new, _key("10.96.0.1", 80 + 8000): WEB}, have)
    assert (change.service, change.change, change.frontends) == ("default/web", "changed", 2)
    assert change.details == (
        "10.96.0.1:80/tcp: outside: drop -> forward cluster",
        "10.96.0.1:80/tcp: cluster endpoints + 10.0.0.2:8080, - 10.0.0.1:8080",
        "10.96.0.1:80/tcp: session affinity 0 s -> 10800 s",
        "- 10.96.0.1:443/tcp",
        "+ 10.96.0.1:8080/tcp",
    )


def test_a_name_that_the_kernel_stores_short_is_the_same_service() -> None:
    key = _key("10.96.0.1")
    short = msgspec.structs.replace(WEB, service="default/w")
    assert [*changes({key: WEB}, {key: short}, stored=lambda name: name[:9])] == []
