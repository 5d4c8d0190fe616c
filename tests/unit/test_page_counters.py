"""Counters as the page tells them: what each mode counts, since when, and what it does not."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence

import pytest

from ctl.ui.counters import Reading, news, read, shown
from ctl.ui.node_view import Paced
from ctl.ui.view import ServiceCount
from dataplane.model.net import Family, Protocol
from dataplane.plan.change import PlanChange
from dataplane.plan.types import FrontendKey, Plan, Table
from dataplane.planes.answers import Counted, HookExit, Refused, ServiceCounters, Traffic
from dataplane.planes.base import Plane, PlaneError

WEB = FrontendKey(Family.IPV4, "10.96.0.80", Protocol.TCP, 80)
PORT = FrontendKey(Family.IPV4, "", Protocol.TCP, 30080)
SERVICES = {WEB: "default/web:http", PORT: "default/web:http"}
NO_ENDPOINT = "rejected: the Service has no usable endpoint"


class Loaded(Plane):
    """A plane that counts what it is made with."""

    name = "told"

    def __init__(self, reading: Reading) -> None:
        self._reading = reading

    def load(self, plan: Plan) -> PlanChange:
        raise NotImplementedError

    def apply(self, change: PlanChange) -> None:
        raise NotImplementedError

    def read_back(self) -> Table:
        raise NotImplementedError

    def cleanup(self) -> None:
        raise NotImplementedError

    def traffic(self) -> Traffic | None:
        return self._reading.traffic

    def frontend_counts(self) -> Mapping[FrontendKey, Counted] | None:
        return self._reading.frontends

    def refused(self) -> Sequence[Refused] | None:
        return self._reading.refused

    def answered_pings(self) -> int | None:
        return self._reading.pings


RULES = Reading("nftables", None, None, (Refused("nftables", "no_endpoint", 3, NO_ENDPOINT),), 4)
CHAINS = Reading(
    "iptables", None, {WEB: Counted(5, 1), PORT: Counted(2, 1)},
    (Refused("iptables", "no_endpoint", 2, NO_ENDPOINT, WEB), Refused("iptables", "invalid", 7, "dropped")), None,
)  # fmt: skip
PROGRAMS = Reading(
    "ebpf", Traffic({"default/web:http": ServiceCounters(9, 8, 7, 6, 5)}, (HookExit("xdp", "no_endpoint", 2, "left"),)),
    None, (Refused("xdp", "no_endpoint", 2, "left"), Refused("nftables", "no_endpoint", 3, NO_ENDPOINT)), 1,
)  # fmt: skip


def test_all_that_a_plane_counts_is_read() -> None:
    for reading in (RULES, CHAINS, PROGRAMS):
        assert read(Loaded(reading)) == reading._replace(mode="told")


def test_rules_that_count_no_connections_say_so_and_show_refusals_and_pings() -> None:
    found = shown(RULES, "node1", dict)
    assert found.services == ()
    assert found.refusals == {f"no_endpoint ({NO_ENDPOINT})": 3}
    assert found.pings == 4
    assert found.note == (
        "the nftables mode counts what it refuses, not connections; hotplane show connections lists those"
    )


def test_chains_count_by_frontend_since_they_were_written() -> None:
    found = shown(CHAINS, "node1", lambda: SERVICES)
    assert found.services == (ServiceCount("default/web:http", 7, None, 2),)
    assert found.since == "since the rules were last written"
    assert found.refusals == {"invalid (dropped)": 7, f"no_endpoint ({NO_ENDPOINT}) to default/web:http": 2}
    assert (found.pings, found.note) == (None, "")


def test_programs_count_by_service_and_what_they_leave_is_refused_by_rules() -> None:
    found = shown(PROGRAMS, "node1", lambda: pytest.fail("no frontend is counted"))
    assert found.services == (ServiceCount("default/web:http", 9, 8),)
    assert found.since == "since the Services were added"
    assert found.refusals == {f"nftables: no_endpoint ({NO_ENDPOINT})": 3, "xdp: no_endpoint (left)": 2}
    assert (found.pings, found.note) == (1, "")


def test_connections_of_now_where_somebody_looked_for_them() -> None:
    for reading, refused in ((RULES, None), (CHAINS, 2)):
        found = shown(reading, "node1", lambda: SERVICES, now={"default/web:http": 6})
        assert found.services == (ServiceCount("default/web:http", 6, None, refused),)
        assert (found.since, found.note) == ("that there are now", "")


def test_only_more_is_news() -> None:
    before = shown(RULES, "node1", dict)
    after = shown(RULES._replace(refused=(Refused("nftables", "no_endpoint", 5, NO_ENDPOINT),)), "node1", dict)
    assert news(None, before) == []
    assert [event.text for event in news(before, after)] == [f"no_endpoint ({NO_ENDPOINT}): 2 more"]
    assert news(after, before) == [], "rules that were written anew count from the start"


def test_a_reading_that_takes_long_is_not_asked_for_again_at_once() -> None:
    clock = iter([0.0, 2.0, 30.0, 41.9, 42.1, 42.2, 44.3, 44.4])
    asked: list[None] = []

    async def ask() -> Reading:
        asked.append(None)
        return RULES

    async def looks() -> list[int]:
        paced = Paced(ask, lambda: next(clock))
        found = []
        for _ in range(5):
            await paced.read()
            found.append(len(asked))
        return found

    assert asyncio.run(looks()) == [1, 1, 1, 2, 3], "0 to 2 s, so not before 42; 42.1 to 42.2, so not before 44.2"


@pytest.mark.parametrize("error", [PlaneError("iptables-save failed"), asyncio.CancelledError()])
def test_a_reading_that_failed_is_not_tried_again_at_once(error: BaseException) -> None:
    clock = iter([0.0, 0.0, 1.0, 3.0, 42.9, 43.1, 43.2])
    answers: Iterator[Reading | BaseException] = iter([RULES, error, CHAINS])
    asked: list[None] = []

    async def ask() -> Reading:
        asked.append(None)
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def looks() -> list[Reading | str | None]:
        paced = Paced(ask, lambda: next(clock))
        found: list[Reading | str | None] = []
        for _ in range(4):
            try:
                found.append(await paced.read())
            except (PlaneError, asyncio.CancelledError) as raised:
                found.append(str(raised))
        return found

    again = str(error) if isinstance(error, PlaneError) else RULES
    assert asyncio.run(looks()) == [RULES, str(error), again, CHAINS], "1 to 3 s, so not before 43"
    assert len(asked) == 3
