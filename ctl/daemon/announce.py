"""The daemon's first line: what it is, for whom it works, where its objects come from, where it answers."""

import platform

from ctl import VERSION
from ctl.daemon.log import Log
from ctl.daemon.settings import Settings


def announce(settings: Settings, log: Log) -> None:
    """Log one line about a daemon that starts."""
    config = settings.config
    source = ",".join(settings.paths) or settings.kubeconfig or settings.master or "this pod's service account"
    log.info(
        "starting",
        version=VERSION,
        kernel=platform.release(),
        mode=settings.mode,
        node=settings.node.name,
        addresses=",".join(settings.node.node_ips) or "those of this network namespace",
        source=source,
        healthz=config.healthz_bind_address or "off",
        metrics=config.metrics_bind_address or "off",
        state=settings.state_dir,
    )
