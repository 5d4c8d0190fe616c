"""Machines of the Vagrant lab without machines: namespaces of one lab, reached the way machines are, but for ssh."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dataplane.lab.lab import Lab
from dataplane.lab.spec import Node
from dataplane.lab.vagrant.machines import Machines

ROOT = Path(__file__).parents[2]
ENTER = 'echo 0 > "$0" && exec "$@"'


class Namespaces(Machines):
    """Machines that are namespaces of a lab: reached without ssh, each node with state and control group of its own.
    The checkout's environment is up to date before any of them uses it: no command of theirs has to say that it is."""

    home = str(ROOT)

    def __init__(self, lab: Lab, scratch: Path) -> None:
        subprocess.run(["bash", str(ROOT / "ctl" / "setup.sh"), "run"], check=True)
        super().__init__(lab.spec, scratch / "config")
        self._lab, self.scratch = lab, str(scratch)

    def command(self, where: str, argv: Sequence[str]) -> list[str]:
        group = str(self._lab.cgroup(where) / "cgroup.procs")
        place = self.place(where).netns
        return ["/bin/sh", "-c", ENTER, group, "nsenter", f"--net=/run/netns/{place}", "--", *argv]

    def python(self, module: str, *arguments: str) -> list[str]:
        return ["env", f"PYTHONPATH={ROOT}", sys.executable, "-m", module, *arguments]

    def options(self, node: Node) -> list[str]:
        return ["--state-dir", f"{self.scratch}/{node.name}", "--cgroup", str(self._lab.cgroup(node.name))]

    def close(self) -> None:
        self._agents.close()
