"""Debian's kernels, fetched from its archive with settings of their own, so that the machine's apt stays as it is."""

import functools
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.vm.image import CACHE, make_disk

_ARCHIVE, _SECURITY = "http://deb.debian.org/debian", "http://deb.debian.org/debian-security"
_KEYS = "/usr/share/keyrings/debian-archive-keyring.gpg"
_META = "linux-image-cloud-amd64"


class Offer(NamedTuple):
    """Where a kernel is: suites of Debian's archive and the package that depends on the newest build of it."""

    suites: tuple[str, ...]
    package: str = _META


OFFERS = {
    "5.10": Offer(("bullseye", "bullseye-security")),
    "6.1": Offer(("bookworm", "bookworm-security")),
    "6.12": Offer(("bookworm-security",), "linux-image-6.12-cloud-amd64"),
    "newest": Offer(("trixie-backports", "sid", "experimental")),
}
"""What can be asked for by name: the oldest that hotplane supports, both of Debian 12, and the newest Debian has."""


class Kernel(NamedTuple):
    """A kernel that can be booted. release: what uname says; modules: an ext4 image of /lib/modules; initrd mounts it.
    package: name and version in Debian."""

    release: str
    image: Path
    initrd: Path
    modules: Path
    package: str


def _apt(offer: Offer, *command: str, folder: Path) -> str:
    """Run an apt command that sees the offer's suites only, and keeps all it knows in `folder`."""
    sources = folder / "sources.list"
    for name in ("lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lines = (
        f"deb [signed-by={_KEYS}] {_SECURITY if s.endswith('-security') else _ARCHIVE} {s} main" for s in offer.suites
    )
    sources.write_text("\n".join(lines) + "\n")
    options = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "-",
        "Dir::State::Lists": folder / "lists",
        "Dir::Cache": folder / "cache",
        "Acquire::Languages": "none",
        "APT::Sandbox::User": "root",
        "Acquire::Check-Valid-Until": "false",
    }
    arguments = [argument for name, value in options.items() for argument in ("-o", f"{name}={value}")]
    done = subprocess.run(
        [command[0], *arguments, *command[1:]], capture_output=True, text=True, cwd=folder, check=False
    )
    if done.returncode:
        raise SystemExit(f"kernels: {' '.join(command)}: {done.stderr.strip()[-600:]}")
    return done.stdout


def _newer(a: tuple[str, str], b: tuple[str, str]) -> int:
    return 1 if subprocess.run(["dpkg", "--compare-versions", a[0], "gt", b[0]], check=False).returncode == 0 else -1


def _builds(records: str) -> Iterator[tuple[str, str]]:
    """(version, package) of each build that a version of the metapackage depends on."""
    for record in records.split("\n\n"):
        version = re.search(r"^Version: (\S+)", record, re.MULTILINE)
        build = re.search(r"^Depends: .*?(linux-image-[0-9]\S*-cloud-amd64)\b", record, re.MULTILINE)
        if version and build:
            yield version[1], build[1]


def fetch(name: str) -> Kernel:
    """A kernel by its name in OFFERS: the newest build that Debian has of it, from the cache if it is there."""
    offer = OFFERS[name]
    scratch = CACHE / f"apt-{name}"
    scratch.mkdir(parents=True, exist_ok=True)
    _apt(offer, "apt-get", "-q", "update", folder=scratch)
    builds = list(_builds(_apt(offer, "apt-cache", "show", offer.package, folder=scratch)))
    if not builds:
        raise SystemExit(f"kernels: {offer.package} is not in {', '.join(offer.suites)}")
    version, package = max(builds, key=functools.cmp_to_key(_newer))
    folder = CACHE / f"{package}_{version}"
    if not (folder / "initrd").exists():
        print(f"kernels: fetching {package} {version}", flush=True)
        _unpack(_download(offer, package, version, scratch), folder)
    release = package.removeprefix("linux-image-")
    return Kernel(release, folder / "vmlinuz", folder / "initrd", folder / "modules.ext4", f"{package} {version}")


def _download(offer: Offer, package: str, version: str, scratch: Path) -> list[Path]:
    """A kernel's package, and those that newer ones are split into, which it depends on in the same version."""
    wanted, found = [package], list[str]()
    while wanted:
        name = wanted.pop()
        found.append(name)
        records = _apt(offer, "apt-cache", "show", f"{name}={version}", folder=scratch)
        parts = re.findall(rf"(linux-\S+) \(= {re.escape(version)}\)", records)
        wanted += [part for part in parts if part not in found + wanted]
    for old in scratch.glob("*.deb"):
        old.unlink()
    _apt(offer, "apt-get", "-q", "download", *(f"{name}={version}" for name in found), folder=scratch)
    return list(scratch.glob("*.deb"))


def _unpack(packages: list[Path], folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    tree = folder / "tree"
    tree.mkdir(parents=True)
    for package in packages:
        subprocess.run(["dpkg-deb", "-x", str(package), str(tree)], check=True)
        package.unlink()
    modules = next(tree / place for place in ("usr/lib/modules", "lib/modules") if (tree / place).exists())
    release = next(modules.iterdir()).name
    base = modules.parent.parent
    if modules.parent.parent != tree:  # depmod looks below lib/modules
        (tree / "lib").symlink_to("usr/lib")
        base = tree
    subprocess.run(["depmod", "-b", str(base), release], check=True)
    shutil.copy(next(path for path in tree.rglob("vmlinuz*") if path.is_file()), folder / "vmlinuz")
    make_disk(modules, folder / "modules.ext4", "400M")
    _initrd(modules / release, folder / "initrd")
    shutil.rmtree(tree)


_INIT = """\
#!/bin/busybox sh
/bin/busybox mkdir -p /proc /sys /dev /system
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules/order); do /bin/busybox insmod /modules/$module; done
n=0
until [ -b /dev/vdc ] || [ $n -gt 100 ]; do /bin/busybox sleep 0.1; n=$((n + 1)); done
/bin/busybox mount -t ext4 -o rw,noatime /dev/vda /system || exec /bin/busybox poweroff -f
/bin/busybox mount -t ext4 -o ro /dev/vdb /system/lib/modules
/bin/busybox mount -t ext4 -o rw,noatime /dev/vdc /system/opt/hotplane
/bin/busybox mount --move /dev /system/dev
/bin/busybox mount --move /proc /system/proc
exec /bin/busybox switch_root /system /bin/bash /opt/hotplane/tests/vm/inside
"""
_NEEDED = ("virtio_pci", "virtio_blk", "ext4", "crc32c_generic", "crc32c")


def _initrd(modules: Path, initrd: Path) -> None:
    """An archive that loads what the disks need, mounts them, and goes on with tests/vm/inside."""
    depends = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        depends[path] = others.split()
    order: list[str] = []
    for name in _NEEDED:
        for path in (p for p in depends if Path(p).name.partition(".")[0].replace("-", "_") == name):
            order += [p for p in (*reversed(depends[path]), path) if p not in order]
    tree = initrd.with_suffix(".tree")
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "bin").mkdir(parents=True)
    (tree / "modules").mkdir()
    names = []
    for path in order:
        plain = Path(path).name
        if plain.endswith(".xz"):
            plain = plain.removesuffix(".xz")
            (tree / "modules" / plain).write_bytes(
                subprocess.run(["xz", "-dc", str(modules / path)], capture_output=True, check=True).stdout
            )
        else:
            shutil.copy(modules / path, tree / "modules" / plain)
        names.append(plain)
    (tree / "modules/order").write_text("\n".join(names) + "\n")
    shutil.copy("/bin/busybox", tree / "bin/busybox")
    (tree / "init").write_text(_INIT)
    (tree / "init").chmod(0o755)
    files = subprocess.run(["find", "."], cwd=tree, capture_output=True, check=True).stdout
    packed = subprocess.run(
        ["cpio", "--quiet", "-o", "-H", "newc"], cwd=tree, input=files, capture_output=True, check=True
    )
    initrd.write_bytes(packed.stdout)
    shutil.rmtree(tree)
