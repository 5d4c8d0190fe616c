"""Tells the log when the proxy becomes unhealthy, and when it is healthy again."""

import time

from ctl.daemon.http.health import Health
from ctl.daemon.log import Log

SECONDS = 1.0
"""How often to look."""


class HealthWatch:
    """Looks at the health that /healthz and /livez answer with."""

    def __init__(self, health: Health, log: Log) -> None:
        self._health, self._log = health, log
        self._since = 0.0

    async def look(self) -> None:
        """Log a change."""
        healthy = self._health.healthy()
        if not healthy and not self._since:
            self._since = time.monotonic()
            self._log.error(
                "unhealthy: changes wait too long for the kernel", patience_s=round(self._health.patience, 1)
            )
        elif healthy and self._since:
            self._log.info("healthy again", after_s=round(time.monotonic() - self._since, 1))
            self._since = 0.0
