"""A line of the log is one line, and can be written, whatever text it tells of."""

import errno
import io
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ctl.daemon.log import FORMATS, Log
from ctl.daemon.sync.inbox import Inbox
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
    shown = line.partition("reason=")[2]
    assert (shown if shown == text else json.loads(shown)) == text


@examples(100)
@given(ANY_TEXT)
def test_json(text: str) -> None:
    out = io.StringIO()
    Log(form="json", out=out).warning("it says", reason=text)
    [line, end] = out.getvalue().split("\n")
    assert end == ""
    assert json.loads(line)["reason"] == text.encode("utf-8", "backslashreplace").decode()


class _Full(io.StringIO):
    """A disk that is full for so many lines."""

    left = 2

    def flush(self) -> None:
        self.left -= 1
        if self.left >= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_log_that_cannot_be_written_fails_nobody() -> None:
    out = _Full()
    log = Log(out=out)
    for number in range(4):
        log.info("line", number=number)
    assert "line number=3" in out.getvalue()
    assert out.getvalue().count("WARNING the log could not be written for a while lines=2\n") == 1


@pytest.mark.parametrize("form", FORMATS)
def test_a_manifest_whose_name_is_no_text(tmp_path: Path, form: str) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.yaml")).write_text("[")
    out = io.StringIO()
    inbox = Inbox(("Service", "EndpointSlice", "Node", "ServiceCIDR"))
    DirectorySource([str(tmp_path)], inbox, Log(form=form, out=out)).read()
    assert "a manifest cannot be read" in out.getvalue()
    assert inbox.complete_once
