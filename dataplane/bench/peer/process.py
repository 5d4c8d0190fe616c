"""A peer's command as processes on a node: started, ended, listened to, and removed with what they left there."""

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError

import dataplane
from dataplane.bench.peer import leftovers
from dataplane.bench.peer.cluster import kubeconfig
from dataplane.bench.peer.spec import Peer
from dataplane.errors import HotplaneError
from dataplane.kernel.namespaces import cgroup
from dataplane.lab.lab import Lab
from dataplane.lab.spec import CLUSTER_CIDR, LabError, Node
from dataplane.model.net import Family

END_SECONDS = 15.0
"""What a peer has to end after SIGTERM; its clean-up command has four times as long."""
TOLD_LINES, _TOLD_LENGTH = 8, 200
_REST_SECONDS = 1.0
"""What others of its processes have to end once the first one has."""
_LEGACY = Path("/usr/sbin/xtables-legacy-multi")
_ROOT = Path(dataplane.__file__).parent.parent
_HOTPLANE = '#!/bin/sh\nPYTHONPATH={root} exec {python} -P -m ctl.main "$@"\n'
_ENTER = 'echo 0 > "$0" && echo "$1" > /proc/sys/kernel/hostname && exec /bin/sh -c "$2"'


def _prefix(lab: str) -> str:
    return f"hotplane-peer-{lab}-"


def remove_folders(lab: str) -> None:
    """Remove the folders of all peers of a lab of this name, in case nobody has."""
    for folder in Path(tempfile.gettempdir()).glob(_prefix(lab) + "*"):
        shutil.rmtree(folder, ignore_errors=True)


class PeerProcess:
    """A peer on a node. Its processes are in a control group of their own, below the node's; its output is kept."""

    def __init__(self, lab: Lab, node: Node, peer: Peer, family: Family) -> None:
        self._lab, self._node, self._peer, self._family = lab, node, peer, family
        self._group = lab.cgroup(node) / "peer"
        self._folder = Path(tempfile.mkdtemp(prefix=_prefix(lab.spec.name)))
        self.log = self._folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._devices = leftovers.devices(node.netns)
        self._is_dirty = False
        self.notes: dict[str, str] = {}
        self._make_tools()

    def _make_tools(self) -> None:
        """Programs that commands find by their environment."""
        hotplane, legacy = self._folder / "hotplane", self._folder / "legacy"
        hotplane.write_text(_HOTPLANE.format(root=shlex.quote(str(_ROOT)), python=shlex.quote(sys.executable)))
        hotplane.chmod(0o755)
        legacy.mkdir()
        for tool, action in itertools.product(("iptables", "ip6tables"), ("", "-save", "-restore")):
            (legacy / (tool + action)).symlink_to(_LEGACY)

    def start(self, url: str) -> int:
        """Start it with the API server at `url`; the moment before, in nanoseconds of the monotonic clock."""
        config = self._folder / "kubeconfig"
        config.write_bytes(kubeconfig(url))
        self._is_dirty = True
        self.log.write_bytes(b"")
        at = time.monotonic_ns()
        self._process = self._spawn(self._peer.command, {"KUBECONFIG": str(config), "API_SERVER": url})
        return at

    def _spawn(self, command: str, more: Mapping[str, str]) -> "subprocess.Popen[bytes]":
        node, family, own = self._node, self._family, self._folder / "own"
        own.mkdir(exist_ok=True)
        self._group.mkdir(exist_ok=True)
        environment = {
            "HOTPLANE": str(self._folder / "hotplane"), "IPTABLES_LEGACY": str(self._folder / "legacy"),
            "NODE_NAME": node.name, "NODE_IP": node.addresses[family],
            "CLUSTER_CIDR": CLUSTER_CIDR[family], "POD_CIDR": node.pod_cidrs[family], "UPLINK": node.uplink,
            "CGROUP": str(self._lab.cgroup(node)), "PEER_DIR": str(own),
            "XTABLES_LOCKFILE": str(self._folder / "xtables.lock"), **more,
        }  # fmt: skip
        enter = ["unshare", "--uts", "/bin/sh", "-c", _ENTER, str(self._group / "cgroup.procs"), node.name, command]
        with self.log.open("ab") as out:
            return self._lab.spawn(
                node, enter, in_cgroup=False, env=environment, cwd=own, start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT,
            )  # fmt: skip

    def check(self) -> None:
        """Raise LabError with its last words if it has ended."""
        if self._process is not None and self._process.poll() is not None:
            status = self._process.returncode
            how = f"by signal {-status}" if status < 0 else f"with status {status}"
            raise LabError(f"{self._peer.name}: it has ended {how}; {self.last_words()}")

    def last_words(self, most: int = TOLD_LINES) -> str:
        """The last lines of its output in one, so many at most."""
        text = self.log.read_bytes()[-8192:].decode(errors="replace") if self.log.exists() else ""
        lines = [line.strip()[:_TOLD_LENGTH] for line in text.splitlines() if line.strip()][-most:]
        return "its last words: " + " / ".join(lines) if lines else "it said nothing"

    def used(self) -> dict[str, float]:
        """Processor seconds of all its processes so far (`cpu`), and resident memory of those that live (`rss`)."""
        if not self._group.is_dir():
            return {"cpu": 0.0, "rss": 0.0}
        stat = dict(line.split() for line in (self._group / "cpu.stat").read_text().splitlines())
        found = 0.0
        for pid in cgroup.pids(self._group):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                found += sum(int(line.split()[1]) * 1024.0 for line in lines if line.startswith("VmRSS:"))
        return {"cpu": int(stat["usage_usec"]) / 1e6, "rss": found}

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def is_dirty(self) -> bool:
        """True if it was started since the node was cleaned: something of it may be there."""
        return self._is_dirty

    def kill(self) -> None:
        """SIGKILL to all of its processes."""
        process, self._process = self._process, None
        if process is not None:
            cgroup.remove(self._group)
            process.wait()

    def end(self) -> None:
        """End it, in order where it can: SIGTERM to all of its processes, and SIGKILL to whatever is left."""
        process, self._process = self._process, None
        if process is None:
            return
        for pid in cgroup.pids(self._group):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            self._told(f"did not end within {END_SECONDS:.0f} s after SIGTERM and was killed", self.last_words())
        self._kill()
        process.wait()

    def _kill(self) -> None:
        end = time.monotonic() + _REST_SECONDS
        while (rest := cgroup.pids(self._group)) and time.monotonic() < end:
            time.sleep(0.01)
        if rest:
            names = sorted({_name(pid) for pid in rest})
            self._told(f"left processes behind, which were killed: {', '.join(names)}")
        cgroup.remove(self._group)

    def clean(self) -> None:
        """End it, run its clean-up command, and remove what is left of it on the node. Raises LabError."""
        try:
            self.end()
            if self._is_dirty:
                self._clean()
        except (HotplaneError, NetlinkError, OSError) as error:
            raise LabError(f"{self._peer.name}: cannot be removed from {self._node.name}: {error}") from error

    def _clean(self) -> None:
        if self._peer.cleanup:
            process = self._spawn(self._peer.cleanup, {"KUBECONFIG": str(self._folder / "kubeconfig")})
            try:
                status = process.wait(4 * END_SECONDS)
                if status:
                    self._told(f"its clean-up ended with status {status}", self.last_words(2))
            except subprocess.TimeoutExpired:
                self._told(f"its clean-up did not end within {4 * END_SECONDS:.0f} s and was killed")
            cgroup.remove(self._group)
            process.wait()
        left = leftovers.remove(self._lab, self._node, self._devices)
        if left and self._peer.cleanup:
            self._told(f"left behind after its clean-up, and removed: {', '.join(left)}")
        shutil.rmtree(self._folder / "own", ignore_errors=True)
        self._is_dirty = False

    def _told(self, what: str, words: str = "") -> None:
        """Keep a note of something that a reader should know, with last words of the first time only."""
        what = f"{self._peer.name}: {what}"
        self.notes.setdefault(what, f"{what}; {words}" if words else what)

    def close(self) -> None:
        """Remove everything, its folder too."""
        try:
            self.clean()
        finally:
            shutil.rmtree(self._folder, ignore_errors=True)


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return "?"
