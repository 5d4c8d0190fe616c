"""Which API server, and who we are to it: from a kubeconfig, from a pod's service account, or from a bare URL."""

import base64
import binascii
import os
from pathlib import Path
from typing import Any

import msgspec
import yaml

from ctl.sources.credentials import EXEC_VERSIONS, ExecSpec, Identity, Trust
from ctl.sources.manifests import SourceError
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


def find_cluster(kubeconfig: str, master: str) -> Cluster:
    """The API server that the options name; with neither, that of the pod we run in. Raises SourceError.

    As in kube-proxy, `master` overrides the address in a kubeconfig.
    """
    if kubeconfig:
        cluster = load_kubeconfig(kubeconfig)
        return msgspec.structs.replace(cluster, url=_url(master)) if master else cluster
    if master:
        return Cluster(_url(master))
    return in_cluster()


def in_cluster(account: Path = SERVICE_ACCOUNT) -> Cluster:
    """The API server of the cluster whose pod this process runs in. Raises SourceError outside of one."""
    host, port = os.environ.get("KUBERNETES_SERVICE_HOST", ""), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
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
    """The current context of a kubeconfig. Raises SourceError naming what is missing."""
    try:
        document = yaml.safe_load(Path(path).read_bytes())
    except OSError as error:
        raise SourceError(f"{path}: cannot be read: {error.strerror}; check --kubeconfig") from error
    except yaml.YAMLError as error:
        raise SourceError(f"{path}: is not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise SourceError(f"{path}: is not a kubeconfig; it must be a mapping with clusters, users and contexts")
    reader = _Reader(path, document)
    name = str(document.get("current-context") or "")
    if not name:
        raise SourceError(f"{path}: current-context is not set; kubectl config use-context NAME sets it")
    context = reader.named("contexts", name, "context")
    cluster = reader.named("clusters", str(context.get("cluster") or ""), "cluster")
    user = reader.named("users", str(context["user"]), "user") if context.get("user") else {}
    return reader.cluster(cluster, user)


def _url(text: str) -> str:
    """An API server's URL; an address alone gets http, as in client-go. Raises SourceError."""
    url = text if "://" in text else f"http://{text}"
    if not url.startswith(("http://", "https://")):
        raise SourceError(f"{text}: an API server's URL starts with http:// or https://")
    return url.rstrip("/")


class _Reader:
    def __init__(self, path: str, document: dict[str, Any]) -> None:
        self._path = path
        self._document = document

    def named(self, section: str, name: str, key: str) -> dict[str, Any]:
        """The item of a named list (clusters, users, contexts)."""
        for item in self._document.get(section) or ():
            if isinstance(item, dict) and item.get("name") == name:
                value = item.get(key) or {}
                if isinstance(value, dict):
                    return value
        raise SourceError(f"{self._path}: {section} has no {name!r}")

    def cluster(self, cluster: dict[str, Any], user: dict[str, Any]) -> Cluster:
        if not cluster.get("server"):
            raise SourceError(f"{self._path}: the cluster has no server")
        if user.get("auth-provider"):
            raise SourceError(f"{self._path}: the user's auth-provider is no longer supported; use exec or a token")
        return Cluster(
            _url(str(cluster["server"])),
            self._identity(cluster, user),
            Trust(
                self._data(cluster, "certificate-authority-data"),
                self._file(cluster, "certificate-authority"),
                bool(cluster.get("insecure-skip-tls-verify")),
            ),
            str(cluster.get("tls-server-name") or ""),
            str(cluster.get("proxy-url") or ""),
        )

    def _identity(self, cluster: dict[str, Any], user: dict[str, Any]) -> Identity:
        return Identity(
            token=str(user.get("token") or ""),
            token_file=self._file(user, "tokenFile"),
            username=str(user.get("username") or ""),
            password=str(user.get("password") or ""),
            certificate=self._data(user, "client-certificate-data"),
            certificate_file=self._file(user, "client-certificate"),
            key=self._data(user, "client-key-data"),
            key_file=self._file(user, "client-key"),
            plugin=self._plugin(cluster, user["exec"]) if user.get("exec") else None,
        )

    def _plugin(self, cluster: dict[str, Any], spec: dict[str, Any]) -> ExecSpec:
        if not spec.get("command"):
            raise SourceError(f"{self._path}: the user's exec has no command")
        if spec.get("interactiveMode") == "Always":
            raise SourceError(f"{self._path}: the user's exec plugin is interactive; a daemon has nobody to ask")
        version = str(spec.get("apiVersion") or EXEC_VERSIONS[0])
        if version not in EXEC_VERSIONS:
            raise SourceError(
                f"{self._path}: the user's exec speaks {version}; it must be {' or '.join(EXEC_VERSIONS)}"
            )
        return ExecSpec(
            command=str(spec["command"]),
            args=tuple(map(str, spec.get("args") or ())),
            env=tuple((str(item["name"]), str(item.get("value", ""))) for item in spec.get("env") or ()),
            api_version=version,
            cluster=self._cluster_info(cluster) if spec.get("provideClusterInfo") else None,
            base=str(Path(self._path).parent),
        )

    def _cluster_info(self, cluster: dict[str, Any]) -> dict[str, Any]:
        """The Cluster of an ExecCredential: the authority always as data, and of the extensions only the plugin's own
        (client.authentication.k8s.io/v1)."""
        info = {name: cluster[name] for name in _CLUSTER_INFO if name in cluster}
        authority = self._file(cluster, "certificate-authority")
        if authority and "certificate-authority-data" not in info:
            try:
                info["certificate-authority-data"] = base64.b64encode(Path(authority).read_bytes()).decode()
            except OSError as error:
                raise SourceError(f"{authority}: cannot be read: {error.strerror}; {self._path} names it") from error
        for item in cluster.get("extensions") or ():
            if item.get("name") == "client.authentication.k8s.io/exec":
                info["config"] = item.get("extension")
        return info

    def _file(self, section: dict[str, Any], field: str) -> str:
        """A path, relative to the kubeconfig's folder."""
        value = section.get(field)
        return str(Path(self._path).parent / str(value)) if value else ""

    def _data(self, section: dict[str, Any], field: str) -> bytes:
        try:
            return base64.b64decode(section.get(field) or "", validate=True)
        except (binascii.Error, ValueError) as error:
            raise SourceError(f"{self._path}: {field}: is not base64: {error}") from error
