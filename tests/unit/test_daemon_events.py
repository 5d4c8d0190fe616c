"""Events about refused objects: written once, counted when they come again, never a flood."""

import asyncio
import io
from collections.abc import Awaitable, Callable, Iterator

import pytest

from ctl.daemon import events
from ctl.daemon.events import BURST, FORGET_SECONDS, REFILL_SECONDS, SERIES_SECONDS, EventRecorder
from ctl.daemon.log import Log
from ctl.sources.api import Api
from ctl.sources.kubeconfig import Cluster
from dataplane.lab.apiserver.server import ApiServer
from dataplane.model.objects import ObjectRef

REF = ObjectRef("Service", "shop", "web")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    monkeypatch.setattr(events, "MOST_A_SECOND", 1000.0)
    with ApiServer() as running:
        yield running


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def record(
    server: ApiServer, scenario: Callable[[EventRecorder, Clock], Awaitable[None]], node: str = "node1"
) -> list[dict[str, object]]:
    """Run a scenario with a recorder; what the server holds once everything is written."""

    async def run() -> None:
        api, clock = Api(Cluster(server.url)), Clock()
        recorder = EventRecorder(api, node, Log(out=io.StringIO()), clock)
        task = asyncio.create_task(recorder.run())
        await scenario(recorder, clock)
        await recorder.idle()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await api.close()

    asyncio.run(run())
    return server.written()


def test_a_refusal_that_keeps_coming_is_one_event_with_a_count(server: ApiServer) -> None:
    async def scenario(recorder: EventRecorder, clock: Clock) -> None:
        recorder.warn(REF, "InvalidObject", "spec.ports: wrong")
        await recorder.idle()
        for _ in range(50):
            clock.now += 1
            recorder.warn(REF, "InvalidObject", "spec.ports: wrong")
        await recorder.idle()
        [event] = server.written()
        assert "series" not in event, "nothing is written again so soon"
        clock.now += SERIES_SECONDS
        recorder.warn(REF, "InvalidObject", "spec.ports: wrong")

    [event] = record(server, scenario)
    series = event["series"]
    assert isinstance(series, dict)
    assert series["count"] == 52
    assert str(series["lastObservedTime"]).endswith("Z")
    assert event["note"] == "spec.ports: wrong"
    assert event["regarding"] == {"apiVersion": "v1", "kind": "Service", "name": "web", "namespace": "shop"}


def test_a_daemon_that_starts_again_finds_its_event(server: ApiServer) -> None:
    async def scenario(recorder: EventRecorder, clock: Clock) -> None:
        recorder.warn(REF, "InvalidObject", "spec.ports: wrong")

    record(server, scenario)
    [event] = record(server, scenario)
    assert isinstance(event["series"], dict)
    assert event["series"]["count"] == 2


def test_events_that_the_server_has_forgotten_are_written_anew(server: ApiServer) -> None:
    async def scenario(recorder: EventRecorder, clock: Clock) -> None:
        recorder.warn(REF, "InvalidObject", "spec.ports: wrong")
        await recorder.idle()
        server._call(server._store.written.clear)
        clock.now += FORGET_SECONDS
        recorder.warn(REF, "InvalidObject", "spec.ports: wrong")

    assert len(record(server, scenario)) == 1


def test_one_object_cannot_cause_a_flood(server: ApiServer) -> None:
    async def scenario(recorder: EventRecorder, clock: Clock) -> None:
        for number in range(100):
            recorder.warn(REF, "FrontendConflict", f"conflict {number}")
        await recorder.idle()
        assert len(server.written()) == BURST
        recorder.warn(ObjectRef("Service", "shop", "other"), "FrontendConflict", "its own budget")
        clock.now += REFILL_SECONDS
        recorder.warn(REF, "FrontendConflict", "conflict 100")
        recorder.warn(REF, "FrontendConflict", "conflict 101")

    notes = [event["note"] for event in record(server, scenario)]
    assert notes[-2:] == ["its own budget", "conflict 100"]
    assert len(notes) == BURST + 2


@pytest.mark.parametrize(
    ("ref", "note", "node"),
    [
        (REF, "spec.ports: " + "ä" * 1024, "node1"),
        (ObjectRef("EndpointSlice", "shop", "a" * 253), "wrong", "node1"),
        (ObjectRef("EndpointSlice", "shop", ("a" * 63 + ".") * 3 + "b" * 61), "wrong", "node1"),
        (ObjectRef("EndpointSlice", "shop", "a" * 235 + "." + "b" * 17), "wrong", "node1"),
        (ObjectRef("Node", "", "n" * 253), "wrong", "n" * 253),
    ],
    ids=["a note in other letters", "a long name", "a long name of parts", "cut at a dot", "a long node"],
)
def test_an_event_is_within_the_limits_of_the_api(server: ApiServer, ref: ObjectRef, note: str, node: str) -> None:
    async def scenario(recorder: EventRecorder, clock: Clock) -> None:
        recorder.warn(ref, "InvalidObject", note)

    [event] = record(server, scenario, node)
    assert isinstance(event["regarding"], dict)
    assert event["regarding"]["name"] == ref.name, "what it is about is never cut"


def test_an_event_that_went_early_is_written_anew(server: ApiServer) -> None:
    """A server's --event-ttl may be shorter than an hour."""

    async def scenario(recorder: EventRecorder, clock: Clock) -> None:
        recorder.warn(REF, "InvalidObject", "spec.ports: wrong")
        await recorder.idle()
        server._call(server._store.written.clear)
        clock.now += SERIES_SECONDS
        recorder.warn(REF, "InvalidObject", "spec.ports: wrong")

    [event] = record(server, scenario)
    assert event["note"] == "spec.ports: wrong"
    assert isinstance(event["series"], dict)
    assert event["series"]["count"] == 2
