"""Every command where the system refuses what it needs: as nobody, with stdout closed, and with a full disk behind it.
One sentence each, a status other than 0 where it was not done, and never a traceback."""

import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ctl.command_table import COMMANDS
from ctl.main import main
from dataplane.kernel.namespaces.netns import in_netns, netns
from tests.kernel.daemon_lab import ROOT

MANIFEST = "kind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}\n"
FLOW = ("--flow", "1.1.1.1 -> 10.96.0.10:80/tcp", "--node-ip", "192.0.2.1")
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--bounding-set=-all")
LAB = "hp-none"
EMPTY = "mount -t tmpfs -o mode=0755 hotplane-test /run"
FOUND = (
    f"{EMPTY} && mkdir -p /run/hotplane/bpf && touch /run/hotplane/netns-c1.lock "
    "&& mount -t bpf -o mode=0700 hotplane-test /run/hotplane/bpf && mkdir /run/hotplane/bpf/netns-1"
)
"""Makes /run for a command: nothing in it, or what a network namespace left that is gone."""


def commands(manifest: str, nowhere: str) -> dict[str, tuple[str, ...]]:
    """Command lines of every command, by a name; each ends by itself."""
    return {
        "apply": ("apply", "-f", manifest),
        "apply in ebpf mode": ("--mode", "ebpf", "apply", "-f", manifest, "--cgroup", "none"),
        "apply in iptables mode": ("--mode", "iptables", "apply", "-f", manifest),
        "apply --dry-run": ("apply", "-f", manifest, "--dry-run"),
        "diff": ("diff", "-f", manifest),
        "run": ("run", "--once", "-f", manifest),
        "run --init-only": ("run", "--init-only"),
        "run --cleanup": ("run", "--cleanup"),
        "run --write-config-to": ("run", "--write-config-to", f"{nowhere}/config.yaml"),
        "adopt": ("adopt", "-f", manifest),
        "explain": ("explain", "-f", manifest, *FLOW),
        "explain --live": ("explain", "--live", "--flow", "1.1.1.1 -> 10.96.0.10:80/tcp"),
        "trace": ("trace", "1.1.1.1 -> 10.96.0.10:80/tcp", "--timeout", "0.1"),
        "trace --send": ("trace", "127.0.0.1 -> 10.96.0.10:80/tcp", "--send"),
        "show": ("show", "services"),
        "show connections": ("show", "connections"),
        "show in ebpf mode": ("--mode", "ebpf", "show", "connections"),
        "top": ("--mode", "ebpf", "top", "--count", "1"),
        "monitor": ("--mode", "ebpf", "monitor", "--count", "1", "--seconds", "1"),
        "check": ("check", "-f", manifest),
        "check what was applied": ("check", "--repair"),
        "cleanup": ("cleanup",),
        "cleanup --stale": ("cleanup", "--stale"),
        "demo": ("demo", "--services", "-1"),
        "lab up": ("lab", "up", "--name", LAB, "--nodes", "0"),
        "lab down": ("lab", "down", "--name", LAB),
        "lab status": ("lab", "status", "--name", LAB),
        "lab exec": ("lab", "exec", "--name", LAB, "node1", "--", "true"),
        "bench": ("bench", "--list"),
        "bench report": ("bench", "report", f"{nowhere}/none.json"),
        "doctor": ("doctor",),
        "help": ("help", "apply"),
        "sysdump": ("sysdump", "--file", f"{nowhere}/dump.tar.gz"),
        "version": ("version",),
        "completion": ("completion", "bash"),
    }


PRINTING = (
    "apply", "diff", "version", "explain", "show", "show connections", "check", "check what was applied", "lab status",
    "cleanup",
)  # fmt: skip


class Refused:
    """Command lines in one network namespace, each with the same ending."""

    def __init__(self, namespace: str, folder: Path) -> None:
        self.namespace, self.folder = namespace, folder
        folder.chmod(0o755)
        (folder / "a.yaml").write_text(MANIFEST)
        (folder / "nowhere").mkdir(mode=0o500)
        self.lines = commands(str(folder / "a.yaml"), str(folder / "nowhere"))

    def as_nobody(self, names: Iterable[str], runtime: str) -> dict[str, tuple[int, str]]:
        """Status and standard error of these, without any right. runtime: makes /run, which is the command's own."""
        own = ("unshare", "--mount", "--propagation=private", "bash", "-c", f'{runtime} && exec "$@"', "bash")
        names = tuple(names)
        with ThreadPoolExecutor(4) as pool:
            return dict(zip(names, pool.map(lambda name: self.run(name, "", *own, *NOBODY), names), strict=True))

    def run(self, name: str, ending: str, *wrapper: str) -> tuple[int, str]:
        """Status and standard error."""
        common = [*wrapper, sys.executable, "-P", "-m", "ctl.main", "--state-dir", str(self.folder / "state")]
        done = in_netns(
            self.namespace, subprocess.run,
            ["bash", "-c", f'exec "$@" {ending}', "bash", *common, "--node-name", "n", *self.lines[name]],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, cwd=ROOT, timeout=600, check=False,
        )  # fmt: skip
        return done.returncode, done.stderr


@pytest.fixture
def refused(namespace: str) -> Iterator[Refused]:
    with tempfile.TemporaryDirectory(prefix="hotplane-test-") as folder:  # not below pytest's own, which is root's
        yield Refused(namespace, Path(folder))
        with netns(namespace):
            assert main(["--state-dir", f"{folder}/state", "cleanup"]) == 0


def _said(found: dict[str, tuple[int, str]]) -> None:
    """No traceback, and a sentence of hotplane's where something was not done."""
    faults = {name: text for name, (_, text) in found.items() if "Traceback" in text or "Error:" in text}
    assert not faults, faults
    silent = {name: text for name, (status, text) in found.items() if status and "hotplane: " not in text}
    assert not silent.keys() - {"doctor", "lab up"}, silent  # whose output, or usage, says it


def test_as_nobody(refused: Refused) -> None:
    assert {name.split()[0] for name in refused.lines} >= set(COMMANDS)
    found = refused.as_nobody(refused.lines, EMPTY)
    _said(found)
    assert {name for name, (status, _) in found.items() if status == 0} == {
        "explain",
        "bench",
        "help",
        "version",
        "completion",
        "run --init-only",
    }, found


def test_as_nobody_where_something_is_stale(refused: Refused) -> None:
    """What is on the machine changes no answer to somebody who may not look."""
    names = ("cleanup --stale", "cleanup", "show in ebpf mode", "top", "monitor")
    found = refused.as_nobody(names, FOUND)
    _said(found)
    assert all(status == 1 for status, _ in found.values()), found
    assert found["cleanup --stale"] == refused.as_nobody(names[:1], EMPTY)["cleanup --stale"]
    assert "CAP_SYS_PTRACE" in found["cleanup --stale"][1], found


@pytest.mark.parametrize(
    ("ending", "word", "good"),
    [(">/dev/full", "hotplane: standard output: No space left", False), (">&-", "hotplane: standard output is", True)],
)
def test_a_stdout_that_takes_nothing(refused: Refused, ending: str, word: str, good: bool) -> None:
    """The work is done; what could not be printed is reported."""
    found = {name: refused.run(name, ending) for name in PRINTING}
    _said(found)
    reported = {name for name, (_, text) in found.items() if word in text}
    assert reported >= {"apply", "explain", "show", "cleanup"}, "the others had nothing to print"
    assert all((found[name][0] == 0) == good for name in reported - {"lab status"}), found
