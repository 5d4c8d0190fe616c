"""Printing: aligned text in a pipe, the whole record in JSON and YAML."""

import io
import json

import pytest
import yaml

from ctl.output import cell, print_records

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
    assert read(out.getvalue()) == records


def test_an_empty_table_says_so_on_stderr_alone(capsys: pytest.CaptureFixture[str]) -> None:
    print_records([], "table", ("service",), empty="no Services in the kernel")
    assert capsys.readouterr() == ("", "no Services in the kernel\n")


@pytest.mark.parametrize(
    ("value", "text"), [(None, ""), (True, "yes"), (0, "0"), (("a", 1), "a, 1"), ({"a": [1, 2]}, "a=1, 2")]
)
def test_cell(value: object, text: str) -> None:
    assert cell(value) == text
