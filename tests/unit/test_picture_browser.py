"""The documentation's pictures in a browser: readable at 800 pixels, light and dark, no text over another."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from tests.browser import browser

ROOT = Path(__file__).resolve().parents[2]
PICTURES = sorted(
    [*(ROOT / "docs" / "pictures").glob("*.svg"), *(ROOT / "tests" / "golden" / "pictures").glob("*.svg")]
)
_LOOK = """(() => {
  const svg = document.documentElement, all = [...svg.querySelectorAll("text")];
  const view = svg.getBoundingClientRect(), named = text => text.textContent.slice(0, 40);
  const boxes = all.map(text => [named(text), text.getBoundingClientRect()]);
  const off = boxes.filter(([, b]) => b.left < view.left || b.right > view.right || b.bottom > view.bottom);
  const over = [];
  boxes.forEach(([name, a], at) => boxes.slice(at + 1).forEach(([other, b]) => {
    const x = Math.min(a.right, b.right) - Math.max(a.left, b.left);
    const y = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
    if (x > 1 && y > 4) over.push([name, other]);
  }));
  const inner = [...svg.querySelectorAll(".step, .pod, .source")].flatMap(group => {
    const box = group.querySelector("rect").getBoundingClientRect();
    return [...group.querySelectorAll("text")].filter(t => t.getBoundingClientRect().right > box.right).map(named);
  });
  return {
    off: off.map(([name]) => name), over, inner, width: view.width,
    least: Math.min(...all.map(text => parseFloat(getComputedStyle(text).fontSize))) * Math.min(1, 800 / view.width),
    paper: getComputedStyle(svg.querySelector(".paper")).fill, ink: getComputedStyle(all[0]).fill,
  };
})()"""


async def looked_at() -> dict[tuple[str, str], dict[str, Any]]:
    found = {}
    async with browser() as tab:
        for file in PICTURES:
            for scheme in ("light", "dark"):
                await tab.open(file, 800, scheme)
                found[file.stem, scheme] = {**await tab.value(_LOOK), "said": list(tab.said)}
    return found


@pytest.fixture(scope="module")
def seen() -> dict[tuple[str, str], dict[str, Any]]:
    return asyncio.run(looked_at())


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", [file.stem for file in PICTURES])
def test_every_text_can_be_read(seen: dict[tuple[str, str], dict[str, Any]], name: str, scheme: str) -> None:
    found = seen[name, scheme]
    assert found["said"] == []
    assert found["off"] == []
    assert found["over"] == []
    assert found["inner"] == []
    assert found["least"] >= (6 if name == "hostile" else 8.5)  # it has names of 32 letters in every place
    assert (found["paper"], found["ink"]) == {
        "light": ("rgb(255, 255, 255)", "rgb(26, 26, 26)"),
        "dark": ("rgb(22, 22, 22)", "rgb(232, 232, 232)"),
    }[scheme]
