"""Flows that stay while their Service gets more endpoints: how uneven they are over those afterwards."""

import msgspec

from dataplane.bench.agent import Request
from dataplane.bench.figures.watched import imbalance
from dataplane.bench.objects import TCP_PORT, Form, flows_ip
from dataplane.bench.profiles import Settings, flow_endpoints
from dataplane.bench.rig import LOAD_PATIENCE, Rig

HELD, MOST_HELD = 512, 2048
"""Flows that are opened before the endpoints double and once more after that; the latter through a large Service."""


def scale_out(rig: Rig, settings: Settings, mode: str) -> dict[str, float]:
    """The figures of imbalance of all flows after it; with `before_` in front those before. failures: flows that do not
    answer any more; seconds: until the kernel had the new endpoints. Raises LabError."""
    endpoints, target = flow_endpoints(settings), (flows_ip(settings.family), TCP_PORT)
    count = MOST_HELD if settings.form is Form.LARGE else HELD
    watcher, agent = rig.watcher(rig.client_of(mode)), rig.agent(mode)
    try:
        before = imbalance(watcher.hold(target, count), endpoints)
        took = agent.ask(msgspec.json.encode(Request("scale", count=2 * endpoints)), LOAD_PATIENCE)["seconds"]
        try:
            after = imbalance(watcher.hold(target, count), 2 * endpoints)
        finally:
            agent.ask(msgspec.json.encode(Request("scale", count=endpoints)), LOAD_PATIENCE)
    finally:
        watcher.drop(target)
    return {**after, **{f"before_{name}": value for name, value in before.items()}, "seconds": took}
