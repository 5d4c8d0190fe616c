"""The lab on virtual machines, seen from the host: places are reached over ssh, one connection a machine."""

import json
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataplane.lab.places import Places
from dataplane.lab.spec import LabError, LabSpec, Node, Pod
from dataplane.lab.traffic.agents import Agents
from dataplane.lab.traffic.probe import Probe, ProbeResult
from dataplane.model.net import canonical_address
from dataplane.resource import Resource

HOME = "/opt/hotplane"
CONCURRENCY = 32
"""Attempts under way at a time from one place: a slow machine answers few in one probe's time."""
_AGENT_SECONDS = 120.0


class Machines(Places, Resource):
    """A lab of machines that are up, as Vagrant's `ssh-config` describes them. Has what lab.ground.Ground asks for."""

    home = HOME
    """Where hotplane is on the machines."""
    scratch = "/root"
    """Where files may be put on them, programs too."""

    def __init__(self, spec: LabSpec, ssh_config: Path) -> None:
        super().__init__(spec)
        # One connection a machine, kept by the first that needs it: each login costs a slow machine seconds.
        control = ssh_config.with_name("ssh-%n")
        shared = ("ControlMaster=auto", f"ControlPath={control}", "ControlPersist=yes", "LogLevel=ERROR")
        self._ssh = ["ssh", "-F", str(ssh_config), *(argument for option in shared for argument in ("-o", option))]
        self._connected: set[str] = set()
        self._agents = Agents(self._start_agent, _AGENT_SECONDS)

    def close(self) -> None:
        """End the agents and the connections; the machines stay up."""
        self._agents.close()
        for machine in [*(node.name for node in self.nodes), self.client.name]:
            subprocess.run([*self._ssh, "-O", "exit", machine], check=False, capture_output=True)

    def command(self, where: str, argv: Sequence[str]) -> list[str]:
        """The command line, on this host, that runs a program in a place as root."""
        place, machine = self.place(where), self._machine(where)
        own = isinstance(place, Node) or place.name == "net"
        enter = [] if own else ["ip", "netns", "exec", place.netns]
        return [*self._ssh, machine, shlex.join(["sudo", *enter, *argv])]

    def python(self, module: str, *arguments: str) -> list[str]:
        """The command line, in a place, of a module of hotplane's."""
        return [f"{self.home}/.venv/bin/python", "-P", "-m", module, *arguments]

    def options(self, node: Node) -> list[str]:
        """Global options that hotplane needs on a node beyond what the node itself says: none on a machine."""
        return []

    def run(
        self, where: str, argv: Sequence[str], *, input: bytes | None = None, check: bool = True, timeout: float = 600.0
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run a program in a place to its end. Raises LabError when it fails and `check` is set, or takes more than
        `timeout` seconds."""
        given: dict[str, Any] = {"stdin": subprocess.DEVNULL} if input is None else {"input": input}
        command = self.command(where, argv)
        try:
            done: subprocess.CompletedProcess[bytes] = subprocess.run(
                command, capture_output=True, timeout=timeout, check=False, **given
            )
        except subprocess.TimeoutExpired as error:
            raise LabError(f"{where}: {shlex.join(argv)}: not done after {timeout} s") from error
        if check and done.returncode:
            message = done.stderr.decode(errors="replace").strip()
            raise LabError(f"{where}: {shlex.join(argv)}: exit status {done.returncode}: {message}")
        return done

    def probe_all(self, requests: Mapping[str, Sequence[Probe]]) -> dict[str, list[ProbeResult]]:
        """Try probes from several places at the same time (place name -> probes); results likewise.

        The agents behind it are started at first use and kept. Raises LabError when one fails.
        """
        return self._agents.probe_all(requests, CONCURRENCY)

    def node_addresses(self) -> dict[str, set[str]]:
        """Every address that each node has on any device."""
        found = {}
        for node in self.nodes:
            listed = json.loads(self.run(node.name, ["ip", "-json", "address"]).stdout)
            found[node.name] = {
                canonical_address(entry["local"]) for link in listed for entry in link.get("addr_info", ())
            }
        return found

    def _machine(self, where: str) -> str:
        """The machine that a place is on."""
        place = self.place(where)
        return place.node if isinstance(place, Pod) else self.client.name if place.name == "net" else place.name

    def _start_agent(self, name: str) -> "subprocess.Popen[bytes]":
        if (machine := self._machine(name)) not in self._connected:  # else agents of one machine each make a connection
            self.run(machine, ["true"])
            self._connected.add(machine)
        argv = self.command(name, self.python("dataplane.lab.traffic.agent"))
        return subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
