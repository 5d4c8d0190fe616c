"""The cache of compiled programs is a convenience: where nothing can be kept, programs are compiled again."""

from pathlib import Path

import pytest

from dataplane.kernel.ebpf import bcc_loader


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Sources in the order in which they were compiled; the compiler itself is not asked."""
    done: list[str] = []

    def compile_one(source: Path, flags: object) -> dict[str, bytes]:
        done.append(source.name)
        return {"program": b"code"}

    monkeypatch.setattr(bcc_loader, "_compile_with_bcc", compile_one)
    return done


def test_what_is_kept_is_not_compiled_again(compiled: list[str], tmp_path: Path) -> None:
    for _ in range(2):
        assert bcc_loader.compile_programs("connect.c", cache=tmp_path / "cache") == {"program": b"code"}
    assert compiled == ["connect.c"]


def test_a_cache_that_cannot_be_written_is_done_without(compiled: list[str], tmp_path: Path) -> None:
    """As on the read-only root of a container, where making the folder fails."""
    (tmp_path / "file").write_text("")
    for _ in range(2):
        assert bcc_loader.compile_programs("connect.c", cache=tmp_path / "file/cache") == {"program": b"code"}
    assert compiled == ["connect.c"] * 2


def test_a_damaged_entry_is_compiled_again(compiled: list[str], tmp_path: Path) -> None:
    bcc_loader.compile_programs("connect.c", cache=tmp_path)
    [entry] = tmp_path.iterdir()
    entry.write_text('{"program": ')
    assert bcc_loader.compile_programs("connect.c", cache=tmp_path) == {"program": b"code"}
    assert compiled == ["connect.c"] * 2
