"""The lab itself: bring one up, find a running one, run things in it, send traffic, take it down.

    with Lab.up(LabSpec(name="demo", nodes=3, pods=2, ipv6=True)) as lab:
        lab.start_echo([pod for node in lab.nodes for pod in node.pods], ports=[8080])
        [result] = lab.probe("client", Probe(lab.nodes[0].pods[0].addresses[Family.IPV4], 8080, count=10))
        lab.run("node1", ["nft", "list", "ruleset"])
        with netns(lab.nodes[0].netns): ...   # Python code of this process on node 1

A node, and its pods, are network namespaces; their processes share the node's own cgroup (`Lab.cgroup(place)`).
Nothing else is private to them: files, /sys and process ids are the machine's.
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pyroute2 import IPRoute

import dataplane
from dataplane.kernel.namespaces import cgroup, netns
from dataplane.kernel.netlink.links import Links
from dataplane.kernel.sysctl import SysctlError
from dataplane.lab import build, state
from dataplane.lab.places import Places, Where
from dataplane.lab.spec import LabError, LabSpec, LabSpecError, owns_namespace, topology
from dataplane.lab.traffic.agents import START_SECONDS, Agents, need_pipe, read_line
from dataplane.lab.traffic.probe import DEFAULT_CONCURRENCY, Probe, ProbeResult
from dataplane.model.net import canonical_address

CGROUP_PREFIX = "hotplane-"
HOSTS = Path("/etc/hosts")
_ROOT = Path(dataplane.__file__).parent.parent
_ENTER = 'echo 0 > "$0" && exec "$@"'


class Lab(Places):
    """A lab that is up. As a context manager: taken down at the end if this object brought it up, else only closed."""

    def __init__(self, spec: LabSpec, *, owned: bool = False) -> None:
        super().__init__(spec)
        self._owned = owned
        self._concurrency, self._start_seconds = DEFAULT_CONCURRENCY, START_SECONDS
        self._agents = Agents(self._start_agent)
        self._processes: list[subprocess.Popen[Any]] = []
        self._group_root = cgroup.root() / (CGROUP_PREFIX + spec.name)

    @classmethod
    def up(cls, spec: LabSpec) -> Self:
        """Build a fresh lab; whatever had this name before, whole or half, is removed first.

        Raises LabSpecError for an impossible spec; LabError, LinkError or CgroupError when the kernel refuses
        something. Nothing is left behind then.
        """
        topology(spec)
        need_root()
        with state.locked():
            _remove(spec.name)
            state.store(state.LabState(spec))
            try:
                cgroup.ensure_root()
                lab = cls(spec, owned=True)
                for place in lab.topology.places():
                    lab.cgroup(place).mkdir(parents=True, exist_ok=True)
                build.build(spec, lab.topology)
            except (OSError, SysctlError) as error:
                _remove(spec.name)
                raise LabError(f"lab {spec.name} cannot be built: {error}; see hotplane doctor") from error
            except BaseException:
                _remove(spec.name)
                raise
            state.store(state.LabState(spec, ready=True))
        return lab

    @classmethod
    def open(cls, name: str) -> Self:
        """A lab that somebody brought up. Raises LabError when there is none, or not all of it."""
        found = state.load(name)
        if found is None:
            others = state.up()
            more = f"; --name says which lab is meant: up are {', '.join(others)}" if others else ""
            raise LabError(f"there is no lab {name}: hotplane lab up --name {name}{more}")
        if not found.ready:
            raise LabError(f"lab {name} was not finished: hotplane lab up --name {name} builds it again")
        if not state.is_there(found.spec):
            raise LabError(
                f"lab {name}: its network namespaces are gone: hotplane lab up --name {name} builds it again, "
                f"hotplane lab down --name {name} forgets it"
            )
        return cls(found.spec)

    @staticmethod
    def names() -> list[str]:
        """Names of all labs on this machine, finished or not."""
        return state.names()

    @staticmethod
    def remove(name: str) -> None:
        """Take down whatever has this name: processes, cgroups, namespaces, state. Fine when there is nothing."""
        need_root()
        with state.locked():
            _remove(name)

    def down(self) -> None:
        """Take the lab down; fine twice."""
        self.close()
        self.remove(self.spec.name)
        for process in self._processes:
            process.wait()
        self._processes.clear()

    def close(self) -> None:
        """End this object's probe agents; the lab stays up, and so do the echo servers."""
        self._agents.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._owned:
            self.down()
        else:
            self.close()

    def cgroup(self, where: Where) -> Path:
        """Cgroup directory of a place's processes: a node's own, which its pods share."""
        return self._group_root / self.place(where).group

    def processes(self) -> dict[str, list[int]]:
        """Processes in the lab now: place name -> pids. A process of a pod is found by its namespace."""
        by_netns = {place.netns: place.name for place in self._places.values()}
        found: dict[str, list[int]] = {}
        for pid, namespace in sorted(netns.pids(by_netns).items()):
            found.setdefault(by_netns[namespace], []).append(pid)
        return found

    def set_entry(self, node: str) -> None:
        """From now on the client's packets to addresses that the underlay does not know enter at this node."""
        entry = next((n for n in self.nodes if n.name == node), None)
        if entry is None:
            raise LabSpecError(
                f"lab {self.spec.name} has no node {node}; it has {', '.join(n.name for n in self.nodes)}"
            )
        with Links(self.topology.underlay.netns) as links:
            for family in self.spec.families:
                links.route(
                    build.DEFAULT_ROUTE[family],
                    via=entry.addresses[family],
                    table=build.ENTRY_TABLE,
                    replace=True,
                )

    def spawn(
        self, where: Where, argv: Sequence[str], *, in_cgroup: bool = True, env: Mapping[str, str] | None = None,
        **popen: Any,
    ) -> subprocess.Popen[Any]:  # fmt: skip
        """Start a program in a place, in its cgroup too unless `in_cgroup` is False; as subprocess.Popen otherwise.

        `env` is added to this process's environment. The program ends with the lab at the latest. The namespace is
        entered by the time this returns, the cgroup before the program's first instruction.
        """
        place = self.place(where)
        # A shell enters the cgroup and then becomes the program: unlike code run between fork and exec, this is safe
        # in a process with threads, and the program never runs a single instruction outside its cgroup.
        enter = ["/bin/sh", "-c", _ENTER, str(self.cgroup(place) / "cgroup.procs")] if in_cgroup else []
        with netns.netns(place.netns):
            process: subprocess.Popen[Any] = subprocess.Popen(
                [*enter, *argv], env={**os.environ, **(env or {})}, **popen
            )
        self._processes.append(process)
        return process

    def run(
        self, where: Where, argv: Sequence[str], *, input: str | None = None, check: bool = True,
        timeout: float | None = 60.0, in_cgroup: bool = True,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run a program in a place to its end, with its output as text.

        Raises LabError with its error output when it fails and `check` is set, or when it takes over `timeout` seconds.
        """
        place = self.place(where)
        process = self.spawn(
            place, argv, in_cgroup=in_cgroup, text=True,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        self._processes.remove(process)
        with process:
            try:
                output, errors = process.communicate(input, timeout)
            except subprocess.TimeoutExpired as error:
                process.kill()
                raise LabError(f"{place.name}: {' '.join(argv)}: not done after {timeout} s") from error
        if check and process.returncode:
            raise LabError(f"{place.name}: {' '.join(argv)}: exit status {process.returncode}: {errors.strip()}")
        return subprocess.CompletedProcess(list(argv), process.returncode, output, errors)

    def execute(self, where: Where, argv: Sequence[str], hosts: str = "") -> None:
        """Become a program in a place (exec: does not return). Raises OSError when there is no such program.

        Its host name is the place's: a node's proxy takes its node name from there. hosts: what it finds in /etc/hosts;
        "": the machine's.
        """
        place = self.place(where)
        cgroup.enter(self.cgroup(place))
        netns.enter(place.netns)
        netns.call_host(place.name)
        if hosts:
            netns.lay_over(state.store_hosts(self.spec.name, hosts), HOSTS)
        os.execvp(argv[0], list(argv))

    def python(self, where: Where, module: str, arguments: Sequence[str] = (), **popen: Any) -> subprocess.Popen[Any]:
        """Start a Python module of this very checkout in a place; `popen` as for `spawn`."""
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
        return self.spawn(where, [sys.executable, "-m", module, *arguments], env={"PYTHONPATH": path}, **popen)

    def allow(self, slowness: float) -> None:
        """On a machine that is so many times slower than usual: servers and agents have as much more time to start, and
        probes that do not say otherwise fewer attempts under way at a time. Their own time is each probe's."""
        self._concurrency = max(1, int(DEFAULT_CONCURRENCY / slowness))
        self._start_seconds = self._agents.start_seconds = START_SECONDS * slowness

    def start_echo(
        self, places: Iterable[Where], ports: Sequence[int], protocols: Sequence[str] = ("tcp", "udp")
    ) -> dict[str, subprocess.Popen[bytes]]:
        """Start an echo server (TCP and UDP, every family) in each place; returns when all listen: place -> process.

        They answer with the place's name, and run until ended or the lab goes, even if this process ends before.
        Raises LabError when one does not start.
        """
        options = [option for port in ports for option in ("--port", str(port))]
        options += [option for protocol in protocols for option in ("--protocol", protocol)]
        started: dict[str, subprocess.Popen[bytes]] = {}
        for where in places:
            name = self.place(where).name
            started[name] = self.python(
                where, "dataplane.lab.traffic.echo", ["--name", name, *options],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + self._start_seconds
        for name, process in started.items():
            if read_line(process, deadline) != b"ready\n":
                process.kill()
                errors = need_pipe(process.stderr).read().decode(errors="replace").strip()
                raise LabError(f"{name}: the echo server on ports {list(ports)} does not start: {errors}")
            need_pipe(process.stdout).close()
            need_pipe(process.stderr).close()
        return started

    def probe(self, where: Where, *probes: Probe, concurrency: int | None = None) -> list[ProbeResult]:
        """Try probes from one place, all at once; one result for each."""
        return self.probe_all({self.place(where).name: probes}, concurrency=concurrency)[self.place(where).name]

    def probe_all(
        self, requests: Mapping[str, Sequence[Probe]], *, concurrency: int | None = None
    ) -> dict[str, list[ProbeResult]]:
        """Try probes from several places at the same time (place name -> probes); results likewise. concurrency:
        attempts under way at a time from each place, the lab's own where it is not said.

        The agents behind it are started at first use and kept. Raises LabError when one fails.
        """
        return self._agents.probe_all(requests, concurrency or self._concurrency)

    def node_addresses(self) -> dict[str, set[str]]:
        """Every address that each node has on any device: what a masqueraded packet may come from."""
        found = {}
        for node in self.nodes:
            with netns.netns(node.netns), IPRoute() as ipr:
                found[node.name] = {canonical_address(m.get_attr("IFA_ADDRESS")) for m in ipr.get_addr()}
        return found

    def _start_agent(self, name: str) -> "subprocess.Popen[bytes]":
        # A session of its own: an interrupt at the terminal is this process's to handle, agents end with it anyway.
        return self.python(
            name, "dataplane.lab.traffic.agent", stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )


def need_root() -> None:
    """Raises LabError for who may neither make labs nor enter their places."""
    if os.geteuid() != 0:
        raise LabError("a lab is made of network namespaces and cgroups, which are root's: run this as root")


def _remove(name: str) -> None:
    """Remove everything of a lab of this name, found by name and not by what its state says: it may be any ruin."""
    for mounted in cgroup.mount_points()[:1]:
        cgroup.remove(mounted / (CGROUP_PREFIX + name))
    owned = [namespace for namespace in netns.names() if owns_namespace(name, namespace)]
    cgroup.end_processes(list(netns.pids(owned)))
    for namespace in owned:
        netns.remove(namespace)
    cgroup.release_private_root(CGROUP_PREFIX)
    state.forget(name)
