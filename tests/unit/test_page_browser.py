"""The page in a browser: hostile names are text, every width and scheme, keys alone."""

import asyncio
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from ctl.ui import server
from ctl.ui.view import Event, Explanation, Look
from tests.browser import browser
from tests.unit.page_view import ToldView, served

WIDTHS, SCHEMES = (390, 900, 1440), ("light", "dark")
HOSTILE = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>"\'&'
_READY = "document.querySelectorAll('[data-frontend]').length && document.querySelectorAll('#events li').length > 2"
_LOOK = """({
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  hit: window.hit ?? 0,
  images: document.querySelectorAll("img, main script, iframe, object").length,
  places: [...document.querySelectorAll("[data-place]")].map(each => each.firstChild.textContent),
  services: [...document.querySelectorAll("#services h3")].map(each => each.textContent),
  pictures: [...document.querySelectorAll("#paths .path svg .title")].map(each => each.textContent),
  reasons: [...document.querySelectorAll("#paths .reasons li")].map(each => each.textContent),
  compared: document.querySelectorAll("#compared tbody tr").length,
  sent: document.querySelector("#sent tbody th")?.textContent,
  counters: document.getElementById("counters").textContent,
  events: [...document.querySelectorAll("#events li")].map(each => each.lastChild.textContent),
  small: [...document.querySelectorAll("button, input, select")]
    .filter(each => each.offsetHeight && each.offsetHeight < 24).length,
  unnamed: [...document.querySelectorAll("button, input, select")]
    .filter(each => !(each.textContent.trim() || each.labels?.length)).length,
  back: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.querySelector(".picture text")).fill,
})"""


async def looked_at() -> dict[tuple[int, str], dict[str, Any]]:
    found = {}
    async with browser() as tab:
        for width, scheme in itertools.product(WIDTHS, SCHEMES):
            async with served(ToldView(HOSTILE)) as (_, port):
                await tab.open(f"http://127.0.0.1:{port}/", width, scheme)
                await tab.until(_READY)
                await tab.value("document.querySelector('[data-frontend]').click()")
                await tab.until("document.querySelectorAll('#paths .path').length == 2")
                await tab.value("document.getElementById('send').click()")
                await tab.until("document.querySelector('#sent tbody')")
                found[width, scheme] = {**await tab.value(_LOOK), "said": list(tab.said)}
                await tab.open("about:blank", width, scheme)  # before its server goes
    return found


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[tuple[int, str], dict[str, Any]]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "LOOK_SECONDS", 0.05)
        yield asyncio.run(looked_at())


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_hostile_names_are_shown_and_do_nothing(
    seen: dict[tuple[int, str], dict[str, Any]], width: int, scheme: str
) -> None:
    found = seen[width, scheme]
    assert found["said"] == []
    assert found["hit"] == 0
    assert found["images"] == 0
    assert found["places"] == [HOSTILE] * 3
    assert found["services"] == [HOSTILE]
    assert found["pictures"] == [f"{mode} {HOSTILE}" for mode in ("one", "two")]
    assert found["reasons"] == [HOSTILE] * 2
    assert found["compared"] == 2
    assert found["sent"] == HOSTILE
    assert found["counters"].count(HOSTILE) >= 5
    assert {f"{HOSTILE}: {kind} {HOSTILE}" for kind in ("refusal", "change", "mode")} <= {*found["events"]}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_fits_and_can_be_used_at_every_width(
    seen: dict[tuple[int, str], dict[str, Any]], width: int, scheme: str
) -> None:
    found = seen[width, scheme]
    assert found["wide"] <= 0, "the body scrolls sideways"
    assert found["small"] == 0
    assert found["unnamed"] == 0
    assert found["back"] == {"light": "rgb(255, 255, 255)", "dark": "rgb(22, 22, 22)"}[scheme]
    assert found["ink"] == {"light": "rgb(26, 26, 26)", "dark": "rgb(232, 232, 232)"}[scheme]


class ChangingView(ToldView):
    """Something changes once a path is shown; that path is asked for again, and told when `may` is set, in one mode."""

    def __init__(self) -> None:
        super().__init__("plain")
        self.asked_again, self.may = asyncio.Event(), asyncio.Event()
        self._paths = self._changes = 0

    async def look(self) -> Look:
        events: tuple[Event, ...] = ()
        if self._paths and not self._changes:
            self._changes += 1
            events = (Event("change", self.name, "an endpoint"),)
        return Look((), events)

    async def explain(self, source: str, destination: str) -> Sequence[Explanation]:
        self._paths += 1
        found = await super().explain(source, destination)
        if self._paths == 1:
            return found
        self.asked_again.set()
        await self.may.wait()
        return found[:1]


async def sent_while_a_path_is_asked_for_again() -> str:
    view = ChangingView()
    async with browser() as tab, served(view) as (_, port):
        await tab.open(f"http://127.0.0.1:{port}/", 900, "light")
        await tab.until("document.querySelector('[data-frontend]')")
        await tab.value("document.querySelector('[data-frontend]').click()")
        await asyncio.wait_for(view.asked_again.wait(), 120)
        await tab.value("document.getElementById('send').click()")
        await tab.until("document.querySelector('#sent tbody')")
        view.may.set()
        await tab.until("document.querySelectorAll('#paths .path').length == 1")
        return str(await tab.value("document.getElementById('sent').textContent"))


def test_what_answered_stays_where_a_change_comes_while_packets_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "LOOK_SECONDS", 0.05)
    assert "plain" in asyncio.run(sent_while_a_path_is_asked_for_again())
