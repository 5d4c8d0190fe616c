"""Reasons of packets that end in a program: what the programs hand to captures is what people are told was dropped."""

import re

from dataplane.kernel.ebpf.bcc_loader import SOURCE_DIR
from dataplane.planes.ebpf.maps.layout import reason_meanings
from dataplane.planes.ebpf.views.answers import DROPPED


def _named(source: str, function: str) -> set[str]:
    """The reasons that a function of a C file names."""
    text = (SOURCE_DIR / source).read_text()
    body = text[text.index(f"{function}(") :]
    return {name.lower() for name in re.findall(r"REASON_(\w+)", body[: body.index("\n}")])}


def test_captures_have_what_is_told_as_dropped() -> None:
    between = [name for name in reason_meanings() if name.startswith("tunnel_")]
    told = _named("forward.c", "tell_unsent")
    assert {between[0], "tunnel_endpoint", "tunnel_option", "tunnel_lost"} == told
    ends = between[: between.index("tunnel_endpoint") + 1]
    assert _named("capture.h", "drops") | set(ends) | {"tunnel_option", "tunnel_lost"} == DROPPED


def test_every_reason_that_says_so_is_dropped() -> None:
    said = {name for name, meaning in reason_meanings().items() if meaning.startswith("dropped")}
    assert said <= DROPPED
