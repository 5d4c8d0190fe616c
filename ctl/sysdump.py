"""What a report of a fault needs, in one archive: versions, plan, tables, views, counters, pages of the daemon, logs.

Each part is asked for by a command of its own with a time limit, so that one that fails or hangs costs that part alone;
what it said goes into the archive in its place. Nothing is changed.
"""

import io
import re
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ctl.config import KubeProxyConfiguration
from ctl.itself import PROGRAM
from dataplane.errors import HotplaneError

SECONDS = 60.0
"""A part may take so long."""
MOST_BYTES = 64 << 20
"""Of a part; the end of a longer one is left out, which its text says."""
_LOG_LINES = 20000
_TC = """tc -s qdisc show
for device in /sys/class/net/*; do
    echo "# ${device##*/}"
    tc -s filter show dev "${device##*/}" ingress
    tc -s filter show dev "${device##*/}" egress
done"""
_SECRETS = (
    (re.compile(rb"(?i)(authorization:?\s*(?:bearer|basic)\s+)[^\s\"',]+"), rb"\1REMOVED"),
    (re.compile(rb"(?i)(\b(?:bearer)\s+)[a-z0-9._~+/=-]{16,}"), rb"\1REMOVED"),
    (
        re.compile(rb"(?i)((?:\b|_)(?:token|password|client-key-data|secret)\b[\"']?\s*[:=]\s*[\"']?)[^\s\"',}]+"),
        rb"\1REMOVED",
    ),
    (re.compile(rb"(://)[^/\s:@]+:[^/\s@]+@"), rb"\1REMOVED@"),
    (re.compile(rb"(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(-----END|\Z)"), rb"\1REMOVED\2"),
    (re.compile(rb"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"), b"REMOVED"),
)
"""Credentials as they may stand in logs and command lines, and what is written in their place."""


class Part(NamedTuple):
    """A file of the archive: its name, and the command whose output it has, or the page of the daemon."""

    name: str
    command: Sequence[str] = ()
    url: str = ""


class Written(NamedTuple):
    """A part that is in the archive: its name, its bytes, and why it does not have what it should; "" where it has."""

    part: str
    bytes: int
    problem: str = ""


def without_secrets(text: bytes) -> bytes:
    """A text without credentials: bearer tokens, passwords in URLs, values of keys that are named like secrets."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def parts(state_dir: str, mode: str | None, config: KubeProxyConfiguration) -> Iterator[Part]:
    """Every part of the archive."""
    own = (*PROGRAM, "--state-dir", state_dir, *(("--mode", mode) if mode else ()))
    yield Part("versions.json", (*PROGRAM, "version", "-o", "json"))
    yield Part("doctor.json", (*PROGRAM, "doctor", "-o", "json"))
    for view in ("services", "endpoints", "affinity", "connections", "drops", "connect-time", "counters", "decisions"):
        yield Part(f"show/{view}.json", (*own, "show", view, "-o", "json"))
    yield Part("check.json", (*own, "check", "-o", "json"))
    yield Part("nftables.txt", ("nft", "list", "ruleset"))
    for program in ("iptables-save", "ip6tables-save"):
        yield Part(f"{program}.txt", (program,))
    for what in ("address", "link", "route", "rule", "neighbour"):
        for family in ("-4", "-6") if what in ("route", "rule") else ("",):
            table = ("table", "all") if what == "route" else ()
            words = ["ip", "-details", *filter(None, (family,)), what, "show", *table]
            yield Part(f"network/{what}{family}.txt", words)
    yield Part("network/tc.txt", ("sh", "-c", _TC))
    yield Part(
        "network/conntrack.txt",
        ("sh", "-c", "cat /proc/sys/net/netfilter/nf_conntrack_*; cat /proc/net/stat/nf_conntrack"),
    )
    yield Part("kernel.txt", ("sh", "-c", "uname -a; cat /proc/cmdline /proc/meminfo /proc/loadavg; nproc"))
    yield Part("log.txt", ("journalctl", "--unit", "hotplane", "--lines", str(_LOG_LINES), "--no-pager"))
    for name, address in (("healthz", config.healthz_bind_address), ("metrics", config.metrics_bind_address)):
        if address:
            yield Part(f"daemon/{name}.txt", url=f"http://{_reachable(address)}/{name}")


def _reachable(address: str) -> str:
    """Where a daemon that listens on an address answers this machine."""
    host, _, port = address.rpartition(":")
    return f"{ {'0.0.0.0': '127.0.0.1', '': '127.0.0.1', '[::]': '[::1]'}.get(host, host) }:{port}"


def _output(part: Part) -> tuple[bytes, str]:
    """What a part's command or page says, and why it does not say what it should."""
    try:
        if part.url:
            with urllib.request.urlopen(part.url, timeout=SECONDS) as answer:
                return bytes(answer.read(MOST_BYTES)), ""
        done = subprocess.run(part.command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS, check=False)
    except urllib.error.HTTPError as error:
        return error.read(MOST_BYTES), f"{part.url} answers {error.code} {error.reason}"
    except subprocess.TimeoutExpired:
        return _lacking(f"{part.command[0]} took longer than {SECONDS:.0f} s")
    except urllib.error.URLError as error:
        reason = error.reason.strerror if isinstance(error.reason, OSError) else error.reason
        return _lacking(f"{part.url} does not answer ({reason or error.reason}); does a daemon run here?")
    except OSError as error:
        return _lacking(f"{part.url or part.command[0]}: {error.strerror or error}")
    said = done.stdout[:MOST_BYTES]
    if len(done.stdout) > MOST_BYTES:
        said += b"\n... the rest is left out\n"
    if not done.returncode or not done.stderr:
        return said, ""
    told = done.stderr.decode(errors="replace").strip().splitlines() or ["?"]
    found_something = part.command[: len(PROGRAM)] == (*PROGRAM,) and said  # check ends with 1 where something differs
    said += b"\n" * bool(said) + b"# exit status %d: %b" % (done.returncode, done.stderr[-MOST_BYTES:])
    return said, "" if found_something else f"exit status {done.returncode}: {told[-1].removeprefix('hotplane: ')}"


def _lacking(why: str) -> tuple[bytes, str]:
    """A part that there is nothing of."""
    return f"not to be had: {why}\n".encode(), why


def write(path: Path, name: str, wanted: Sequence[Part], tell: Callable[[str], None]) -> list[Written]:
    """Write the archive; returns what is in it. name: the folder that is in it. tell: called with each part's name
    before it is asked for. The file is complete or not there. Raises HotplaneError if it cannot be written."""
    written = []
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with tarfile.open(unfinished, "w:gz") as archive:
            for part in wanted:
                tell(part.name)
                output, problem = _output(part)
                text = without_secrets(output)
                entry = tarfile.TarInfo(f"{name}/{part.name}")
                entry.size, entry.mtime, entry.mode = len(text), int(time.time()), 0o600
                archive.addfile(entry, io.BytesIO(text))
                written.append(Written(part.name, len(text), without_secrets(problem.encode()).decode()))
        unfinished.chmod(0o600)
        unfinished.replace(path)
    except OSError as error:
        raise HotplaneError(f"{path}: cannot be written: {error.strerror}; choose another file with --file") from error
    finally:
        unfinished.unlink(missing_ok=True)
    return written
