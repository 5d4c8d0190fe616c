"""The layouts that Python packs are those that the compiler of the programs uses."""

from pathlib import Path

import pytest

from dataplane.kernel.ebpf.bcc_loader import SOURCE_DIR, CompileError, compile_programs
from dataplane.kernel.namespaces import cgroup
from dataplane.planes.ebpf.attach.optional import packet_problem
from dataplane.planes.ebpf.attach.programs import connect_problem
from dataplane.planes.ebpf.maps.layout import Sizes, constants, fields_of, map_specs, size_of


def _structs() -> list[str]:
    specs = map_specs(Sizes()).values()
    named = {name for spec in specs for name in (spec.key, spec.value)} - {"u32", "u64", "none"}
    return sorted(named | {"event", "address"})


def _compile(directory: Path, assertions: list[str]) -> dict[str, bytes]:
    body = "\n".join(f'_Static_assert({text}, "{index}");' for index, text in enumerate(assertions))
    (directory / "check.c").write_text(f'#include "helpers.h"\n{body}\nPROGRAM(nothing)(void *c) {{ return 0; }}\n')
    return compile_programs("check.c", [f"-I{SOURCE_DIR}"], cache=None, directory=directory)


def test_structs_constants_and_map_numbers_are_the_same_on_both_sides(tmp_path: Path) -> None:
    assertions = [f"{name} == {number}" for name, number in constants().items()]
    for name in _structs():
        assertions.append(f"sizeof(struct {name}) == {size_of(name)}")
        assertions += [f"__builtin_offsetof(struct {name}, {f}) == {at}" for f, at in fields_of(name).items()]
    for spec in map_specs(Sizes()).values():
        assertions.append(f"MAP_REFERENCE_BASE + MAP_INDEX_{spec.name} == {spec.reference}")
    assert len(assertions) > 200
    assert set(_compile(tmp_path, assertions)) == {"nothing"}


def test_a_difference_would_be_noticed(tmp_path: Path) -> None:
    with pytest.raises(CompileError, match="static"):
        _compile(tmp_path, [f"sizeof(struct frontend) == {size_of('frontend') + 4}"])


def test_bytecode_is_cached_until_a_source_changes(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    source = tmp_path / "small.c"
    source.write_text('#include "helpers.h"\nPROGRAM(one)(void *c) { return 1; }\n')
    first = compile_programs("small.c", [f"-I{SOURCE_DIR}"], cache, tmp_path)
    (kept,) = cache.iterdir()
    stamp = kept.stat().st_mtime_ns
    assert compile_programs("small.c", [f"-I{SOURCE_DIR}"], cache, tmp_path) == first
    assert kept.stat().st_mtime_ns == stamp
    source.write_text('#include "helpers.h"\nPROGRAM(one)(void *c) { return 0; }\n')
    assert compile_programs("small.c", [f"-I{SOURCE_DIR}"], cache, tmp_path) != first
    assert len(list(cache.iterdir())) == 2


def test_a_big_endian_machine_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """No hook works there, and `doctor` and `apply` say why; with bytecode in the cache too."""
    assert packet_problem("tc") == ""
    monkeypatch.setattr("sys.byteorder", "big")
    for problem in (packet_problem("tc"), packet_problem("xdp"), connect_problem(cgroup.ensure_root())):
        assert problem.startswith("the eBPF programs are written for little-endian machines")
