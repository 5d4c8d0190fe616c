"""One archive that runs the benchmark on a machine without network or packages.

In it: a small Debian 12 as a folder to chroot into, hotplane with its environment, the load generator as a program, the
caches filled (compiled eBPF programs, compiled nftables text), and a script, `run`, that mounts what is needed, starts
the benchmark and leaves its results beside itself. No compiler for C is in it, nor what only people read or build with;
and nothing that names the machine it was made on or the servers that packages came from.
"""

import contextlib
import hashlib
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from dataplane.bench.load.native import load_tool, watch_tool
from dataplane.bench.machine.facts import COMMIT
from dataplane.errors import HotplaneError

ROOT = Path(__file__).resolve().parents[2]
RUN_SCRIPT = Path(__file__).with_suffix(".sh")
TOP = "hotplane-bench"
"""The archive's only folder: `run`, and `root`, the file system."""
HOME = Path("opt/hotplane")
SUITE = "bookworm"
PACKAGES = (
    "python3", "python3-bpfcc", "python3-nftables", "nftables", "iptables", "iproute2", "iperf3", "linux-libc-dev",
    "procps",
)  # fmt: skip
"""Beside what a minimal Debian has."""
SOURCES = ("ctl", "dataplane", "bpf", "hotplane", "pyproject.toml", "constraints.txt", "system-packages.txt")
_UNREAD = ("usr/share/man/*", "usr/share/doc/*", "usr/share/info/*", "usr/share/locale/*")
UNNEEDED = (
    # what packages are fetched and set up with, and what that left
    "etc/apt", "var/lib/apt", "var/cache/apt", "var/cache/debconf", "var/cache/ldconfig", "var/log", "var/backups",
    "usr/lib/apt", "usr/bin/apt*", "usr/lib/*-linux-gnu/libapt-*", "usr/share/keyrings", "var/lib/dpkg/*-old",
    # what says where it was made
    "etc/hostname", "etc/resolv.conf", "etc/hosts", "etc/machine-id", "var/lib/dbus", "root/.bash_history",
    "root/.config", "etc/ssl", "usr/local/share/ca-certificates", "usr/share/ca-certificates",
    # perl, which only packages are set up by
    "usr/bin/perl*", "usr/lib/*-linux-gnu/perl*", "usr/share/perl*", "usr/lib/*-linux-gnu/libperl.so*",
    # what people read
    "usr/share/info", "usr/share/man", "usr/share/locale", "usr/share/zoneinfo", "usr/share/common-licenses/GFDL*",
    "usr/lib/python3*/pydoc_data", "usr/lib/python3*/test", "usr/lib/python3*/idlelib", "usr/lib/python3*/lib2to3",
    "usr/lib/*-linux-gnu/gconv", "usr/share/bcc",
    # static libraries, and files that only compilers read
    "usr/lib/**/*.a", "usr/include/c++",
)  # fmt: skip
"""Patterns of what is taken out of the file system again; the last of them bcc's own tools."""
UNNEEDED_PYTHON = (
    "**/__pycache__", "**/tests", "**/*.pyi", "**/*.pyx", "**/*.pxd", "**/*.h", "bin", "numpy/f2py", "numpy/distutils",
    "numpy/_pyinstaller", "numpy/doc",
)  # fmt: skip
"""The same, of the Python packages."""
_WARMING = ("--profile", "tiny", "--scenario", "connect,coldstart", "--services", "2", "--rounds", "1")
_DEVICE_FOLDERS = ("proc", "sys", "dev", "run", "tmp", "results")


class PackError(HotplaneError):
    """The archive cannot be made. The text says what is missing."""


def needs(output: Path) -> None:
    """Look at everything that can be known before the work begins. Raises PackError."""
    if os.geteuid() != 0:
        raise PackError("hotplane bench pack: needs root, to make a file system and to try it")
    if not (ROOT / "bpf").is_dir() or not (ROOT / "pyproject.toml").exists():
        raise PackError(f"hotplane bench pack: {ROOT} is no checkout: the archive is made of one")
    if output.is_dir():
        raise PackError(f"{output}: is a folder; name the archive, e.g. {output / 'hotplane-bench.tar.xz'}")
    if not output.name.endswith(".tar.xz"):
        raise PackError(f"{output}: the archive is made by tar and xz; name it .tar.xz")
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise PackError(f"{output}: cannot be written: {error.strerror}") from error
    for tool, package in (("mmdebstrap", "mmdebstrap"), ("xz", "xz-utils"), ("tar", "tar"), ("unshare", "util-linux")):
        if shutil.which(tool) is None:
            raise PackError(f"hotplane bench pack: {tool} is missing: apt-get install {package}")
    if load_tool().kind != "c":
        raise PackError("hotplane bench pack: the load generator needs a compiler: apt-get install gcc libc6-dev")


def pack(output: Path, say: Callable[[str], None]) -> int:
    """Make the archive; its size in bytes. say: told what is done now.

    The file is there whole or not at all, and nothing else stays. Raises PackError, KeyboardInterrupt.
    """
    needs(output)
    half = output.with_name(f".{output.name}.{os.getpid()}.part")
    with tempfile.TemporaryDirectory(prefix="hotplane-pack-", dir=_room()) as folder:
        top = Path(folder) / TOP
        root = top / "root"
        top.mkdir()
        try:
            say("making the file system (mmdebstrap)")
            _run([*_online(), *mmdebstrap(root)], "mmdebstrap makes no file system; its words are above")
            say("putting hotplane and its environment there")
            install(root)
            shutil.copyfile(RUN_SCRIPT, top / "run")
            (top / "run").chmod(0o755)
            prune(root)
            say("running it once, which fills its caches")
            warm(top)
            clean(root)
            say("packing")
            _archive(top, half)
            half.rename(output)
        finally:
            half.unlink(missing_ok=True)
    return output.stat().st_size


def _room() -> str | None:
    """Where the file system is made: /tmp may be memory."""
    return "/var/tmp" if "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK) else None


def _run(command: Sequence[str | Path], sentence: str) -> None:
    """Run a program in its own process group, which an interruption of this process ends before anything is removed.
    Raises PackError with `sentence` when it fails."""
    process = subprocess.Popen(
        list(map(str, command)), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, process_group=0
    )
    try:
        status = process.wait()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGINT)
        process.wait()
        raise
    if status:
        raise PackError(f"hotplane bench pack: {sentence}")


def mmdebstrap(root: Path) -> list[str | Path]:
    """The command that makes the file system, in a mount namespace of its own: what it mounts there goes with it."""
    options = [f"--dpkgopt=path-exclude=/{pattern}" for pattern in _UNREAD]
    return [
        "unshare", "--mount", "--propagation", "private", "--",
        "mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}", *options,
        "--dpkgopt=path-include=/usr/share/doc/*/copyright", '--aptopt=Acquire::Languages "none"', SUITE, root,
    ]  # fmt: skip


def requirements() -> list[str]:
    """The Python packages of pyproject.toml that the benchmark needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return [*project["dependencies"], *project["optional-dependencies"]["bench"]]


def install(root: Path) -> None:
    """Put the sources, the environment and the load generator into the file system. Raises PackError."""
    home = root / HOME
    home.mkdir(parents=True)
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, home / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        else:
            shutil.copy2(ROOT / name, home / name)
    done = subprocess.run(["git", "-C", ROOT, "rev-parse", "--short", "HEAD"], check=False, capture_output=True)
    (home / COMMIT).write_bytes(done.stdout)
    _environment(home)
    kept = root / "root/.cache/hotplane"
    kept.mkdir(parents=True)
    shutil.copy2(load_tool().argv[0], kept)
    watch = watch_tool()
    if watch is not None:
        shutil.copy2(watch, kept)


def _environment(home: Path) -> None:
    """A virtual environment of the file system's own python3, with this one's pip filling it: theirs is not there."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    python = next(iter((home.parents[1] / "usr/bin").glob("python3.[0-9]*")), None)
    if python is None or python.name != version:
        found = "none" if python is None else python.name
        raise PackError(f"hotplane bench pack: Debian's {SUITE} has {found}, this is {version}: run it on that Debian")
    site = home / ".venv/lib" / version / "site-packages"
    site.mkdir(parents=True)
    (home / ".venv/bin").mkdir()
    (home / ".venv/bin/python").symlink_to("/usr/bin/python3")
    (home / ".venv/pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = true\n")
    (site / "hotplane.pth").write_text(f"/{HOME}\n")
    options = ["--quiet", "--disable-pip-version-check", "--no-input", "--no-compile", "--target", str(site)]
    options += ["--constraint", str(ROOT / "constraints.txt")]
    _run(
        [*_online(), sys.executable, "-m", "pip", "install", *options, *requirements()],
        "pip does not install the Python packages; its words are above",
    )
    remove(site, UNNEEDED_PYTHON)


def _online() -> list[str]:
    """Downloads use the network of process 1 where it can be had, as the set-up does: the namespace that this was
    called in may lead nowhere."""
    there = ["nsenter", "--net=/proc/1/ns/net", "--"]
    done = subprocess.run([*there, "true"], check=False, capture_output=True)
    return [] if done.returncode else there


def remove(root: Path, patterns: Sequence[str]) -> None:
    """Remove what matches below a folder; links are removed, not followed."""
    for pattern in patterns:
        for path in sorted(root.glob(pattern), reverse=True):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def prune(root: Path) -> None:
    """Take out what the benchmark does without, and what tells of this machine."""
    remove(root, UNNEEDED)
    for path in (root / "var/lib/dpkg/info").iterdir():
        if not path.name.startswith("libbpfcc"):  # whose digest is part of a compiled program's name in the cache
            path.unlink()
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
    (root / "var/log").mkdir(exist_ok=True)


def warm(top: Path) -> None:
    """Run the benchmark, as small as can be, in both families: it compiles what the caches shall have. Raises PackError
    where it does not run."""
    for family in ("ipv4", "ipv6"):
        _run(
            [top / "run", *_WARMING, "--family", family, "--results", "warm.json", "--overwrite"],
            f"the packed benchmark does not run here (--family {family}); its words are above",
        )
        (top / "warm.json").unlink()


def clean(root: Path) -> None:
    """Remove what running left, but the caches."""
    remove(root, ("**/__pycache__",))
    for name in _DEVICE_FOLDERS:
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir()
    (root / "tmp").chmod(0o1777)


def _archive(top: Path, path: Path) -> None:
    """tar and xz, with whole numbers for owners: names would be this machine's."""
    order = ["--sort=name", "--numeric-owner", "--format=gnu"]
    branches = ["--x86"] if platform.machine() == "x86_64" else []
    with path.open("wb") as file:
        tar = subprocess.Popen(["tar", "-C", top.parent, *order, "-c", TOP], stdout=subprocess.PIPE, process_group=0)
        assert tar.stdout is not None, "it was started with a pipe"
        xz = subprocess.Popen(
            ["xz", "-T0", *branches, "--lzma2=preset=3"], stdin=tar.stdout, stdout=file, process_group=0
        )
        tar.stdout.close()
        with _ended(tar, xz):
            status = xz.wait() or tar.wait()
    if status:
        raise PackError(f"{path}: tar or xz failed with status {status}; is the disk full?")


@contextlib.contextmanager
def _ended(*processes: "subprocess.Popen[bytes]") -> Iterator[None]:
    """None of them outlives the block."""
    try:
        yield
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def digest(path: Path) -> str:
    """SHA-256 of a file, as sha256sum writes it."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
