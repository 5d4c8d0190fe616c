"""Client of a Kubernetes API server over HTTP: get, post, patch and streams, with credentials and timeouts."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec

from ctl.sources.credentials import Credentials
from ctl.sources.kubeconfig import Cluster
from dataplane.errors import HotplaneError
from dataplane.malformed import MALFORMED

CONNECT_SECONDS = 10.0
READ_SECONDS = 60.0
"""Silence that ends a request in the middle of its answer, except for a watch."""

MOST_WAIT_SECONDS = 3600.0
"""Longest wait that a server may ask for."""

USER_AGENT = "hotplane"


class ApiError(HotplaneError):
    """The API server could not be reached, or its answer was malformed; the request may be retried later."""


class ApiStatus(ApiError):
    """The API server refused: `code` is the HTTP status (or that of a watch's ERROR event), `reason` its reason.

    retry_after: seconds that the server asks to wait, 0 if it names none.
    """

    def __init__(self, code: int, reason: str, message: str, retry_after: float = 0.0) -> None:
        super().__init__(f"{code} {reason}: {message}" if reason else f"{code}: {message}")
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_after = retry_after


class Status(msgspec.Struct):
    """meta/v1 Status, as in refusals and ERROR events."""

    code: int = 0
    reason: str = ""
    message: str = ""


def parse_status(body: bytes | msgspec.Raw, code: int) -> ApiStatus:
    """Make the error for a refusal from its body; if that is no Status, its beginning is the message."""
    try:
        status = msgspec.json.decode(body, type=Status)
    except MALFORMED:
        return ApiStatus(code, "", bytes(body)[:200].decode(errors="replace").strip())
    return ApiStatus(status.code or code, status.reason, status.message)


def _keep_alive(info: Any) -> socket.socket:
    """Make a socket that detects a dead peer within a minute, even on a quiet watch."""
    family, kind, protocol, _, _ = info
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 50_000)
    return sock


class Api:
    """One API server. Open and use it in one event loop; `close` ends all its requests."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._credentials = Credentials(cluster.identity, cluster.trust, tls=cluster.url.startswith("https://"))
        self._session: aiohttp.ClientSession | None = None
        self._back = asyncio.Event()

    def recovered(self) -> None:
        """Report that a failed request works again: ends the waits in `recovery`."""
        self._back.set()
        self._back = asyncio.Event()

    async def recovery(self, seconds: float) -> bool:
        """Wait, at most until the API server is back; true if it is."""
        try:
            async with asyncio.timeout(seconds):
                await self._back.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """End all requests; the object may be used again."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, path: str, params: Mapping[str, str]) -> bytes:
        """Return the body of a successful answer. Raises ApiStatus for a refusal, ApiError if there was no answer."""
        async with self._request("GET", path, params, None, READ_SECONDS) as answer:
            return await answer.read()

    async def post(self, path: str, body: bytes) -> None:
        """Create an object. Raises as `get`."""
        async with self._request("POST", path, {}, body, READ_SECONDS) as answer:
            await answer.read()

    async def patch(self, path: str, body: bytes) -> None:
        """Change an object by a merge patch. Raises as `get`."""
        async with self._request("PATCH", path, {}, body, READ_SECONDS) as answer:
            await answer.read()

    @asynccontextmanager
    async def stream(self, path: str, params: Mapping[str, str]) -> AsyncIterator[AsyncIterator[bytes]]:
        """Yield chunks of an answer as they arrive; the caller limits the wait for the next one.

        Raises ApiStatus for a refusal, ApiError when the stream breaks.
        """
        try:
            async with asyncio.timeout(READ_SECONDS) as limit:
                async with self._request("GET", path, params, None, None) as answer:
                    limit.reschedule(None)
                    yield answer.content.iter_any()
        except TimeoutError as error:
            raise ApiError(f"{self.cluster.url}{path}: no answer in time") from error

    @asynccontextmanager
    async def _request(
        self, method: str, path: str, params: Mapping[str, str], body: bytes | None, silence: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send one request. silence: longest wait within the answer, None: the caller limits it."""
        headers, context = await self._credentials.current()
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
        cluster = self.cluster
        try:
            async with self._open().request(
                method, cluster.url + path, params=params, data=body, headers=headers,
                ssl=context if context is not None else True,
                server_hostname=cluster.tls_server_name or None,
                proxy=cluster.proxy_url or None,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_SECONDS, sock_read=silence),
            ) as answer:  # fmt: skip
                if answer.status >= 400:
                    await self._refuse(answer)
                yield answer
        except TimeoutError as error:
            raise ApiError(f"{cluster.url}{path}: no answer in time") from error
        except aiohttp.ClientConnectorCertificateError as error:
            raise ApiError(f"{cluster.url}{path}: cannot connect: {self._distrust(error)}") from error
        except aiohttp.ClientConnectorError as error:
            reason = error.os_error.strerror or error.os_error
            raise ApiError(f"{cluster.url}{path}: cannot connect: {reason}") from error
        except aiohttp.ClientPayloadError as error:
            raise ApiError(f"{cluster.url}{path}: the connection was cut in the middle of an answer") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise ApiError(f"{cluster.url}{path}: {error or type(error).__name__}") from error

    async def _refuse(self, answer: aiohttp.ClientResponse) -> None:
        refusal = parse_status(await answer.read(), answer.status)
        if answer.status == 401:
            self._credentials.refused()
            said = f"{refusal.message}; the API server does not accept {self._credentials.presented}"
            refusal = ApiStatus(401, refusal.reason, said)
        refusal.code = answer.status
        wait = answer.headers.get("Retry-After", "")
        refusal.retry_after = min(float(wait), MOST_WAIT_SECONDS) if wait.isdecimal() else 0.0
        raise refusal

    def _distrust(self, error: aiohttp.ClientConnectorCertificateError) -> str:
        """Why the server's certificate does not do, and what it was verified by."""
        why = getattr(error.certificate_error, "verify_message", "") or error.certificate_error
        return f"the server's certificate does not do: {why}; it was verified by {self._credentials.trusted}"

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, socket_factory=_keep_alive),
                headers={"Accept": "application/json", "Accept-Encoding": "gzip", "User-Agent": USER_AGENT},
                read_bufsize=1 << 18,
            )
        return self._session
