"""The report in a browser: at a phone's, a tablet's and a desktop's width, light and dark."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from dataplane.bench.report.page import write_report
from tests.browser import browser
from tests.unit.bench_runs import made_up

WIDTHS, SCHEMES = (390, 900, 1440), ("light", "dark")
_LOOK = """({
  wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  lost: [...document.querySelectorAll('a[href^="#"]')].map(a => a.getAttribute("href").slice(1))
    .filter(name => !document.getElementById(name)),
  anchors: document.querySelectorAll('a[href^="#"]').length,
  back: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(document.querySelector(".chart text")).fill,
  first: document.querySelector("h1").parentElement.querySelector("figure").id,
})"""
_SCROLL = """(() => {
  const table = document.querySelector(".places"), box = table.parentElement;
  box.scrollLeft = 200;
  const first = table.querySelector("tbody th").getBoundingClientRect().left;
  return {scrolled: box.scrollLeft, off: Math.abs(first - box.getBoundingClientRect().left)};
})()"""
_POINT = """(() => {
  const mark = document.querySelector(".tip");
  mark.scrollIntoView({block: "center"});
  mark.dispatchEvent(new PointerEvent("pointerenter"));
  const tip = document.getElementById("tip"), at = tip.getBoundingClientRect();
  const found = {hidden: tip.hidden, text: tip.textContent, inside: at.left >= 0 && at.right <= innerWidth};
  mark.dispatchEvent(new PointerEvent("pointerleave"));
  return {...found, gone: tip.hidden};
})()"""


async def looked_at(page: Path) -> dict[tuple[int, str], dict[str, Any]]:
    found = {}
    async with browser() as tab:
        for width in WIDTHS:
            for scheme in SCHEMES:
                await tab.open(page, width, scheme)
                found[width, scheme] = {
                    **await tab.value(_LOOK), "scroll": await tab.value(_SCROLL), "tip": await tab.value(_POINT),
                    "said": list(tab.said),
                }  # fmt: skip
    return found


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[int, str], dict[str, Any]]:
    directory = tmp_path_factory.mktemp("report")
    write_report(made_up(), directory)
    return asyncio.run(looked_at(directory / "index.html"))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_is_right_at_every_width_in_both_schemes(
    seen: dict[tuple[int, str], dict[str, Any]], width: int, scheme: str
) -> None:
    found = seen[width, scheme]
    assert found["said"] == []
    assert found["wide"] <= 0, "the body scrolls sideways"
    assert found["anchors"] >= 8
    assert found["lost"] == []
    assert found["first"] == "chart-connect-rate"
    assert found["tip"]["hidden"] is False
    assert "rounds" in found["tip"]["text"]
    assert found["tip"]["inside"]
    assert found["tip"]["gone"]


def test_dark_is_dark_and_light_is_light(seen: dict[tuple[int, str], dict[str, Any]]) -> None:
    assert {seen[width, "light"]["back"] for width in WIDTHS} == {"rgb(255, 255, 255)"}
    assert {seen[width, "dark"]["back"] for width in WIDTHS} == {"rgb(22, 22, 22)"}
    assert seen[390, "light"]["ink"] != seen[390, "dark"]["ink"]


def test_tables_scroll_inside_themselves_and_keep_their_first_column(
    seen: dict[tuple[int, str], dict[str, Any]],
) -> None:
    for scheme in SCHEMES:
        found = seen[390, scheme]["scroll"]
        assert found["scrolled"] > 100
        assert found["off"] < 2
