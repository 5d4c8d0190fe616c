"""Pieces of pages: tables that scroll inside themselves, lists, anchors, and the document around them."""

import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

_STYLE = Path(__file__).with_name("page.css")
_TIP = """
const tip = document.getElementById("tip");
const show = (mark) => {
  tip.textContent = mark.dataset.tip;
  tip.hidden = false;
  const at = mark.getBoundingClientRect(), room = document.documentElement.clientWidth;
  tip.style.left = Math.max(4, Math.min(at.left, room - tip.offsetWidth - 8)) + "px";
  tip.style.top = Math.max(4, at.top - tip.offsetHeight - 8) + "px";
};
for (const mark of document.querySelectorAll("[data-tip]")) {
  for (const name of ["pointerenter", "focus"]) mark.addEventListener(name, () => show(mark));
  for (const name of ["pointerleave", "blur"]) mark.addEventListener(name, () => { tip.hidden = true; });
}
"""


def anchor(title: str) -> str:
    """The name that a section with this title is found by."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def table(records: Sequence[Mapping[str, object]], kind: str = "") -> str:
    """Records as a table; its first column stays while the rest scrolls."""
    if not records:
        return "<p>Nothing was measured.</p>"
    columns = list(records[0])
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in columns)
    lines = []
    for record in records:
        cells = [f'<th scope="row">{escape(str(record[columns[0]]))}</th>']
        for name in columns[1:]:
            text = escape(str(record[name]))
            mark = f' class="{text.replace("not measured", "unmeasured")}"' if name == "verdict" else ""
            cells.append(f"<td{mark}>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    inner = f"<thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="wide" tabindex="0"><table class="{kind}">{inner}</table></div>'


def listed(items: Sequence[str]) -> str:
    """A list of sentences."""
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def document(title: str, body: str, style: str) -> str:
    """A whole page that needs nothing else. style: of what is in it, beside the page's own."""
    view = '<meta name="viewport" content="width=device-width, initial-scale=1">'
    icon = '<link rel="icon" href="data:,">'
    sheet = _STYLE.read_text(encoding="utf-8") + style
    head = f'<meta charset="utf-8">{view}{icon}<title>{escape(title)}</title><style>{sheet}</style>'
    tip = f'<div id="tip" role="status" hidden></div><script>{_TIP}</script>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n{tip}\n</body></html>\n'
