"""Reading manifests from files, directories and standard input."""

import io
import json
import sys
from pathlib import Path

import pytest

from ctl.sources.manifests import PortRange, SourceError, read_manifests
from dataplane.model.net import Family, Protocol
from dataplane.model.objects import EndpointPort, EndpointSlice, Node, Service


def node(name: str, zone: str = "") -> str:
    return f"kind: Node\nmetadata: {{name: {name}, labels: {{topology.kubernetes.io/zone: {zone or 'z'}}}}}\n"


def names(*paths: object) -> list[str]:
    return [value.ref.name for value in read_manifests([str(path) for path in paths]).objects]


def test_a_directory_is_read_in_order_and_in_depth(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "b.yml").write_text(node("b"))
    (tmp_path / "a.yaml").write_text(node("a"))
    (tmp_path / "deep" / "er" / "c.json").write_text('{"kind":"Node","metadata":{"name":"c"}}')
    (tmp_path / "notes.txt").write_text("not a manifest")
    (tmp_path / ".hidden.yaml").write_text(node("hidden"))
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "d.yaml").write_text(node("d"))
    assert names(tmp_path) == ["a", "b", "c"]
    assert names(tmp_path / "b.yml", tmp_path / "a.yaml") == ["b", "a"]


def test_a_directory_mounted_from_a_config_map(tmp_path: Path) -> None:
    (tmp_path / "..2024").mkdir()
    (tmp_path / "..2024" / "a.yaml").write_text(node("a"))
    (tmp_path / "..data").symlink_to("..2024")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    assert names(tmp_path) == ["a"]


def test_a_later_object_replaces_an_earlier_one(tmp_path: Path) -> None:
    first, second = tmp_path / "1.yaml", tmp_path / "2.yaml"
    first.write_text(node("n", "old") + "---\n" + node("m"))
    second.write_text(node("n", "new"))
    found = read_manifests([str(first), str(second)])
    assert sorted((value.name, value.zone) for value in found.objects if isinstance(value, Node)) == [
        ("m", "z"),
        ("n", "new"),
    ]


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(node("n").encode())))
    assert names("-") == ["n"]


def test_problems_name_the_file(tmp_path: Path) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text("a: [\n")
    (problem,) = read_manifests([str(tmp_path)]).problems
    assert str(problem).startswith(f"{bad}: is not valid YAML: line ")


def test_what_cannot_be_read_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"missing\.yaml: cannot be read: No such file or directory; check"):
        read_manifests([str(tmp_path / "missing.yaml")])
    with pytest.raises(SourceError, match="no manifest in this directory"):
        read_manifests([str(tmp_path)])


WRITTEN_BY_HAND = """\
apiVersion: v1
kind: Service
metadata:
  name: echo-session
spec:
  sessionAffinity: ClientIP
  ports:
  - port: 6711
    targetPort: 8080
  selector:
    app: echo
---
apiVersion: v1
kind: Service
metadata:
  name: echo-extip
spec:
  ports:
  - port: 8711
    targetPort: 8080
  selector:
    app: echo
  externalIPs:
  - 172.0.11.33
---
apiVersion: v1
kind: Service
metadata:
  name: echo-headless
spec:
  clusterIP: None
  ports:
  - port: 9711
    targetPort: 8080
---
apiVersion: v1
kind: Service
metadata:
  name: test
spec:
  selector:
    app: test
  type: NodePort
  externalTrafficPolicy: Local
  ports:
    - protocol: TCP
      port: 8080
      targetPort: 8080
      nodePort: 30000
"""


def test_services_as_people_write_them(tmp_path: Path) -> None:
    file = tmp_path / "services.yaml"
    file.write_text(WRITTEN_BY_HAND)
    found = read_manifests([str(file)])
    assert found.problems == []
    services = {value.name: value for value in found.objects if isinstance(value, Service)}
    assert services["echo-session"].affinity_seconds == 10800
    assert services["echo-extip"].external_ips == ("172.0.11.33",)
    assert services["echo-headless"].headless
    assert services["test"].external_local
    assert services["test"].ports[0].node_port == 30000
    assert sorted(note.ref.name for note in found.notes) == ["echo-extip", "echo-session", "test"]


ENDPOINTS = """\
apiVersion: v1
kind: EndpointsList
items:
- metadata: {name: web}
  subsets:
  - addresses: [{ip: 10.244.0.5, nodeName: n1}, {ip: "fd00::5"}]
    notReadyAddresses: [{ip: 10.244.0.6}]
    ports: [{name: http, port: 8080}]
  - addresses: [{ip: 127.0.0.1}]
    ports: [{name: http, port: 99999}]
- metadata: {name: other}
  subsets: [{addresses: [{ip: 10.244.0.9}], ports: [{port: 80}]}]
"""
SLICE = """\
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: other-1, labels: {kubernetes.io/service-name: other}}
addressType: IPv4
ports: [{port: 80}]
endpoints: [{addresses: [10.244.0.8]}]
"""


def test_endpoints_of_the_old_api_count_where_the_service_has_no_slices(tmp_path: Path) -> None:
    file = tmp_path / "objects.yaml"
    file.write_text(ENDPOINTS + SLICE)
    found = read_manifests([str(file)])
    slices = [value for value in found.objects if isinstance(value, EndpointSlice)]
    assert [(s.service, s.family, [(e.address, e.ready, e.node) for e in s.endpoints]) for s in slices] == [
        ("other", Family.IPV4, [("10.244.0.8", True, "")]),
        ("web", Family.IPV4, [("10.244.0.5", True, "n1"), ("10.244.0.6", False, "")]),
        ("web", Family.IPV6, [("fd00::5", True, "")]),
        ("web", Family.IPV4, []),
    ]
    assert slices[1].ports == (EndpointPort("http", Protocol.TCP, 8080),)
    (note,) = found.notes
    assert str(note).startswith(f"{file}: Endpoints default/web: is of the old API and read as EndpointSlices")
    assert [problem.field for problem in found.problems] == [
        "subsets[1].ports[0].port",
        "subsets[1].endpoints[0].addresses[0]",
    ]
    assert not found.ignored


def test_fields_that_do_not_exist_are_told(tmp_path: Path) -> None:
    spec = '"clusterIP": "10.96.0.1", "sessionAffinty": "ClientIP", "ports": [{"port": 80, "nodeport": 30000}]'
    text = f'{{"kind": "Service", "metadata": {{"name": "a"}}, "spec": {{{spec}}}}}'
    file = tmp_path / "a.yaml"
    lists = [f'{{"kind": "{kind}", "items": [{text}]}}' for kind in ("List", "ServiceList")]
    for form in (text, f"---\n{text}", *lists):
        file.write_text(form)
        assert [str(note) for note in read_manifests([str(file)]).notes] == [
            f"{file}: Service default/a: spec.sessionAffinty: is no field of this kind and has no effect; "
            "is sessionAffinity meant?",
            f"{file}: Service default/a: spec.ports[0].nodeport: is no field of this kind and has no effect; "
            "is nodePort meant?",
        ]


def test_annotations_of_ours_that_are_not_read_are_told(tmp_path: Path) -> None:
    ours = {"service.hotplane.io/weights": "3", "service.hotplane.io/lb-algoritm": "maglev", "example.com/x": "1"}
    text = json.dumps(
        {"kind": "Service", "metadata": {"name": "a", "annotations": ours}, "spec": {"clusterIP": "None"}}
    )
    file = tmp_path / "a.yaml"
    for form in (text, f"---\n{text}", f'{{"kind": "ServiceList", "items": [{text}]}}'):
        file.write_text(form)
        assert [(note.field, note.reason) for note in read_manifests([str(file)]).notes] == [
            (
                "metadata.annotations[service.hotplane.io/weights]",
                "has no effect on this kind of object, only on: EndpointSlice",
            ),
            (
                "metadata.annotations[service.hotplane.io/lb-algoritm]",
                "is no annotation that is read and has no effect; is service.hotplane.io/lb-algorithm meant?",
            ),
        ]


@pytest.mark.parametrize(("written", "meant"), [("service", "Service"), ("Endpointslices", "EndpointSlice")])
def test_a_slip_in_a_kind_is_a_fault(tmp_path: Path, written: str, meant: str) -> None:
    file = tmp_path / "a.yaml"
    text = f'{{"kind": "{written}", "metadata": {{"name": "a"}}}}'
    for form in (text, f"---\n{text}", f'{{"kind": "List", "items": [{text}]}}'):
        file.write_text(form)
        (problem,) = read_manifests([str(file)]).problems
        assert str(problem).endswith(f"kind: there is no kind {written}; write {meant}")
    file.write_text("kind: ServiceMonitor\nmetadata: {name: a}\n---\nkind: Deployment\nmetadata: {name: a}\n")
    assert not read_manifests([str(file)]).problems


def test_tabs_and_templates_are_named(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    for text, hint in (
        ("kind: Service\nmetadata:\n\tname: a\n", "; indent with spaces, not with tabs"),
        (
            "kind: Service\n---\n{{ .Values.x }}\n",
            "; it looks like a template: render it first, as `helm template` does",
        ),
    ):
        file.write_text(text)
        assert str(read_manifests([str(file)]).problems[-1]).endswith(hint)


def test_what_stands_twice_in_one_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(node("n") + "---\n" + node("n"))
    (note,) = read_manifests([str(file)]).notes
    assert str(note) == f"{file}: Node n: stands twice in this file; the one that is read last is used"


def test_a_key_that_stands_twice_in_json_is_refused_as_in_yaml(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text('{"kind": "Service", "metadata": {"name": "a", "name": "b"}, "spec": {}}')
    found = read_manifests([str(file)])
    assert not found.objects
    (problem,) = found.problems
    assert str(problem) == f"{file}: is not valid JSON: the key 'name' is given twice; remove one of them"


def test_what_stands_in_two_files_is_told_and_names_are_one_line(tmp_path: Path) -> None:
    for name in ("a.yaml", "b.yaml"):
        (tmp_path / name).write_text(node("n"))
    (note,) = read_manifests([str(tmp_path)]).notes
    assert str(note) == (
        f"{tmp_path}/b.yaml: Node n: stands in {tmp_path}/a.yaml too; the one that is read last is used"
    )
    (tmp_path / "a.yaml").write_text('kind: Node\nmetadata: {name: "x\\nhotplane: fine \\e[31m"}\n')
    (problem,) = read_manifests([str(tmp_path / "a.yaml")]).problems
    assert "\n" not in str(problem)
    assert "\x1b" not in str(problem)


def test_node_ports_outside_of_the_range_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    ports = "[{name: ssh, port: 22, nodePort: 22}, {name: web, port: 80, nodePort: 30080}]"
    file.write_text(
        f"kind: Service\nmetadata: {{name: a}}\nspec: {{clusterIP: 10.96.0.1, type: NodePort, ports: {ports}}}\n"
    )
    found = read_manifests([str(file)])
    (value,) = found.objects
    assert isinstance(value, Service)
    assert [port.node_port for port in value.ports] == [0, 30080]
    (problem,) = found.problems
    assert str(problem).startswith(f"{file}: Service default/a: spec.ports[0].nodePort: 22 is outside of 30000-32767")
    assert not read_manifests([str(file)], PortRange(1, 32767)).problems


def test_ports_that_no_slice_has_by_name_are_told(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    ports = "[{name: http, port: 80}, {name: metrics, port: 90}]"
    service = f"kind: Service\nmetadata: {{name: a}}\nspec: {{clusterIP: 10.96.0.1, ports: {ports}}}\n---\n"
    slice_text = (
        "kind: EndpointSlice\nmetadata: {name: a-1, labels: {kubernetes.io/service-name: a}}\naddressType: IPv4\n"
        "ports: [{name: http, port: 8080}, {name: http, port: 8080, protocol: UDP}]\n"
        "endpoints: [{addresses: [10.244.0.1]}]\n"
    )
    file.write_text(service + slice_text)
    (note,) = read_manifests([str(file)]).notes
    assert str(note) == (
        f"{file}: Service default/a: spec.ports: no EndpointSlice of this Service has a port 'metrics' (tcp), so "
        "nobody answers there; they have 'http' (tcp), 'http' (udp)"
    )
    for silent in (service, service + slice_text.replace("[{addresses: [10.244.0.1]}]", "[]"), slice_text):
        file.write_text(silent)
        assert not read_manifests([str(file)]).notes, "nobody is there yet"
    file.write_text(service.replace("10.96.0.1", "None") + slice_text)
    assert not read_manifests([str(file)]).notes, "a headless Service has no ports here"
