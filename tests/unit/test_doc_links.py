"""Links of the documentation lead somewhere: files that are there, headings that are there."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").glob("*.md"))]
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def anchors(text: str) -> list[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", text), re.MULTILINE)
    return [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]


def broken(page: Path) -> Iterator[str]:
    """The links of a page that lead nowhere. Those to other sites are not followed."""
    for link in _LINK.findall(_FENCED.sub("", page.read_text(encoding="utf-8"))):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        if re.match(r"[a-z]+:", link):
            continue
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert [*broken(page)] == []


def test_decisions_begin_with_all_of_their_headings() -> None:
    text = (ROOT / "docs" / "decisions.md").read_text(encoding="utf-8")
    contents = text.split("\n## ")[0]
    listed = re.findall(r"^( *)- \[(.*)\]\(#(.*)\)$", contents, re.MULTILINE)
    headings = re.findall(r"^(##+) (.*)$", text, re.MULTILINE)
    assert [("#" * (2 + len(indent) // 2), title) for indent, title, _ in listed] == headings
    assert [anchor for *_, anchor in listed] == anchors(text)[1:]
