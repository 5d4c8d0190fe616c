"""The bpffs that comes with the first instance and goes with the last, while others come and go."""

import subprocess
import sys
from pathlib import Path

import pytest

from dataplane.planes.ebpf.maps import pins
from dataplane.planes.ebpf.maps.pins import PinDirectory

ELSEWHERE = """
import sys
from pathlib import Path
from dataplane.planes.ebpf.maps import pins
pins.MOUNT_POINT = Path(sys.argv[1])
print("started", flush=True)
sys.stdin.readline()
mine = pins.PinDirectory("mine")
assert mine.path is None and pins.find_root() is not None
print("looked", flush=True)
sys.stdin.readline()
mine.ensure()
"""


def test_a_file_system_that_was_unmounted_in_between_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command in a mount namespace of its own looks, the last other instance goes and unmounts, then it pins."""
    monkeypatch.setattr(pins, "MOUNT_POINT", tmp_path / "run" / "bpf")
    other = PinDirectory("other")
    with subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", sys.executable, "-c", ELSEWHERE, str(pins.MOUNT_POINT)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        other.ensure()
        process.stdin.write("look\n")
        process.stdin.flush()
        assert process.stdout.readline() == "looked\n"
        other.remove()
        assert pins.find_root() is None
        process.stdin.write("go on\n")
        process.stdin.close()
    assert process.returncode == 0
    assert pins.instance_names() == ["mine"]
    PinDirectory("mine").remove()
    assert pins.find_root() is None
