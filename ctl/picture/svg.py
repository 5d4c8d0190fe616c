"""Draw a picture as SVG: text stays text, light and dark, no reference to anything outside.

The source stands on the left, nodes one below the other on the right, each with what it does (left) and its endpoints
(right). Packets to other nodes go down a line between both. Sizes are in pixels of a drawing that is 800 wide or more.
"""

import re
import textwrap
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import NamedTuple

from ctl.picture.model import SOURCE, Leg, NodeBox, Picture, PodBox, Step, Tone
from dataplane.model.forwarding import Dispatch

STYLE = Path(__file__).with_name("picture.css")
WIDTH = 800
_MARGIN, _PAD, _GAP = 14, 12, 10
_MONO, _SANS, _BOLD = 6.75, 6.5, 8.6
"""Width of a letter of addresses, of sentences and of names, on the safe side."""
_LINE, _TITLE_LINE = 15, 17
_SOURCE_WIDTH, _FAN = 150, 62
_TRUNK, _TRUNK_BACK, _DIRECT = 112, 128, 46
"""Where packets to other nodes go down, their answers up, and answers past the taking node up to the source."""
_TOP, _FIRST_LEG, _LEG_APART = 64, 44, 44
_UNPRINTABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
"""What XML 1.0 (section 2.2) cannot hold."""


class _Size(NamedTuple):
    """Columns of a drawing: where nodes begin, the widths of steps and of endpoints in them."""

    nodes: int
    steps: int
    pods: int

    @property
    def steps_left(self) -> int:
        return self.nodes + _PAD

    @property
    def pods_left(self) -> int:
        return self.steps_left + self.steps + _FAN

    @property
    def right(self) -> int:
        return self.pods_left + self.pods + _PAD

    @property
    def width(self) -> int:
        return self.right + _MARGIN


class _Placed(NamedTuple):
    """A node with its place: top and bottom of its frame, bottom of its steps, where packets go in and to endpoints."""

    node: NodeBox
    top: int
    bottom: int
    steps_bottom: int
    middle: int


def style() -> str:
    """The style sheet of pictures, all of whose rules begin with `.picture`."""
    return STYLE.read_text(encoding="utf-8")


def document(pictures: Sequence[Picture]) -> str:
    """A file of its own with one picture or several, one below the other."""
    parts, top, width = [], 0, max((_size(each).width for each in pictures), default=WIDTH)
    for each in pictures:
        body, height = _body(each)
        parts.append(f'<g transform="translate(0 {top})">{body}</g>')
        top += height + 2 * _GAP
    title = escape(_clean("; ".join(each.title for each in pictures)))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="picture" viewBox="0 0 {width} {top}" width="{width}" '
        f'height="{top}"><title>{title}</title><style>{style()}</style>'
        f'<rect class="paper" width="{width}" height="{top}"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def drawing(picture: Picture) -> str:
    """One picture to stand in a page that has the style sheet."""
    body, height = _body(picture)
    width = _size(picture).width
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="picture" viewBox="0 0 {width} {height}" role="group" '
        f'aria-label="{escape(_clean(picture.title), quote=True)}">{body}</svg>'
    )


def _clean(text: str) -> str:
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    shown = f' class="{kind}"' if kind else ""
    return f'<text x="{x:g}" y="{y:g}"{shown}>{escape(_clean(text))}</text>'


def _wide(texts: Iterable[str], letter: float, least: int) -> int:
    return max([least, *(round(len(text) * letter) + 2 * _GAP for text in texts)])


def _size(picture: Picture) -> _Size:
    """Columns as wide as their texts need, and as the least width of a drawing lets them be."""
    steps = [line for node in picture.nodes for step in node.steps for line in step.lines]
    pods = [text for node in picture.nodes for pod in node.pods for text in _pod_lines(pod)]
    first = [text for leg in picture.legs if SOURCE in (leg.start, leg.end) and 0 in (leg.start, leg.end)
             for text in leg.texts]  # fmt: skip
    others = [text for leg in picture.legs if not (SOURCE in (leg.start, leg.end) and 0 in (leg.start, leg.end))
              for text in leg.texts]  # fmt: skip
    titles = [step.title for node in picture.nodes for step in node.steps]
    names = [pod.name for node in picture.nodes for pod in node.pods]
    steps_width = _wide(steps, _MONO, _wide(titles, _BOLD, 140))
    pods_width = _wide(pods, _MONO, _wide(names, _BOLD, 140))
    rest = steps_width + pods_width + _FAN + 2 * _PAD + _MARGIN
    beside = _MARGIN + _source_width(picture) + _wide(first, _MONO, 60)
    return _Size(max(beside, _TRUNK_BACK + _wide(others, _MONO, 60), WIDTH - rest), steps_width, pods_width)


def _source_width(picture: Picture) -> int:
    return _wide((picture.source.address,), _MONO, _wide((picture.source.name,), _BOLD, _SOURCE_WIDTH))


def _body(picture: Picture) -> tuple[str, int]:
    """The drawing's elements and its height."""
    size = _size(picture)
    placed = _place(picture)
    parts = [_text(_MARGIN, 24, picture.title, "title")]
    parts.append(_text(_MARGIN, 45, picture.headline, "headline refused" if picture.refused else "headline"))
    parts += [_frame(each, size, picture.source.inside and number == 0) for number, each in enumerate(placed)]
    parts.append(_source(picture, placed[0]))
    parts += [_leg(picture, leg, placed, size) for leg in picture.legs]
    parts += [_inside(each, size, taker=number == 0) for number, each in enumerate(placed)]
    bottom = placed[-1].bottom + 24
    parts.append(_legend(picture, bottom))
    bottom += 14
    for line in _wrapped(picture.reasons, size.width):
        bottom += _LINE
        parts.append(_text(_MARGIN, bottom, line, "reason"))
    return "\n".join(parts), bottom + _MARGIN


def _wrapped(reasons: Iterable[str], width: int) -> list[str]:
    letters = int((width - 2 * _MARGIN) / _SANS)
    return [
        line
        for reason in reasons
        for line in textwrap.wrap(_clean(reason), letters, initial_indent="· ", subsequent_indent="  ")
    ]


# Places


def _step_height(step: Step) -> int:
    return 2 * 6 + _TITLE_LINE + _LINE * len(step.lines)


def _pod_lines(pod: PodBox) -> list[str]:
    lines = [pod.name, pod.address, f"sees {pod.sees}" if pod.sees else "gets nothing"]
    return [line for line in lines if line]


def _pod_height(pod: PodBox) -> int:
    return 2 * 5 + _LINE * len(_pod_lines(pod))


def _stack(heights: Sequence[int]) -> int:
    return sum(heights) + _GAP * max(0, len(heights) - 1)


def _place(picture: Picture) -> list[_Placed]:
    """Nodes one below the other."""
    found, top = [], _TOP
    for number, node in enumerate(picture.nodes):
        head = top + 34
        steps_bottom = head + _stack([_step_height(step) for step in node.steps])
        pods_bottom = head + _stack([_pod_height(pod) for pod in node.pods])
        goes_on = number == 0 and any(leg.start == 0 and leg.end > 0 for leg in picture.legs)
        least = head + (112 if number == 0 else 56) + (_PAD * 2 if goes_on else 0)
        packed = any(leg.tunnelled and leg.start == number > 0 for leg in picture.legs)
        below = _PAD * 3 if goes_on else _PAD * 2 if packed else 0  # lines that leave below the steps
        bottom = max(steps_bottom + below, pods_bottom, least) + _PAD
        middle = _middle(node, head)
        found.append(_Placed(node, top, bottom, steps_bottom, middle))
        top = bottom + 18
    return found


def _middle(node: NodeBox, head: int) -> int:
    """The middle of the first endpoint, if that is beside the first step, else of that step."""
    pod = _pod_height(node.pods[0]) // 2 if node.pods else 0
    if not node.steps:
        return head + (pod or 18)
    step = _step_height(node.steps[0])
    return head + (pod if 0 < pod < step - 8 else step // 2)


# Boxes


def _frame(placed: _Placed, size: _Size, around: bool) -> str:
    left = 4 if around else size.nodes
    node = placed.node
    used = "node" if node.steps or any(pod.share is not None for pod in node.pods) else "node unused"
    name = _text(size.steps_left, placed.top + 22, f"{node.name}  {node.address}".rstrip(), "name")
    return (
        f'<g class="{used}"><rect class="frame" x="{left}" y="{placed.top}" width="{size.right - left}" '
        f'height="{placed.bottom - placed.top}" rx="8"/>{name}</g>'
    )


def _source(picture: Picture, taker: _Placed) -> str:
    source, top = picture.source, taker.top + 34
    width = _source_width(picture)
    return (
        f'<g class="source"><rect class="box" x="{_MARGIN}" y="{top}" width="{width}" height="56" rx="6"/>'
        f"{_text(_MARGIN + _GAP, top + 23, source.name, 'name')}"
        f"{_text(_MARGIN + _GAP, top + 42, source.address, 'address')}</g>"
    )


def _inside(placed: _Placed, size: _Size, *, taker: bool) -> str:
    """Steps and endpoints of a node, and the arrows between them."""
    node, head = placed.node, placed.top + 34
    parts, top = [], head
    for step in node.steps:
        parts.append(_step(step, size.steps_left, top, size.steps))
        top += _step_height(step) + _GAP
    top = head
    starts_right = taker or bool(node.steps)
    start = size.steps_left + size.steps if starts_right else size.pods_left - _FAN
    for pod in node.pods:
        height = _pod_height(pod)
        parts.append(_pod(pod, size.pods_left, top, size.pods, height))
        if pod.share is not None:
            parts.append(_arm(start, placed.middle, size.pods_left, top + height // 2, pod))
        top += height + _GAP
    return "".join(parts)


def _step(step: Step, x: int, y: int, width: int) -> str:
    lines = "".join(
        _text(x + _GAP, y + 6 + _TITLE_LINE + _LINE * (number + 1) - 4, line, "address")
        for number, line in enumerate(step.lines)
    )
    return (
        f'<g class="step {step.tone.value}"><rect class="box" x="{x}" y="{y}" width="{width}" '
        f'height="{_step_height(step)}" rx="4"/>{_text(x + _GAP, y + _TITLE_LINE + 2, step.title, "name")}{lines}</g>'
    )


def _pod(pod: PodBox, x: int, y: int, width: int, height: int) -> str:
    lines = _pod_lines(pod)
    kinds = ["name" if pod.name and number == 0 else "address" for number in range(len(lines))]
    kinds[-1] = "seen"
    texts = "".join(
        _text(x + _GAP, y + 1 + _LINE * (number + 1), line, kind)
        for number, (line, kind) in enumerate(zip(lines, kinds, strict=True))
    )
    kind = "pod" if pod.share is not None else "pod unused"
    return f'<g class="{kind}"><rect class="box" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>{texts}</g>'


def percent(pod: PodBox) -> str:
    """A share of new connections in per cent, three figures: 33.3 %."""
    return f"{float(100 * pod.share):.3g}\N{NO-BREAK SPACE}%" if pod.share is not None else ""


def _arm(x: int, y: int, to_x: int, to_y: int, pod: PodBox) -> str:
    """The arrow from what a node does to an endpoint, with its share."""
    bend = x + 6
    way = f"M{x} {y}H{bend}V{to_y}H{to_x - 6}" if y != to_y else f"M{x} {y}H{to_x - 6}"
    return (
        f'<path class="leg plain" d="{way}"/>{_head(to_x, to_y, "right", "plain")}'
        f"{_text(to_x - 8, to_y - 5, percent(pod), 'share')}"
    )


_HEADS = {"right": "l-8 -4v8z", "left": "l8 -4v8z", "up": "l-4 8h8z", "down": "l-4 -8h8z"}


def _head(x: int, y: int, where: str, tone: str) -> str:
    return f'<path class="head {tone}" d="M{x} {y}{_HEADS[where]}"/>'


# Packets


def _leg(picture: Picture, leg: Leg, placed: Sequence[_Placed], size: _Size) -> str:
    if SOURCE not in (leg.start, leg.end):
        return _between(leg, placed, size)
    if 0 in (leg.start, leg.end):
        return _to_source(picture, leg, placed[0], size)
    return _past(leg, placed, size)


def _kinds(leg: Leg) -> str:
    return " ".join([leg.tone.value, *(["answer"] if leg.answer else []), *(["tunnelled"] if leg.tunnelled else [])])


def _to_source(picture: Picture, leg: Leg, taker: _Placed, size: _Size) -> str:
    """Between the source and the taking node."""
    left, right = _MARGIN + _source_width(picture), size.steps_left
    y = taker.top + _FIRST_LEG + (_LEG_APART if leg.answer else 0)
    if picture.nodes[0].steps and not leg.answer:
        y = min(y, taker.middle)
    parts = [_text(left + _GAP, y - 6, leg.texts[0], f"address {leg.tone.value}")]
    if leg.arrives:
        y_end = y
        ends = f"M{right} {y_end}H{left + 6}" if leg.answer else f"M{left} {y}H{right - 6}"
        parts.append(f'<path class="leg {_kinds(leg)}" d="{ends}"/>')
        parts.append(_head(left, y, "left", leg.tone.value) if leg.answer else _head(right, y, "right", leg.tone.value))
    return "".join(parts)


def _between(leg: Leg, placed: Sequence[_Placed], size: _Size) -> str:
    """From the taking node down to another one, or back up."""
    taker, other = placed[0], placed[leg.start or leg.end]
    step = size.steps_left + size.steps // 2
    inside = size.steps_left if other.node.steps else size.pods_left - _FAN
    if not leg.answer:
        y, out = other.middle, taker.bottom - 26
        way = f"M{step} {taker.steps_bottom}V{out}H{_TRUNK}V{y}H{inside - (6 if other.node.steps else 0)}"
        head = _head(inside, y, "right", leg.tone.value) if other.node.steps else ""
    else:
        y, out = _answer_y(leg, other), taker.bottom - 12
        start = f"{step} {other.steps_bottom}V{y}" if other.node.steps else f"{size.pods_left} {y}"
        way = f"M{start}H{_TRUNK_BACK}V{out}H{step + 14}V{taker.steps_bottom + 7}"
        head = _head(step + 14, taker.steps_bottom, "up", leg.tone.value)
    return f'<path class="leg {_kinds(leg)}" d="{way}"/>{head}{_labels(leg, y)}'


def _answer_y(leg: Leg, other: _Placed) -> int:
    return max(other.middle + 46, other.steps_bottom + 10) if leg.tunnelled else other.middle + 18


def _labels(leg: Leg, y: int) -> str:
    """The packet's addresses above its line; the inner packet's below it."""
    places = (y - 6, y + 13)
    return "".join(
        _text(_TRUNK_BACK + _GAP, place, text, f"address {leg.tone.value}")
        for place, text in zip(places, leg.texts, strict=False)
    )


def _past(leg: Leg, placed: Sequence[_Placed], size: _Size) -> str:
    """From another node straight to the source."""
    other, source = placed[leg.start], placed[0].top + 34 + 56
    y = min(other.middle + 46, other.bottom - 10)
    way = f"M{size.steps_left} {y}H{_DIRECT}V{source + 6}"
    return f'<path class="leg {_kinds(leg)}" d="{way}"/>{_head(_DIRECT, source, "up", leg.tone.value)}{_labels(leg, y)}'


_TUNNELLED = tuple((f"in {dispatch.title}", "plain tunnelled") for dispatch in Dispatch)
_LEGEND = (("request", "plain"), ("answer", "plain answer"), ("refused", "refused"), *_TUNNELLED)


def _legend(picture: Picture, y: int) -> str:
    """What lines mean, of those that are there."""
    there = {"request"} if any(leg.tone is not Tone.REFUSED for leg in picture.legs) else set()
    there |= {"answer"} if any(leg.answer and leg.arrives and leg.tone is Tone.PLAIN for leg in picture.legs) else set()
    there |= {"refused"} if picture.refused else set()
    wrapped = {word for leg in picture.legs if leg.tunnelled for word in leg.texts[0].split()}
    there |= {name for name, _ in _TUNNELLED if name.removeprefix("in ") in wrapped}
    parts, x = [], _MARGIN
    for name, kinds in _LEGEND:
        if name in there:
            parts.append(f'<path class="leg {kinds}" d="M{x} {y - 4}h28"/>{_text(x + 34, y, name, "reason")}')
            x += 34 + 7 * len(name) + 24
    return "".join(parts)
