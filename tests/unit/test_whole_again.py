"""What was told as broken is told as whole again, once."""

import asyncio
import errno
import io
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from ctl.daemon.http.guard import Guard
from ctl.daemon.http.health import Health
from ctl.daemon.http.health_watch import HealthWatch
from ctl.daemon.http.healthports import HealthPorts
from ctl.daemon.log import Log
from ctl.daemon.object_reports import ObjectReports
from ctl.daemon.sync.inbox import Inbox
from ctl.sources.directory import DirectorySource
from dataplane.faults import Faults
from dataplane.model.objects import ObjectRef, Problem
from dataplane.plan.types import HealthCheck
from dataplane.planes.ebpf.attach import packet_hooks
from dataplane.planes.ebpf.attach.packet_hooks import DeviceWatch
from dataplane.policy.node import NodePortAddresses
from tests.unit.ports import free_ports


class Told:
    """A log that is kept, its messages in order."""

    def __init__(self) -> None:
        self.out = io.StringIO()
        self.log = Log(out=self.out)

    def take(self) -> list[str]:
        """Lines since the last time, without their time."""
        lines = [line.partition(" ")[2] for line in self.out.getvalue().splitlines()]
        self.out.seek(0)
        self.out.truncate()
        return lines


def test_a_fault_is_told_once_and_its_end_once() -> None:
    warned: list[str] = []
    mended: list[str] = []
    faults = Faults(warned.append, mended.append)
    faults.worked("map", "has room")
    for why in ("full", "full", "fuller"):
        faults.failed("map", why)
    faults.failed("other", "gone")
    for _ in range(2):
        faults.worked("map", "has room")
    assert (warned, mended) == (["full", "fuller", "gone"], ["has room"])


def test_health() -> None:
    now = 100.0
    told, health = Told(), Health(10.0, clock=lambda: now)
    watch = HealthWatch(health, told.log)
    look: Callable[[], object] = lambda: asyncio.run(watch.look())  # noqa: E731 - a name for three words
    health.queued()
    look()
    assert told.take() == []
    now += 11
    look()
    look()
    assert told.take() == ["ERROR unhealthy: changes wait too long for the kernel patience_s=10"]
    health.updated()
    look()
    look()
    [line] = told.take()
    assert line.startswith("INFO healthy again after_s=")


def test_objects_and_the_node_s_name() -> None:
    told, events = Told(), list[tuple[object, ...]]()
    reports = ObjectReports(told.log, lambda *event: events.append(event))
    ref = ObjectRef("Service", "default", "web")
    found = {ref: (Problem(ref, "spec.ports", "is wrong"),)}
    for _ in range(2):
        reports.refused(found, {})
        reports.node_name("n1", "nobody has this name")
    reports.refused({}, {})
    reports.node_name("n1", "")
    assert [line.partition(" object=")[0].partition(" reason=")[0] for line in told.take()] == [
        "WARNING object refused", "WARNING this node's name is in doubt", "INFO object without fault now, or gone",
        "INFO this node's name is known now node=n1",
    ]  # fmt: skip
    assert events == [(ref, "InvalidObject", "spec.ports: is wrong")]


def test_manifests(tmp_path: Path) -> None:
    told, file = Told(), tmp_path / "objects.yaml"
    file.write_text("{")
    source = DirectorySource([str(file)], Inbox(("Service",)), told.log)
    source.read()
    assert told.take()[0].startswith("WARNING a manifest cannot be read")
    file.write_text("")
    source.read()
    source.read()
    assert told.take() == ["INFO every manifest can be read again"]


def test_a_health_check_port_that_was_taken() -> None:
    told, refused = Told(), list[str]()

    async def scenario(check: HealthCheck) -> None:
        ports = HealthPorts(Health(10.0), told.log, lambda _, why: refused.append(why), Guard(lambda _: None))
        addresses = NodePortAddresses(addresses=("127.0.0.1",))
        with socket.create_server(("127.0.0.1", check.port)):
            for _ in range(2):
                ports.update({("default", "web"): check}, addresses)
        ports.update({("default", "web"): check}, addresses)
        await ports.close()

    with free_ports() as port:
        asyncio.run(scenario(HealthCheck("default", "web", port, 1)))
    assert len(refused) == 1
    assert told.take() == [f'INFO the health-check port is open now object="Service default/web" port={port}']


def test_devices_that_could_not_be_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook's own thread tells of a refusal, which nobody would see otherwise."""
    monkeypatch.setattr(packet_hooks, "_LOOK_SECONDS", 0.01)
    monkeypatch.setattr(packet_hooks, "_DEBOUNCE_SECONDS", 0.0)
    warned: list[str] = []
    mended: list[str] = []

    class Hook:
        name, host, refusals = "tc", None, 3

        def refresh(self) -> None:
            self.refusals -= 1
            if self.refusals >= 0:
                raise OSError(errno.ENOBUFS, "No buffer space available")

    hook = Hook()
    watch = DeviceWatch(hook, Faults(warned.append, mended.append))  # type: ignore[arg-type]
    try:
        while not mended:
            watch._thread.join(0.01)
    finally:
        watch.close()
    assert warned == ["the tc hook cannot follow this node's devices: [Errno 105] No buffer space available"]
    assert mended == ["the tc hook can follow this node's devices again"]
