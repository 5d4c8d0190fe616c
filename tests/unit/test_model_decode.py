"""Decoding: every form that manifests come in, and one bad item that never harms another."""

import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dataplane.model.decode import Decoded, DecodedObject, decode, decode_object
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import EndpointPort, EndpointSlice, Node, ObjectRef, Service, ServiceCIDR, ServicePortSpec

SERVICE: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "Service",
    "metadata": {"name": "echo", "namespace": "default"},
    "spec": {"clusterIP": "10.43.91.128", "ports": [{"port": 6711, "targetPort": 8080}]},
}
SLICE: dict[str, Any] = {
    "apiVersion": "discovery.k8s.io/v1",
    "kind": "EndpointSlice",
    "metadata": {"name": "echo-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "echo"}},
    "addressType": "IPv4",
    "endpoints": [{"addresses": ["10.42.0.9"]}],
    "ports": [{"port": 8080}],
}
NODE: dict[str, Any] = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-1"}}
ECHO = Service("default", "echo", cluster_ips=("10.43.91.128",), ports=(ServicePortSpec("", Protocol.TCP, 6711),))


def names(found: Decoded) -> list[str]:
    return [str(value.ref) for value in found.objects]


def texts(found: Decoded) -> list[str]:
    return [str(problem) for problem in found.problems]


EVERYTHING = ["Service default/echo", "EndpointSlice default/echo-1", "Node node-1"]
LIST = {"apiVersion": "v1", "kind": "List", "items": [SERVICE, SLICE, NODE], "metadata": {"resourceVersion": ""}}


@pytest.mark.parametrize(
    "data",
    [
        json.dumps(LIST),
        json.dumps(LIST, indent=2),
        "\ufeff" + json.dumps(LIST),
        json.dumps({"kind": "List", "items": [LIST]}),
        "\n".join(json.dumps(item) for item in LIST["items"]),
        yaml.safe_dump(LIST),
        yaml.safe_dump_all(LIST["items"]),
        "# a comment\n---\n" + yaml.safe_dump_all(LIST["items"], explicit_start=True) + "---\n# nothing more\n",
        yaml.safe_dump(LIST).replace("\n", "\r\n"),
        yaml.safe_dump(LIST, default_flow_style=True),
    ],
    ids=["json", "indented", "bom", "nested", "lines", "yaml", "documents", "separators", "crlf", "flow"],
)
def test_every_form_holds_the_same_objects(data: str) -> None:
    found = decode(data.encode(), "test")
    assert names(found) == EVERYTHING
    assert texts(found) == []
    assert found.objects[0] == ECHO


def test_typed_lists_give_their_kind_to_items() -> None:
    service = {key: SERVICE[key] for key in ("metadata", "spec")}
    for dump in (json.dumps, yaml.safe_dump):
        found = decode(dump({"kind": "ServiceList", "apiVersion": "v1", "items": [service]}).encode(), "test")
        assert found.objects == [ECHO]


@pytest.mark.parametrize("items", [None, []])
def test_empty_lists_are_nothing(items: Any) -> None:
    for dump in (json.dumps, yaml.safe_dump):
        found = decode(dump({"kind": "List", "apiVersion": "v1", "items": items}).encode(), "test")
        assert (found.objects, found.problems, sum(found.ignored.values())) == ([], [], 0)


@pytest.mark.parametrize("data", ["", "\n", "---\n---\n", "# only a comment\n", "%YAML 1.1\n---\n"])
def test_nothing_is_nothing(data: str) -> None:
    assert decode(data.encode(), "test") == Decoded()


KUBECTL_OUTPUT = """\
apiVersion: v1
items:
- apiVersion: v1
  kind: Service
  metadata:
    annotations:
      kubectl.kubernetes.io/last-applied-configuration: |
        {"apiVersion":"v1","kind":"Service","metadata":{"name":"web"}}
    creationTimestamp: "2024-03-01T10:00:00Z"
    managedFields:
    - apiVersion: v1
      fieldsType: FieldsV1
      fieldsV1:
        f:spec:
          f:ports:
            .: {}
            k:{"port":80,"protocol":"TCP"}:
              .: {}
              f:port: {}
      manager: kubectl
      operation: Update
      time: "2024-03-01T10:00:00Z"
    name: web
    namespace: shop
    resourceVersion: "42"
    uid: 3a9e0f5e-0000-0000-0000-000000000000
  spec:
    allocateLoadBalancerNodePorts: true
    clusterIP: 10.96.3.4
    clusterIPs:
    - 10.96.3.4
    - fd00:10:96::304
    externalTrafficPolicy: Local
    healthCheckNodePort: 31000
    internalTrafficPolicy: Cluster
    ipFamilies:
    - IPv4
    - IPv6
    ipFamilyPolicy: PreferDualStack
    loadBalancerSourceRanges:
    - 192.0.2.0/24
    ports:
    - name: http
      nodePort: 30080
      port: 80
      protocol: TCP
      targetPort: web
    selector:
      app: web
    sessionAffinity: ClientIP
    sessionAffinityConfig:
      clientIP:
        timeoutSeconds: 600
    type: LoadBalancer
  status:
    loadBalancer:
      ingress:
      - ip: 198.51.100.7
        ipMode: VIP
- addressType: IPv6
  apiVersion: discovery.k8s.io/v1
  endpoints:
  - addresses:
    - fd00:10:42:0:0:0:0:9
    conditions:
      ready: false
      serving: true
      terminating: true
    nodeName: node-1
    targetRef:
      kind: Pod
      name: web-0
    zone: a
  kind: EndpointSlice
  metadata:
    creationTimestamp: "2024-03-01T10:00:00Z"
    labels:
      endpointslice.kubernetes.io/managed-by: endpointslice-controller.k8s.io
      kubernetes.io/service-name: web
    name: web-x
    namespace: shop
    ownerReferences:
    - apiVersion: v1
      kind: Service
      name: web
  ports:
  - name: http
    port: 8080
    protocol: TCP
- apiVersion: v1
  kind: Node
  metadata:
    labels:
      topology.kubernetes.io/zone: a
    name: node-1
  spec:
    podCIDR: 10.42.0.0/24
    podCIDRs:
    - 10.42.0.0/24
    - fd00:10:42::/64
  status:
    addresses:
    - address: 203.0.113.5
      type: ExternalIP
    - address: 192.168.0.2
      type: InternalIP
    - address: node-1
      type: Hostname
kind: List
metadata:
  resourceVersion: ""
"""


def test_kubectl_output_reads_as_it_is() -> None:
    found = decode(KUBECTL_OUTPUT.encode(), "kubectl")
    assert (found.problems, found.notes) == ([], [])
    service, endpoint_slice, node = found.objects
    assert isinstance(service, Service)
    assert service.cluster_ips == ("10.96.3.4", "fd00:10:96::304")
    assert service.load_balancer_ips == ("198.51.100.7",)
    assert service.source_ranges == ("192.0.2.0/24",)
    assert service.ports == (ServicePortSpec("http", Protocol.TCP, 80, 30080),)
    assert (service.external_local, service.internal_local, service.affinity_seconds) == (True, False, 600)
    assert (service.health_check_node_port, service.created) == (31000, "2024-03-01T10:00:00Z")
    assert isinstance(endpoint_slice, EndpointSlice)
    assert (endpoint_slice.family, endpoint_slice.service) == (Family.IPV6, "web")
    assert endpoint_slice.ports == (EndpointPort("http", Protocol.TCP, 8080),)
    (endpoint,) = endpoint_slice.endpoints
    assert (endpoint.address, endpoint.node) == ("fd00:10:42::9", "node-1")
    assert (endpoint.ready, endpoint.serving, endpoint.terminating) == (False, True, True)
    assert node == Node("node-1", "a", ("192.168.0.2", "203.0.113.5"), ("10.42.0.0/24", "fd00:10:42::/64"))


def test_other_kinds_are_counted_and_nothing_else() -> None:
    knative = {"apiVersion": "serving.knative.dev/v1", "kind": "Service", "spec": {"ports": "none"}}
    fqdn = {**SLICE, "addressType": "FQDN", "endpoints": [{"addresses": ["example.org"]}]}
    items = [{"kind": "Pod"}, {"kind": "Pod", "metadata": 5}, {"kind": "ReplicaSet"}, knative, fqdn, SERVICE]
    for dump in (json.dumps, yaml.safe_dump):
        found = decode(dump({"kind": "List", "items": items}).encode(), "test")
        assert (found.objects, found.problems) == ([ECHO], [])
        assert found.ignored == {"Pod": 2, "ReplicaSet": 1, "Service.serving.knative.dev": 1, "EndpointSlice (FQDN)": 1}


BAD_ITEMS: list[tuple[Any, str]] = [
    (None, "test items[1]: is not a Kubernetes object"),
    (7, "test items[1]: is not a Kubernetes object"),
    ({}, "test items[1]: has no kind"),
    ({"kind": 5}, "test items[1]: has no kind"),
    ({"kind": "Service"}, "Service default/(no name): metadata.name: is missing"),
    ({"kind": "Service", "metadata": {"name": 5}}, "Service default/(no name): metadata.name: must be a string"),
    ({"kind": "Service", "metadata": {"name": "a b"}}, "Service default/a b: metadata.name: is 'a b'"),
    ({"kind": "Node", "metadata": {"name": 'x"; drop'}}, "Node x\"; drop: metadata.name: is 'x\"; drop'"),
    ({**SERVICE, "apiVersion": "v2"}, ""),
    ({**SLICE, "apiVersion": "discovery.k8s.io/v1beta1"}, "EndpointSlice default/echo-1: apiVersion: is discovery"),
    ({**SERVICE, "spec": []}, "Service default/echo: spec: must be a mapping, not a list"),
    (
        {**SERVICE, "spec": {"loadBalancerSourceRanges": "10.0.0.0/8"}},
        "Service default/echo: spec.loadBalancerSourceRanges: must be a list, not a string",
    ),
    ({**SLICE, "endpoints": {}}, "EndpointSlice default/echo-1: endpoints: must be a list, not a mapping"),
]


@pytest.mark.parametrize(("item", "text"), BAD_ITEMS)
def test_a_bad_item_is_reported_and_its_neighbours_stay(item: Any, text: str) -> None:
    found = decode(json.dumps({"kind": "List", "items": [NODE, item, SERVICE]}).encode(), "test")
    assert names(found) == ["Node node-1", "Service default/echo"]
    if text:
        assert [problem.startswith(text) for problem in texts(found)] == [True], texts(found)
    same = decode(yaml.safe_dump({"kind": "List", "items": [NODE, item, SERVICE]}).encode(), "test")
    assert names(same) == names(found)
    assert [problem.field for problem in same.problems] == [problem.field for problem in found.problems]


def test_the_second_version_of_a_core_kind_is_a_problem() -> None:
    found = decode_object(json.dumps({**SERVICE, "apiVersion": "v2"}).encode())
    assert found.value is None
    assert [problem.field for problem in found.problems] == ["apiVersion"]
    assert found.problems[0].ref == found.ref == ObjectRef("Service", "default", "echo")


def test_values_of_a_wrong_type_are_taken_out_of_lists_alone() -> None:
    spec = {
        "clusterIP": "10.0.0.1",
        "externalIPs": [5, "192.0.2.1"],
        "ports": [{"port": "80"}, {"name": "b", "port": 81}, {"name": 8, "port": 82}, None],
    }
    found = decode(json.dumps({**SERVICE, "spec": spec}).encode(), "test")
    (service,) = found.objects
    assert isinstance(service, Service)
    assert service.external_ips == ("192.0.2.1",)
    assert service.ports == (ServicePortSpec("b", Protocol.TCP, 81),)
    assert {problem.field: problem.reason for problem in found.problems} == {
        "spec.externalIPs[0]": "must be a string, not a whole number; put it in quotes",
        "spec.ports[0].port": "must be a whole number, not a string; write it without quotes, as decimal digits",
        "spec.ports[2].name": "must be a string, not a whole number; put it in quotes",
        "spec.ports[3]": "is null; remove the item or fill it in",
    }


def test_an_endpoint_of_a_wrong_type_leaves_the_others() -> None:
    endpoints = [{"addresses": ["10.0.0.1"]}, {"addresses": "10.0.0.2"}, 5, {"addresses": ["10.0.0.4"]}]
    found = decode(json.dumps({**SLICE, "endpoints": endpoints}).encode(), "test")
    (value,) = found.objects
    assert isinstance(value, EndpointSlice)
    assert [endpoint.address for endpoint in value.endpoints] == ["10.0.0.1", "10.0.0.4"]
    assert [problem.field for problem in found.problems] == ["endpoints[1].addresses", "endpoints[2]"]


def test_a_source_range_of_a_wrong_type_lets_nobody_in() -> None:
    spec = {"type": "LoadBalancer", "clusterIP": "10.0.0.1", "ports": [{"port": 80}], "loadBalancerSourceRanges": [10]}
    (service,) = decode(json.dumps({**SERVICE, "spec": spec}).encode(), "test").objects
    assert isinstance(service, Service)
    assert service.source_ranges == ()


def test_a_broken_document_leaves_the_others() -> None:
    data = yaml.safe_dump(NODE) + "---\nfoo: [\n---\nkind: Service\nkind: Service\n---\n" + yaml.safe_dump(SERVICE)
    found = decode(data.encode(), "a.yaml")
    assert names(found) == ["Node node-1", "Service default/echo"]
    first, second = texts(found)
    assert first.startswith("a.yaml: is not valid YAML: line ")
    assert "given twice" in second


def test_json_that_is_cut_off_is_one_problem() -> None:
    found = decode(json.dumps(LIST).encode()[:-20], "a.json")
    assert found.objects == []
    assert len(found.problems) == 1


def test_deep_nesting_is_a_problem_not_a_crash() -> None:
    nested: Any = SERVICE
    for _ in range(20):
        nested = {"kind": "List", "items": [nested]}
    for data in (json.dumps(nested), yaml.safe_dump(nested)):
        assert texts(decode(data.encode(), "test"))[0].endswith("lists are nested too deeply; write a flat List")
    for data in ("[" * 100_000, '{"kind":"Service","x":' + "[" * 100_000, "a: " + "[" * 5000):
        assert len(decode(data.encode(), "test").problems) == 1


YAML_SCALARS: list[tuple[str, Any]] = [
    ("on", "on"),
    ("y", "y"),
    ("no", "no"),
    ("off", "off"),
    ("http", "http"),
    ("1e-x", "1e-x"),
]


@pytest.mark.parametrize(("text", "name"), YAML_SCALARS)
def test_a_port_name_is_a_string(text: str, name: str) -> None:
    data = f"kind: Service\nmetadata: {{name: a}}\nspec:\n  ports:\n  - {{name: {text}, port: 80}}\n"
    (service,) = decode(data.encode(), "test").objects
    assert isinstance(service, Service)
    assert [port.name for port in service.ports] == [name]


@pytest.mark.parametrize("text", ["0o120", "0x50", "0120", "1:20", "8_0", "eighty", "80.5", "true", "'80'"])
def test_a_port_that_only_looks_like_a_number_is_a_problem(text: str) -> None:
    data = f"kind: Service\nmetadata: {{name: a}}\nspec:\n  ports:\n  - port: {text}\n"
    found = decode(data.encode(), "test")
    assert [problem.field for problem in found.problems][:1] == ["spec.ports[0].port"]


def test_yaml_timestamps_stay_text_and_anchors_work() -> None:
    data = """\
kind: Service
metadata: &m {name: a, creationTimestamp: 2024-01-02T03:04:05Z}
spec: {clusterIP: 10.0.0.1, ports: [&p {port: 80, protocol: TCP}, {<<: *p, name: b, port: 81}]}
"""
    (service,) = decode(data.encode(), "test").objects
    assert isinstance(service, Service)
    assert service.created == "2024-01-02T03:04:05Z"
    assert service.ports == (ServicePortSpec("", Protocol.TCP, 80), ServicePortSpec("b", Protocol.TCP, 81))


@pytest.mark.parametrize(
    "data", ["a: !!python/object:os.system x", "&a [*a]", "a: !!int x", "a: !!timestamp x", "? [1]\n: 2", "a: !!bool 3"]
)
def test_yaml_that_means_nothing_here_is_one_problem(data: str) -> None:
    assert len(decode(data.encode(), "test").problems) == 1


def test_service_cidrs() -> None:
    item = {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"}}
    good = {**item, "spec": {"cidrs": ["10.96.0.1/12", "fd00::/108"]}}
    assert decode(json.dumps(good).encode(), "test").objects == [
        ServiceCIDR("kubernetes", ("10.96.0.0/12", "fd00::/108"))
    ]
    bad = decode(json.dumps({**item, "spec": {"cidrs": ["10.96.0.0"]}}).encode(), "test")
    assert bad.objects == []
    assert [problem.field for problem in bad.problems] == ["spec.cidrs[0]", "spec.cidrs"]


def test_decode_object_of_a_watch_event() -> None:
    assert decode_object(json.dumps(SERVICE).encode()) == DecodedObject(ECHO, ECHO.ref)
    assert decode_object(b'{"kind":"Pod"}') == DecodedObject(None, ignored="Pod")
    broken = decode_object(b'{"kind":"Serv')
    assert (broken.value, broken.ref, len(broken.problems)) == (None, None, 1)
    headless_kind = decode_object(b'{"metadata":{"name":"n"}}', "Node")
    assert headless_kind.value == Node("n")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=8), children, max_size=4),
    max_leaves=12,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in _paths(item, (*path, key)))]


def _replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = _replaced(value[path[0]], path[1:], new)
    return copy


FULL = [yaml.safe_load(KUBECTL_OUTPUT), *yaml.safe_load(KUBECTL_OUTPUT)["items"], SERVICE, SLICE, NODE]


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_damage_gives_objects_or_problems(data: st.DataObject) -> None:
    """Replace something inside good input by anything: it never raises, and says something or still has the object."""
    value = data.draw(st.sampled_from(FULL))
    path = data.draw(st.sampled_from(_paths(value)))
    damaged = _replaced(value, path, data.draw(JSON))
    text = json.dumps(damaged).encode()
    found = decode(text, "test")
    assert found.objects or found.problems or found.ignored or not damaged or damaged.get("items") in (None, [])
    from_yaml = decode(yaml.safe_dump(damaged, allow_unicode=False).encode(), "test")
    assert all(problem.reason and problem.ref.name for problem in (*found.problems, *from_yaml.problems))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode) | JSON.map(lambda v: json.dumps(v).encode()))
def test_any_bytes_never_raise(data: bytes) -> None:
    found = decode(data, "test")
    assert all(str(problem) for problem in found.problems)
    decode(b"kind: Service\nmetadata:\n  name: " + data, "test")
    decode_object(data)
