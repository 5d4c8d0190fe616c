"""Whatever the bytes hold, every reader ends with a value or a sentence, soon."""

import asyncio
import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ctl.commands.explain import read_flows
from ctl.config import parse_config
from ctl.sources.api import parse_status
from ctl.sources.credentials import Credentials, ExecSpec, Identity, Trust
from ctl.sources.kubeconfig import find_cluster
from ctl.sources.manifests import SUFFIXES, read_manifests
from ctl.store import state
from ctl.store.journal import Journal
from ctl.store.state import Saved
from dataplane.errors import HotplaneError
from dataplane.model import yamlload
from dataplane.model.decode import decode, decode_object, decode_strictly
from dataplane.oracle.flow import parse_flow
from dataplane.plan.planner import Planner
from dataplane.plan.types import Plan
from dataplane.policy.node import NodeConfig
from tests.unit.mangling import examples, flipped, mangled, twisted

SHORT = examples(250)

OBJECTS = b"""{"apiVersion": "v1", "kind": "List", "items": [
 {"kind": "Service", "metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"clusterIP": "10.0.0.1",
  "ports": [{"port": 80, "name": "p"}], "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}},
  "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}},
 {"kind": "EndpointSlice", "metadata": {"name": "b"}, "addressType": "IPv4", "endpoints": [{"addresses": ["1.1.1.1"],
  "hints": {"forZones": [{"name": "z"}]}}], "ports": [{"port": 1}]},
 {"kind": "Endpoints", "metadata": {"name": "c"}, "subsets": [{"addresses": [{"ip": "1.1.1.1"}], "ports": [{}]}]},
 {"kind": "Node", "metadata": {"name": "d"}, "spec": {"podCIDRs": ["10.1.0.0/16"]}},
 {"kind": "ServiceCIDR", "metadata": {"name": "e"}, "spec": {"cidrs": ["10.0.0.0/8"]}}]}"""
DOCUMENTS = b"""# two of them
apiVersion: v1
kind: Service
metadata: &m {name: a, creationTimestamp: "2026-01-01T00:00:00Z"}
spec: {clusterIP: 10.0.0.1, ports: &p [{port: 80, name: p, nodePort: 30080}], type: NodePort}
---
kind: EndpointSlice
metadata: {<<: *m, name: a-1, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
endpoints: [{addresses: [10.1.0.1], conditions: {ready: true}}]
ports: [{port: 8080, name: p}]
---
{"kind": "ServiceList", "items": [{"metadata": {"name": "b"},
 "spec": {"clusterIP": "10.0.0.2", "ports": [{"port": 1}]}}]}
"""
CONFIG = b"""apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
iptables: {syncPeriod: 30s, masqueradeBit: 14}
conntrack: {maxPerCore: 1}
nodePortAddresses: [10.0.0.0/8]
featureGates: {A: true}
metricsBindAddress: 127.0.0.1:10249
"""
KUBECONFIG = b"""current-context: here
contexts: [{name: here, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "https://x", certificate-authority-data: QQ==, extensions: [{name: n}]}}]
users: [{name: u, user: {token: t, exec: {command: x, args: [a], env: [{name: n, value: v}]}}}]
"""
ANSWER = (
    b'{"apiVersion": "client.authentication.k8s.io/v1", "status": {"token": "t", "expirationTimestamp": "2030-01-01"}}'
)
SAVED = msgspec.msgpack.encode(Saved.of("nftables", Plan(NodeConfig(name="n1"))))


def _sentence(read: Callable[[], object]) -> None:
    """Run a reader that may refuse what it reads, and no more than that."""
    with contextlib.suppress(HotplaneError):
        read()


def _records() -> bytes:
    """What a journal holds after a Service came, got its endpoints and went again."""
    planner = Planner(NodeConfig(name="n1"))
    found = decode(DOCUMENTS, "file").objects
    changes = [planner.update([each]) for each in found]
    changes.append(planner.update(deletes=[found[0].ref]))
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "plan.msgpack", 1)
        for change in changes:
            journal.append(change)
        journal.close()
        [file] = Path(folder).iterdir()
        return file.read_bytes()


RECORDS = _records()


@SHORT
@given(mangled(OBJECTS) | mangled(DOCUMENTS) | twisted(yaml.safe_load(OBJECTS)))
def test_objects(data: bytes) -> None:
    decoded = decode_strictly(data, "stdin")
    for problem in (*decode(data, "stdin").problems, *decoded.problems, *decoded.notes):
        assert str(problem).isprintable()
    decode_object(data)
    decode_object(data, "Service")
    parse_status(data, 500)
    planner = Planner(NodeConfig(name="n1"))
    planner.update(decoded.objects)
    assert msgspec.msgpack.encode(Saved.of("nftables", planner.plan))


@SHORT
@given(data=mangled(DOCUMENTS) | twisted(yaml.safe_load(OBJECTS)), suffix=st.sampled_from(SUFFIXES))
def test_manifests(tmp_path: Path, data: bytes, suffix: str) -> None:
    file = tmp_path / f"objects{suffix}"
    file.write_bytes(data)
    found = read_manifests([str(file)])
    assert all(str(file) in str(problem) for problem in found.problems)


@SHORT
@given(mangled(CONFIG) | twisted(yaml.safe_load(CONFIG)))
def test_the_configuration(data: bytes) -> None:
    _sentence(lambda: parse_config(data, "file"))


@SHORT
@given(data=mangled(KUBECONFIG) | twisted(yaml.safe_load(KUBECONFIG)))
def test_a_kubeconfig(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "kubeconfig"
    path.write_bytes(data)
    _sentence(lambda: find_cluster(str(path), ""))


@SHORT
@given(data=mangled(SAVED) | flipped(SAVED))
def test_the_state(tmp_path: Path, data: bytes) -> None:
    path = state.plan_path(tmp_path)
    path.write_bytes(data)
    _sentence(lambda: state.load(tmp_path, current=False))


@SHORT
@given(data=mangled(RECORDS) | flipped(RECORDS))
def test_a_journal(tmp_path: Path, data: bytes) -> None:
    path = state.plan_path(tmp_path)
    path.write_bytes(msgspec.msgpack.encode(Saved.of("nftables", Plan(NodeConfig(name="n1")), journal=1)))
    path.with_name(f"{path.stem}.journal-1").write_bytes(data)
    _sentence(lambda: state.load(tmp_path, current=False))


@SHORT
@given(data=st.binary(max_size=50))
def test_a_token(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "token").write_bytes(data)
    identity = Identity(token_file=str(tmp_path / "token"))
    _sentence(lambda: asyncio.run(Credentials(identity, Trust(), tls=False).current()))


@examples(15)
@given(data=mangled(ANSWER))
def test_the_answer_of_a_plugin(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "answer").write_bytes(data)
    identity = Identity(plugin=ExecSpec("/bin/cat", (str(tmp_path / "answer"),)))
    _sentence(lambda: asyncio.run(Credentials(identity, Trust(), tls=False).current()))


@SHORT
@given(st.text(max_size=60) | st.sampled_from(("1.1.1.1 -> 2.2.2.2:" + "9" * 5000 + "/tcp", "[::1 -> [", "a->b:1/tcp")))
def test_a_flow(text: str) -> None:
    _sentence(lambda: parse_flow(text))


FLOWS = b'["10.0.0.1 -> 10.0.0.2:80/tcp", "[fd00::1] -> [fd00::2]:53/udp via eth0"]'


@SHORT
@given(data=mangled(FLOWS) | twisted(msgspec.json.decode(FLOWS)))
def test_a_file_of_flows(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "flows").write_bytes(data)
    _sentence(lambda: read_flows([f"@{tmp_path / 'flows'}"]))


def _doubling(levels: int) -> str:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    for n in range(1, levels):
        lines.append(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize("read", [lambda data: parse_config(data, "file"), lambda data: decode(data, "file")])
def test_aliases_that_multiply_are_bounded(read: Callable[[bytes], object]) -> None:
    _sentence(lambda: read(f"kind: KubeProxyConfiguration\n{_doubling(12)}\n".encode()))
    (document,) = yamlload.documents(_doubling(12).encode())
    assert "its aliases stand for more than 100000 values" in document.error
    few = yaml.safe_dump({"a": 1}) + "b: &b {c: [1, 2]}\nd: [*b, *b]\n"
    (document,) = yamlload.documents(few.encode())
    assert document.value["d"] == [{"c": [1, 2]}] * 2


def test_times_that_are_none_are_named() -> None:
    answer = '{"status": {"token": "t", "expirationTimestamp": "tomorrow"}}'
    identity = Identity(plugin=ExecSpec("/bin/echo", (answer,)))
    with pytest.raises(HotplaneError, match=r"status\.expirationTimestamp is 'tomorrow', not a time"):
        asyncio.run(Credentials(identity, Trust(), tls=False).current())
