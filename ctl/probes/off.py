"""Report of the clients for which connect-time balancing is switched off on this node."""

from collections.abc import Iterator
from pathlib import Path

from ctl.connect_off import switched_off
from dataplane.errors import HotplaneError
from dataplane.planes.finding import Finding, Status
from dataplane.planes.mode import Mode

_NAME = "connect time off"


def probe_off(mode: Mode, state_dir: Path) -> Iterator[Finding]:
    """One finding for each that was asked for of a mode; none where nobody was, or where it is not what is loaded."""
    if not mode.connect_time:
        return
    try:
        found = switched_off(state_dir, mode)
    except HotplaneError as error:
        yield Finding(mode.name, _NAME, Status.LIMITED, f"cannot be told: {error}")
        return
    for off in found:
        detail = f"{off.what} ({off.why}): {off.where}"
        if off.in_effect:
            yield Finding(mode.name, _NAME, Status.OK, detail)
        else:
            advice = "its new connections are balanced when they are made; see that it runs on this node"
            yield Finding(mode.name, _NAME, Status.LIMITED, f"not in effect for {detail}", advice)
