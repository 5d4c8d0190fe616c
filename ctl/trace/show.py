"""Prints a trace: a timeline for people, or one object a line."""

import sys
import textwrap
from collections.abc import Iterator
from typing import Any

import msgspec

from ctl.output import print_line, terminal_width
from ctl.trace.seen import Layer, Seen, ends_text
from ctl.trace.timeline import Trace, route_text

_PAGE, _NARROWEST = 100, 60
_INDENT = " " * 13


def records(trace: Trace) -> Iterator[dict[str, object]]:
    """One record a step, then one with the verdict. clock: "kernel", or "read" for a time that is that of reading the
    kernel's message, made consistent with the kernel's own ones."""
    begin = trace.steps[0].seconds if trace.steps else 0.0
    for step in trace.steps:
        yield {
            "microseconds": round((step.seconds - begin) * 1e6, 1),
            "clock": "kernel" if step.exact else "read",
            "layer": str(step.layer),
            "hook": step.hook,
            "device": step.device,
            "direction": "answer" if step.answer else "request",
            "decision": step.decision,
            "reason": step.reason,
            "before": ends_text(step.before) if step.before is not None else None,
            "after": ends_text(step.after) if step.after is not None else None,
        }
    yield {**msgspec.to_builtins(trace.outcome), "flow": trace.target.text, "limits": list(trace.limits)}


def show(trace: Trace, output: str) -> None:
    """Print a trace in a format."""
    if output in ("json", "yaml"):
        for record in records(trace):
            print_line(record, output)
    else:
        for line in lines(trace, max(_NARROWEST, terminal_width(sys.stdout) or _PAGE)):
            print(line)


def lines(trace: Trace, width: int) -> Iterator[str]:
    """The timeline for people, no wider than `width` unless a word is."""
    target = trace.target
    named = f"  ({target.text})" if target.asked else ""
    yield from _folded(f"{target.asked or target.text}{named}, {target.mode.name} mode", "", width)
    begin = trace.steps[0].seconds if trace.steps else 0.0
    for step in trace.steps:
        yield from _step(step, begin, width)
    yield from _folded(trace.outcome.text, "verdict: ", width)
    for limit in trace.limits:
        yield from _folded(limit, "not told: ", width)


def _step(step: Seen, begin: float, width: int) -> Iterator[str]:
    micro = f"{(step.seconds - begin) * 1e6:.0f}"
    clock = "" if step.exact else "~"
    way = "<" if step.answer else ">"
    layer = "" if step.layer in (Layer.STACK, Layer.CONNTRACK, Layer.SENDER) else f"{step.layer} "
    where = f"{step.hook}@{step.device}" if step.device else step.hook
    reason = f" ({step.reason})" if step.reason else ""
    head = f"{clock}{micro} us".rjust(11) + f" {way} "
    yield from _folded(f"{layer}{where}: {step.decision}{reason}", head, width, _INDENT)
    route = route_text(step)
    if route and not (step.layer in (Layer.NFTABLES, Layer.IPTABLES) and step.after is None):
        yield from _folded(route, _INDENT + "  ", width)


def _folded(text: str, head: str, width: int, indent: str | None = None) -> list[str]:
    whole: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    under = " " * len(head) if indent is None else indent
    return textwrap.wrap(text, width, initial_indent=head, subsequent_indent=under + "  ", **whole) or [head]
