"""The compiler runs beside this process: whatever becomes of it is an error that tells, and nothing more."""

import sys
from pathlib import Path

import pytest

from dataplane.kernel.ebpf.bcc_loader import CompileError, compile_programs


def _stand_in(folder: Path, body: str) -> str:
    """An interpreter that is called in the compiler's place."""
    path = folder / "compiler"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("exit 1", "status 1: it said nothing"),
        ("echo 'too deep' >&2; exit 1", "status 1: too deep"),
        ("kill -KILL $$", "status -9"),
        ("exit 0", "status 0: it said nothing"),
    ],
)
def test_a_compiler_that_ends_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, words: str
) -> None:
    monkeypatch.setattr(sys, "executable", _stand_in(tmp_path, body))
    with pytest.raises(CompileError, match=f"connect.c: the compiler ended with {words}"):
        compile_programs("connect.c", cache=None)


def test_a_compiler_that_cannot_be_started_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(CompileError, match="could not be started"):
        compile_programs("connect.c", cache=None)


def test_what_the_compiler_says_is_told(tmp_path: Path) -> None:
    (tmp_path / "wrong.c").write_text("int this is no program;\n")
    with pytest.raises(CompileError, match="expected"):
        compile_programs("wrong.c", cache=None, directory=tmp_path)
