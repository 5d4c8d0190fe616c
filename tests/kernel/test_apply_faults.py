"""An apply of which one call fails, whichever: the old rules, the new ones, or a word that it stands between the two;
a sentence, and whole at the next try.

The calls are counted in a run without faults first. A few of each kind are tried, all of them with --soak.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.main import main
from dataplane.kernel.namespaces.netns import in_netns, netns
from tests.faults.inject import Faults
from tests.kernel.daemon_lab import ROOT, looking_plane

MANIFEST = "kind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"
OLD, NEW = {"default/a", "default/b"}, {"default/a", "default/c", "default/d"}
SHOWN = {"nftables": ("send", "write", "open"), "iptables": ("fork",)}


class Applied:
    """One network namespace, to which one of two sets of manifests is applied."""

    def __init__(self, namespace: str, folder: Path, mode: str, faults: Faults) -> None:
        self.namespace, self.folder, self.mode, self.faults = namespace, folder, mode, faults
        for wanted in (OLD, NEW):
            names = enumerate(sorted(name.partition("/")[2] for name in wanted), start=10)
            text = "---\n".join(MANIFEST.format(name=name, ip=f"10.96.0.{ord(name)}") for _, name in names)
            self.path(wanted).write_text(text)

    def path(self, wanted: set[str]) -> Path:
        return self.folder / ("old.yaml" if wanted is OLD else "new.yaml")

    def words(self, wanted: set[str]) -> list[str]:
        """The command line without the program."""
        common = ["--state-dir", str(self.folder / "state"), "--node-name", "n1", "--mode", self.mode]
        return [*common, "apply", "-f", str(self.path(wanted))]

    def come_to(self, wanted: set[str]) -> None:
        """Apply it without faults, in this process."""
        with netns(self.namespace):
            assert main(self.words(wanted)) == 0
        assert self.services() == wanted

    def apply(self, wanted: set[str]) -> "subprocess.CompletedProcess[str]":
        """Apply it in a process whose calls may fail."""
        command = [sys.executable, "-P", "-m", "ctl.main", *self.words(wanted)]
        return in_netns(
            self.namespace, subprocess.run, command, env=self.faults.environment, capture_output=True, text=True,
            cwd=ROOT, timeout=120,
        )  # fmt: skip

    def services(self) -> set[str]:
        with netns(self.namespace):
            return {row.service for row in looking_plane(self.mode).read_back().values()}


@pytest.fixture(params=["nftables", "iptables"])
def applied(request: pytest.FixtureRequest, namespace: str, tmp_path: Path) -> Iterator[Applied]:
    with Faults(tmp_path) as faults:
        yield Applied(namespace, tmp_path, request.param, faults)
        with netns(namespace):
            assert main(["--state-dir", str(tmp_path / "state"), "cleanup"]) == 0


def _chosen(count: int, soak: bool) -> list[int]:
    """Numbers of calls: the last ones, where the work is; before them the process starts."""
    few = {count - count // 8, count - 1, count}
    return list(range(1, count + 1)) if soak else sorted(number for number in few if number > 0)


def test_whichever_call_fails(applied: Applied, soak: bool) -> None:
    applied.come_to(OLD)
    for kind in SHOWN[applied.mode]:
        applied.faults.fail(kind, 0)
        assert applied.apply(NEW).returncode == 0
        count = applied.faults.count(kind)
        assert count > 0, kind
        for number in _chosen(count, soak):
            applied.come_to(OLD)
            applied.faults.fail(kind, number)
            done = applied.apply(NEW)
            applied.faults.fail(kind, 0)
            what = f"{kind} {number} of {count}: {done.returncode}, {done.stderr}"
            assert "Traceback" not in done.stderr, what
            held = applied.services()  # a load in several transactions may end between two: each Service is whole
            assert OLD & NEW <= held <= OLD | NEW, what
            assert held in (OLD, NEW) or "load again" in done.stderr, what
            assert done.returncode == 1 or applied.services() == NEW, what
            assert done.returncode == 0 or "hotplane: " in done.stderr, what
            applied.come_to(NEW)
