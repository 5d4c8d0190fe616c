"""The watch against a server that speaks the wire protocol and misbehaves: lists, resumption, relists, faults."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from ctl.sources import watch
from ctl.sources.watch import reflector_backoff
from dataplane.backoff import Backoff
from dataplane.lab.apiserver.server import ApiServer
from dataplane.model.net import Family
from dataplane.model.objects import ObjectRef, Service
from tests.apiserver.objects import endpoint_slice, node, service
from tests.unit.watch_follower import KINDS, PATIENCE, Follower, follow


@pytest.fixture
def server() -> Iterator[ApiServer]:
    with ApiServer() as running:
        yield running


@pytest.mark.parametrize("streaming", [True, False, "ignore"])
def test_everything_is_listed_and_then_followed(server: ApiServer, streaming: bool | str) -> None:
    server.behave(streaming_lists=streaming)
    server.apply(service("a", "10.96.0.1"), endpoint_slice("a", ["10.0.0.1"]), node("node1"), node("other"))

    async def scenario(f: Follower) -> None:
        await f.until(lambda: f.inbox.complete_once)
        f.take()
        assert f.services() == {"a"}
        assert [ref.name for ref in f.known if ref.kind == "Node"] == ["node1"]
        server.apply(service("b", "10.96.0.2"), endpoint_slice("a", ["10.0.0.2", "10.0.0.3"]))
        await f.until(lambda: f.services() == {"a", "b"} and f.addresses() == ["10.0.0.2", "10.0.0.3"])
        server.delete("Service", "default", "a")
        await f.until(lambda: f.services() == {"b"})

    follower = follow(server, scenario, silence=0.5 if streaming == "ignore" else PATIENCE)
    assert all(reflector.lists == 1 for reflector in follower.reflectors.values())
    assert bool(server.seen.lists) is (streaming is not True), "a streaming list needs no list request"


def test_the_label_selectors_are_kube_proxys(server: ApiServer) -> None:
    headless, foreign = service("headless", "10.96.0.3"), service("foreign", "10.96.0.4")
    headless["metadata"]["labels"] = {"service.kubernetes.io/headless": ""}
    foreign["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "x"}
    server.apply(service("a", "10.96.0.1"), headless, foreign)

    async def scenario(f: Follower) -> None:
        await f.until(lambda: f.inbox.complete_once)
        f.take()
        assert f.services() == {"a"}

    follow(server, scenario)
    selectors = {kind: query.get("labelSelector") for kind, query in server.seen.watches}
    assert selectors["Service"] == selectors["EndpointSlice"]
    assert selectors["Node"] is None
    assert {query.get("fieldSelector") for kind, query in server.seen.watches if kind == "Node"} == {
        "metadata.name=node1"
    }


def test_a_large_list_comes_in_pages(server: ApiServer) -> None:
    server.behave(streaming_lists=False, page=7)
    server.apply(*[service(f"s{number}", f"10.96.1.{number}") for number in range(40)])

    async def scenario(f: Follower) -> None:
        await f.until(lambda: len(f.services()) == 40)

    follow(server, scenario)
    assert server.seen.lists.count("Service") == 6


def test_nothing_is_handed_out_before_every_kind_is_complete(server: ApiServer) -> None:
    server.apply(service("a", "10.96.0.1"))
    server.behave(delay=0.0, missing=("EndpointSlice",))

    async def scenario(f: Follower) -> None:
        await f.until(lambda: "Service" in f.inbox.synced)
        await asyncio.sleep(0.3)
        assert not f.inbox.complete_once
        server.behave(missing=())
        await f.until(lambda: f.services() == {"a"})

    follow(server, scenario)


def test_kinds_that_old_clusters_lack_are_done_without(server: ApiServer) -> None:
    server.behave(missing=("ServiceCIDR",))

    async def scenario(f: Follower) -> None:
        await f.until(lambda: f.inbox.complete_once)

    follow(server, scenario)


CIDRS = "/apis/networking.k8s.io/{}/servicecidrs"
CIDR = {"apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": {"name": "kubernetes"},
        "spec": {"cidrs": ["10.96.0.0/16"]}}  # fmt: skip


def test_service_cidrs_of_servers_that_have_only_the_beta(server: ApiServer) -> None:
    server.behave(missing=(CIDRS.format("v1"),))
    server.apply({**CIDR, "apiVersion": "networking.k8s.io/v1beta1"})

    async def scenario(f: Follower) -> None:
        await f.until(lambda: ObjectRef("ServiceCIDR", "", "kubernetes") in f.known)

    follow(server, scenario)
    assert CIDRS.format("v1beta1") in server.seen.paths


def test_a_kind_that_comes_with_an_upgrade_is_found(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "NOT_SERVED_SECONDS", 0.1)
    server.behave(missing=("ServiceCIDR",))
    server.apply(CIDR)

    async def scenario(f: Follower) -> None:
        await f.until(lambda: f.inbox.complete_once)
        assert not f.known
        server.behave(missing=())
        await f.until(lambda: ObjectRef("ServiceCIDR", "", "kubernetes") in f.known)

    follow(server, scenario)


def test_a_list_whose_continue_token_expires_is_asked_for_in_one_piece(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watch, "PAGE", 7)
    server.behave(streaming_lists=False, expire_pages=True)
    server.apply(*[service(f"s{number}", f"10.96.1.{number}") for number in range(40)])

    async def scenario(f: Follower) -> None:
        await f.until(lambda: len(f.services()) == 40)
        assert f.reflectors["Service"].lists == 1
        assert "in one piece" in f.out.getvalue()

    follow(server, scenario)
    assert "" in server.seen.limits


def test_the_time_that_a_busy_server_asks_for_is_kept(server: ApiServer) -> None:
    server.apply(service("a", "10.96.0.1"))
    server.behave(refuse=429, retry_after=2)

    async def scenario(f: Follower) -> None:
        began = time.monotonic()  # nobody has asked yet
        await f.all_fail()
        server.behave(refuse=0)
        f.api.recovered()
        await f.until(lambda: server.seen.paths != [])
        assert time.monotonic() - began >= 2, "nobody asks again before, although somebody found the server back"
        await f.until(lambda: f.services() == {"a"})

    follow(server, scenario)


def test_a_connection_that_breaks_in_the_middle_of_an_event(server: ApiServer) -> None:
    server.behave(bookmark_seconds=600.0)  # a bookmark would end the line
    server.apply(service("a", "10.96.0.1"))

    async def scenario(f: Follower) -> None:
        await f.until(lambda: f.services() == {"a"})
        server.say(b'{"type":"DELETED","object":{"kind":"Service","metadata":{"name":"a","namespace":"default"')
        await asyncio.sleep(0.05)
        server.cut()
        server.apply(service("b", "10.96.0.2"))
        await f.until(lambda: f.services() == {"a", "b"})
        assert f.reflectors["Service"].lists == 1
        assert not f.deleted

    follow(server, scenario)


async def cut_between_two_services(server: ApiServer, f: Follower) -> None:
    await f.until(lambda: f.services() == {"a"})
    server.cut()
    server.apply(service("b", "10.96.0.2"))
    await f.until(lambda: f.services() == {"a", "b"})


def test_what_is_asked_for(server: ApiServer) -> None:
    """The parameters of a streaming list and of the watch that resumes it, as the API documentation wants them."""
    server.apply(service("a", "10.96.0.1"))

    async def scenario(f: Follower) -> None:
        await cut_between_two_services(server, f)

    follow(server, scenario)
    first, second = [query for kind, query in server.seen.watches if kind == "Service"][:2]
    seconds = [int(query.pop("timeoutSeconds")) for query in (first, second)]
    assert all(300 <= each <= 600 for each in seconds)
    common = {
        "watch": "1", "allowWatchBookmarks": "true",
        "labelSelector": "!service.kubernetes.io/headless,!service.kubernetes.io/service-proxy-name",
    }  # fmt: skip
    assert first == {**common, "sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
    assert second == {**common, "resourceVersion": second["resourceVersion"]}
    assert int(second["resourceVersion"]) >= 1001


def test_a_cut_watch_is_resumed_where_it_was(server: ApiServer) -> None:
    server.apply(service("a", "10.96.0.1"))

    async def scenario(f: Follower) -> None:
        await cut_between_two_services(server, f)
        assert f.reflectors["Service"].lists == 1
        assert not f.deleted

    follow(server, scenario)


def test_what_fails_after_the_server_is_back_is_tried_soon(server: ApiServer) -> None:
    """A server that has just started serves one kind and not yet another: its waits begin anew, however long they had
    become while nothing could be reached."""

    async def scenario(f: Follower) -> None:
        await f.until(lambda: f.inbox.complete_once)
        for reflector in f.reflectors.values():
            reflector._backoff = Backoff(0.05, 1000.0)
            for _ in range(12):
                reflector._backoff.failed()
        server.behave(down=True)
        server.cut()
        await f.all_fail()
        server.behave(down=False, missing=("EndpointSlice",))
        lines = f.out.getvalue().count("cannot watch kind=EndpointSlice")
        f.api.recovered()
        await f.until(lambda: f.out.getvalue().count("cannot watch kind=EndpointSlice") >= lines + 3)
        server.behave(missing=())
        server.apply(endpoint_slice("a", ["10.0.0.1"]))
        await f.until(lambda: f.addresses() == ["10.0.0.1"])

    follow(server, scenario)


def test_a_watch_that_stands_counts_as_working(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quiet watch brings nothing for a minute: that is no trouble, and whoever waits may know of it."""
    monkeypatch.setattr(watch, "STANDS_SECONDS", 0.2)
    server.behave(bookmark_seconds=600.0)

    async def scenario(f: Follower) -> None:
        await f.until(lambda: f.inbox.complete_once)
        waiting = asyncio.create_task(f.api.recovery(600.0))
        server.behave(down=True)
        server.cut()
        await f.all_fail()
        server.behave(down=False)
        await f.until(lambda: not any(reflector.failing_since for reflector in f.reflectors.values()))
        await waiting
        assert all(reflector.lists == 1 for reflector in f.reflectors.values())

    follow(server, scenario)


def test_a_watch_that_ends_at_once_does_not_count_as_working(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else each such watch would wake all others that wait, and these it, without end."""
    monkeypatch.setattr(watch, "STANDS_SECONDS", PATIENCE)  # "at once" may be a while where others have the processor

    async def scenario(f: Follower) -> None:
        await f.until(lambda: f.inbox.complete_once)
        server.behave(watch_seconds=0.0, bookmark_seconds=600.0)
        server.cut()
        await f.all_fail()
        watches = len(server.seen.watches)
        await f.until(lambda: len(server.seen.watches) > watches + 8)
        assert "watching again" not in f.out.getvalue()

    follow(server, scenario)


def test_a_bookmark_moves_the_version_on(server: ApiServer) -> None:
    """The Service watch sees no event, but bookmarks: so it survives that the history before them is dropped."""
    server.behave(bookmark_seconds=0.1)
    server.apply(service("a", "10.96.0.1"))

    async def scenario(f: Follower) -> None:
        await f.until(lambda: f.services() == {"a"})
        server.apply(*[endpoint_slice("a", [f"10.0.0.{number}"]) for number in range(1, 20)])
        await f.until(lambda: f.addresses() == ["10.0.0.19"])
        newest = f.reflectors["EndpointSlice"]._version
        await f.until(lambda: {reflector._version for reflector in f.reflectors.values()} == {newest})
        server.forget()
        server.cut()
        server.apply(service("b", "10.96.0.2"))
        await f.until(lambda: f.services() == {"a", "b"})
        assert f.reflectors["Service"].lists == 1

    follow(server, scenario)


@pytest.mark.parametrize("streaming", [True, False])
def test_after_410_only_differences_come_through(server: ApiServer, streaming: bool) -> None:
    server.behave(streaming_lists=streaming, bookmark_seconds=60.0)
    server.apply(*[service(f"s{number}", f"10.96.0.{number}") for number in range(1, 6)])

    async def scenario(f: Follower) -> None:
        await f.until(lambda: len(f.services()) == 5)
        server.behave(down=True)
        server.cut()
        server.delete("Service", "default", "s1")
        server.apply(service("s9", "10.96.0.9"))
        server.forget()
        await asyncio.sleep(0.3)
        f.take()
        assert len(f.services()) == 5, "an outage changes nothing"
        server.behave(down=False)
        await f.until(lambda: f.services() == {"s2", "s3", "s4", "s5", "s9"})
        assert f.deleted == [ObjectRef("Service", "default", "s1")]
        assert f.reflectors["Service"].lists == 2

    follow(server, scenario)


def test_an_error_event_of_410_leads_to_a_list(server: ApiServer) -> None:
    async def scenario(f: Follower) -> None:
        await f.until(lambda: f.inbox.complete_once)
        status = (
            b'{"kind":"Status","apiVersion":"v1","status":"Failure","message":"too old","reason":"Expired","code":410}'
        )
        server.say(b'{"type":"ERROR","object":%s}\n' % status)
        await f.until(lambda: all(reflector.lists == 2 for reflector in f.reflectors.values()))

    follow(server, scenario)


def test_versions_that_expire_soon_again_are_no_outage(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """API servers that restart one after the other: the wait for the next list grows by itself, not by the failures
    to reach a server."""
    status = b'{"kind":"Status","apiVersion":"v1","status":"Failure","message":"too old","reason":"Expired","code":410}'

    async def scenario(f: Follower) -> None:
        await f.until(lambda: f.inbox.complete_once)
        for reflector in f.reflectors.values():
            reflector._backoff = Backoff(300.0, 300.0)
        for lists in (2, 3):
            server.say(b'{"type":"ERROR","object":%s}\n' % status)
            await f.until(lambda n=lists: all(reflector.lists == n for reflector in f.reflectors.values()))  # type: ignore[misc]
            await f.until(lambda: server.watching == len(KINDS))

    follow(server, scenario)


@pytest.mark.parametrize(
    "line",
    [
        b"this is not JSON\n",
        b'{"type":"ADDED","object":{"kind":"Service"}}\n',
        b'{"type":"WHAT","object":{"metadata":{"name":"x"}}}\n',
        b'{"type":"ADDED","object":[1,2,3]}\n',
        b'{"type":"MODIFIED"}\n',
        b"\x00\xff\xfe\n",
    ],
)
def test_garbage_never_harms_what_is_known(server: ApiServer, line: bytes) -> None:
    server.apply(service("a", "10.96.0.1"))

    async def scenario(f: Follower) -> None:
        await f.until(lambda: f.services() == {"a"})
        server.say(line)
        server.apply(service("b", "10.96.0.2"))
        await f.until(lambda: f.services() == {"a", "b"})
        assert not f.deleted

    follower = follow(server, scenario)
    assert follower.inbox.invalid_events or "unknown type" in follower.out.getvalue()


def test_an_event_in_pieces_is_put_together(server: ApiServer) -> None:
    server.behave(bookmark_seconds=600.0)  # none between the pieces

    async def scenario(f: Follower) -> None:
        await f.until(lambda: f.inbox.complete_once)
        whole = b'{"type":"ADDED","object":{"kind":"Service","apiVersion":"v1","metadata":{"name":"p","namespace":"d",'
        whole += b'"resourceVersion":"5000"},"spec":{"clusterIP":"10.96.0.5","ports":[{"port":80}]}}}\n'
        for start in range(0, len(whole), 40):
            server.say(whole[start : start + 40])
            await asyncio.sleep(0.01)
        await f.until(lambda: "p" in f.services())

    follow(server, scenario)


def test_an_invalid_object_is_reported_and_others_go_on(server: ApiServer) -> None:
    bad = service("bad", "10.96.0.7")
    bad["spec"]["ports"] = "none"
    server.apply(service("a", "10.96.0.1"), bad)

    async def scenario(f: Follower) -> None:
        await f.until(lambda: f.services() == {"a"})
        ref = ObjectRef("Service", "default", "bad")
        assert [problem.field for problem in f.inbox.problems[ref]] == ["spec.ports"]
        server.apply(service("bad", "10.96.0.7"))
        await f.until(lambda: f.services() == {"a", "bad"})
        assert ref not in f.inbox.problems

    follow(server, scenario)


@pytest.mark.parametrize("code", [403, 429, 500, 503])
def test_refusals_are_waited_out(server: ApiServer, code: int) -> None:
    server.apply(service("a", "10.96.0.1"))
    server.behave(refuse=code)

    async def scenario(f: Follower) -> None:
        await f.until(lambda: bool(f.reflectors["Service"].failing_since))
        await asyncio.sleep(0.3)
        assert not f.inbox.complete_once
        assert f.reflectors["Service"].failing_since
        server.behave(refuse=0)
        await f.until(lambda: f.services() == {"a"})
        assert not f.reflectors["Service"].failing_since

    follow(server, scenario)


def test_watches_that_end_in_order_are_opened_again(server: ApiServer) -> None:
    server.behave(watch_seconds=1.1)

    async def scenario(f: Follower) -> None:
        await f.until(lambda: [kind for kind, _ in server.seen.watches].count("Service") > 1)
        server.apply(service("a", "10.96.0.1"))
        await f.until(lambda: f.services() == {"a"})
        assert f.reflectors["Service"].lists == 1

    follower = follow(server, scenario)
    assert "cannot watch" not in follower.out.getvalue()


def test_a_server_that_hangs_is_given_up(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctl.sources.api.READ_SECONDS", 0.3)
    server.apply(service("a", "10.96.0.1"))
    server.behave(delay=30.0)

    async def scenario(f: Follower) -> None:
        await f.until(lambda: bool(f.reflectors["Service"].failing_since))
        server.behave(delay=0.0)
        await f.until(lambda: f.services() == {"a"})

    follow(server, scenario)


def test_a_silent_watch_is_given_up(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose other end is gone without a word: no bookmark, no end."""
    monkeypatch.setattr(watch, "WATCH_SECONDS", (1, 1))
    monkeypatch.setattr(watch, "WATCH_GRACE", 0)
    server.behave(bookmark_seconds=60.0)

    async def scenario(f: Follower) -> None:
        await f.until(lambda: f.inbox.complete_once)
        watches = len(server.seen.watches)
        await f.until(lambda: len(server.seen.watches) > watches)

    follow(server, scenario)


def test_the_time_of_the_change_is_taken_from_a_watched_slice(server: ApiServer) -> None:
    server.apply(endpoint_slice("a", ["10.0.0.1"], triggered="2026-01-01T00:00:00Z"))

    async def scenario(f: Follower) -> None:
        await f.until(lambda: f.inbox.complete_once)
        assert f.inbox.take().triggers == [], "a list tells nothing of how fast we are"
        server.apply(endpoint_slice("a", ["10.0.0.2"], triggered="2026-01-01T00:00:00.5Z"))
        async with asyncio.timeout(PATIENCE):
            await f.inbox.news()
        assert f.inbox.take().triggers == [(Family.IPV4, 1767225600.5)]

    follow(server, scenario)


def test_backoff_grows_with_jitter_and_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("dataplane.backoff.time.monotonic", lambda: now[0])
    backoff = reflector_backoff()
    waits = [backoff.failed() for _ in range(8)]
    for wait, base in zip(waits, [0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30], strict=True):
        assert base <= wait <= 2 * base
    now[0] += 121
    assert backoff.failed() <= 1.6


async def caught_up(server: ApiServer, f: Follower) -> None:
    """Wait until the Service watch has brought everything so far, and take nothing of it."""
    newest = server.object("Service", "default", "a")["metadata"]["resourceVersion"]
    async with asyncio.timeout(PATIENCE):
        while f.reflectors["Service"]._version != newest:
            await asyncio.sleep(0.01)


def test_latest_word_wins_in_the_inbox(server: ApiServer) -> None:
    async def scenario(f: Follower) -> None:
        await f.until(lambda: f.inbox.complete_once)
        server.apply(*[service("a", f"10.96.0.{number}") for number in range(1, 50)])
        await caught_up(server, f)
        batch = f.inbox.take()
        assert [item.cluster_ips for item in batch.upserts if isinstance(item, Service)] == [("10.96.0.49",)]
        assert batch.events["Service", Family.IPV4] == 49
        server.delete("Service", "default", "a")
        server.apply(service("a", "10.96.0.77"))
        await caught_up(server, f)
        batch = f.inbox.take()
        assert (len(batch.upserts), batch.deletes) == (1, [])

    follow(server, scenario)


def test_a_list_that_breaks_off_changes_nothing(server: ApiServer) -> None:
    """A list takes effect as a whole: what a broken one brought, and what was only at its end, waits for the next."""
    server.apply(*[service(f"s{number}", f"10.96.1.{number}") for number in range(20)])

    async def scenario(f: Follower) -> None:
        await f.until(lambda: len(f.services()) == 20)
        server.behave(streaming_lists=False, page=5, down=True)
        server.cut()
        server.delete("Service", "default", "s0")
        server.apply(service("s3", "10.96.9.9"))
        server.forget()
        server.behave(pages_before_refusal=2, down=False)
        async with asyncio.timeout(PATIENCE):
            while server.seen.lists.count("Service") < 3:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)
        f.take()
        assert len(f.services()) == 20
        assert getattr(f.known[ObjectRef("Service", "default", "s3")], "cluster_ips", None) == ("10.96.1.3",)
        server.behave(pages_before_refusal=0)
        await f.until(lambda: len(f.services()) == 19)
        assert getattr(f.known[ObjectRef("Service", "default", "s3")], "cluster_ips", None) == ("10.96.9.9",)

    follow(server, scenario)
