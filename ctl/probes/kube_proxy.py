"""Report of kube-proxy's rules beside those of hotplane."""

from collections.abc import Iterator
from pathlib import Path

from ctl.store import state
from dataplane.errors import HotplaneError
from dataplane.kernel.kube_proxy import kube_proxy_rules
from dataplane.kernel.netlink.netlink import Refused
from dataplane.planes.finding import Finding, Status
from dataplane.planes.registry import mode_of


def probe_kube_proxy(state_dir: Path) -> Iterator[Finding]:
    """One finding where hotplane has loaded a plan and kube-proxy has rules, too; else none."""
    check = "kube-proxy's rules"
    try:
        saved = state.load(state_dir)
        found = kube_proxy_rules(chains=not mode_of(saved.mode).kube_proxy_chains) if saved is not None else []
    except (HotplaneError, Refused, OSError) as error:
        yield Finding("system", check, Status.LIMITED, f"cannot be looked for: {error}")
        return
    if found:
        detail = f"{', '.join(found)}: the first that translates a connection keeps it, and their endpoints may be gone"
        yield Finding("system", check, Status.LIMITED, detail, "keep kube-proxy off this node, then hotplane adopt")
