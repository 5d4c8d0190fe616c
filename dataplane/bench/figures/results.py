"""A run's results: what was measured, cell by cell, and the journal that lets a broken-off run go on.

The results file is one JSON object (`Results`). While a run lasts, the same facts stand in a journal beside it, one
JSON line a cell, each written out before the next is measured; the finished file takes the journal's place.
"""

import gzip
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import msgspec

from dataplane.bench.modes import know
from dataplane.bench.profiles import Settings
from dataplane.bench.scenarios import RENAMED
from dataplane.errors import HotplaneError
from dataplane.malformed import MALFORMED
from dataplane.resource import Resource

VERSION = 2
"""1: scenarios had the names of scenarios.RENAMED, and TCP_RR sent 64 bytes each way."""
_GZIP = b"\x1f\x8b"


class ResultsError(HotplaneError):
    """A results file or journal that cannot be used. The text says which and what to do."""


class CellKey(NamedTuple):
    """Key of a cell. position: "" where it makes no difference. round: from 1."""

    mode: str
    scenario: str
    services: int
    position: str
    round: int


class Cell(msgspec.Struct, frozen=True, omit_defaults=True):
    """One measurement. figures: by name. Data plane: rate (operations, bits or packets a second), seconds, operations,
    failures, p50 p90 p99 p999 max (nanoseconds), cpu (processor seconds for a million operations, of a gigabyte for
    bulk; cpu_client, cpu_server and cpu_softirq are parts of it), cycles and instructions (of one operation, where the
    machine counts them), others (processors that somebody else kept busy meanwhile). Control plane: see `agent`. error:
    why there are no figures. histogram: of all latencies in nanoseconds, where they were paced, as hdr.encode writes
    it."""

    key: CellKey
    figures: dict[str, float] = {}
    error: str = ""
    histogram: str = ""


class Machine(msgspec.Struct, frozen=True):
    """Where a run took place. started: UTC, ISO 8601. notes: what a reader should know about it."""

    started: str = ""
    cpu_model: str = ""
    cpus: int = 0
    memory_bytes: int = 0
    virtual: str = ""
    kernel: str = ""
    system: str = ""
    load_average: tuple[float, ...] = ()
    versions: dict[str, str] = {}
    notes: tuple[str, ...] = ()


class Results(msgspec.Struct):
    """A whole run. command: what to type to repeat it. skipped: what was left out, and why."""

    machine: Machine
    settings: Settings
    command: str = ""
    version: int = VERSION
    seconds: float = 0.0
    complete: bool = False
    skipped: list[str] = []
    cells: list[Cell] = []


def renamed(results: Results) -> Results:
    """The run with the names that scenarios have now, and its peers among the modes."""
    know(results.settings.peers)
    results.cells = [
        msgspec.structs.replace(cell, key=cell.key._replace(scenario=RENAMED[cell.key.scenario]))
        if cell.key.scenario in RENAMED
        else cell
        for cell in results.cells
    ]
    names = tuple(RENAMED.get(name, name) for name in results.settings.scenarios)
    results.settings = msgspec.structs.replace(results.settings, scenarios=names)
    return results


class _Head(msgspec.Struct):
    """First line of a journal: the run without its cells."""

    head: Results


def journal_path(path: Path) -> Path:
    """Where the journal of a results file is."""
    return path.with_name(path.name + ".journal")


class Journal(Resource):
    """Cells as they come, safe on disk."""

    def __init__(self, path: Path, results: Results, *, append: bool) -> None:
        self.path = path
        self._file = open(path, "ab" if append else "wb")  # noqa: SIM115 - closed by close
        if not append:
            self._write(_Head(msgspec.structs.replace(results, cells=[])))

    def add(self, cell: Cell) -> None:
        """Write one cell."""
        self._write(cell)

    def _write(self, item: _Head | Cell) -> None:
        self._file.write(msgspec.json.encode(item) + b"\n")
        self._file.flush()

    def close(self) -> None:
        """No more cells in this process."""
        self._file.close()


def read_journal(path: Path) -> Results:
    """The run in a journal; a last line that a crash cut off is left out. Raises ResultsError."""
    lines = path.read_bytes().split(b"\n")
    try:
        results = msgspec.json.decode(lines[0], type=_Head).head
        results.cells = [msgspec.json.decode(line, type=Cell) for line in lines[1:-1]]
    except MALFORMED as error:
        raise ResultsError(f"{path}: {error}; remove it and start the benchmark anew") from error
    return renamed(results)


def write(path: Path, results: Results) -> None:
    """Write the results file, whole or not at all: one JSON object, a line for each cell."""
    half = path.with_name(f"{path.name}.{os.getpid()}.part")
    head = msgspec.json.encode(msgspec.structs.replace(results, cells=[])).removesuffix(b"[]}")
    cells = b",\n".join(msgspec.json.encode(cell) for cell in results.cells)
    half.write_bytes(head + b"[\n" + cells + b"\n]}\n")
    half.rename(path)


def read(path: Path) -> Results:
    """A results file, compressed or not, or the journal of a run that is not finished. Raises ResultsError."""
    if path.name.endswith(".journal") and path.exists():
        return read_journal(path)
    if not path.exists() and journal_path(path).exists():
        return read_journal(journal_path(path))
    try:
        data = path.read_bytes()
        plain = gzip.decompress(data) if data.startswith(_GZIP) else data
        return renamed(msgspec.json.decode(plain, type=Results))
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ResultsError(f"{path}: {error}: not a whole compressed file") from error
    except OSError as error:
        raise ResultsError(f"{path}: {error.strerror}; hotplane bench --results {path} makes one") from error
    except MALFORMED as error:
        raise ResultsError(f"{path}: {error}: these are no results of hotplane bench") from error


def done(cells: Iterable[Cell]) -> set[CellKey]:
    """Keys of cells that need not be measured again."""
    return {cell.key for cell in cells}
