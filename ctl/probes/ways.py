"""Report of which packets of this node go past its stack, and why the others do not."""

from collections.abc import Iterator
from pathlib import Path

from ctl.store import state, ways
from dataplane.errors import HotplaneError
from dataplane.planes.finding import Finding, Status
from dataplane.planes.host_routes import OFF, ON
from dataplane.planes.mode import Mode

_NAME = "host routing"
_ADVICE = "see docs/semantics.md, Host routing; --host-routing on goes over it"


def probe_routes(mode: Mode, state_dir: Path) -> Iterator[Finding]:
    """One finding for the node, and one for each device and address; none where the mode is not what is loaded."""
    try:
        saved = state.load(state_dir)
        if saved is None or saved.options is None or saved.mode != mode.name:
            return
        if not mode.routes_past_stack(saved.options):
            return
        found = ways.load(state_dir)
    except HotplaneError as error:
        yield Finding(mode.name, _NAME, Status.LIMITED, f"cannot be told: {error}")
        return
    if found is None:
        detail = "all packets go by the node's stack: no daemon runs that would see what changes"
        yield Finding(mode.name, _NAME, Status.LIMITED, detail, "hotplane run")
        return
    if found.node:
        status = Status.OK if found.choice == OFF else Status.LIMITED
        yield Finding(mode.name, _NAME, status, f"all packets go by the node's stack: {found.node}", _ADVICE)
    else:
        over = ", whatever NetworkPolicies and other programs' rules say (--host-routing on)"
        yield Finding(mode.name, _NAME, Status.OK, f"past the node's stack{over if found.choice == ON else ''}")
    for kind, each in (("device", found.devices), ("address", found.addresses)):
        for way in each:
            detail = f"by the node's stack: {way.reason}" if way.reason else "past the node's stack"
            yield Finding(mode.name, f"{_NAME}, {kind} {way.name}", Status.OK, detail)
