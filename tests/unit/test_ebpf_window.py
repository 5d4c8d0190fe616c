"""Memory of a map of which only a part is mapped, on a plain file."""

import os
from array import array
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.planes.ebpf.maps import window
from dataplane.planes.ebpf.maps.window import Memory

LENGTH = 5 * 4096 + 80
_steps = st.lists(st.tuples(st.integers(0, LENGTH // 8 - 1), st.integers(0, 600), st.integers(0, 255)), max_size=20)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=_steps, item=st.sampled_from((1, 8)))
def test_a_window_shows_and_writes_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[int, int, int]], item: int
) -> None:
    monkeypatch.setattr(window, "_SPAN", 4096)
    path = tmp_path / "map"
    path.write_bytes(bytes(range(250)) * (LENGTH // 250) + bytes(LENGTH % 250) + bytes(4096 * 6 - LENGTH))
    code, count = ("Q", LENGTH // 8) if item == 8 else ("B", LENGTH)
    wanted = array(code, path.read_bytes()[: count * item])
    fd = os.open(path, os.O_RDWR)
    memory = Memory({"map": (fd, LENGTH)})
    shown = memory.window("map", item)
    for at, size, value in steps:
        end = min(at + size, count)
        shown[at] = wanted[at] = value
        assert shown[at] == value
        assert shown[at:end] == wanted[at:end]
        shown[at:end] = wanted[at:end] = array(code, [value]) * (end - at)
    memory.let_go()
    assert memory["map"].tobytes()[: count * item] == wanted.tobytes()
    os.close(fd)
