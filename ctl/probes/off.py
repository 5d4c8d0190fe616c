"""For whom connect time is switched off on this node, of what is loaded."""

from collections.abc import Iterator
from pathlib import Path

from ctl.connect_off import switched_off
from ctl.probes.finding import Finding, Status
from dataplane.errors import HotplaneError

_NAME = "connect time off"


def probe_off(state_dir: Path) -> Iterator[Finding]:
    """One finding for each that was asked for; none where nobody was."""
    try:
        found = switched_off(state_dir)
    except HotplaneError as error:
        yield Finding("ebpf", _NAME, Status.LIMITED, f"cannot be told: {error}")
        return
    for off in found:
        detail = f"{off.what} ({off.why}): {off.where}"
        if off.in_effect:
            yield Finding("ebpf", _NAME, Status.OK, detail)
        else:
            advice = "its new connections are balanced when they are made; see that it runs on this node"
            yield Finding("ebpf", _NAME, Status.LIMITED, f"not in effect for {detail}", advice)
