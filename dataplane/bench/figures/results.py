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
    """Cells as they come, safe on disk. Raises ResultsError where it cannot be written; what it has stays whole."""

    def __init__(self, path: Path, results: Results, *, append: bool) -> None:
        self.path = path
        try:
            if append:
                _cut_off_half_a_line(path)
            self._file = open(path, "ab" if append else "wb", buffering=0)  # noqa: SIM115 - closed by close
        except OSError as error:
            raise _unwritable(path, error) from error
        if not append:
            self._write(_Head(msgspec.structs.replace(results, cells=[])))

    def add(self, cell: Cell) -> None:
        """Write one cell."""
        self._write(cell)

    def _write(self, item: _Head | Cell) -> None:
        line = msgspec.json.encode(item) + b"\n"
        try:
            written = self._file.write(line)
            while written < len(line):  # it has room for a part of it
                written += self._file.write(line[written:])
        except OSError as error:
            raise _unwritable(self.path, error) from error

    def close(self) -> None:
        """No more cells in this process."""
        self._file.close()


def _unwritable(path: Path, error: OSError) -> ResultsError:
    """The error of a results file or a journal that cannot be written."""
    as_root = "; run as root" if isinstance(error, PermissionError) and os.geteuid() else ""
    return ResultsError(f"{path}: cannot be written: {error.strerror}{as_root or '; see --results'}")


def _cut_off_half_a_line(path: Path) -> None:
    """Make a journal end with a whole line, so that what is added to it begins one. Raises OSError."""
    whole = path.read_bytes().rpartition(b"\n")
    if whole[2]:
        os.truncate(path, len(whole[0]) + 1)


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
    """Write the results file, whole or not at all: one JSON object, a line for each cell. Raises ResultsError."""
    half = path.with_name(f"{path.name}.{os.getpid()}.part")
    head = msgspec.json.encode(msgspec.structs.replace(results, cells=[])).removesuffix(b"[]}")
    cells = b",\n".join(msgspec.json.encode(cell) for cell in results.cells)
    try:
        half.write_bytes(head + b"[\n" + cells + b"\n]}\n")
        half.rename(path)
    except OSError as error:
        half.unlink(missing_ok=True)
        raise _unwritable(path, error) from error


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
