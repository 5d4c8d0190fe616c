"""The load generator for pods: the C program where it runs there, else a Python archive of one file.

Images need python3 alone, no shell and no tar, so files go through the standard input of `kubectl exec`.
"""

import io
import platform
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import dataplane
from dataplane.bench.cluster.kubectl import ClusterError, Kubectl, KubectlError
from dataplane.bench.cluster.manifests import VOLUME, inside
from dataplane.bench.cluster.nodes import Node
from dataplane.bench.load.native import load_tool

_ROOT = Path(dataplane.__file__).parent
_FILES = ("bench/load/load.py", "bench/figures/hdr.py", "model/net.py")
"""What the Python load generator is made of; it needs nothing but the standard library."""
_MAIN = b"import sys\nfrom dataplane.bench.load.load import main\nmain(sys.argv[1:])\n"
_PROGRAM, _ARCHIVE = f"{VOLUME}/load", f"{VOLUME}/load.pyz"
_LEAST_PYTHON = (3, 10)
_RUNS = "usage: load serve"


class Shipped(NamedTuple):
    """The load generator as pods have it. kind, note: as in native.Tool."""

    argv: tuple[str, ...]
    kind: str
    note: str = ""


def archive() -> bytes:
    """The Python load generator as one file that python3 runs."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as files:
        files.writestr("__main__.py", _MAIN)
        for package in sorted({str(each) for name in _FILES for each in Path("dataplane", name).parents} - {"."}):
            files.writestr(f"{package}/__init__.py", b"")
        for name in _FILES:
            files.writestr(f"dataplane/{name}", (_ROOT / name).read_bytes())
    return out.getvalue()


def ship(kubectl: Kubectl, pods: Sequence[str], nodes: Sequence[Node], *, python: bool, version: str) -> Shipped:
    """Put the load generator into the pods. python: the one in Python, whatever fits. version: of the image's Python.
    Raises ClusterError when neither can run there."""
    program, why = (b"", "the load generator in Python was asked for") if python else _program(nodes)
    if program:
        for pod in pods:
            why = _put_program(kubectl, pod, program)
            if why:
                break
        else:
            return Shipped((_PROGRAM,), "c")
    if tuple(int(part) for part in version.split(".")[:2]) < _LEAST_PYTHON:
        raise ClusterError(
            f"the image has Python {version}, the load generator in Python needs 3.10 ({why}); name another --image"
        )
    for pod in pods:
        kubectl.execute(pod, *inside("write", _ARCHIVE), input=archive())
    return Shipped(("python3", _ARCHIVE), "python", f"{why}: load is made in Python")


def _program(nodes: Sequence[Node]) -> tuple[bytes, str]:
    """The C program, linked so that it needs nothing of the image; or why there is none."""
    here = platform.machine()
    other = next((node for node in nodes if node.architecture != here), None)
    if other is not None:
        return b"", f"node {other.name} is {other.architecture or 'of an unknown architecture'}, this machine {here}"
    tool = load_tool(("-static",))
    if tool.kind != "c":
        tool = load_tool()
    return (Path(tool.argv[0]).read_bytes(), "") if tool.kind == "c" else (b"", tool.note)


def _put_program(kubectl: Kubectl, pod: str, program: bytes) -> str:
    """Put it there, and see that it runs; else why it does not."""
    kubectl.execute(pod, *inside("write", _PROGRAM), input=program)
    try:
        kubectl.execute(pod, _PROGRAM)
    except KubectlError as error:  # called without words it ends with status 2, which kubectl tells as an error
        return "" if _RUNS in error.said else f"what was compiled here does not run in pod {pod}"
    return ""
