"""A warning where kube-proxy has rules beside hotplane's: they lead connections to endpoints that may be gone."""

from collections.abc import Callable

from ctl.daemon.log import Log
from ctl.daemon.sync.kernel import Kernel
from dataplane.kernel.kube_proxy import kube_proxy_rules
from dataplane.planes.registry import mode_of

SECONDS = 60.0
"""How often to look: what it takes grows with kube-proxy's rules."""


class KubeProxyWatch:
    """Logs when rules of kube-proxy are there, and when they have gone."""

    def __init__(self, kernel: Kernel, mode: Callable[[], str], log: Log) -> None:
        self._kernel, self._mode, self._log = kernel, mode, log
        self._told: list[str] = []

    async def look(self) -> None:
        """Look, in the plane's thread. Raises HotplaneError, Refused, OSError."""
        chains = not mode_of(self._mode()).kube_proxy_chains
        found = await self._kernel.call(lambda: kube_proxy_rules(chains=chains))
        if found and found != self._told:
            self._log.warning(
                "kube-proxy's rules are here, too", where=", ".join(found),
                reason="the first that translates a connection keeps it, and the endpoints that they name may be gone; "
                "keep kube-proxy off this node and call hotplane adopt (docs/migration.md)",
            )  # fmt: skip
        elif self._told and not found:
            self._log.info("kube-proxy's rules are gone")
        self._told = found
