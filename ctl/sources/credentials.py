"""Credentials for an API server: TLS material and request headers, renewed when their sources change."""

import asyncio
import base64
import os
import ssl
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from dataplane.errors import HotplaneError
from dataplane.malformed import MALFORMED

TOKEN_SECONDS = 60.0
"""How long a token that was read from a file is used before the file is read again (client-go's period)."""

EXEC_SECONDS = 60.0
_EARLY_SECONDS = 10.0
EXEC_VERSIONS = ("client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1")


class CredentialError(HotplaneError):
    """Credentials cannot be obtained; the text names their source."""


class ExecSpec(msgspec.Struct, frozen=True):
    """A credential plugin, as a kubeconfig's user.exec names it. `base` is the folder of the kubeconfig."""

    command: str
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    api_version: str = EXEC_VERSIONS[0]
    cluster: dict[str, Any] | None = None
    base: str = ""


class Identity(msgspec.Struct, frozen=True):
    """Where credentials come from; data in PEM bytes, files by path, any of them empty."""

    token: str = ""
    token_file: str = ""
    username: str = ""
    password: str = ""
    certificate: bytes = b""
    certificate_file: str = ""
    key: bytes = b""
    key_file: str = ""
    plugin: ExecSpec | None = None


class Trust(msgspec.Struct, frozen=True):
    """Authorities that verify the API server. None at all means the system's own."""

    authority: bytes = b""
    authority_file: str = ""
    insecure: bool = False


class _ExecStatus(msgspec.Struct, rename="camel"):
    token: str = ""
    client_certificate_data: str = ""
    client_key_data: str = ""
    expiration_timestamp: str | None = None


class _ExecCredential(msgspec.Struct, rename="camel"):
    api_version: str = ""
    status: _ExecStatus | None = None


class Credentials:
    """Keeps one identity usable: token files are read again, certificates too, plugins run again when they expire."""

    def __init__(self, identity: Identity, trust: Trust, *, tls: bool) -> None:
        self._identity = identity
        self._trust = trust
        self._tls = tls
        self._context: ssl.SSLContext | None = None
        self._stamps: tuple[tuple[str, int], ...] = ()
        self._token = ""
        self._token_until = 0.0
        self._exec: _ExecStatus | None = None
        self._exec_until = 0.0
        self._lock = asyncio.Lock()

    async def current(self) -> tuple[dict[str, str], ssl.SSLContext | None]:
        """Headers and TLS context for a request now (None: no TLS). Raises CredentialError."""
        async with self._lock:
            if self._identity.plugin is not None and time.time() >= self._exec_until:
                await self._run_plugin(self._identity.plugin)
            headers = self._headers()
            return headers, self._tls_context() if self._tls else None

    def refused(self) -> None:
        """The API server did not accept them (401): get fresh ones for the next request."""
        self._token_until = 0.0
        self._exec_until = 0.0

    def _headers(self) -> dict[str, str]:
        who = self._identity
        if self._exec is not None and self._exec.token:
            return {"Authorization": f"Bearer {self._exec.token}"}
        if who.token_file:
            return {"Authorization": f"Bearer {self._file_token()}"}
        if who.token:
            return {"Authorization": f"Bearer {who.token}"}
        if who.username:
            pair = base64.b64encode(f"{who.username}:{who.password}".encode()).decode()
            return {"Authorization": f"Basic {pair}"}
        return {}

    def _file_token(self) -> str:
        if time.monotonic() >= self._token_until:
            try:
                token = Path(self._identity.token_file).read_text(encoding="utf-8").strip()
            except (OSError, ValueError) as error:  # ValueError: not UTF-8, or no path
                if not self._token:
                    raise CredentialError(
                        f"{self._identity.token_file}: the token cannot be read: {getattr(error, 'strerror', error)}"
                    ) from error
                token = self._token  # a file that is away for a moment does not end a working session
            self._token = token
            self._token_until = time.monotonic() + TOKEN_SECONDS
        return self._token

    def _tls_context(self) -> ssl.SSLContext:
        stamps = self._file_stamps()
        if self._context is None or stamps != self._stamps:
            self._context, self._stamps = self._make_context(), stamps
        return self._context

    def _file_stamps(self) -> tuple[tuple[str, int], ...]:
        """Files of the TLS material with their times: a new time means that they were rotated."""
        paths = (self._trust.authority_file, self._identity.certificate_file, self._identity.key_file)
        stamps = []
        for path in filter(None, paths):
            try:
                stamps.append((path, os.stat(path).st_mtime_ns))
            except (OSError, ValueError):
                if self._context is not None:
                    return self._stamps  # in the middle of a rotation; what is loaded still works
                stamps.append((path, 0))
        return tuple(stamps)

    @property
    def presented(self) -> str:
        """What says who this client is, in words, for who has to mend it."""
        who = self._identity
        if who.plugin is not None:
            return f"what the plugin {who.plugin.command} gave"
        if who.token_file:
            return f"the token of {who.token_file}"
        if who.token or who.username:
            return "the kubeconfig's token" if who.token else f"user {who.username} with its password"
        return "the client certificate" if who.certificate or who.certificate_file else "a request without credentials"

    @property
    def trusted(self) -> str:
        """What the server's certificate is verified by, in words."""
        if self._trust.authority_file:
            return f"certificate-authority {self._trust.authority_file}"
        return "certificate-authority-data" if self._trust.authority else "the system's authorities"

    def _make_context(self) -> ssl.SSLContext:
        trust, who = self._trust, self._identity
        what = self.trusted
        try:
            context = ssl.create_default_context(
                cafile=trust.authority_file or None,
                cadata=trust.authority.decode() if trust.authority else None,
            )
            if trust.insecure:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            certificate, key = who.certificate, who.key
            if self._exec is not None and self._exec.client_certificate_data:
                certificate, key = self._exec.client_certificate_data.encode(), self._exec.client_key_data.encode()
            if certificate or who.certificate_file:
                what = f"client certificate and key {who.certificate_file} {who.key_file}".strip()
                _load_pair(context, certificate, who.certificate_file, key, who.key_file)
        except (OSError, ValueError, TypeError) as error:  # ssl.SSLError is an OSError
            why = getattr(error, "strerror", None) or error
            raise CredentialError(f"the TLS certificates of the kubeconfig cannot be used: {what}: {why}") from error
        return context

    async def _run_plugin(self, spec: ExecSpec) -> None:
        status = await _plugin_status(spec)
        self._exec = status
        self._context = None
        self._exec_until = float("inf")
        if status.expiration_timestamp:
            self._exec_until = _seconds(spec.command, status.expiration_timestamp) - _EARLY_SECONDS


def _seconds(command: str, text: str) -> float:
    """Seconds since the epoch of an RFC 3339 time. Raises CredentialError."""
    try:
        time_ = datetime.fromisoformat(text.replace("Z", "+00:00"))
        return (time_ if time_.tzinfo else time_.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError) as error:
        raise CredentialError(
            f"{command}: the credential plugin's status.expirationTimestamp is {text[:40]!r}, not a time (RFC 3339)"
        ) from error


def _load_pair(context: ssl.SSLContext, certificate: bytes, certificate_file: str, key: bytes, key_file: str) -> None:
    """Load a client certificate; OpenSSL only reads files, so data goes through one that nobody else can read."""
    with tempfile.NamedTemporaryFile() as certificate_copy, tempfile.NamedTemporaryFile() as key_copy:
        for copy, data in ((certificate_copy, certificate), (key_copy, key)):
            copy.write(data)
            copy.flush()
        context.load_cert_chain(
            certificate_copy.name if certificate else certificate_file, key_copy.name if key else key_file or None
        )


async def _plugin_status(spec: ExecSpec) -> _ExecStatus:
    """Run a credential plugin once. Raises CredentialError."""
    command = spec.command
    if "/" in command and not command.startswith("/"):
        command = str(Path(spec.base) / command)
    info: dict[str, Any] = {"interactive": False}
    if spec.cluster is not None:
        info["cluster"] = spec.cluster
    request = {"apiVersion": spec.api_version, "kind": "ExecCredential", "spec": info}
    env: Mapping[str, str] = {
        **os.environ,
        **dict(spec.env),
        "KUBERNETES_EXEC_INFO": msgspec.json.encode(request).decode(),
    }
    try:
        process = await asyncio.create_subprocess_exec(
            command, *spec.args, env=env, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except (OSError, ValueError) as error:  # ValueError: a NUL in a word of it
        message = getattr(error, "strerror", error)
        raise CredentialError(f"{command}: the credential plugin cannot be run: {message}") from error
    try:
        async with asyncio.timeout(EXEC_SECONDS):
            output, errors = await process.communicate()
    except TimeoutError as error:
        process.kill()
        await process.wait()
        raise CredentialError(f"{command}: the credential plugin did not end within {EXEC_SECONDS:.0f} s") from error
    if process.returncode:
        message = errors.decode(errors="replace").strip()[-300:]
        raise CredentialError(f"{command}: the credential plugin failed with status {process.returncode}: {message}")
    try:
        found = msgspec.json.decode(output, type=_ExecCredential)
    except MALFORMED as error:
        raise CredentialError(f"{command}: the credential plugin printed no ExecCredential: {error}") from error
    if found.api_version and found.api_version != spec.api_version:
        raise CredentialError(
            f"{command}: the credential plugin speaks {found.api_version}, and the kubeconfig says {spec.api_version}"
        )
    if found.status is None or not (found.status.token or found.status.client_certificate_data):
        raise CredentialError(f"{command}: the credential plugin gave neither a token nor a certificate")
    return found.status
