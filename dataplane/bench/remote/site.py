"""Load clients and servers on the machines of a lab: a server in a pod of node 2, clients in one of node 1 and outside.

They are the benchmark's own (bench.native), those of one machine's namespaces; the C program is compiled here and
copied to the machines. Where it does not run, the one in Python does.
"""

import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from dataplane.bench.figures.results import Machine
from dataplane.bench.helper import Helper
from dataplane.bench.load.iperf import bulk
from dataplane.bench.load.native import Tool, load_tool, python_tool
from dataplane.bench.modes import MODES
from dataplane.bench.objects import BULK_PORT, ENDPOINTS, REMOTE_NODE_PORT, SERVER_PORT, TCP_PORT, cluster_ip
from dataplane.bench.profiles import Settings
from dataplane.bench.rig import PATIENCE
from dataplane.bench.scenarios import Scenario, Way
from dataplane.lab.build import ENTRY_TABLE
from dataplane.lab.spec import LabError
from dataplane.lab.traffic.agents import read_line
from dataplane.lab.vagrant.machines import Machines
from dataplane.model.net import Family
from dataplane.resource import Resource

_WARM_SHARE = 0.25
"""A measurement's length, to its warming up."""
_RULE = "50"
"""Place of direct's rule among the router's: before that of the main table."""
_USAGE = 2
_WRITE = 'cat >"$0.part" && chmod 700 "$0.part" && mv "$0.part" "$0"'
_UNTIL_INPUT_ENDS = '"$@" & child=$!; cat >/dev/null; kill "$child"'
"""A server runs for as long as somebody holds the other end of its input, which ssh does."""
_LISTENS = f'until ss -Hltn "sport = :{BULK_PORT}" | grep -q .; do sleep 0.2; done'


class Site(Resource):
    """Clients and servers that run. As a context manager it leaves the machines without them.

    tool: the load generator. server: the pod that all Services lead to.
    """

    def __init__(self, machines: Machines, family: Family, slowness: float) -> None:
        """slowness: what time limits are multiplied by. Raises LabError when something does not start."""
        self.machines, self._family, self._patience = machines, family, PATIENCE * slowness
        self._entry, other = machines.nodes[0], machines.nodes[1]
        self.server, self._pod = other.pods[0], self._entry.pods[0]
        self._target = f"{machines.scratch}/hotplane-load"
        self._servers: list[subprocess.Popen[bytes]] = []
        self._clients: dict[str, Helper] = {}
        self._names = (self._entry.name, other.name, machines.client.name)
        self.tool = self._ship()
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _ship(self) -> Tool:
        """Put the load generator on the machines, and see that it runs there."""
        tool = load_tool()
        if tool.kind == "c":
            program = Path(tool.argv[0]).read_bytes()
            for name in self._names:
                self.machines.run(name, ["sh", "-c", _WRITE, self._target], input=program)
                if self.machines.run(name, [self._target], check=False).returncode != _USAGE:
                    tool = python_tool(f"{name}: what was compiled here does not run there; load is made in Python")
                    break
        if tool.kind == "c":
            return Tool((self._target,), "c")
        return Tool(tuple(self.machines.python("dataplane.bench.load.load")), "python", tool.note)

    def _start(self) -> None:
        self._rule("del", check=False)  # what a run that was killed left
        self._rule("add")
        self._serve([*self.tool.argv, "serve", str(SERVER_PORT), str(ENDPOINTS)])
        if read_line(self._servers[-1], time.monotonic() + self._patience) != b"ready\n":
            raise LabError(f"{self.server.name}: the server on port {SERVER_PORT} does not start")
        if self.machines.run(self.server.name, ["sh", "-c", "command -v iperf3"], check=False).stdout:
            self._serve(["iperf3", "-s", "-p", str(BULK_PORT), "--logfile", "/dev/null"])
            self.machines.run(self.server.name, ["sh", "-c", _LISTENS], timeout=self._patience)
        for place in (self._pod.name, self.machines.client.name):
            command = self.machines.command(place, [*self.tool.argv, "run"])
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
            self._clients[place] = Helper(process, f"{place}: the load generator")

    def _serve(self, argv: Sequence[str]) -> None:
        command = self.machines.command(self.server.name, ["sh", "-c", _UNTIL_INPUT_ENDS, "sh", *argv])
        self._servers.append(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
        )

    def _rule(self, action: str, *, check: bool = True) -> None:
        """direct's packets from outside pass by node 1, as those to its node port do."""
        source = self._through_entry
        rule = ["pref", _RULE, "iif", "client", "from", source, "lookup", str(ENTRY_TABLE + self._entry.number)]
        self.machines.run("net", ["ip", f"-{self._family.value}", "rule", action, *rule], check=check)

    @property
    def _through_entry(self) -> str:
        return self.machines.client.via[self._entry.name][self._family]

    def facts(self) -> Machine:
        """Return the facts that node 1 reports about itself."""
        said = self.machines.run(self._entry.name, self.machines.python("dataplane.bench.machine.facts")).stdout
        return msgspec.json.decode(said, type=Machine)

    def measure(self, mode: str, scenario: Scenario, services: int, settings: Settings) -> dict[str, float]:
        """One measurement, after a short one that warms up; see results.Cell for the figures. Raises LabError."""
        address, port = self._aim(mode, scenario, services)
        if scenario.operation.startswith("iperf3"):
            limit = ["-P", scenario.operation.split()[1], "-t", str(max(1, round(settings.seconds)))]
            what = f"iperf3 to {address} port {port} in {mode} mode"
            return bulk(self._command(self._pod.name), (address, port), limit, what)
        outside = scenario.way is Way.NODE_PORT_REMOTE
        source = self._through_entry if outside and MODES[mode].reference else "-"
        client = self._clients[self.machines.client.name if outside else self._pod.name]
        found: dict[str, float] = {}
        for seconds in (_WARM_SHARE * settings.seconds, settings.seconds):
            request = f"{scenario.operation} {address} {port} {seconds} {source}"
            found = client.ask(request.encode(), seconds + self._patience)
        return {**found, "rate": found["operations"] / found["seconds"]}

    def _command(self, place: str) -> Callable[[list[str]], "subprocess.CompletedProcess[bytes]"]:
        return lambda argv: self.machines.run(place, argv, check=False, timeout=self._patience)

    def _aim(self, mode: str, scenario: Scenario, services: int) -> tuple[str, int]:
        """Address and port that a scenario's packets are sent to: the last Service's, or the pod's own."""
        is_bulk = scenario.operation.startswith("iperf3")
        if MODES[mode].reference:
            return self.server.addresses[self._family], BULK_PORT if is_bulk else SERVER_PORT
        if scenario.way is Way.NODE_PORT_REMOTE:
            return self._entry.addresses[self._family], REMOTE_NODE_PORT
        return cluster_ip(services - 1, self._family), BULK_PORT if is_bulk else TCP_PORT

    def close(self) -> None:
        """End clients and servers."""
        for client in self._clients.values():
            client.close()
        for server in self._servers:
            server.communicate()  # which closes its input
        self._rule("del", check=False)
        for name in self._names:
            self.machines.run(name, ["rm", "-f", self._target], check=False)
