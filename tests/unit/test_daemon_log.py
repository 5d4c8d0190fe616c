"""A line of the log is one line, and can be written, whatever text it tells of."""

import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.daemon.inbox import Inbox
from ctl.daemon.log import FORMATS, Log
from ctl.sources.directory import DirectorySource
from tests.unit.mangling import examples

ANY_TEXT = st.text(st.characters(), max_size=30) | st.sampled_from(("\u202eabc", "\x85", "\u2028", "\udcff", "a\nb"))


@examples(100)
@given(ANY_TEXT)
def test_text(text: str) -> None:
    out = io.StringIO()
    Log(out=out).warning("it says", reason=text)
    [line] = out.getvalue().splitlines()
    assert line.isprintable()
    said = line.partition("reason=")[2]
    assert (said if said == text else json.loads(said)) == text


@examples(100)
@given(ANY_TEXT)
def test_json(text: str) -> None:
    out = io.StringIO()
    Log(form="json", out=out).warning("it says", reason=text)
    [line, end] = out.getvalue().split("\n")
    assert end == ""
    assert json.loads(line)["reason"] == text.encode("utf-8", "backslashreplace").decode()


@pytest.mark.parametrize("form", FORMATS)
def test_a_manifest_whose_name_is_no_text(tmp_path: Path, form: str) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.yaml")).write_text("[")
    out = io.StringIO()
    inbox = Inbox(("Service", "EndpointSlice", "Node", "ServiceCIDR"))
    DirectorySource([str(tmp_path)], inbox, Log(form=form, out=out)).read()
    assert "a manifest cannot be read" in out.getvalue()
    assert inbox.complete_once
