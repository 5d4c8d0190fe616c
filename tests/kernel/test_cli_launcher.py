"""The launcher works from anywhere, and the doctor and the node's addresses say what the kernel really has."""

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ctl.context import namespace_addresses
from dataplane.kernel import sysctl
from dataplane.kernel.namespaces.netns import in_netns

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
    def run(*arguments: str) -> None:
        subprocess.run(["ip", "-n", namespace, *arguments], check=True)

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


def first(namespace: str, family: str = ":") -> str:
    return next(address for address in in_netns(namespace, namespace_addresses) if family in address)


@pytest.fixture
def uplink(ip: Callable[..., None]) -> None:
    """eth0 with a default route of both families, and addresses that came one after the other."""
    ip("link", "add", "eth0", "type", "veth", "peer", "name", "far")
    ip("link", "set", "eth0", "up")
    ip("link", "set", "far", "up")
    for address in ("198.51.100.5/24", "198.51.100.6/24", "2a00:1::5/64", "2a00:1::6/64", "fd00:1::7/64"):
        ip("address", "add", address, "dev", "eth0", *(("nodad",) if ":" in address else ()))
    ip("route", "add", "default", "via", "198.51.100.254")
    ip("-6", "route", "add", "default", "via", "2a00:1::fe", "dev", "eth0")


def routed(namespace: str) -> str:
    command = ["ip", "-n", namespace, "-j", "-6", "route", "get", "2000::1"]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return str(found[0]["prefsrc"])


@pytest.mark.usefixtures("uplink")
def test_the_primary_address_is_the_one_that_routes_prefer(namespace: str, ip: Callable[..., None]) -> None:
    assert first(namespace, ".") == "198.51.100.5"
    before = first(namespace)
    assert before == routed(namespace)
    assert before != "fd00:1::7"  # the newest, which the kernel lists first
    assert set(in_netns(namespace, namespace_addresses)) > {"2a00:1::5", "2a00:1::6", "fd00:1::7"}
    for number in ("5", "6"):
        chosen = f"2a00:1::{number}"
        ip("-6", "route", "replace", "default", "via", "2a00:1::fe", "dev", "eth0", "src", chosen)
        assert first(namespace) == chosen
    ip("route", "replace", "default", "via", "198.51.100.254", "src", "198.51.100.6")
    assert first(namespace, ".") == "198.51.100.6"
    ip("-6", "route", "del", "default")
    assert first(namespace) == "2a00:1::5"


@pytest.mark.usefixtures("uplink")
def test_the_primary_address_is_not_one_that_goes_or_hides(namespace: str, ip: Callable[..., None]) -> None:
    ip("address", "del", "2a00:1::5/64", "dev", "eth0")
    ip("address", "change", "2a00:1::6/64", "dev", "eth0", "preferred_lft", "0", "valid_lft", "forever")
    assert first(namespace) == "fd00:1::7"
    assert in_netns(namespace, namespace_addresses)[-1] == "2a00:1::6"
    temporary(namespace, ip)
    assert routed(namespace) != first(namespace) == "2a00:1::6:7"
    in_netns(namespace, sysctl.write, "net/ipv6/conf/eth0/dad_transmits", 600)  # seconds that an address is tentative
    ip("address", "add", "2a00:1::8/64", "dev", "eth0")
    assert "2a00:1::8" not in in_netns(namespace, namespace_addresses)


def temporary(namespace: str, ip: Callable[..., None]) -> None:
    """Let the kernel make a temporary address beside a managed one, and prefer it, as on a host with privacy on."""
    for name, value in (("use_tempaddr", "2"), ("dad_transmits", "0")):
        in_netns(namespace, sysctl.write, f"net/ipv6/conf/eth0/{name}", int(value))
    ip("address", "add", "2a00:1::6:7/64", "dev", "eth0", "mngtmpaddr", "nodad",
       "valid_lft", "86400", "preferred_lft", "86400")  # fmt: skip
    end = time.monotonic() + 60
    while routed(namespace) in ("2a00:1::6:7", "fd00:1::7"):
        assert time.monotonic() < end
        time.sleep(0.05)
