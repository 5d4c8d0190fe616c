"""nftables text as hotplane reads it: commands, elements that tell their type, and numbers that are put in later."""

import sys
import threading
import time
from pathlib import Path

import pytest

from dataplane.kernel import tools
from dataplane.kernel.netlink.netlink import attributes
from dataplane.kernel.nft.command import Command
from dataplane.kernel.nft.compile import Request, explain
from dataplane.kernel.nft.elements import encoded
from dataplane.kernel.nft.forms import Compiler, compile_forms
from dataplane.kernel.nft.messages import messages
from dataplane.kernel.nft.pattern import filled, pattern
from dataplane.kernel.nft.uapi import LIST_ELEMENT, nested, number, text
from dataplane.planes.base import PlaneError
from dataplane.planes.nftables.rules.library import library


def expression(name: str, *parts: bytes) -> bytes:
    return nested(LIST_ELEMENT, text(1, name), nested(2, *parts))


def data(expressions: bytes) -> list[dict[int, bytes]]:
    found = []
    for _, held in attributes(expressions):
        inner = dict(attributes(held))[2]
        found.append({kind: bytes(payload) for kind, payload in attributes(inner)})
    return found


def test_a_command_is_its_words() -> None:
    line = "add map ip hotplane affinity-60 { type ipv4_addr : classid; flags dynamic,timeout; }"
    command = Command.of(line)
    assert command[:5] == ("add", "map", "ip", "hotplane", "affinity-60")
    assert command.text == line
    assert Command.of("flush table inet hotplane-ports")[4:] == ("", "")


@pytest.mark.parametrize(
    "line",
    ["list ruleset", "flush ruleset", "include \"x\"", "add rule vlan t c drop", "add table ip t; add table ip u",
     "rename chain ip t a b", "table ip t { }"],
)  # fmt: skip
def test_nothing_else_is_a_command(line: str) -> None:
    with pytest.raises(PlaneError, match="no such nftables command"):
        messages(f"{line}\n", Compiler(()), library())


def test_a_protocol_has_a_name_and_a_number_is_a_port() -> None:
    field = bytes([10, 96, 0, 1, 17, 0, 0, 0, 0, 53, 0, 0])
    assert field in encoded("{ 10.96.0.1 . udp . 53 }")
    assert bytes([132, 0, 0, 0, 0xFF, 0xFF, 0, 0]) in encoded("{ sctp . 65535 }")


@pytest.mark.parametrize("elements", ["{ 65536 }", "{ 10.0.0.1 . icmp }", "{ ffff:1 : jump x }", "{ }"])
def test_elements_that_do_not_tell_their_type(elements: str) -> None:
    with pytest.raises(PlaneError, match="no nftables element like this"):
        encoded(elements)


def test_numbers_leave_a_rule_and_find_their_place() -> None:
    rule = "numgen random mod 300 offset 7 update @affinity-60 { ip saddr timeout 60s } map @endpoints"
    wanted = pattern(rule)
    assert wanted.text == rule.replace("300", "1").replace("60", "1")
    assert pattern(wanted.text).text == wanted.text
    compiled = (
        expression("numgen", number(1, 1), number(2, 1))
        + expression("dynset", text(1, "affinity-1"), number(6, 1000, 8))
        + expression("lookup", text(1, "endpoints"))
        + expression("lookup", text(1, "__set0"))
    )
    choice, remember, named, anonymous = data(filled(compiled, wanted, {"__set0": 9}))
    assert choice == {1: number(1, 1)[4:], 2: (300).to_bytes(4, "big")}
    assert remember == {1: b"affinity-60\0", 6: (60_000).to_bytes(8, "big")}
    assert named == {1: b"endpoints\0"}
    assert anonymous == {1: b"__set%d\0", 4: (9).to_bytes(4, "big")}


def test_an_address_leaves_a_rule_only_where_it_is_compared() -> None:
    assert pattern("ip daddr 10.0.0.1 drop").addresses == (bytes((10, 0, 0, 1)),)
    assert len(pattern("ip6 daddr fd00::1 drop").addresses[0]) == 16
    for other in ("ip daddr 10.0.0.0/8 drop", "ip daddr { 10.0.0.1, 10.0.0.2 } drop", "ip daddr != 127.0.0.0/8 drop"):
        assert not pattern(other).addresses
    compared = nested(3, nested(1))
    with pytest.raises(PlaneError, match="no room for its numbers: ip daddr"):
        filled(expression("cmp", compared), pattern("ip daddr 10.0.0.1 drop"), {})


def test_a_device_of_a_strange_name_is_left_alone() -> None:
    rule = 'iifname "@veth-7" return'
    assert pattern(rule).text == rule


def test_two_sets_of_one_kind_in_a_rule_are_refused() -> None:
    with pytest.raises(PlaneError, match="two sets of one kind"):
        pattern("ip saddr @ranges-8 ip daddr @ranges-9")


def test_a_refusal_by_libnftables_names_the_command() -> None:
    lines = ["add table ip t", "add rule ip t c nonsense"]
    output = "/proc/self/fd/3:2:18-25: Error: syntax error, unexpected string\nadd rule ip t c nonsense\n    ^^^^\n"
    assert explain(output, lines) == "syntax error, unexpected string at: add rule ip t c nonsense"
    assert explain("Segmentation of thought\n", lines) == "Segmentation of thought"
    assert explain("", lines) == "no reason given"


def test_a_library_that_hangs_goes_with_this_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As every program of others: it is killed when the daemon ends, which does not wait for it."""
    monkeypatch.setattr(tools, "_running", tools._Running())
    begun = tmp_path / "begun"
    stand_in = tmp_path / "python"
    stand_in.write_text(f"#!/bin/sh\necho > {begun}\nexec sleep 300\n")
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stand_in))
    said: list[str] = []

    def compile_one() -> None:
        try:
            compile_forms(Request())
        except PlaneError as error:
            said.append(str(error))

    thread = threading.Thread(target=compile_one, daemon=True)
    thread.start()
    while not begun.exists():
        time.sleep(0.01)
    tools.end_tools()
    thread.join(60)
    assert len(said) == 1
    assert "was killed, because this process ends; nothing was changed" in said[0]
