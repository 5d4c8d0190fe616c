"""A copy of the working tree to put faults into, with an environment of its own, so that whatever is started there, the
launcher and processes of other directories included, runs the copy's code."""

import hashlib
import itertools
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.mutation.mutation import ROOT, SOURCES, Mutation, find, mutated

_stamps = itertools.count(int(time.time()), 2)
"""Times of change, in seconds: compiled Python is taken for up to date where neither time nor size differ."""


def copy_tree(to: Path) -> None:
    """Copy what git knows, or would take in, of the working tree as it is, and make the environment."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    for name in listed.stdout.decode().split("\0"):
        source = ROOT / name
        if name and source.is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, to / name, follow_symlinks=False)
    _make_environment(to)


def python_of(tree: Path) -> Path:
    """The interpreter of a copy's environment."""
    return tree / ".venv" / "bin" / "python"


def _make_environment(tree: Path) -> None:
    """As ctl/setup.sh does, but the packages are those of this environment, found behind the copy itself."""
    venv = tree / ".venv"
    command = [sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", str(venv)]
    subprocess.run(command, check=True)
    site = venv / "lib" / f"python{sysconfig.get_python_version()}" / "site-packages"
    (site / "hotplane.pth").write_text(f"{tree}\n{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    key = hashlib.sha256()
    for name in ("pyproject.toml", "constraints.txt", "system-packages.txt"):
        key.update((tree / name).read_bytes())
    key.update(str(tree).encode())
    for what in ("run", "test"):
        (venv / f".stamp-{what}").write_text(f"{key.hexdigest()}\n", encoding="ascii")


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    stamp = next(_stamps)
    os.utime(path, (stamp, stamp))


@contextmanager
def fault(tree: Path, mutation: Mutation) -> Iterator[None]:
    """Have a copy with a fault inside the `with`. Raises MutationError."""
    path = find(tree, SOURCES, mutation.file)
    sound = path.read_text(encoding="utf-8")
    _write(path, mutated(sound, mutation))
    try:
        yield
    finally:
        _write(path, sound)
