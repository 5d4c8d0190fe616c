"""The page's server: what it answers, what it refuses other sites and other names, what it streams."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import aiohttp
import pytest

from ctl.main import main
from ctl.ui import server
from ctl.ui.server import TOKEN_HEADER, listening_address
from dataplane.errors import HotplaneError, UsageError
from tests.unit.page_view import CLIENT, FRONTEND, ToldView, served

CALL = {"source": CLIENT, "destination": FRONTEND, "count": 3}


async def asked(
    port: int, path: str, headers: Mapping[str, str] | None = None, method: str = "GET", body: object = None
) -> tuple[int, Any, Mapping[str, str]]:
    """Status, body and headers of an answer."""
    data = None if body is None else json.dumps(body)
    async with aiohttp.ClientSession() as session:
        async with session.request(method, f"http://127.0.0.1:{port}{path}", headers=headers, data=data) as answer:
            text = await answer.text()
            return answer.status, json.loads(text) if "json" in answer.content_type else text, answer.headers


def run(
    path: str, *, view: ToldView | None = None, remote: bool = False, **more: Any
) -> tuple[int, Any, Mapping[str, str]]:
    async def once() -> tuple[int, Any, Mapping[str, str]]:
        async with served(view or ToldView("name"), remote=remote) as (_, port):
            return await asked(port, path, **more)

    return asyncio.run(once())


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/", "text/html"), ("/page.js", "text/javascript"), ("/page.css", "text/css"), ("/picture.css", "text/css")],
)
def test_files_are_served_for_this_page_alone(path: str, kind: str) -> None:
    status, _, headers = run(path)
    assert status == 200
    assert headers["Content-Type"] == f"{kind}; charset=utf-8"
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "Server" not in headers
    assert "Access-Control-Allow-Origin" not in headers


@pytest.mark.parametrize(
    ("host", "remote", "status"),
    [
        ("localhost:8099", False, 200),
        ("127.0.0.1", False, 200),
        ("[::1]:8099", False, 200),
        ("evil.example", False, 421),
        ("127.0.0.1.evil.example:80", False, 421),
        ("192.0.2.1:8099", False, 421),
        ("192.0.2.1:8099", True, 200),
        ("evil.example", True, 421),
        ("[bad", False, 421),
        ("", False, 421),
    ],
)
def test_only_addresses_of_this_machine_are_answered(host: str, remote: bool, status: int) -> None:
    """A name that somebody else's server gave to this address (DNS rebinding) is refused, whatever is asked."""
    found, body, _ = run("/api/overview", remote=remote, headers={"Host": host})
    assert found == status
    assert ("token" in body) == (status == 200)


@pytest.mark.parametrize(
    ("headers", "body", "status"),
    [
        ({}, CALL, 200),
        ({TOKEN_HEADER: "wrong"}, CALL, 403),
        ({TOKEN_HEADER: ""}, CALL, 403),
        ({"Origin": "http://evil.example"}, CALL, 403),
        ({"Origin": "null"}, CALL, 403),
        ({"Content-Type": "text/plain"}, CALL, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, CALL, 415),
        ({}, {**CALL, "count": 0}, 400),
        ({}, {**CALL, "count": 1001}, 400),
        ({}, {**CALL, "more": 1}, 400),
        ({}, ["no call"], 400),
        ({}, {**CALL, "destination": "x" * 5000}, 413),
    ],
)
def test_packets_are_sent_for_this_page_alone(headers: dict[str, str], body: object, status: int) -> None:
    view = ToldView("name")

    async def once() -> int:
        async with served(view) as (page, port):
            given = {TOKEN_HEADER: page.token, "Content-Type": "application/json", **headers}
            found, _, _ = await asked(port, "/api/call", given, "POST", body)
            return found

    assert asyncio.run(once()) == status
    assert view.called == ([(CLIENT, FRONTEND, 3)] if status == 200 else [])


def test_packets_are_sent_one_call_at_a_time() -> None:
    view = ToldView("name")

    async def both() -> list[int]:
        view.answering.clear()
        async with served(view) as (page, port):
            headers = {TOKEN_HEADER: page.token, "Content-Type": "application/json"}
            first = asyncio.create_task(asked(port, "/api/call", headers, "POST", CALL))
            async with asyncio.timeout(60):
                while not view.called:
                    await asyncio.sleep(0.01)
                second = await asked(port, "/api/call", headers, "POST", CALL)
            view.answering.set()
            third = asked(port, "/api/call", headers, "POST", CALL)
            return [status for status, _, _ in (second, await first, await third)]

    assert asyncio.run(both()) == [429, 200, 200]
    assert len(view.called) == 2


@pytest.mark.parametrize(
    ("path", "more", "status", "told"),
    [
        ("/nothing", {}, 404, "there is no such page"),
        ("/page/../../etc/passwd", {}, 404, "there is no such page"),
        ("//[", {}, 404, "there is no such page"),
        ("/api/overview", {"method": "POST"}, 405, "POST is not for this page"),
        ("/api/call", {}, 405, "GET sends nothing"),
        ("/api/explain?source=1", {}, 400, "the parameter destination is missing"),
    ],
)
def test_what_is_wrong_is_told(path: str, more: dict[str, Any], status: int, told: str) -> None:
    found, body, _ = run(path, **more)
    assert found == status
    assert told in body["error"]


class Failing(ToldView):
    async def explain(self, source: str, destination: str) -> Any:
        raise UsageError("wrong") if source == "usage" else HotplaneError("failed")

    async def look(self) -> Any:
        raise HotplaneError("the counters cannot be read")


@pytest.mark.parametrize(("source", "status"), [("usage", 400), ("other", 503)])
def test_errors_of_a_view_are_sentences(source: str, status: int) -> None:
    found, body, _ = run(f"/api/explain?source={source}&destination=x", view=Failing("name"))
    assert (found, body["error"]) == (status, "wrong" if source == "usage" else "failed")


def test_a_page_that_sends_nothing_has_no_token() -> None:
    _, body, _ = run("/api/overview", view=ToldView("name", sends=False))
    assert body["token"] == ""


async def lines(port: int, until: str, headers: Mapping[str, str] | None = None) -> list[str]:
    """Lines of the stream up to one that begins so."""
    found = []
    async with aiohttp.ClientSession() as session:
        async with session.get(f"http://127.0.0.1:{port}/api/events", headers=headers) as answer:
            assert answer.content_type == "text/event-stream"
            async for line in answer.content:
                found.append(line.decode().rstrip("\n"))
                if found[-1].startswith(until):
                    break
    return found


def test_counters_and_news_are_streamed_and_repeated_after_a_break(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOOK_SECONDS", 0.02)

    async def watched() -> tuple[list[str], list[str], list[str]]:
        async with served(ToldView("<name>")) as (_, port):
            first = await lines(port, "event: mode")
            again = await lines(port, "event: counters", {"Last-Event-ID": "1"})
            fresh = await lines(port, "event: counters")
            return first, again, fresh

    first, again, fresh = asyncio.run(watched())
    assert [line for line in first if line.startswith("event")] == [
        "event: counters", "event: refusal", "event: change", "event: mode",
    ]  # fmt: skip
    assert [line for line in again if line.startswith("id")] == ["id: 2", "id: 3"]
    assert [line for line in fresh if line.startswith("id")] == []


def test_a_look_that_fails_is_told_in_the_stream() -> None:
    async def watched() -> list[str]:
        async with served(Failing("name")) as (_, port):
            return await lines(port, "data")

    assert asyncio.run(watched())[-1] == 'data: {"error":"the counters cannot be read"}'


def test_many_watchers_look_once_and_too_many_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "MOST_WATCHERS", 3)
    monkeypatch.setattr(server, "LOOK_SECONDS", 600.0)
    view = ToldView("name")

    async def watched() -> tuple[list[int], int]:
        async with served(view) as (_, port), aiohttp.ClientSession() as session:
            url = f"http://127.0.0.1:{port}/api/events"
            answers = [await session.get(url) for _ in range(4)]
            for answer in answers[:3]:
                while not (await answer.content.readline()).startswith(b"data"):
                    pass
            statuses = [answer.status for answer in answers]
            for answer in answers:
                answer.close()
            return statuses, view.looks

    assert asyncio.run(watched()) == ([200, 200, 200, 503], 1)


def test_a_view_rests_after_the_last_page_and_looks_at_once_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "STREAM_SECONDS", 0.1)
    view = ToldView("name")

    async def watched() -> list[tuple[int, int]]:
        found = []
        async with served(view) as (_, port):
            for _ in range(2):
                await lines(port, "nothing begins so")
                found.append((view.looks, view.rests))
        return found

    assert asyncio.run(watched()) == [(1, 1), (2, 2)]


@pytest.mark.parametrize(
    ("text", "remote", "found"),
    [
        ("127.0.0.1:8099", False, ("127.0.0.1", 8099)),
        ("[::1]:8099", False, ("::1", 8099)),
        ("192.0.2.1:8099", True, ("192.0.2.1", 8099)),
        ("192.0.2.1:8099", False, "others can reach this address"),
        ("0.0.0.0:8099", False, "others can reach this address"),
        ("[::]:8099", False, "others can reach this address"),
        ("localhost:8099", False, "write ADDRESS:PORT"),
        (":8099", False, "write ADDRESS:PORT"),
        ("127.0.0.1", False, "write ADDRESS:PORT"),
        ("127.0.0.1:x", False, "write ADDRESS:PORT"),
        ("127.0.0.1:0", False, "write ADDRESS:PORT"),
        ("127.0.0.1:70000", False, "70000 is no port"),
    ],
)
def test_where_a_page_may_be(text: str, remote: bool, found: tuple[str, int] | str) -> None:
    if isinstance(found, tuple):
        assert listening_address(text, remote=remote, option="--ui", allow="--ui-remote") == found
        return
    with pytest.raises(UsageError, match=found):
        listening_address(text, remote=remote, option="--ui", allow="--ui-remote")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("lab", "ui", "--listen", "0.0.0.0:8099"), "--listen 0.0.0.0:8099: others can reach this address"),
        (("run", "-f", "x", "--ui", "192.0.2.1:8099"), "--ui 192.0.2.1:8099: others can reach this address"),
        (("lab", "ui", "--listen", "here"), "--listen here: write ADDRESS:PORT"),
    ],
)
def test_addresses_that_others_reach_are_refused_before_anything_begins(
    words: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert told in capsys.readouterr().err
