"""The daemon itself on a node of the lab: `hotplane run` as a process, over manifests in a folder."""

import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dataplane.bench.modes import MODES
from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.lab import Lab
from dataplane.lab.spec import CLUSTER_CIDR, LabError, Node
from dataplane.planes.mode import Making
from dataplane.planes.options import PlaneOptions
from dataplane.planes.registry import mode_of

PATIENCE = 300.0
_LOADED, _REPLACED = " loaded ", "replaced mode "
_LOOK_SECONDS = 0.005
_LAST_LINES = 5
_CONFIG = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {}\n"
PARTNERS = {"iptables": "nftables", "nftables": "ebpf-tc", "ebpf": "nftables"}
"""What a plane is switched to, and back: a mode of the benchmark."""


def hook_options(hooks: Sequence[str]) -> list[str]:
    """A mode's hooks as options of `hotplane run`; "host" is no hook there, and off without it."""
    own = [hook for hook in hooks if hook != "host"]
    return ["--hooks", ",".join(own), "--host-routing", "on" if "host" in hooks else "off"] if own else []


class NodeDaemon:
    """The daemon of one node in one of the benchmark's modes. folder: for its manifests, configuration, state and log;
    exists."""

    def __init__(self, lab: Lab, node: Node, mode: str, folder: Path) -> None:
        self._lab, self._node, self._mode, self._folder = lab, node, MODES[mode], folder
        self._partner = MODES[PARTNERS[self._mode.plane]]
        self._log = folder / "log"
        self._process: subprocess.Popen[Any] | None = None

    def manifests(self, documents: Iterable[bytes]) -> None:
        """What to serve: JSON documents."""
        place = self._folder / "manifests"
        place.mkdir()
        for number, document in enumerate(documents):
            (place / f"{number:05d}.json").write_bytes(document)

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def ready(self) -> None:
        """Have it run: start it unless it does. Raises LabError."""
        if not self.is_running:
            self.start()

    def start(self) -> None:
        """Start it, and wait until it has loaded everything. Raises LabError when it ends or takes PATIENCE."""
        self._configure(self._mode.plane)
        hooks = self._mode.hooks or self._partner.hooks
        with self._log.open("wb") as log:
            self._process = self._lab.python(
                self._node, "ctl.main",
                ["run", "-f", str(self._folder / "manifests"), "--config", str(self._folder / "config.yaml"),
                 "--state-dir", str(self._folder / "state"), "--node-name", self._node.name,
                 *(word for address in self._node.addresses.values() for word in ("--node-ip", address)),
                 "--cluster-cidr", ",".join(CLUSTER_CIDR[family] for family in self._node.addresses),
                 *hook_options(hooks), "--cgroup", str(self._lab.cgroup(self._node))],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log, start_new_session=True,
            )  # fmt: skip
        self._until(lambda text: _LOADED in text, "loads")

    def stop(self) -> None:
        """End it in order; the rules stay."""
        if self._process is not None:
            self._process.terminate()
            self._wait()

    def kill(self) -> None:
        """kill -9."""
        if self._process is not None:
            self._process.kill()
            self._wait()

    def switch_and_back(self) -> None:
        """Have it change to another mode, and back. Raises LabError."""
        for number, plane in enumerate((self._partner.plane, self._mode.plane), 1):
            self._configure(plane)
            assert self._process is not None, "it was started"
            self._process.send_signal(1)  # SIGHUP
            self._until(lambda text, number=number: text.count(_REPLACED) >= number, f"changes to {plane}")  # type: ignore[misc]

    def leave(self) -> None:
        """End it, and leave nothing of it on the node. Raises PlaneError."""
        self.stop()
        with netns(self._node.netns):
            for name in dict.fromkeys((self._mode.plane, self._partner.plane, "nftables")):
                mode_of(name).make(Making(PlaneOptions(hooks=()))).cleanup()

    def _configure(self, plane: str) -> None:
        (self._folder / "config.yaml").write_text(_CONFIG.format(plane), encoding="utf-8")

    def _wait(self) -> None:
        assert self._process is not None, "it was started"
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired as error:
            self._process.kill()
            raise LabError(f"{self._node.name}: hotplane run does not end in {PATIENCE:.0f} s") from error

    def _until(self, condition: Callable[[str], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE
        while not condition(text := self._log.read_text(encoding="utf-8", errors="replace")):
            late = time.monotonic() > end
            if late or not self.is_running:
                words = " / ".join(text.splitlines()[-_LAST_LINES:])
                why = f"not within {PATIENCE:.0f} s" if late else "it has ended"
                raise LabError(f"{self._node.name}: hotplane run {what}: {why}: {words}")
            time.sleep(_LOOK_SECONDS)
