"""A mutation: a fault of one line that somebody could make, and the tests that have to notice it."""

from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("dataplane", "ctl", "bpf")
"""Folders of the tree that mutations are made in."""


class MutationError(Exception):
    """A mutation does not apply to the source as it is; the text says why."""


class Mutation(NamedTuple):
    """name: what the fault is, in a few words. file: the name of the file, or the end of its path where several files
    have the name. before: text that stands in it once; after: the same with one line changed. tests: pytest's node ids,
    of which the file may be given by its name alone."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]


def find(root: Path, folders: tuple[str, ...], file: str) -> Path:
    """The one file below some folders of a tree whose path ends so. Raises MutationError."""
    parts = Path(file).parts
    found = [
        path
        for folder in folders
        for path in (root / folder).rglob(parts[-1])
        if path.relative_to(root).parts[-len(parts) :] == parts
    ]
    if len(found) != 1:
        raise MutationError(f"{len(found)} files are called {file}; name one of {', '.join(folders)}")
    return found[0]


def mutated(text: str, mutation: Mutation) -> str:
    """The text of a file with the fault in it. Raises MutationError."""
    count = text.count(mutation.before)
    if count != 1:
        raise MutationError(f"{mutation.before!r} stands in {mutation.file} {count} times, not once")
    return text.replace(mutation.before, mutation.after)


def node_ids(root: Path, mutation: Mutation) -> list[str]:
    """Its tests as pytest takes them, by paths from the root of the tree on. Raises MutationError."""
    found = []
    for test in mutation.tests:
        file, colons, rest = test.partition("::")
        path = find(root, ("tests",), file)
        function = rest.partition("[")[0]
        if function and f"def {function}(" not in path.read_text(encoding="utf-8"):
            raise MutationError(f"{test}: {path.name} has no such test")
        found.append(f"{path.relative_to(root)}{colons}{rest}")
    return found
