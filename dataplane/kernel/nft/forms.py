"""nftables' text in the kernel's form: compiled once by libnftables, elsewhere, and kept on disk.

libnftables only compiles (see compile.py), in a process that its faults end instead of this one. What it made of a
rule or a declaration is kept under a digest of the text, the library, the kernel and this format, so that a process
that starts again needs neither the library nor a namespace for it. Of rules that differ in numbers alone, one is
compiled (see pattern.py).
"""

import contextlib
import hashlib
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import msgspec

from dataplane.errors import PlaneError
from dataplane.kernel.nft.command import Command
from dataplane.kernel.nft.compile import Forms, Request, RuleForm
from dataplane.kernel.nft.pattern import NUMBER, filled, pattern
from dataplane.kernel.nft.sealed import read_sealed, write_sealed
from dataplane.kernel.tools import ToolError, run_tool

CACHE_DIRS = (Path("/var/cache/hotplane/nftables"), Path("/run/hotplane/nftables"))
"""Where compiled text is looked for; new is kept in the first that can be written."""

_LOG = logging.getLogger(__name__)
_FORMAT = "2"
_SECONDS = 120.0
_MOST = 100
"""Files that are kept: a handful for each set of a node's settings."""

_PACKAGE = str(Path(__file__).resolve().parents[3])
_LIBRARY = ("/usr/lib/*-linux-gnu/libnftables.so.1", "/usr/lib64/libnftables.so.1", "/usr/lib/libnftables.so.1")
_OBJECTS = ("set", "map", "counter", "flowtable")
"""What rules may refer to by name."""

_TARGETS = re.compile(r"(?:jump|goto) (\S+)")


class Group(NamedTuple):
    """Rules that are compiled together, with the first of them that is needed. mark: what each of them has in its text.
    rules: gives the commands that add them."""

    mark: str
    rules: Callable[[], str]


class Library(NamedTuple):
    """What rules of a table may refer to, and rules that may come at any time; of any table name.

    objects: commands that add sets, maps and counters, which are compiled with the first group.
    """

    objects: str = ""
    groups: tuple[Group, ...] = ()


class Compiler:
    """Compiled text, from memory, from disk, or from libnftables. cache: directories, none of which need exist."""

    def __init__(self, cache: Iterable[Path] = CACHE_DIRS) -> None:
        self._cache = tuple(cache)
        self._known = Forms()

    def set_form(self, command: Command) -> bytes:
        """The attributes of a set or map, but table, name and number; after `prepare`."""
        return self._known.sets[_set_key(command)]

    def rule(self, command: Command, new_id: Callable[[], int]) -> tuple[RuleForm, bytes, dict[str, int]]:
        """A rule's form, its expressions with its numbers put in, and the numbers of its anonymous sets, which come
        from `new_id`, by their names in the form; after `prepare`."""
        wanted = pattern(command.rest)
        form = self._known.rules[f"{command.family} {wanted.text}"]
        numbers = {name: new_id() for name in form.sets}
        return form, filled(form.expressions, wanted, numbers), numbers

    def prepare(self, commands: Iterable[Command], library: Library) -> None:
        """Have all sets and rules that these commands add compiled. Raises PlaneError."""
        added = [c for c in commands if c.verb == "add" and c.what in (*_OBJECTS, "rule")]
        missing = self._request(added)
        if not missing.rules and not missing.sets:
            return
        for number, group in enumerate(library.groups):
            if group.mark and not any(group.mark in rule for rule in missing.rules):
                continue
            standing = _standing(library, number)
            if missing.rules.keys() & standing.rules.keys() or missing.sets.keys() & standing.sets.keys():
                self._get(standing)
                missing = self._request(added)
        if missing.rules or missing.sets:
            objects = _objects([*_commands(library.objects), *added])
            self._get(msgspec.structs.replace(missing, objects=objects))

    def _request(self, added: Iterable[Command]) -> Request:
        """The parts of commands that are not known yet."""
        wanted = _wanted(added)
        rules = {key: rule for key, rule in wanted.rules.items() if key not in self._known.rules}
        sets = {key: held for key, held in wanted.sets.items() if key not in self._known.sets}
        return Request(sets=sets, rules=rules)

    def _get(self, request: Request) -> None:
        """Learn what a request asks for, from the cache if it is there."""
        targets = [(family, name) for family, rule in request.rules.values() for name in _TARGETS.findall(rule)]
        # In an order of its own, so that it is the same request whatever the order in which its parts were needed.
        request = Request(
            sorted(request.objects),
            dict(sorted(request.sets.items())),
            dict(sorted(request.rules.items())),
            sorted(set(targets)),
        )
        text = _text_digest(request)
        name = f"{text}-{_build()}.json"
        forms = _kept(directory / name for directory in self._cache)
        if forms is None:
            try:
                encoded = compile_forms(request)
            except PlaneError as error:
                forms = _kept(_of_other_builds(self._cache, text))
                if forms is None:
                    raise
                _LOG.warning("%s. Used instead: what another version or kernel made of the same text", error)
            else:
                forms = msgspec.json.decode(encoded, type=Forms)
                _keep(self._cache, name, encoded)
        self._known.rules.update(forms.rules)
        self._known.sets.update(forms.sets)


def _commands(text: str) -> list[Command]:
    return [Command.of(line) for line in text.splitlines()]


@lru_cache(maxsize=8)
def _standing(library: Library, number: int) -> Request:
    """The texts that a group of a library has to compile."""
    declared = _commands(library.objects)
    request = _wanted(_commands(library.groups[number].rules()))
    if number == 0:
        request.sets.update(_wanted(declared).sets)
    return msgspec.structs.replace(request, objects=_objects(declared))


def _objects(commands: Iterable[Command]) -> list[tuple[str, str, str, str]]:
    """Declarations of sets, maps and counters among commands, under the names that patterns of rules have for them."""
    declared = {}
    for command in commands:
        if command.what in _OBJECTS:
            name = NUMBER.sub("1", command.name) if "-" in command.name else command.name
            declared[(command.family, name)] = (command.what, command.family, name, command.rest)
    return list(declared.values())


def _set_key(command: Command) -> str:
    return f"{command.what} {command.family} {command.rest}"


def _wanted(added: Iterable[Command]) -> Request:
    request = Request()
    for command in added:
        if command.what == "rule":
            text = pattern(command.rest).text
            request.rules[f"{command.family} {text}"] = (command.family, text)
        elif command.what in ("set", "map"):
            request.sets[_set_key(command)] = (command.what, command.family, command.rest)
    return request


def _library_version() -> str:
    """An identifier of a build of libnftables; "" where there is none."""
    root = Path("/")
    found = [path.resolve() for place in _LIBRARY for path in root.glob(place[1:])]
    return " ".join(f"{path.name} {(held := path.stat()).st_size} {held.st_mtime_ns}" for path in found)


def _text_digest(request: Request) -> str:
    parts = (_FORMAT, os.uname().machine)
    return hashlib.sha256("\0".join(parts).encode() + b"\0" + msgspec.json.encode(request)).hexdigest()[:32]


def _build() -> str:
    """The versions on which a text's compiled form depends: the library's and the kernel's."""
    return hashlib.sha256(f"{_library_version()} {os.uname().release}".encode()).hexdigest()[:8]


def _of_other_builds(directories: Iterable[Path], text: str) -> list[Path]:
    """What other libraries made of a text, or this one for other kernels; this kernel judges it like any other."""
    return [file for directory in directories for file in sorted(directory.glob(f"{text}-*.json"))]


def _kept(files: Iterable[Path]) -> Forms | None:
    """The first of the files that is there and whole."""
    for file in files:
        content = read_sealed(file)
        if content is not None:  # else not there, or of a disk that was full or has lost some of it: compiled again
            return msgspec.json.decode(content, type=Forms)
    return None


def _keep(directories: Iterable[Path], name: str, encoded: bytes) -> None:
    """Keep a compiled request in the first directory that takes it; in none if none does. What is there too many goes,
    the oldest first: settings that a node had once."""
    for directory in directories:
        try:
            write_sealed(directory / name, encoded)
        except OSError:
            continue
        with contextlib.suppress(OSError):  # another process does the same at this moment
            for file in sorted(directory.glob("*.json"), key=lambda file: file.stat().st_mtime)[:-_MOST]:
                file.unlink()
        return


def compile_forms(request: Request) -> bytes:
    """Have libnftables compile a request, in a process and a network namespace of its own; returns `Forms` as JSON.

    Raises PlaneError with what it said, or how it ended.
    """
    command = [sys.executable, "-P", "-m", "dataplane.kernel.nft.compile"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, (_PACKAGE, *sys.path)))}
    try:
        done = run_tool(command, input=msgspec.json.encode(request), env=environment, seconds=_SECONDS)
    except (OSError, ToolError) as error:
        raise PlaneError(f"libnftables, which compiles nftables rules, did not do it: {error}{_UNCHANGED}") from error
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise PlaneError(
            f"libnftables crashed ({name}) while it compiled nftables rules, in a process of its own{_UNCHANGED}: "
            "install another version of the packages libnftables1 and python3-nftables, then try again"
        )
    if done.returncode or not done.stdout:
        said = done.stderr.decode("utf-8", "replace").strip() or f"it ended with status {done.returncode}"
        raise PlaneError(f"libnftables could not compile nftables rules: {said}{_UNCHANGED}")
    return done.stdout


_UNCHANGED = "; nothing was changed, and what is loaded goes on serving"
