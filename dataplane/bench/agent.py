"""The control plane under measurement: `python -m dataplane.bench.agent LAB NODE MODE [PEER]` runs on a node of a lab.

A process of its own, so that its memory and processor time are its own and each cold start is one. It obeys JSON
lines: {"do": "load", "services": N, ...} and so on, and answers each with a JSON object of figures. PEER: the node at
the other end of the mode's tunnel, where it has one.
"""

import gc
import resource
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from dataplane.bench.machine.memory import kernel_memory, process_memory, settled_kernel_memory
from dataplane.bench.modes import MODES, make_plane
from dataplane.bench.objects import ENDPOINTS, Backend, Changes, Form, Shape, chunks, decoded, flow_slice
from dataplane.bench.program import ProgramCost, Way
from dataplane.errors import HotplaneError
from dataplane.lab.lab import Lab
from dataplane.lab.proxy import lb_peers, node_config
from dataplane.lab.spec import LabError
from dataplane.model.decode import decode_object
from dataplane.model.net import Family
from dataplane.model.objects import ModelObject
from dataplane.plan.planner import Planner
from dataplane.plan.types import Plan
from dataplane.planes.conntrack import clean_stale_udp

CHANGES_A_SECOND = 100


class Request(msgspec.Struct, frozen=True):
    """do: "load" (services, endpoints of each, family, servers, flows, form, local and remote are used), "change"
    (count, seconds: stop at whichever comes first), "rollout" (seconds), "scale" (count: endpoints that FLOWS_SERVICE
    shall have, from `flows` to twice that), "program" (way) or "cleanup"."""

    do: str
    services: int = 0
    endpoints: int = ENDPOINTS
    family: Family = Family.IPV4
    local: Backend = Backend("", "")
    remote: Backend = Backend("", "")
    count: int = 0
    seconds: float = 0.0
    way: Way | None = None
    servers: int = 0
    flows: int = 0
    form: Form = Form.PLAIN


def _cpu() -> float:
    """Processor seconds of this process and of the programs it ran."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in used)


def spread_of(values: list[int]) -> dict[str, float]:
    """Percentiles of times in nanoseconds."""
    ordered = sorted(values)

    def at(share: float) -> float:
        return float(ordered[min(len(ordered) - 1, int(share * len(ordered)))])

    return {"p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "max": at(1.0), "operations": float(len(ordered))}


def _by_name(plan: Plan) -> None:
    """Put the plan's entries into the order of their names, which is the order of the rules in iptables mode.

    A plan has no order, and kube-proxy's rules stand in that of a Go map, a random one; but only in a known one do the
    first and the last Service mean anything. Not part of what is measured.
    """
    entries = sorted(plan.entries.items(), key=lambda item: (item[0].name, item[0].port))
    plan.entries.clear()
    plan.entries.update(entries)


class Agent:
    """A planner and a plane, fed as a daemon feeds them."""

    def __init__(self, lab: Lab, node: str, mode: str, peer: str = "") -> None:
        place, found = next(n for n in lab.nodes if n.name == node), MODES[mode]
        peers = lb_peers([n for n in lab.nodes if n.name == peer], place)
        self._planner = Planner(node_config(lab.spec, place, found.plane, found.lb_mode, peers))
        self._made = make_plane(mode, lab.cgroup(place))
        self._plane = self._made.plane
        self._changes = Changes(Shape(0))
        self._loaded = Request("load")
        self._program: ProgramCost | None = None

    def load(self, request: Request) -> dict[str, float]:
        """A cold start: decode, plan, load the kernel. Times in seconds; `seconds` is without decoding,
        `maps_seconds` planning and an eBPF plane's maps alone. kernel_bytes: memory that the kernel took,
        see `kernel_memory`."""
        self._loaded = request
        shape = Shape(request.services, request.endpoints, request.family, request.servers, request.flows, request.form)
        found: list[ModelObject] = []
        decode_seconds = 0.0
        size = 0
        for chunk in chunks(shape, request.local, request.remote):
            size += len(chunk)
            started = time.perf_counter()
            found += decoded(chunk)
            decode_seconds += time.perf_counter() - started
        kernel, cpu = settled_kernel_memory(), _cpu()
        started = time.perf_counter()
        self._plane.prepare_load()  # as the daemon does before it has any object
        self._planner.update(found)
        planned = time.perf_counter()
        _by_name(self._planner.plan)
        loading = time.perf_counter()
        self._plane.load(self._planner.plan)
        done = time.perf_counter() - (loading - planned)
        cpu, kernel = _cpu() - cpu, kernel_memory() - kernel
        parts = {"slow_seconds": self._made.slow_seconds(), "program_seconds": self._made.program_seconds()}
        del found
        gc.collect()
        gc.freeze()  # as the daemon does once it has started
        self._changes = Changes(shape)
        return {
            "seconds": done - started,
            "decode_seconds": decode_seconds,
            "plan_seconds": planned - started,
            "kernel_seconds": done - planned,
            "maps_seconds": planned - started + self._made.maps_seconds(),
            **parts,
            "json_bytes": float(size),
            "cpu": cpu,
            **({"kernel_bytes": kernel} if kernel > 0 else {}),  # others gave back more than this took: no figure
            **process_memory(),
        }

    def _take(self, events: Iterable[bytes]) -> None:
        objects = [decode_object(event).value for event in events]
        change = self._planner.update([o for o in objects if o is not None])
        if not change:
            raise HotplaneError("an endpoint change of the benchmark changed nothing")
        self._plane.apply(change)
        clean_stale_udp(change, self._planner.plan.node)

    def change(self, request: Request) -> dict[str, float]:
        """One change after another, each on its own; times in nanoseconds from the event's bytes to the kernel."""
        times: list[int] = []
        cpu, end = _cpu(), time.monotonic() + request.seconds
        while len(times) < request.count and (time.monotonic() < end or len(times) < 2):
            event = self._changes.next()
            started = time.perf_counter_ns()
            self._take([event])
            times.append(time.perf_counter_ns() - started)
        cpu = (_cpu() - cpu) / len(times)
        self._undo()
        return {**spread_of(times), "cpu": cpu}

    def rollout(self, request: Request) -> dict[str, float]:
        """CHANGES_A_SECOND events a second for some seconds, all that are due in one go, as a daemon does. Lag in
        nanoseconds from when an event was due until the kernel had it; cpu: processor seconds a second."""
        gap = 10**9 // CHANGES_A_SECOND
        wanted = max(1, int(request.seconds * CHANGES_A_SECOND))
        lags: list[int] = []
        syncs = 0
        cpu, start = _cpu(), time.perf_counter_ns()
        while len(lags) < wanted:
            now = time.perf_counter_ns()
            due = min(wanted, (now - start) // gap + 1)
            if due <= len(lags):
                time.sleep((start + len(lags) * gap - now) / 1e9)
                continue
            self._take([self._changes.next() for _ in range(due - len(lags))])
            syncs += 1
            done = time.perf_counter_ns()
            lags += [done - (start + number * gap) for number in range(len(lags), due)]
        seconds = (time.perf_counter_ns() - start) / 1e9
        cpu = (_cpu() - cpu) / seconds
        self._undo()
        return {**spread_of(lags), "rate": wanted / seconds, "syncs": float(syncs), "cpu": cpu, **process_memory()}

    def scale(self, request: Request) -> dict[str, float]:
        """Give FLOWS_SERVICE so many endpoints; seconds until the kernel has them."""
        loaded = self._loaded
        slices = [
            flow_slice(number, [loaded.local] if number < request.count else [], loaded.family)
            for number in range(loaded.flows, 2 * loaded.flows)
        ]
        started = time.perf_counter()
        self._take([msgspec.json.encode(item) for item in slices])
        return {"seconds": time.perf_counter() - started}

    def _undo(self) -> None:
        event = self._changes.undo()
        if event is not None:
            self._take([event])

    def program(self, request: Request) -> dict[str, float]:
        """Return the cost of a packet in the XDP program."""
        if self._program is None:
            program = self._made.packet_program()
            if program is None or request.way is None:
                raise LabError(f"{self._plane.name}: this mode has no packet programs whose cost could be measured")
            self._program = ProgramCost(program, request.way)
        return self._program.measure()

    def cleanup(self, request: Request) -> dict[str, float]:
        """Leave nothing on the node."""
        self._plane.cleanup()
        return {}


def main(arguments: list[str]) -> None:
    """Entry point: lab, node, mode, peer if there is one."""
    name, node, mode, *peer = arguments
    agent = Agent(Lab.open(name), node, mode, *peer)
    actions: dict[str, Callable[[Request], dict[str, float]]] = {
        "load": agent.load,
        "change": agent.change,
        "rollout": agent.rollout,
        "scale": agent.scale,
        "program": agent.program,
        "cleanup": agent.cleanup,
    }
    for line in sys.stdin.buffer:
        request = msgspec.json.decode(line, type=Request)
        answer: dict[str, Any]
        try:
            answer = dict(actions[request.do](request))
        except HotplaneError as error:
            answer = {"error": str(error)}
        sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
