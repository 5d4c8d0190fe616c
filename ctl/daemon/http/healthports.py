"""Health-check node ports: a load balancer asks them whether this node has endpoints of a Service (KEP-1860's ports).

One HTTP server behind all ports: thousands of listening sockets, one event loop, no thread.
"""

import json
from collections.abc import Callable, Mapping

from aiohttp.web_request import BaseRequest
from aiohttp.web_response import StreamResponse

from ctl.daemon.http.guard import Guard
from ctl.daemon.http.health import Health
from ctl.daemon.http.web import NOSNIFF, NOT_FOUND, Listener, Reply, Site
from ctl.daemon.log import Log
from ctl.daemon.node import descriptors
from dataplane.model.objects import ObjectRef
from dataplane.plan.types import HealthCheck
from dataplane.policy.node import NodePortAddresses


class HealthPorts:
    """The open health-check ports and their answers. refused: called with the check and the reason of a port that
    cannot be opened. guard: bounds connections."""

    def __init__(self, health: Health, log: Log, refused: Callable[[HealthCheck, str], None], guard: Guard) -> None:
        self._health, self._log, self._refused = health, log, refused
        self._site = Site(self._answer, guard)
        self._hosts: tuple[str, ...] = ()
        self._checks: dict[int, HealthCheck] = {}
        self._servers: dict[int, list[Listener]] = {}
        self._complained: dict[int, HealthCheck] = {}

    def update(self, checks: Mapping[tuple[str, str], HealthCheck], addresses: NodePortAddresses) -> None:
        """Serve exactly these; if two Services claim one port, the first by namespace and name gets it.

        A port that cannot be opened is reported once and tried again at the next call.
        """
        hosts = ("::",) if addresses.any_local else addresses.addresses
        if hosts != self._hosts:
            self._close(list(self._servers))
            self._hosts = hosts
        wanted: dict[int, HealthCheck] = {}
        for check in sorted(checks.values()):
            wanted.setdefault(check.port, check)
        self._close([port for port in self._servers if port not in wanted])
        self._checks = wanted
        missing = [check for port, check in wanted.items() if port not in self._servers]
        room = descriptors.room() if missing else 0
        for check in missing:
            if room < len(self._hosts):
                self._complain(check, f"of this process's {descriptors.limit()} descriptors none is left for it")
            elif self._open(check):
                room -= len(self._hosts)

    async def close(self) -> None:
        """Close all ports."""
        self._close(list(self._servers))
        await self._site.close()

    def _close(self, ports: list[int]) -> None:
        for port in ports:
            for server in self._servers.pop(port):
                server.close()

    def _complain(self, check: HealthCheck, why: str) -> None:
        if self._complained.get(check.port) != check:
            self._complained[check.port] = check
            self._refused(check, f"port {check.port} cannot be opened: {why}")

    def _open(self, check: HealthCheck) -> bool:
        opened: list[Listener] = []
        try:
            for host in self._hosts:
                opened.append(self._site.open(host, check.port))
        except OSError as error:
            for server in opened:
                server.close()
            self._complain(check, error.strerror or str(error))
            return False
        if self._complained.pop(check.port, None) is not None:
            ref = ObjectRef("Service", check.namespace, check.name)
            self._log.info("the health-check port is open now", object=ref, port=check.port)
        self._servers[check.port] = opened
        return True

    async def _answer(self, request: BaseRequest) -> StreamResponse:
        transport = request.transport
        check = self._checks.get(transport.get_extra_info("sockname")[1]) if transport is not None else None
        if check is None:
            return Reply(status=404, text=NOT_FOUND)
        healthy = self._health.healthy()
        return Reply(
            status=200 if check.weight and healthy else 503,
            body=_body(check, healthy).encode(),
            content_type="application/json",
            headers={**NOSNIFF, "X-Load-Balancing-Endpoint-Weight": str(check.weight)},
        )


def _body(check: HealthCheck, healthy: bool) -> str:
    """JSON in kube-proxy's own layout, for probes that compare text: tabs inside `service` alone, no last newline."""
    return "\n".join(
        (
            "{",
            '"service": {',
            f'\t"namespace": {json.dumps(check.namespace)},',
            f'\t"name": {json.dumps(check.name)}',
            "},",
            f'"localEndpoints": {check.local_endpoints},',
            f'"serviceProxyHealthy": {json.dumps(healthy)}',
            "}",
        )
    )
