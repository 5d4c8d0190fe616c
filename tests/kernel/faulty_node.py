"""A daemon in a network namespace of its own, whose calls can be made to fail."""

import subprocess
import sys
from pathlib import Path

from dataplane.kernel.namespaces.netns import netns
from tests.faults.inject import Faults
from tests.kernel.daemon_lab import PATIENCE, ROOT, looking_plane, until

MANIFEST = "kind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: {ip}, ports: [{{port: 80}}]}}\n"


class Node:
    """A daemon that follows a directory of manifests, and whose calls can be made to fail."""

    def __init__(self, namespace: str, folder: Path, faults: Faults) -> None:
        self.namespace, self.faults = namespace, faults
        self.state, self.manifests, self.log = folder / "state", folder / "manifests", folder / "log"
        self.manifests.mkdir()
        self.wrapper: tuple[str, ...] = ()
        self.process: subprocess.Popen[bytes] | None = None

    def service(self, name: str, ip: str) -> None:
        (self.manifests / f"{name}.yaml").write_text(MANIFEST.format(name=name, ip=ip))

    def start(self, *options: str, mode: str = "nftables") -> None:
        words = ["--state-dir", str(self.state), "--node-name", "n1", "--mode", mode, "run", "-f", str(self.manifests)]
        command = [*self.wrapper, sys.executable, "-P", "-m", "ctl.main", *words, *options]
        with netns(self.namespace), self.log.open("wb") as out:
            self.process = subprocess.Popen(command, stderr=out, cwd=ROOT, env=self.faults.environment)

    @property
    def text(self) -> str:
        return self.log.read_text()

    def says(self, words: str) -> None:
        until(lambda: words in self.text or not self.alive, f"it says {words!r}: {self.text}")
        assert self.alive, self.text

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def end(self) -> int:
        assert self.process is not None
        self.process.terminate()
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        """Kill the daemon, if there is one."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def services(self, mode: str = "nftables") -> set[str]:
        with netns(self.namespace):
            return {row.service for row in looking_plane(mode).read_back().values()}
