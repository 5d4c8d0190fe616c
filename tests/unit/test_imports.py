"""Imports point one way: README's table of folders is the order, and nothing imports what stands below it there."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COMMON = "dataplane"
"""Files directly in `dataplane`: errors and the like, which everybody may import."""


def _rooms() -> list[str]:
    """The folders of README's table that hold Python code, in its order, as module names."""
    section = (ROOT / "README.md").read_text().split("\n## How it works\n")[1].split("\n## ")[0]
    folders = re.findall(r"^\| `([a-z/]+)` \|", section, re.MULTILINE)
    return [folder.replace("/", ".") for folder in folders if folder not in ("bpf", "tests")]


ROOMS = _rooms()


def _room(module: str) -> str:
    """The folder that a module is in; COMMON for files beside the folders."""
    return next((room for room in ROOMS if module == room or module.startswith(f"{room}.")), COMMON)


def _imports(file: Path) -> Iterator[str]:
    """The project's modules that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Import(names=names):
                found = [name.name for name in names]
            case ast.ImportFrom(module=str(module), level=0, names=names):
                found = [module, *(f"{module}.{name.name}" for name in names)]
            case _:
                continue
        yield from (name for name in found if name.split(".")[0] in ("dataplane", "ctl") and "." in name)


def _edges() -> Iterator[tuple[str, str]]:
    """(importing module, imported module) of everything that is shipped."""
    for package in ("dataplane", "ctl"):
        for file in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            yield from ((module, imported) for imported in _imports(file))


EDGES = list(_edges())


def test_the_table_names_every_folder() -> None:
    folders = {f"dataplane.{path.name}" for path in (ROOT / "dataplane").iterdir() if (path / "__init__.py").exists()}
    assert set(ROOMS) == folders | {"ctl"}
    assert len(EDGES) > 1000


@pytest.mark.parametrize("room", ROOMS)
def test_a_folder_imports_only_what_stands_above_it(room: str) -> None:
    allowed = {COMMON, *ROOMS[: ROOMS.index(room) + 1]}
    assert [edge for edge in EDGES if _room(edge[0]) == room and _room(edge[1]) not in allowed] == []


def test_common_files_import_no_folder() -> None:
    assert [edge for edge in EDGES if _room(edge[0]) == COMMON and _room(edge[1]) != COMMON] == []


def test_the_kernel_folder_knows_nothing_of_plans() -> None:
    """It stands beside policy, plan and oracle, not on them: only addresses and the like come from the model."""
    allowed = {COMMON, "dataplane.kernel", "dataplane.model"}
    assert [edge for edge in EDGES if _room(edge[0]) == "dataplane.kernel" and _room(edge[1]) not in allowed] == []


def test_planes_do_not_know_each_other() -> None:
    names = {path.parent.name for path in (ROOT / "dataplane/planes").glob("*/__init__.py")}

    def plane(module: str) -> str:
        parts = module.split(".")
        return parts[2] if parts[:2] == ["dataplane", "planes"] and parts[2:] and parts[2] in names else ""

    assert {plane(edge[0]) for edge in EDGES} == names | {""}
    crossing = [edge for edge in EDGES if plane(edge[0]) and plane(edge[1]) and plane(edge[0]) != plane(edge[1])]
    assert crossing == []
