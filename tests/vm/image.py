"""The disk that all machines share: Debian 12 with what hotplane and its tests need, without any kernel."""

import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
CACHE = Path.home() / ".cache/hotplane/kernels"
"""Everything here can be made again, and is when it is missing: images by digest, kernels by version."""
CHECKOUT, VENV = "/opt/hotplane", "/opt/venv"
"""Where a machine has the sources and their environment."""

_MORE = ("busybox-static", "kmod", "procps", "ethtool", "mount", "systemd-sysv", "udev", "dbus")
_NOT_INSIDE = {"gcc", "clang-format", "shellcheck", "vagrant", "vagrant-libvirt", "iperf3"}
_NO_TOOLS = {"mypy", "ruff", "types-PyYAML"}
_CONSTRAINTS = ROOT / "constraints.txt"
_SIZE = "2G"


def _packages() -> list[str]:
    lines = (line.partition("#")[0] for line in (ROOT / "system-packages.txt").read_text().splitlines())
    names = {line.removeprefix("test:").strip() for line in lines} - {""}
    return sorted((names - _NOT_INSIDE) | set(_MORE))


def make_disk(folder: Path, disk: Path, size: str) -> None:
    """Write an ext4 image with the contents of a folder. Replaces `disk` in one step."""
    partial = disk.with_suffix(".new")
    partial.unlink(missing_ok=True)
    command = ["mke2fs", "-q", "-t", "ext4", "-O", "^metadata_csum_seed,^has_journal,^orphan_file", "-m", "0"]
    subprocess.run([*command, "-d", str(folder), str(partial), size], check=True, stdout=subprocess.DEVNULL)
    partial.replace(disk)


def base_image() -> Path:
    """The disk's path; made at first use (2 minutes), and again when the lists of packages have changed."""
    packages = _packages()
    digest = hashlib.sha256(Path(__file__).read_bytes() + (ROOT / "pyproject.toml").read_bytes())
    digest.update(_CONSTRAINTS.read_bytes() + " ".join(packages).encode())
    disk = CACHE / f"base-{digest.hexdigest()[:16]}.ext4"
    if disk.exists():
        return disk
    CACHE.mkdir(parents=True, exist_ok=True)
    for old in CACHE.glob("base-*.ext4"):
        old.unlink()
    system = CACHE / "system"
    shutil.rmtree(system, ignore_errors=True)
    print("kernels: making the image that all machines share", flush=True)
    without = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in ("man", "doc", "locale")]
    settings = ["--quiet", "--variant=minbase", "--mode=root", '--aptopt=Apt::Install-Recommends "false"', *without]
    subprocess.run(["mmdebstrap", *settings, f"--include={','.join(packages)}", "bookworm", str(system)], check=True)
    _environment(system)
    for name in (CHECKOUT.lstrip("/"), "lib/modules", "var/cache/hotplane"):
        (system / name).mkdir(parents=True, exist_ok=True)
    for name in ("var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(system / name, ignore_errors=True)
    make_disk(system, disk, _SIZE)
    shutil.rmtree(system)
    return disk


def _requirements() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    return [line for line in wanted if re.split(r"[<>=\[ ]", line)[0] not in _NO_TOOLS]


def _environment(system: Path) -> None:
    """A virtual environment like this checkout's, in a place of its own, from packages that are fetched here."""
    wheels = system / "wheels"
    requirements = _requirements()
    download = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--dest", str(wheels)]
    subprocess.run([*download, "--constraint", str(_CONSTRAINTS), *requirements], check=True)
    inside = ["env", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "chroot", str(system)]
    subprocess.run([*inside, "python3", "-m", "venv", "--system-site-packages", VENV], check=True)
    install = [f"{VENV}/bin/python", "-m", "pip", "install", "-qq", "--no-index", "--find-links", "/wheels"]
    subprocess.run([*inside, *install, *requirements], check=True)
    [site] = (system / VENV.lstrip("/")).glob("lib/python3*/site-packages")
    (site / "hotplane.pth").write_text(f"{CHECKOUT}\n")
    shutil.rmtree(wheels)
