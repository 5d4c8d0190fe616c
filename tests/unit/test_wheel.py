"""What `pip install` puts onto a machine: the wheel, built from this checkout and used from a folder of its own."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
LOOK = """
from dataplane.kernel.ebpf import bcc_loader
from dataplane.planes.ebpf.maps.layout import Sizes, map_specs, struct_version
assert bcc_loader.__file__.startswith(sys.argv[1]), bcc_loader.__file__
assert str(bcc_loader.SOURCE_DIR).startswith(sys.argv[1])
print(*sorted(path.name for path in bcc_loader.SOURCE_DIR.iterdir()))
print(struct_version(), len(map_specs(Sizes())))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel's content, unpacked. It is built from a copy, since building leaves files among the sources."""
    source, out, target = (tmp_path_factory.mktemp(word) for word in ("source", "out", "target"))
    for name in ("ctl", "dataplane", "bpf"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md"):
        shutil.copy(ROOT / name, source)
    built = subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    [wheel] = out.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def test_the_programs_are_found_where_they_were_installed(installed: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys\n{LOOK}", str(installed)],
        cwd=installed, env=os.environ | {"PYTHONPATH": str(installed)}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files, layout = done.stdout.splitlines()
    assert files.split() == sorted(path.name for path in (ROOT / "bpf").iterdir())
    from dataplane.planes.ebpf.maps.layout import Sizes, map_specs, struct_version

    assert layout == f"{struct_version()} {len(map_specs(Sizes()))}"


def test_every_file_that_the_code_reads_is_there(installed: Path) -> None:
    """All that lies in the packages, but for what Python makes itself and what sets up a checkout."""
    for package in ("ctl", "dataplane"):
        here = {
            path.relative_to(ROOT)
            for path in (ROOT / package).rglob("*")
            if path.is_file() and path.suffix not in (".pyc", ".sh")
        }
        there = {path.relative_to(installed) for path in (installed / package).rglob("*") if path.is_file()}
        assert sorted(map(str, here - there)) == []
