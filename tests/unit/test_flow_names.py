"""Names instead of addresses in flows: Services, Pods, Nodes, and places of a lab."""

import pytest

from ctl.flow_names import Names, only_addresses
from dataplane.errors import UsageError
from dataplane.lab.places import Places
from dataplane.lab.spec import LabSpec
from dataplane.model.net import Protocol
from dataplane.model.objects import ModelObject, Node, Pod, Service, ServicePortSpec, ServiceType
from dataplane.plan.planner import Planner
from dataplane.policy.node import NodeConfig

WEB = Service(
    "default", "web", cluster_ips=("10.96.0.80", "fd00:96::80"), ports=(ServicePortSpec("http", Protocol.TCP, 80),)
)
DNS = Service(
    "kube-system",
    "dns",
    cluster_ips=("10.96.0.10",),
    ports=(ServicePortSpec("dns", Protocol.UDP, 53), ServicePortSpec("dns-tcp", Protocol.TCP, 53)),
)
NODE = NodeConfig(name="n1", addresses=("192.168.0.2", "192.168.1.2", "fd00::2"))


def names(*services: Service, lab: bool = True) -> Names:
    planner = Planner(NODE)
    planner.update(services or [WEB, DNS])
    objects: list[ModelObject] = [
        *services,
        Pod("shop", "client", addresses=("10.244.0.9",)),
        Node("n2", addresses=("192.168.0.3",)),
    ]
    return Names(planner.plan, objects, Places(LabSpec(nodes=2, ipv6=True)) if lab else None)


@pytest.mark.parametrize(
    ("asked", "wanted"),
    [
        ("pod1-1 -> web:80", ["10.244.1.11 -> 10.96.0.80:80/tcp", "[fd00:10:244:1::11] -> [fd00:96::80]:80/tcp"]),
        ("pod1-1->default/web", ["10.244.1.11 -> 10.96.0.80:80/tcp", "[fd00:10:244:1::11] -> [fd00:96::80]:80/tcp"]),
        ("shop/client -> default/web:http", ["10.244.0.9 -> 10.96.0.80:80/tcp"]),
        ("n2 -> kube-system/dns:53/udp", ["192.168.0.3 -> 10.96.0.10:53/udp"]),
        ("n1 -> dns:dns-tcp", ["192.168.0.2 -> 10.96.0.10:53/tcp"]),
        ("192.0.2.1 -> web:80 via eth0", ["192.0.2.1 -> 10.96.0.80:80/tcp via eth0"]),
        (
            "client -> node1:30080",
            ["198.51.100.2 -> 172.18.0.1:30080/tcp", "[fd00:198:51:100::2] -> [fd00:172:18::1]:30080/tcp"],
        ),
        ("client -> node1:53", ["198.51.100.2 -> 172.18.0.1:53/tcp"]),
        ("shop/client -> 10.96.0.80:80", ["10.244.0.9 -> 10.96.0.80:80/tcp"]),
        ("10.0.0.1 -> 10.0.0.2:1/udp", ["10.0.0.1 -> 10.0.0.2:1/udp"]),
    ],
)  # fmt: skip
def test_what_names_mean(asked: str, wanted: list[str]) -> None:
    assert [named.text for named in names().expand(asked)] == wanted


def test_the_place_of_a_source_is_told() -> None:
    (first, _) = names().expand("pod1-1 -> web")
    assert first.place is not None
    assert first.place.netns == "hp-lab-pod1-1"
    assert names().expand("shop/client -> web")[0].place is None


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("pod9-9 -> web:80", "'pod9-9' is no address, and no Pod, Node or place of a lab has this name"),
        ("pod1-1 -> nothing:80", "no Service 'nothing' has an address"),
        ("pod1-1 -> web:81", "the Service has no such port; it has http=80/tcp"),
        ("pod1-1 -> dns:53", "more than one such port; it has dns-tcp=53/tcp, dns=53/udp"),
        ("shop/client -> n1:99999", "is not a port number"),
        ("shop/client -> [fd00::1]:80", "no addresses of the same IP family"),
    ],
)
def test_what_names_do_not_mean(asked: str, told: str) -> None:
    with pytest.raises(UsageError) as error:
        names().expand(asked)
    assert told in str(error.value)


@pytest.mark.parametrize(
    ("service", "told"),
    [
        (Service("shop", "db", headless=True), "Service shop/db is headless: DNS answers with its pods' addresses"),
        (
            Service("shop", "db", ServiceType.EXTERNAL_NAME),
            "Service shop/db is of type ExternalName: DNS answers with another name",
        ),
        (
            Service("shop", "db", proxied_elsewhere=True),
            "Service shop/db is left to another proxy by its label service.kubernetes.io/service-proxy-name",
        ),
        (
            Service("shop", "db", ports=(ServicePortSpec("", Protocol.TCP, 80, 30080),)),
            "Service shop/db has no address of its own; ask for a node port at a node's address",
        ),
    ],
)
def test_a_service_without_an_address_is_told_from_none(service: Service, told: str) -> None:
    for name in ("shop/db:80", "db"):
        with pytest.raises(UsageError) as error:
            names(service).expand(f"n1 -> {name}")
        assert str(error.value).endswith(told)
    if not service.ports:
        assert told.endswith(names(service).why_no_address("shop/db"))


def test_a_name_in_two_namespaces_wants_one_of_them() -> None:
    other = Service("shop", "api", cluster_ips=("10.96.0.1",), ports=(ServicePortSpec("", Protocol.TCP, 80),))
    third = Service("blog", "api", cluster_ips=("10.96.0.2",), ports=(ServicePortSpec("", Protocol.TCP, 80),))
    both = names(other, third)
    with pytest.raises(UsageError, match="there are Services blog/api, shop/api"):
        both.expand("n1 -> api:80")
    assert [each.text for each in both.expand("n1 -> blog/api")] == ["192.168.0.2 -> 10.96.0.2:80/tcp"]


@pytest.mark.parametrize("text", ["x", "", "->", "1.2.3 -> 4:5/tcp", "::1 -> [::2]:1/udp", "10.0.0.1 -> 10.0.0.2"])
def test_what_is_no_name_is_left_to_the_parser(text: str) -> None:
    assert only_addresses(text)
