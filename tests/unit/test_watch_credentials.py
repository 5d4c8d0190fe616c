"""Kubeconfigs, service accounts, tokens that rotate, credential plugins, certificates."""

import asyncio
import base64
import os
import ssl
import stat
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from ctl.sources.api import Api, ApiError, ApiStatus
from ctl.sources.credentials import CredentialError, Credentials, Identity, Trust
from ctl.sources.kubeconfig import Cluster, find_cluster, in_cluster, load_kubeconfig
from ctl.sources.manifests import SourceError
from dataplane.lab.apiserver.server import ApiServer
from tests.apiserver.tls import CERTIFICATE, KEY
from tests.unit.ports import closed_port


def kubeconfig(folder: Path, cluster: dict[str, Any], user: dict[str, Any] | None = None, **more: Any) -> str:
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "here",
        "contexts": [{"name": "here", "context": {"cluster": "c", **({"user": "u"} if user is not None else {})}}],
        "clusters": [{"name": "other", "cluster": {"server": "http://x"}}, {"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": user}] if user is not None else [],
        **more,
    }
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def plugin(folder: Path, text: str) -> str:
    path = folder / "plugin"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def headers(identity: Identity) -> dict[str, str]:
    return asyncio.run(Credentials(identity, Trust(), tls=False).current())[0]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A self-signed certificate and its key."""
    folder = tmp_path_factory.mktemp("pair")
    certificate, key = folder / "crt.pem", folder / "key.pem"
    certificate.write_bytes(CERTIFICATE)
    key.write_bytes(KEY)
    return certificate, key


def test_a_kubeconfig_in_full(tmp_path: Path) -> None:
    data = base64.b64encode(b"PEM").decode()
    path = kubeconfig(
        tmp_path,
        {
            "server": "https://api.example:6443/", "certificate-authority": "ca.pem", "tls-server-name": "kubernetes",
            "proxy-url": "http://proxy:3128", "insecure-skip-tls-verify": True,
        },
        {"client-certificate-data": data, "client-key": "/abs/key.pem", "tokenFile": "token", "username": "me"},
    )  # fmt: skip
    cluster = load_kubeconfig(path)
    assert cluster.url == "https://api.example:6443"
    assert cluster.trust == Trust(authority_file=str(tmp_path / "ca.pem"), insecure=True)
    assert (cluster.tls_server_name, cluster.proxy_url) == ("kubernetes", "http://proxy:3128")
    who = cluster.identity
    assert (who.certificate, who.key_file, who.token_file) == (b"PEM", "/abs/key.pem", str(tmp_path / "token"))
    assert find_cluster(path, "1.2.3.4:8080").url == "https://1.2.3.4:8080", "--master wins over the file's address"
    with pytest.raises(SourceError, match="would be sent unencrypted"):
        find_cluster(path, "http://1.2.3.4:8080")
    assert find_cluster(path, "http://1.2.3.4:8080", token_over_http=True).url == "http://1.2.3.4:8080"
    assert find_cluster(path, "1.2.3.4:8080").identity == who


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"current-context": ""}, "current-context"),
        ({"current-context": "nope"}, "contexts has no 'nope'"),
        ({"clusters": []}, "clusters has no 'c'"),
        ({"clusters": [{"name": "c", "cluster": {}}]}, "has no server"),
        ({"clusters": [{"name": "c", "cluster": {"server": "ftp://x"}}]}, "http://"),
        ({"users": [{"name": "u", "user": {"exec": {"args": []}}}]}, "no command"),
        ({"users": [{"name": "u", "user": {"exec": {"command": "x", "interactiveMode": "Always"}}}]}, "interactive"),
        ({"users": [{"name": "u", "user": {"exec": {"command": "x", "apiVersion": "v1alpha1"}}}]}, "speaks v1alpha1"),
        ({"users": [{"name": "u", "user": {"auth-provider": {"name": "gcp"}}}]}, "auth-provider"),
        ({"users": [{"name": "u", "user": {"client-key-data": "%%"}}]}, "client-key-data"),
        (
            {"clusters": [{"name": "c", "cluster": {"server": "https://x", "insecure-skip-tls-verify": "false"}}]},
            "true or",
        ),
        ({"clusters": 5}, "clusters: must be a list"),
        ({"clusters": [5]}, r"clusters\[0\]: must be a mapping"),
        ({"clusters": [{"name": "c", "cluster": []}]}, "must be a mapping, not a list"),
        ({"clusters": [{"name": "c", "cluster": {"server": ["x"]}}]}, "server: must be a string"),
        ({"clusters": [{"name": "c", "cluster": {"server": "https://x", "extensions": [5]}}]}, "extensions"),
        ({"users": [{"name": "u", "user": "me"}]}, "user: must be a mapping"),
        ({"users": [{"name": "u", "user": {"token": 5}}]}, "token: must be a string"),
        ({"users": [{"name": "u", "user": {"exec": "x"}}]}, "exec: must be a mapping"),
        ({"users": [{"name": "u", "user": {"exec": {"command": "x", "args": 5}}}]}, "args: must be a list"),
        ({"users": [{"name": "u", "user": {"exec": {"command": "x", "env": [{"value": "v"}]}}}]}, "env"),
        ({"users": [{"name": "u", "user": {"client-key-data": {"a": 1}}}]}, "client-key-data: must be a string"),
        ({"contexts": [{"name": "here", "context": "c"}]}, "context: must be a mapping"),
        ({"current-context": {"a": 1}}, "current-context: must be a string"),
    ],
)
def test_a_kubeconfig_with_a_fault_is_explained(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    path = kubeconfig(tmp_path, {"server": "https://x"}, {}, **change)
    with pytest.raises(SourceError, match=expected) as caught:
        load_kubeconfig(path)
    assert path in str(caught.value) or "ftp" in str(caught.value)


def test_a_kubeconfig_that_is_none(tmp_path: Path) -> None:
    for content, expected in (("[1, 2]", "not a kubeconfig"), ("a: [", "not valid YAML")):
        (tmp_path / "k").write_text(content)
        with pytest.raises(SourceError, match=expected):
            load_kubeconfig(str(tmp_path / "k"))
    with pytest.raises(SourceError, match="cannot be read"):
        load_kubeconfig(str(tmp_path / "missing"))


def test_the_service_account_of_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    with pytest.raises(SourceError, match="--kubeconfig"):
        in_cluster(tmp_path)
    (tmp_path / "token").write_text("t1\n")
    cluster = in_cluster(tmp_path)
    assert cluster.url == "https://[fd00::1]:443"
    assert cluster.trust.authority_file == str(tmp_path / "ca.crt")


def test_kinds_of_headers(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("from-file\n")
    assert headers(Identity()) == {}
    assert headers(Identity(token="abc")) == {"Authorization": "Bearer abc"}
    assert headers(Identity(token="abc", token_file=str(tmp_path / "t"))) == {"Authorization": "Bearer from-file"}
    assert headers(Identity(username="u", password="p")) == {"Authorization": "Basic dTpw"}
    with pytest.raises(CredentialError, match="token cannot be read"):
        headers(Identity(token_file=str(tmp_path / "missing")))


def test_a_rotated_token_is_read_again_after_a_refusal(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old")

    async def scenario(url: str) -> None:
        api = Api(Cluster(url, Identity(token_file=str(token))))
        await api.get("/api/v1/services", {})
        server.behave(token="new")
        with pytest.raises(ApiStatus, match=f"^401 .*; the API server does not accept the token of {token}$"):
            await api.get("/api/v1/services", {})
        token.write_text("new")
        await api.get("/api/v1/services", {})
        token.unlink()
        await api.get("/api/v1/services", {})
        await api.close()

    with ApiServer() as server:
        server.behave(token="old")
        asyncio.run(scenario(server.url))


def test_a_credential_plugin_is_asked_and_asked_again_when_it_expires(tmp_path: Path) -> None:
    text = (
        'echo "$KUBERNETES_EXEC_INFO" > info; echo "$WORD $1" >> calls\n'
        'echo "{\\"kind\\": \\"ExecCredential\\", \\"apiVersion\\": \\"client.authentication.k8s.io/v1\\",'
        ' \\"status\\": {\\"token\\": \\"t$(wc -l < calls)\\", \\"expirationTimestamp\\": \\"$(cat expires)\\"}}"'
    )
    command = plugin(tmp_path, f'cd "{tmp_path}"\n{text}')
    assert os.path.isabs(command)
    user = {
        "exec": {
            "apiVersion": "client.authentication.k8s.io/v1", "command": "./plugin", "args": ["arg"],
            "env": [{"name": "WORD", "value": "hello"}], "provideClusterInfo": True,
        }
    }  # fmt: skip
    (tmp_path / "ca.crt").write_bytes(b"PEM")
    given = {
        "server": "http://x", "certificate-authority": "ca.crt", "tls-server-name": "kubernetes",
        "extensions": [
            {"name": "client.authentication.k8s.io/exec", "extension": {"audience": "here"}},
            {"name": "other", "extension": {}},
        ],
    }  # fmt: skip
    cluster = load_kubeconfig(kubeconfig(tmp_path, given, user))

    async def scenario() -> None:
        credentials = Credentials(cluster.identity, cluster.trust, tls=False)
        (tmp_path / "expires").write_text("2020-01-01T00:00:00Z")
        assert (await credentials.current())[0] == {"Authorization": "Bearer t1"}
        (tmp_path / "expires").write_text("2999-01-01T00:00:00Z")
        assert (await credentials.current())[0] == {"Authorization": "Bearer t2"}
        assert (await credentials.current())[0] == {"Authorization": "Bearer t2"}
        credentials.refused()
        assert (await credentials.current())[0] == {"Authorization": "Bearer t3"}

    asyncio.run(scenario())
    assert (tmp_path / "calls").read_text().splitlines()[0] == "hello arg"
    info = msgspec.json.decode((tmp_path / "info").read_bytes())
    assert info["spec"] == {
        "interactive": False,
        "cluster": {
            "server": "http://x", "tls-server-name": "kubernetes", "config": {"audience": "here"},
            "certificate-authority-data": base64.b64encode(b"PEM").decode(),
        },
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("echo oh no >&2; exit 3", "status 3: oh no"),
        ("echo nonsense", "no ExecCredential"),
        (
            'echo \'{"apiVersion": "client.authentication.k8s.io/v1beta1", "status": {"token": "t"}}\'',
            "speaks .*v1beta1",
        ),
        ("echo '{\"status\": {}}'", "neither a token nor a certificate"),
    ],
)
def test_a_plugin_that_fails_is_explained(tmp_path: Path, text: str, expected: str) -> None:
    user = {"exec": {"command": plugin(tmp_path, text)}}
    cluster = load_kubeconfig(kubeconfig(tmp_path, {"server": "http://x"}, user))
    with pytest.raises(CredentialError, match=expected):
        headers(cluster.identity)


def test_certificates_from_data_and_files_and_their_rotation(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    certificate, key = pair
    mine, my_key = tmp_path / "crt", tmp_path / "key"
    mine.write_bytes(certificate.read_bytes())
    my_key.write_bytes(key.read_bytes())

    async def scenario() -> None:
        by_data = Identity(certificate=certificate.read_bytes(), key=key.read_bytes())
        _, context = await Credentials(by_data, Trust(authority=certificate.read_bytes()), tls=True).current()
        assert context is not None
        assert context.verify_mode is ssl.CERT_REQUIRED
        credentials = Credentials(Identity(certificate_file=str(mine), key_file=str(my_key)), Trust(), tls=True)
        _, first = await credentials.current()
        _, second = await credentials.current()
        assert first is second
        os.utime(mine, (1, 1))
        _, third = await credentials.current()
        assert third is not first, "a rotated certificate makes a new context"
        mine.unlink()
        _, fourth = await credentials.current()
        assert fourth is third, "in the middle of a rotation the old one still works"
        _, insecure = await Credentials(Identity(), Trust(insecure=True), tls=True).current()
        assert insecure is not None
        assert insecure.verify_mode is ssl.CERT_NONE
        with pytest.raises(CredentialError, match=r"TLS certificates .*: client certificate and key: "):
            await Credentials(Identity(certificate=b"x", key=b"y"), Trust(), tls=True).current()
        nowhere = Trust(authority_file="/nowhere/ca.crt")
        with pytest.raises(CredentialError, match=r"certificate-authority /nowhere/ca\.crt: No such file"):
            await Credentials(Identity(), nowhere, tls=True).current()

    asyncio.run(scenario())


def test_a_server_that_wants_certificates(pair: tuple[Path, Path]) -> None:
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pair[0]))
    server_side.load_cert_chain(*pair)
    server_side.verify_mode = ssl.CERT_REQUIRED
    trust, who = Trust(authority=CERTIFICATE), Identity(certificate=CERTIFICATE, key=KEY)
    named: list[str | None] = []
    server_side.sni_callback = lambda _, name, __: named.append(name)

    async def get(url: str, identity: Identity, trust: Trust, name: str = "") -> bytes:
        api = Api(Cluster(url, identity, trust, tls_server_name=name))
        try:
            return await api.get("/api/v1/services", {})
        finally:
            await api.close()

    with ApiServer(tls=server_side) as server:
        assert b"ServiceList" in asyncio.run(get(server.url, who, trust))
        assert b"ServiceList" in asyncio.run(get(server.url, who, Trust(insecure=True), "kubernetes"))
        assert named[-1] == "kubernetes", "which one is meant of those behind one address"
        for identity, believed, name in ((Identity(), trust, ""), (who, Trust(), ""), (who, trust, "other.example")):
            with pytest.raises(ApiError):
                asyncio.run(get(server.url, identity, believed, name))


def complaint(url: str) -> str:
    """The error message when a server cannot be asked."""

    async def ask() -> str:
        api = Api(Cluster(url))
        try:
            with pytest.raises(ApiError) as raised:
                await api.get("/version", {})
            return str(raised.value)
        finally:
            await api.close()

    return asyncio.run(ask())


def test_a_server_that_cannot_be_reached_is_named_in_few_words(pair: tuple[Path, Path]) -> None:
    with closed_port() as port:
        url = f"https://127.0.0.1:{port}"
        assert complaint(url) == f"{url}/version: cannot connect: Connect call failed ('127.0.0.1', {port})"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*pair)
    with ApiServer(tls=context) as server:
        message = complaint(server.url)
    assert message == (
        f"{server.url}/version: cannot connect: the server's certificate does not do: self-signed certificate; "
        "it was verified by the system's authorities"
    )
