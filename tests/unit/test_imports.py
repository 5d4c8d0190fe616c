"""Imports point one way: README's table of folders is the order, and nothing imports what stands below it there."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.planes import registry

ROOT = Path(__file__).resolve().parents[2]
COMMON = "dataplane"
"""Files directly in `dataplane`: errors and the like, which everybody may import."""


def _packages() -> list[str]:
    """The folders of README's table that hold Python code, in its order, as module names."""
    section = (ROOT / "README.md").read_text().split("\n## How it works\n")[1].split("\n## ")[0]
    folders = re.findall(r"^\| `([a-z/]+)` \|", section, re.MULTILINE)
    return [folder.replace("/", ".") for folder in folders if folder not in ("bpf", "tests")]


PACKAGES = _packages()


def _package(module: str) -> str:
    """The folder that a module is in; COMMON for files beside the folders."""
    return next((package for package in PACKAGES if module == package or module.startswith(f"{package}.")), COMMON)


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
    for root in ("dataplane", "ctl"):
        for file in sorted((ROOT / root).rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            yield from ((module, imported) for imported in _imports(file))


EDGES = list(_edges())


def test_every_inner_folder_is_named_in_the_table_and_in_the_architecture() -> None:
    architecture = (ROOT / "docs" / "architecture.md").read_text().split("```")[0]
    table = (ROOT / "README.md").read_text().split("\n## How it works\n")[1].split("\n## ")[0]
    rows = dict(re.findall(r"^\| `([a-z/]+)` \| (.*) \|$", table, re.MULTILINE))
    for package in PACKAGES:
        folder = ROOT / package.replace(".", "/")
        named = [path.parent.name for path in folder.glob("*/__init__.py")]
        assert [name for name in named if not re.search(rf"\b{name}\b", rows[package.replace(".", "/")])] == [], package
        inner = {path.parent.name for path in folder.rglob("__init__.py") if path.parent != folder}
        assert [name for name in sorted(inner) if f" {name}/ " not in architecture] == [], package


def test_the_table_names_every_folder() -> None:
    folders = {f"dataplane.{path.name}" for path in (ROOT / "dataplane").iterdir() if (path / "__init__.py").exists()}
    assert set(PACKAGES) == folders | {"ctl"}
    assert len(EDGES) > 1000


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_imports_only_what_stands_above_it(package: str) -> None:
    allowed = {COMMON, *PACKAGES[: PACKAGES.index(package) + 1]}
    assert [edge for edge in EDGES if _package(edge[0]) == package and _package(edge[1]) not in allowed] == []


def test_common_files_import_no_folder() -> None:
    assert [edge for edge in EDGES if _package(edge[0]) == COMMON and _package(edge[1]) != COMMON] == []


def test_the_kernel_folder_knows_nothing_of_plans() -> None:
    """It stands beside policy, plan and oracle, not on them: only addresses and the like come from the model."""
    allowed = {COMMON, "dataplane.kernel", "dataplane.model"}
    assert [
        edge for edge in EDGES if _package(edge[0]) == "dataplane.kernel" and _package(edge[1]) not in allowed
    ] == []


PLANES = {path.parent.name for path in (ROOT / "dataplane/planes").glob("*/__init__.py")}


def _plane(module: str) -> str:
    """The plane in whose folder a module is, "" for every other."""
    parts = module.split(".")
    return parts[2] if parts[:2] == ["dataplane", "planes"] and parts[2:] and parts[2] in PLANES else ""


def test_nobody_knows_a_plane_but_itself() -> None:
    """Not other planes, nor the lab, the benchmark and the command line: all of them ask the registry."""
    assert {_plane(edge[0]) for edge in EDGES} == PLANES | {""}
    assert [edge for edge in EDGES if _plane(edge[1]) and _plane(edge[0]) != _plane(edge[1])] == []


@pytest.mark.parametrize("name", registry.MODES)
def test_a_mode_is_described_without_its_plane(name: str) -> None:
    """So that `explain` imports none, and a process with one mode none that this does not stand on."""
    script = (
        "import sys; from dataplane.planes.registry import mode_of; "
        f"mode = mode_of({name!r}); print(*sys.modules, sep=chr(10)); print('made'); "
        "__import__(f'dataplane.planes.{mode.name}.plane'); print(*sys.modules, sep=chr(10))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    described, _, made = done.stdout.partition("made\n")
    assert [module for module in described.split() if _plane(module) and module.endswith(".plane")] == []
    assert {_plane(module) for module in described.split()} == {name, ""}
    assert {_plane(module) for module in made.split()} == {name, ""}
    assert not {"bcc", "nftables"} & {*made.split()}
