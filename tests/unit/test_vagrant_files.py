"""The Vagrantfile, as Vagrant and its libvirt provider understand it, and the scripts beside it. No machine is made."""

import os
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "vagrant"
SCRIPTS = ("build-box", "k3s-proxy", "lab", "prove", "provision", "provision-k3s")


def _validate(home: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    """`vagrant validate` with the libvirt provider, whose blocks are then checked too."""
    own = {"VAGRANT_HOME": str(home), "VAGRANT_DOTFILE_PATH": str(home / "dot"), "VAGRANT_CWD": str(FOLDER)}
    own |= {"VAGRANT_DEFAULT_PROVIDER": "libvirt", "VAGRANT_CHECKPOINT_DISABLE": "1", "VAGRANT_NO_COLOR": "1"}
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("HOTPLANE_VM_", "VAGRANT_"))}
    given = {f"HOTPLANE_VM_{name}": value for name, value in settings.items()}
    return subprocess.run(["vagrant", "validate"], env=clean | own | given, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"NODES": "3", "DRIVER": "qemu", "KERNEL": "/boot/kernel", "INITRD": "/boot/initrd", "POOL": "/tmp"},
        {"PROFILE": "k3s", "INSERT_KEY": "no"},
    ],
    ids=["defaults", "software emulation", "k3s"],
)
def test_the_vagrantfile_is_valid(tmp_path: Path, settings: dict[str, str]) -> None:
    done = _validate(tmp_path, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Vagrantfile validated successfully" in done.stdout


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"NODES": "many"}, "HOTPLANE_VM_NODES=many"),
        ({"PROFILE": "cluster"}, "HOTPLANE_VM_PROFILE=cluster"),
        ({"DRIVER": "qemu", "CPUS": "-"}, "HOTPLANE_VM_CPUS=-"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, settings: dict[str, str], words: str) -> None:
    done = _validate(tmp_path, **settings)
    assert done.returncode != 0
    assert words in done.stdout + done.stderr


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts_are_sound(name: str) -> None:
    script = FOLDER / name
    assert os.access(script, os.X_OK)
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_script_is_looked_at() -> None:
    found = {path.name for path in FOLDER.iterdir() if path.is_file() and path.read_bytes().startswith(b"#!")}
    assert found == set(SCRIPTS)


def test_a_box_is_built_with_every_python_package_that_its_machines_set_up() -> None:
    """They have no network: what the box lacks cannot be installed on them."""
    done = subprocess.run(
        ["bash", str(ROOT / "ctl" / "setup.sh"), "requirements"], capture_output=True, text=True, check=True
    )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert done.stdout.split("\n")[:-1] == project["dependencies"] + project["optional-dependencies"]["bench"]
    assert 'setup.sh" requirements' in (FOLDER / "build-box").read_text()
