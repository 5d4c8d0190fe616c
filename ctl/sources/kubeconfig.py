"""The API server and the credentials for it: from a kubeconfig, a pod's service account, or a URL."""

import base64
import binascii
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from ctl.sources.credentials import EXEC_VERSIONS, ExecSpec, Identity, Trust
from ctl.sources.manifests import SourceError
from dataplane.model.decode import explain_type
from dataplane.model.net import host_port

_CLUSTER_INFO = (
    "server", "tls-server-name", "insecure-skip-tls-verify", "certificate-authority-data", "proxy-url",
    "disable-compression",
)  # fmt: skip
SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")


class Cluster(msgspec.Struct, frozen=True):
    """An API server. url has no trailing slash; tls_server_name and proxy_url are "" when not given."""

    url: str
    identity: Identity = Identity()
    trust: Trust = Trust()
    tls_server_name: str = ""
    proxy_url: str = ""


def find_cluster(kubeconfig: str, master: str, *, token_over_http: bool = False) -> Cluster:
    """The API server that the options name; with neither, that of the pod we run in. Raises SourceError.

    As in kube-proxy, `master` overrides the address in a kubeconfig. token_over_http: a token, or whatever else proves
    who we are, may be sent where everybody on the way can read it.
    """
    if kubeconfig:
        cluster = load_kubeconfig(kubeconfig)
        cluster = msgspec.structs.replace(cluster, url=_url(master)) if master else cluster
    else:
        cluster = Cluster(_url(master)) if master else in_cluster()
    if cluster.url.startswith("http://") and cluster.identity != Identity() and not token_over_http:
        raise SourceError(
            f"{cluster.url}: the credentials of {kubeconfig or 'this pod'} would be sent unencrypted; write https://, "
            "or say --token-over-http if that is meant"
        )
    return cluster


def in_cluster(account: Path = SERVICE_ACCOUNT) -> Cluster:
    """The API server of the cluster whose pod this process runs in. Raises SourceError outside of one."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
    if not (port.isascii() and port.isdecimal() and len(port) <= 5):
        raise SourceError(f"KUBERNETES_SERVICE_PORT is {port[:20]!r}, not a port; the kubelet sets it")
    token = account / "token"
    if not host or not token.exists():
        raise SourceError(
            "no API server was named and this is no pod with a service account; give --kubeconfig FILE, --master URL, "
            "or -f DIR for a directory of manifests"
        )
    return Cluster(
        f"https://{host_port(host, int(port))}",
        Identity(token_file=str(token)),
        Trust(authority_file=str(account / "ca.crt")),
    )


def load_kubeconfig(path: str) -> Cluster:
    """The current context of a kubeconfig. Raises SourceError naming the field that is missing or malformed."""
    document = _read(path)
    if not document.current_context:
        raise SourceError(f"{path}: current-context is not set; kubectl config use-context NAME sets it")
    context = _named(path, "contexts", document.contexts, document.current_context).context
    cluster = _named(path, "clusters", document.clusters, context.cluster).cluster
    user = _named(path, "users", document.users, context.user).user if context.user else _User()
    return _Reader(path).cluster(cluster, user)


def _url(text: str) -> str:
    """An API server's URL; an address alone gets https: only who writes http:// gets that. Raises SourceError."""
    url = text if "://" in text else f"https://{text}"
    if not url.startswith(("http://", "https://")) or not url.isprintable():
        raise SourceError(f"{text!r}: an API server's URL starts with https:// or http://")
    return url.rstrip("/")


class _Section(msgspec.Struct, rename=lambda name: name.replace("_", "-")):
    """Base of a kubeconfig's parts (k8s.io/client-go, tools/clientcmd/api/v1); other fields are passed over."""


class _Extension(_Section):
    name: str = ""
    extension: Any = None


class _Cluster(_Section):
    server: str = ""
    tls_server_name: str = ""
    insecure_skip_tls_verify: bool = False
    certificate_authority: str = ""
    certificate_authority_data: str = ""
    proxy_url: str = ""
    disable_compression: bool = False
    extensions: list[_Extension] = []


class _Variable(_Section):
    name: str
    value: str = ""


class _Exec(msgspec.Struct, rename="camel"):
    command: str = ""
    args: list[str] = []
    env: list[_Variable] = []
    api_version: str = EXEC_VERSIONS[0]
    provide_cluster_info: bool = False
    interactive_mode: str = ""


class _User(_Section):
    token: str = ""
    token_file: str = msgspec.field(default="", name="tokenFile")
    username: str = ""
    password: str = ""
    client_certificate: str = ""
    client_certificate_data: str = ""
    client_key: str = ""
    client_key_data: str = ""
    exec: _Exec | None = None
    auth_provider: Any = None


class _Context(_Section):
    cluster: str = ""
    user: str = ""


class _NamedCluster(_Section):
    name: str
    cluster: _Cluster = msgspec.field(default_factory=_Cluster)


class _NamedUser(_Section):
    name: str
    user: _User = msgspec.field(default_factory=_User)


class _NamedContext(_Section):
    name: str
    context: _Context = msgspec.field(default_factory=_Context)


class _Kubeconfig(_Section):
    current_context: str = ""
    clusters: list[_NamedCluster] = []
    users: list[_NamedUser] = []
    contexts: list[_NamedContext] = []


class _Item(Protocol):
    name: str


_T = TypeVar("_T", bound=_Item)


def _read(path: str) -> _Kubeconfig:
    """The file's one document, types checked. Raises SourceError."""
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        message = getattr(error, "strerror", error)
        raise SourceError(f"{path}: cannot be read: {message}; check --kubeconfig") from error
    from dataplane.model.yamlload import documents, without_nulls

    found = list(documents(data.removeprefix(b"\xef\xbb\xbf")))
    for each in found:
        if each.error:
            raise SourceError(f"{path}: is not valid YAML: {each.error}")
    if len(found) != 1 or not isinstance(found[0].value, dict):
        raise SourceError(f"{path}: is not a kubeconfig; it must be a mapping with clusters, users and contexts")
    try:
        return msgspec.convert(without_nulls(found[0].value), _Kubeconfig)
    except msgspec.ValidationError as error:
        field, reason = explain_type(str(error))
        raise SourceError(f"{path}: {field}: {reason}" if field else f"{path}: {reason}") from error


def _named(path: str, section: str, items: Sequence[_T], name: str) -> _T:
    """The item of a named list (clusters, users, contexts). Raises SourceError."""
    for item in items:
        if item.name == name:
            return item
    raise SourceError(f"{path}: {section} has no {name!r}")


class _Reader:
    """Converts a kubeconfig's parts to the model's values."""

    def __init__(self, path: str) -> None:
        self._path = path

    def cluster(self, cluster: _Cluster, user: _User) -> Cluster:
        if not cluster.server:
            raise SourceError(f"{self._path}: the cluster has no server")
        if user.auth_provider:
            raise SourceError(f"{self._path}: the user's auth-provider is no longer supported; use exec or a token")
        return Cluster(
            _url(cluster.server),
            self._identity(cluster, user),
            Trust(
                self._data(cluster.certificate_authority_data, "certificate-authority-data"),
                self._file(cluster.certificate_authority),
                cluster.insecure_skip_tls_verify,
            ),
            cluster.tls_server_name,
            cluster.proxy_url,
        )

    def _identity(self, cluster: _Cluster, user: _User) -> Identity:
        return Identity(
            token=user.token,
            token_file=self._file(user.token_file),
            username=user.username,
            password=user.password,
            certificate=self._data(user.client_certificate_data, "client-certificate-data"),
            certificate_file=self._file(user.client_certificate),
            key=self._data(user.client_key_data, "client-key-data"),
            key_file=self._file(user.client_key),
            plugin=self._plugin(cluster, user.exec) if user.exec is not None else None,
        )

    def _plugin(self, cluster: _Cluster, spec: _Exec) -> ExecSpec:
        if not spec.command:
            raise SourceError(f"{self._path}: the user's exec has no command")
        if spec.interactive_mode == "Always":
            raise SourceError(f"{self._path}: the user's exec plugin is interactive; a daemon has nobody to ask")
        if spec.api_version not in EXEC_VERSIONS:
            raise SourceError(
                f"{self._path}: the user's exec speaks {spec.api_version}; it must be {' or '.join(EXEC_VERSIONS)}"
            )
        return ExecSpec(
            command=spec.command,
            args=tuple(spec.args),
            env=tuple((item.name, item.value) for item in spec.env),
            api_version=spec.api_version,
            cluster=self._cluster_info(cluster) if spec.provide_cluster_info else None,
            base=str(Path(self._path).parent),
        )

    def _cluster_info(self, cluster: _Cluster) -> dict[str, Any]:
        """The Cluster of an ExecCredential: the authority always as data, and of the extensions only the plugin's own
        (client.authentication.k8s.io/v1)."""
        given = msgspec.to_builtins(cluster)
        info = {name: given[name] for name in _CLUSTER_INFO if given[name]}
        authority = self._file(cluster.certificate_authority)
        if authority and "certificate-authority-data" not in info:
            try:
                info["certificate-authority-data"] = base64.b64encode(Path(authority).read_bytes()).decode()
            except (OSError, ValueError) as error:
                message = getattr(error, "strerror", error)
                raise SourceError(f"{authority}: cannot be read: {message}; {self._path} names it") from error
        for item in cluster.extensions:
            if item.name == "client.authentication.k8s.io/exec":
                info["config"] = item.extension
        return info

    def _file(self, value: str) -> str:
        """A path, relative to the kubeconfig's folder."""
        return str(Path(self._path).parent / value) if value else ""

    def _data(self, text: str, field: str) -> bytes:
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise SourceError(f"{self._path}: {field}: is not base64: {error}") from error
