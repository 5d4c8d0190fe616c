"""The archive of `hotplane bench pack`: what goes in, what does not, its script, and what an interruption leaves."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataplane.bench import pack
from dataplane.bench.load import native

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 60.0


@pytest.fixture
def top(tmp_path: Path) -> Path:
    """The archive's folder, with a file system of nothing."""
    (tmp_path / "root" / pack.HOME).mkdir(parents=True)
    shutil.copy(pack.RUN_SCRIPT, tmp_path / "run")
    return tmp_path


def dry_run(top: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["sh", str(top / "run"), *arguments], env=os.environ | {"DRY_RUN": "1"}, capture_output=True, text=True
    )


def test_the_script_is_right_for_shells() -> None:
    for tool in (["bash", "-n"], ["dash", "-n"], ["shellcheck"]):
        done = subprocess.run([*tool, pack.RUN_SCRIPT], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_script_mounts_in_a_namespace_of_its_own_and_starts_the_benchmark(top: Path) -> None:
    said = dry_run(top, "--profile", "tiny").stdout.splitlines()
    assert said[0] == "unshare --mount --propagation private"
    mounts = [line.split()[-1].removeprefix(f"{top}/root/") for line in said if line.startswith("mount ")]
    assert mounts == ["proc", "sys", "dev", "run", "tmp", "sys/fs/cgroup", "sys/fs/bpf", "results"]
    assert said[-1].endswith("-m ctl.main bench --results results.json --profile tiny")
    assert f"chroot {top}/root" in said[-1]
    assert list((top / "root").iterdir()) == [top / "root/opt"], "a dry run does nothing"


def test_half_an_archive_is_said(top: Path) -> None:
    shutil.rmtree(top / "root")
    done = dry_run(top)
    assert done.returncode == 1
    assert "unpack the whole archive" in done.stderr


def test_a_mount_that_fails_ends_the_script_and_leaves_none(top: Path) -> None:
    (top / "root/proc").write_text("a file where a folder must be\n")
    done = subprocess.run(["sh", str(top / "run")], capture_output=True, text=True)
    assert done.returncode != 0
    assert "proc" in done.stderr
    assert str(top) not in Path("/proc/self/mountinfo").read_text()


def test_every_package_that_hotplane_needs_goes_in() -> None:
    lines = [line.split("#")[0].strip() for line in (ROOT / "system-packages.txt").read_text().splitlines()]
    for_people = {"python3-venv", "iputils-ping", "curl", "bind9-dnsutils"}
    needed = {line for line in lines if line and not line.startswith("test:")} - for_people
    assert needed <= set(pack.PACKAGES)
    command = list(map(str, pack.mmdebstrap(Path("/x"))))
    assert "--variant=minbase" in command
    assert f"--include={','.join(pack.PACKAGES)}" in command


def test_the_python_packages_are_those_of_the_project_and_of_the_benchmark() -> None:
    found = " ".join(pack.requirements())
    assert "numpy" in found
    assert "pyroute2" in found
    assert "pytest" not in found


def test_what_tells_of_this_machine_and_what_is_not_needed_goes(tmp_path: Path) -> None:
    gone = (
        "etc/hostname", "etc/resolv.conf", "etc/apt/sources.list", "etc/apt/sources.list.d/x.list",
        "usr/bin/perl5.36.0", "usr/share/perl/5.36.0/x.pm", "usr/share/man/man1/x.1", "usr/share/locale/de/x.mo",
        "var/lib/apt/lists/x", "var/log/dpkg.log", "root/.config/pip/pip.conf", "var/lib/dpkg/info/bash.list",
    )  # fmt: skip
    kept = ("usr/bin/python3.11", "usr/sbin/nft", "var/lib/dpkg/info/libbpfcc:amd64.md5sums", "var/lib/dpkg/status")
    for name in (*gone, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    pack.prune(tmp_path)
    assert [name for name in gone if (tmp_path / name).exists()] == []
    assert [name for name in kept if not (tmp_path / name).exists()] == []
    assert "localhost" in (tmp_path / "etc/hosts").read_text()


def test_links_that_lead_out_are_removed_and_not_followed(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    (outside / "file").write_text("")
    (root / "usr/share").mkdir(parents=True)
    (root / "usr/share/man").symlink_to(outside)
    pack.remove(root, ("usr/share/man",))
    assert not (root / "usr/share/man").is_symlink()
    assert (outside / "file").exists()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing/x.tar.xz", "cannot be written: No such file or directory"),
        ("", "is a folder; name the archive"),
        ("x.zip", "name it .tar.xz"),
    ],
)
def test_an_output_that_cannot_be_is_said_before_the_work(tmp_path: Path, name: str, says: str) -> None:
    with pytest.raises(pack.PackError, match=says):
        pack.pack(tmp_path / name, lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_tool_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(pack.PackError, match="mmdebstrap is missing: apt-get install mmdebstrap"):
        pack.needs(tmp_path / "x.tar.xz")


def test_root_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(pack.PackError, match="needs root"):
        pack.needs(tmp_path / "x.tar.xz")


STUCK = """
import sys
from pathlib import Path
from dataplane.bench import pack
pack.needs = lambda output: None
pack.mmdebstrap = lambda root: ["sh", "-c", f"mkdir -p {root}/etc; touch {root}/etc/file; exec sleep 600"]
pack.pack(Path(sys.argv[1]), lambda text: None)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    room, out = tmp_path / "room", tmp_path / "out"
    room.mkdir()
    out.mkdir()
    code = f"import signal; signal.signal(signal.SIGTERM, signal.default_int_handler)\n{STUCK}"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(out / "x.tar.xz")],
        env=os.environ | {"TMPDIR": str(room), "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    end = time.monotonic() + PATIENCE
    while not list(room.glob("*/*/root/etc/file")):
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(PATIENCE) != 0
    assert list(room.iterdir()) == []
    assert list(out.iterdir()) == []


def test_a_compiled_load_generator_needs_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = native.load_tool()
    assert compiled.kind == "c"
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert native.load_tool() == compiled
    monkeypatch.setattr(native, "CACHE", tmp_path)
    assert native.load_tool().kind == "python"
