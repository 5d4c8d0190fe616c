"""Whatever the bytes hold, every reader ends with a value or a sentence, soon."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ctl import state
from ctl.config import parse_config
from ctl.sources.api import parse_status
from ctl.sources.credentials import Credentials, ExecSpec, Identity, Trust
from ctl.sources.kubeconfig import find_cluster
from ctl.state import Saved
from dataplane.errors import HotplaneError
from dataplane.model import yamlload
from dataplane.model.decode import decode, decode_object
from dataplane.oracle.flow import parse_flow
from dataplane.plan.types import Plan
from dataplane.policy.node import NodeConfig

SHORT = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

OBJECTS = b"""{"apiVersion": "v1", "kind": "List", "items": [
 {"kind": "Service", "metadata": {"name": "a", "labels": {"x": "y"}}, "spec": {"clusterIP": "10.0.0.1",
  "ports": [{"port": 80, "name": "p"}], "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 5}}},
  "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}},
 {"kind": "EndpointSlice", "metadata": {"name": "b"}, "addressType": "IPv4", "endpoints": [{"addresses": ["1.1.1.1"],
  "hints": {"forZones": [{"name": "z"}]}}], "ports": [{"port": 1}]},
 {"kind": "Endpoints", "metadata": {"name": "c"}, "subsets": [{"addresses": [{"ip": "1.1.1.1"}], "ports": [{}]}]},
 {"kind": "Node", "metadata": {"name": "d"}, "spec": {"podCIDRs": ["10.1.0.0/16"]}},
 {"kind": "ServiceCIDR", "metadata": {"name": "e"}, "spec": {"cidrs": ["10.0.0.0/8"]}}]}"""
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
PIECES = (
    b"\xff", b"\xc3\x28", b"[" * 60_000, b'{"a":' * 60_000, b"\x00", b"\n", b"'", b'"', b"9" * 5000, b"null", b"[]",
    b"{}", b"5", b"-1", b"1e999", b"true", b"2024-01-01", b"!!python/object:x {}", b"*a", b"&a ", b"\t", b"---\n",
    b"\xef\xbb\xbf",
)  # fmt: skip


@st.composite
def mangled(draw: st.DrawFn, whole: bytes) -> bytes:
    """A good document with pieces of it replaced, or any bytes at all."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(max_size=200))
    data = whole
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from((0, 1, 4, 9, 30))))
        piece = draw(st.sampled_from(PIECES) | st.binary(max_size=3))
        data = data[:start] + piece + data[end:]
    return data


def _sentence(read: Callable[[], object]) -> None:
    """Run a reader that may refuse what it reads, and no more than that."""
    with contextlib.suppress(HotplaneError):
        read()


@SHORT
@given(mangled(OBJECTS))
def test_objects(data: bytes) -> None:
    for problem in decode(data, "stdin").problems:
        assert str(problem).isprintable()
    decode_object(data)
    decode_object(data, "Service")
    parse_status(data, 500)


@SHORT
@given(mangled(CONFIG))
def test_the_configuration(data: bytes) -> None:
    _sentence(lambda: parse_config(data, "file"))


@SHORT
@given(data=mangled(KUBECONFIG))
def test_a_kubeconfig(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "kubeconfig"
    path.write_bytes(data)
    _sentence(lambda: find_cluster(str(path), ""))


@SHORT
@given(data=mangled(SAVED))
def test_the_state(tmp_path: Path, data: bytes) -> None:
    path = state.plan_path(tmp_path)
    path.write_bytes(data)
    _sentence(lambda: state.load(tmp_path, current=False))


@SHORT
@given(data=mangled(b"\x05\x00\x00\x00\x96\x90\x90\xc0\xc0\x90\x90"))
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


@settings(SHORT, max_examples=15)
@given(data=mangled(ANSWER))
def test_the_answer_of_a_plugin(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "answer").write_bytes(data)
    identity = Identity(plugin=ExecSpec("/bin/cat", (str(tmp_path / "answer"),)))
    _sentence(lambda: asyncio.run(Credentials(identity, Trust(), tls=False).current()))


@SHORT
@given(st.text(max_size=60) | st.sampled_from(("1.1.1.1 -> 2.2.2.2:" + "9" * 5000 + "/tcp", "[::1 -> [", "a->b:1/tcp")))
def test_a_flow(text: str) -> None:
    _sentence(lambda: parse_flow(text))


def _doubling(levels: int) -> str:
    lines = ["l0: &l0 [x, x, x, x, x, x, x, x, x, x]"]
    for n in range(1, levels):
        lines.append(f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]")
    return "\n".join(lines)


@pytest.mark.parametrize("read", [lambda data: parse_config(data, "file"), lambda data: decode(data, "file")])
def test_aliases_that_multiply_are_bounded(read: Callable[[bytes], object]) -> None:
    started = time.monotonic()
    _sentence(lambda: read(f"kind: KubeProxyConfiguration\n{_doubling(12)}\n".encode()))
    assert time.monotonic() - started < 2
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
