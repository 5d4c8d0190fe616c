"""How the lab's API server is asked by other proxies' clients: in other versions, in protobuf, for one object."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from dataplane.lab.apiserver.server import ApiServer
from tests.apiserver.objects import endpoint, endpoint_slice, node, service

OLD, NEW = "application/vnd.kubernetes.protobuf, */*", "application/vnd.kubernetes.protobuf,application/json"
"""What client-go asks for: up to 1.32 or so, since."""
SLICES = "/apis/discovery.k8s.io/v1beta1/endpointslices"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        running.apply(node("node1", "172.18.0.1"), service("web", "10.96.0.1", namespace="shop"))
        running.apply(service("dns", "10.96.0.2"), endpoint_slice("web", [endpoint("10.244.1.11")], namespace="shop"))
        yield running


def ask(server: ApiServer, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, Any, str]:
    """Status, body, media type."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read()), answer.headers.get_content_type()
    connection.close()
    return found


@pytest.mark.parametrize("accept", [OLD, NEW, "application/json;as=Table,application/json", "*/*"])
def test_whoever_takes_json_gets_it(server: ApiServer, accept: str) -> None:
    status, body, media_type = ask(server, "GET", "/api/v1/services", Accept=accept)
    assert (status, media_type, body["kind"]) == (200, "application/json", "ServiceList")


def test_protobuf_and_nothing_else_is_refused(server: ApiServer) -> None:
    status, body, _ = ask(server, "GET", "/api/v1/services", Accept="application/vnd.kubernetes.protobuf")
    assert (status, body["kind"], body["reason"]) == (406, "Status", "NotAcceptable")
    path, protobuf = "/apis/events.k8s.io/v1/namespaces/default/events", "application/vnd.kubernetes.protobuf"
    status, body, _ = ask(server, "POST", path, b"k8s\0", Accept=OLD, Content_Type=protobuf)
    assert (status, body["reason"]) == (415, "UnsupportedMediaType")


def test_slices_of_the_beta_version_have_their_node_as_topology(server: ApiServer) -> None:
    _, body, _ = ask(server, "GET", SLICES)
    assert body["apiVersion"] == "discovery.k8s.io/v1beta1"
    [found] = body["items"][0]["endpoints"]
    assert found["topology"] == {"kubernetes.io/hostname": "node1"}
    _, newer, _ = ask(server, "GET", SLICES.replace("v1beta1", "v1"))
    assert "topology" not in newer["items"][0]["endpoints"][0]


def test_watches_speak_the_version_that_they_are_of(server: ApiServer) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", f"{SLICES}?watch=1&sendInitialEvents=true&allowWatchBookmarks=true")
    answer = connection.getresponse()
    added, mark = (json.loads(answer.readline()) for _ in range(2))
    server.apply(endpoint_slice("web", [endpoint("10.244.1.12", "node2")], namespace="shop"))
    changed = json.loads(answer.readline())
    connection.close()
    assert [each["type"] for each in (added, mark, changed)] == ["ADDED", "BOOKMARK", "MODIFIED"]
    assert {each["object"]["apiVersion"] for each in (added, mark, changed)} == {"discovery.k8s.io/v1beta1"}
    assert changed["object"]["endpoints"][0]["topology"] == {"kubernetes.io/hostname": "node2"}


def test_one_object_and_those_of_one_namespace(server: ApiServer) -> None:
    status, body, _ = ask(server, "GET", "/api/v1/nodes/node1")
    assert (status, body["metadata"]["name"], body["kind"]) == (200, "node1", "Node")
    status, body, _ = ask(server, "GET", "/api/v1/nodes/node9")
    assert (status, body["message"]) == (404, 'nodes "node9" not found')
    status, body, _ = ask(server, "GET", "/api/v1/namespaces/shop/services/web")
    assert (status, body["metadata"]["namespace"]) == (200, "shop")
    _, body, _ = ask(server, "GET", "/api/v1/namespaces/shop/services")
    assert [item["metadata"]["name"] for item in body["items"]] == ["web"]
    assert ask(server, "GET", "/api/v1/leases")[0] == 404


def test_events_of_the_older_api_are_taken(server: ApiServer) -> None:
    path = "/api/v1/namespaces/default/events"
    assert ask(server, "POST", path, b'{"kind":"Event"}', Content_Type="application/json")[0] == 201
