"""Caches of compiled rules and programs whose files are not what was written: compiled again, and never believed."""

from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.errors import PlaneError
from dataplane.kernel.ebpf import bcc_loader
from dataplane.kernel.nft import forms as nft_forms
from dataplane.kernel.nft.command import Command
from dataplane.kernel.nft.compile import Forms
from dataplane.kernel.nft.forms import Compiler, Library
from dataplane.kernel.nft.sealed import seal, unseal
from tests.unit.mangling import examples, flipped, mangled

SET = Command.of("add set ip t s { type ipv4_addr; }")
FORMS = msgspec.json.encode(Forms(sets={f"set ip {SET.rest}": b"right"}))
CODE = {"program": b"right"}
BYTECODE = b'{"program": "cmlnaHQ="}'
OTHERS = (
    b"{}", b"[]", b"null", b'{"program": 5}', b'{"program": "d3Jvbmc="}', b"[" * 3000,
    FORMS.replace(b"cmlnaHQ=", b"d3Jvbmc="),
)  # fmt: skip


def _form(folder: Path) -> bytes:
    compiler = Compiler([folder])
    compiler.prepare([SET], Library())
    return compiler.set_form(SET)


def _files(whole: bytes) -> st.SearchStrategy[bytes]:
    return mangled(whole) | flipped(whole) | st.sampled_from(OTHERS) | st.just(whole)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was compiled; the compilers themselves are not asked."""
    done: list[str] = []

    def rules(request: object) -> bytes:
        done.append("rules")
        return FORMS

    def program(source: Path, flags: object) -> dict[str, bytes]:
        done.append("program")
        return CODE

    monkeypatch.setattr(nft_forms, "compile_forms", rules)
    monkeypatch.setattr(bcc_loader, "_compile_with_bcc", program)
    return done


@examples(150)
@given(data=_files(seal(FORMS)))
def test_rules(tmp_path: Path, compiled: list[str], data: bytes) -> None:
    assert _form(tmp_path) == b"right"
    [file] = tmp_path.iterdir()
    file.write_bytes(data)
    compiled.clear()
    assert _form(tmp_path) == b"right"
    assert compiled == ([] if data == seal(FORMS) else ["rules"])


@examples(150)
@given(data=_files(seal(FORMS)))
def test_rules_of_another_build(tmp_path: Path, compiled: list[str], data: bytes) -> None:
    """They do where nothing can be compiled, so long as they are whole."""
    _form(tmp_path)
    [file] = tmp_path.iterdir()
    other = file.with_name(f"{file.name.partition('-')[0]}-00000000.json")
    file.rename(other)
    other.write_bytes(data)

    def never(request: object) -> bytes:
        raise PlaneError("no compiler here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nft_forms, "compile_forms", never)
        if data == seal(FORMS):
            assert _form(tmp_path) == b"right"
        else:
            with pytest.raises(PlaneError, match="no compiler here"):
                _form(tmp_path)
    other.unlink()


@examples(150)
@given(data=_files(seal(BYTECODE)))
def test_programs(tmp_path: Path, compiled: list[str], data: bytes) -> None:
    folder = tmp_path / "cache"
    assert bcc_loader.compile_programs("connect.c", cache=folder) == CODE
    [file] = folder.iterdir()
    file.write_bytes(data)
    compiled.clear()
    assert bcc_loader.compile_programs("connect.c", cache=folder) == CODE
    assert compiled == ([] if data == seal(BYTECODE) else ["program"])


@given(st.binary())
def test_what_was_not_sealed_is_told(data: bytes) -> None:
    assert unseal(seal(data)) == data
    assert unseal(data) is None
