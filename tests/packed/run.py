"""tests/pack: make the archive, look at what is in it, run it without a network, interrupt it."""

import argparse
import datetime
import json
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from dataplane.bench.pack import TOP
from dataplane.kernel.namespaces import netns
from tests.steplog import Log

ROOT = Path(__file__).resolve().parents[2]
MOST_BYTES = 105_000_000
PATIENCE = 900.0
RUN = ("--profile", "tiny", "--services", "1,20", "--rounds", "1", "--processors")
UNWANTED = ("etc/hostname", "etc/resolv.conf", "etc/apt", "etc/pip.conf", "root/.config", "root/.pip", "usr/bin/gcc",
            "usr/bin/perl", "usr/share/man", "usr/share/locale", "usr/local/share/ca-certificates")  # fmt: skip


def private_words() -> list[str]:
    """What tells of this machine: its name, its servers', the folders that the archive was made in."""
    words = {socket.gethostname(), socket.getfqdn(), str(ROOT), "/var/tmp/hotplane-pack", "/tmp/hotplane-pack"}
    settings = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
    urls = [*settings.replace("'", " ").replace("\\n", " ").split(), *os.environ.values()]
    words |= {host for url in urls if "://" in url and (host := urlsplit(url).hostname)}
    words |= {line.split()[1] for line in Path("/etc/resolv.conf").read_text().splitlines() if len(line.split()) == 2}
    public = ("localhost", "127.0.0.1", "pypi.org", "files.pythonhosted.org", "deb.debian.org")
    return sorted(word for word in words if len(word) > 4 and word not in public)


def look(top: Path) -> None:
    """Nothing in the file system that should not be there. Raises AssertionError."""
    root = top / "root"
    for name in UNWANTED:
        assert not (root / name).exists(), f"{name} is in the archive"
    for word in private_words():
        # as a word: the name of a machine may be part of another one
        done = subprocess.run(["grep", "-rlwF", "-D", "skip", "-e", word, root], capture_output=True, text=True)
        assert done.returncode == 1, f"{word!r} is in {done.stdout or done.stderr}"


def mounts_below(top: Path) -> list[str]:
    """Mounts of this mount namespace below a folder."""
    return [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(top) in line]


def run(top: Path, arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    """The archive's script, in a network namespace that leads nowhere."""
    command = ["unshare", "--net", "--", str(top / "run"), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=PATIENCE)


def measure(top: Path) -> str:
    """One small run of everything; what to say of it. Raises AssertionError."""
    processors = ",".join(map(str, range(1, min(2, len(os.sched_getaffinity(0))) + 1)))
    done = run(top, [*RUN, processors])
    assert done.returncode == 0, done.stderr
    found = json.loads((top / "results.json").read_text())
    failed = [cell for cell in found["cells"] if cell.get("error")]
    assert found["complete"], "the results are not complete"
    assert not failed, failed[0]
    assert found["settings"]["load_tool"] == "c", "the load generator is not the compiled one"
    scenarios, modes = ({cell["key"][at] for cell in found["cells"]} for at in (1, 0))
    missing = {"connect", "TCP_STREAM", "north-remote-pps", "connect-processors", "forward-processors"} - scenarios
    assert not missing, missing
    cold = {cell["key"][0]: cell["figures"]["seconds"] for cell in found["cells"] if cell["key"][1] == "coldstart"}
    shown = ", ".join(f"{mode} {seconds:.1f} s" for mode, seconds in cold.items())
    return f"{len(found['cells'])} cells of {len(modes)} modes and {len(scenarios)} scenarios; cold starts: {shown}"


def interrupt(top: Path) -> None:
    """A run that is interrupted takes its lab and its mounts with it. Raises AssertionError."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has what it starts with & ignore it
    command = [str(top / "run"), *RUN, "1", "--modes", "nftables", "--rounds", "1000", "--overwrite"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    journal = top / "results.json.journal"
    end = time.monotonic() + PATIENCE
    while not journal.exists() or len(journal.read_bytes().splitlines()) < 3:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < end, "it measures nothing"
        time.sleep(0.2)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, said
    assert "Go on with" in said, said
    journal.unlink()


def prove(log: Log, folder: Path, keep: Path | None) -> None:
    """All of it. Raises AssertionError, CalledProcessError."""
    archive = folder / "hotplane-bench.tar.xz"
    subprocess.run([sys.executable, "-m", "ctl.main", "bench", "pack", archive], check=True, cwd=ROOT)
    size = archive.stat().st_size
    log.say(f"the archive is made: {size / 1e6:.1f} MB")
    assert size <= MOST_BYTES, f"more than {MOST_BYTES / 1e6:.0f} MB"
    assert sorted(path.name for path in folder.iterdir()) == [archive.name], "something is left beside it"
    if keep:
        shutil.copyfile(archive, keep)
    subprocess.run(["tar", "-C", folder, "-xf", archive], check=True)
    top = folder / TOP
    look(top)
    log.say("unpacked; nothing in it names this machine or its servers")
    log.say(f"run in a network namespace without a way out: {measure(top)}")
    interrupt(top)
    log.say("interrupted in the middle of another run: status 130, the way to go on is told")
    assert not mounts_below(top), mounts_below(top)
    assert not any(name.startswith("hp-bench-") for name in netns.names()), netns.names()
    left = sorted(path.name for path in top.iterdir())
    assert left == ["results.json", "root", "run"], left
    log.say("nothing is left of them but results.json")


def main() -> int:
    """Entry point; 0 when every step was seen."""
    parser = argparse.ArgumentParser(prog="tests/pack")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    log, failed = Log(), ""
    with tempfile.TemporaryDirectory(prefix="hotplane-packed-", dir="/var/tmp") as folder:
        try:
            prove(log, Path(folder), arguments.keep)
        except (AssertionError, subprocess.SubprocessError) as error:
            failed = str(error)
            log.say(f"FAILED: {error}")
    if arguments.log and not failed:
        head = f"tests/pack, {datetime.date.today()}, Linux {platform.release()}"
        arguments.log.write_text("\n".join([head, "", *log.lines]) + "\n", encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
