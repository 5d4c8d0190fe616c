"""Printing: aligned text in a pipe, the whole record in JSON and YAML."""

import io
import json

import pytest
import yaml

from ctl.output import Table, cell, heading, print_records, print_table

RECORDS: list[dict[str, object]] = [
    {"service": "default/echo", "endpoints": ["10.0.0.1:80", "10.0.0.2:80"], "affinity": None, "local": True},
    {"service": "kube-system/kube-dns:dns", "endpoints": [], "affinity": 10800, "local": False},
]


def test_table_in_a_pipe_is_aligned_text_without_trailing_space() -> None:
    out = io.StringIO()
    print_records(RECORDS, "table", ("service", "local", "endpoints"), out=out)
    assert out.getvalue() == (
        "SERVICE                   LOCAL  ENDPOINTS\n"
        "default/echo              yes    10.0.0.1:80, 10.0.0.2:80\n"
        "kube-system/kube-dns:dns  no\n"
    )


def test_a_table_cuts_nothing_however_long() -> None:
    out = io.StringIO()
    print_records([{"service": "x" * 300, "note": "y" * 300}], "table", ("service", "note"), out=out)
    assert out.getvalue().splitlines()[1] == "x" * 300 + "  " + "y" * 300


@pytest.mark.parametrize(("output", "read"), [("json", json.loads), ("yaml", yaml.safe_load)])
@pytest.mark.parametrize("records", [RECORDS, []])
def test_json_and_yaml_hold_the_whole_record(output: str, read: object, records: list[dict[str, object]]) -> None:
    assert callable(read)
    out = io.StringIO()
    print_records(records, output, ("service",), out=out)
    assert read(out.getvalue()) == [{"apiVersion": "hotplane/v1", **record} for record in records]


def test_an_empty_table_says_so_on_stderr_alone(capsys: pytest.CaptureFixture[str]) -> None:
    print_records([], "table", ("service",), empty="no Services in the kernel")
    assert capsys.readouterr() == ("", "no Services in the kernel\n")


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (True, "yes"), (0, "0"), (("a", 1), "a, 1"), ({"a": [1, 2]}, "a=1, 2")]
)
def test_cell(value: object, text: str) -> None:
    assert cell(value) == text


FRONTENDS: list[dict[str, object]] = [
    {
        "service": "kube-system/kube-dns:dns-tcp", "frontend": "[2001:db8:1234:5678:9abc::10]:53/TCP",
        "pods": "forward", "outside": "forward cluster masquerade", "endpoints": 2,
        "sources": "192.0.2.0/24, 198.51.100.0/24, 203.0.113.0/24",
    },
    {
        "service": "default/web", "frontend": "10.96.0.10:80/TCP", "pods": "reject", "outside": "drop", "endpoints": 0,
        "sources": "everyone",
    },
]  # fmt: skip
SHAPE = Table(
    ("service", "frontend", "pods", "outside", "endpoints", "sources"), ("sources", "pods", "outside"), ("sources",)
)


@pytest.mark.parametrize("width", [40, 60, 80, 120, 160, 200])
def test_a_terminal_gets_whole_names_and_lines_that_fit(width: int) -> None:
    """What is least important goes first; a name is never cut, even where the line then cannot fit."""
    out = io.StringIO()
    left_out = print_table(FRONTENDS, SHAPE, out, width)
    printed = out.getvalue()
    assert all(str(record[key]) in printed for record in FRONTENDS for key in ("service", "frontend"))
    assert list(left_out) == [c for c in SHAPE.columns if heading(c) not in printed]
    needed = len("kube-system/kube-dns:dns-tcp") + len("[2001:db8:1234:5678:9abc::10]:53/TCP") + len("ENDPOINTS") + 4
    assert max(map(len, printed.splitlines())) <= max(width, needed)
    if width >= 160:
        assert "sources" not in left_out
        words = ["192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24"]
        assert all(word in printed for word in words)
    assert set(left_out) == ({"sources", "pods", "outside"} if width <= 80 else {"sources"} if width == 120 else set())


def test_wide_and_a_pipe_leave_nothing_out(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_records(FRONTENDS, "wide", SHAPE)
    wide = capsys.readouterr()
    print_records(FRONTENDS, "table", SHAPE)
    assert (wide.out, wide.err) == (capsys.readouterr().out, "")
    assert "198.51.100.0/24" in wide.out


def test_a_narrow_terminal_is_told_what_is_missing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", "80")
    out = Terminal()
    print_records(FRONTENDS, "table", SHAPE, out=out)
    assert "SOURCES" not in out.getvalue()
    assert capsys.readouterr().err == (
        "not shown, the terminal is too narrow: PODS, OUTSIDE, SOURCES (-o wide shows all)\n"
    )


def test_names_alone_each_once(capsys: pytest.CaptureFixture[str]) -> None:
    print_records([*FRONTENDS, FRONTENDS[0]], "name", SHAPE)
    assert capsys.readouterr().out == "kube-system/kube-dns:dns-tcp\ndefault/web\n"


@pytest.mark.parametrize(("key", "words"), [("replyPackets/s", "REPLY PACKETS/S"), ("service", "SERVICE")])
def test_headings_are_words(key: str, words: str) -> None:
    assert heading(key) == words
