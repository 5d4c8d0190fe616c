"""The launcher works from anywhere, and the doctor and the node's addresses say what the kernel really has."""

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ctl.context import namespace_addresses
from dataplane.kernel.netns import in_netns

ROOT = Path(__file__).resolve().parents[2]


def _help(*command: str, cwd: Path, **environment: str) -> str:
    done = subprocess.run(
        [*command, "--help"], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    return done.stdout


def test_the_launcher_works_from_any_folder_by_any_name(tmp_path: Path, namespace: str) -> None:
    launcher = str(ROOT / "hotplane")
    link = tmp_path / "link"
    link.symlink_to(launcher)
    expected = _help(launcher, cwd=ROOT)
    assert "COMMAND" in expected
    assert _help(launcher, cwd=Path("/")) == expected
    assert _help(str(link), cwd=tmp_path) == expected
    assert _help("./link", cwd=tmp_path) == expected
    assert _help("ip", "netns", "exec", namespace, launcher, cwd=tmp_path) == expected


def test_nothing_in_the_current_folder_or_pythonpath_gets_in_the_way(tmp_path: Path) -> None:
    for name in ("ctl", "dataplane", "argparse"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")
    assert "COMMAND" in _help(str(ROOT / "hotplane"), cwd=tmp_path, PYTHONPATH=str(tmp_path), PYTHONHOME="/nonexistent")


def test_doctor_tries_things_and_leaves_nothing() -> None:
    before = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout
    done = subprocess.run([ROOT / "hotplane", "doctor", "-o", "json"], capture_output=True, text=True, check=False)
    records = json.loads(done.stdout)
    assert {r["area"] for r in records} == {"system", "lab", "nftables", "iptables", "ebpf"}
    assert {r["status"] for r in records} <= {"ok", "limited", "missing"}
    assert [r for r in records if r["status"] != "ok" and not (r["detail"])] == []
    missing = [r["check"] for r in records if r["area"] == "nftables" and r["status"] == "missing"]
    assert done.returncode == int(bool(missing))
    assert subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout == before


def test_doctor_misses_what_is_not_there() -> None:
    """With a PATH that holds no nft, the nftables mode cannot run, and the advice names the package."""
    done = subprocess.run(
        [ROOT / ".venv/bin/python", "-m", "ctl.main", "doctor", "-o", "json"],
        cwd=ROOT, env={"PATH": "/nonexistent"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    advice = {r["check"]: r["advice"] for r in json.loads(done.stdout) if r["status"] == "missing"}
    assert advice["nft"] == "apt-get install nftables"
    assert advice["iptables"] == "apt-get install iptables"


@pytest.fixture
def ip(namespace: str) -> Callable[..., None]:
    def run(*words: str) -> None:
        subprocess.run(["ip", "-n", namespace, *words], check=True)

    return run


def test_the_default_routes_device_has_the_primary_address(namespace: str, ip: Callable[..., None]) -> None:
    for number in (1, 2):
        ip("link", "add", f"a{number}", "type", "veth", "peer", "name", f"b{number}")
        ip("link", "set", f"a{number}", "up")
        ip("address", "add", f"198.51.{number}.1/24", "dev", f"a{number}")
        ip("address", "add", f"2001:db8:{number}::1/64", "dev", f"a{number}", "nodad")
    assert in_netns(namespace, namespace_addresses)[0] in ("198.51.1.1", "2001:db8:1::1")
    ip("route", "add", "default", "via", "198.51.2.254", "dev", "a2")
    found = in_netns(namespace, namespace_addresses)
    assert set(found[:2]) == {"198.51.2.1", "2001:db8:2::1"}
    assert set(found[2:]) == {"198.51.1.1", "2001:db8:1::1"}
