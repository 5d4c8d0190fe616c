"""What one change of a large Service costs the daemon: an event, decoded, planned, written down, in the kernel.

    python -m tests.perf.large_services [--endpoints 1000,5000,20000] [--changes 60] [--mode nftables] [--slice 100]

Runs the daemon's own parts in one process, in a network namespace of its own, as root; beside the large Service there
are small ones. Prints one JSON object a size: milliseconds for each kind of change, and for how long the event loop
stood still. `--tree DIR` measures another checkout, in the same shuffled rounds; `--strange` has no endpoint carry
this node's name, so that all of them may run here.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("replaced", "scaled", "unready")
SMALL_SERVICES = 200
TICK_SECONDS = 0.0005


def _address(number: int) -> str:
    return f"10.{128 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


class Objects:
    """The slices of the large Service as they are now. protocol: TCP or UDP. first: number of the first node that
    endpoints run on."""

    def __init__(self, endpoints: int, a_slice: int, protocol: str, first: int = 1) -> None:
        self.protocol, self.fresh, self.first = protocol, endpoints, first
        self.slices = [
            [_address(number) for number in range(first, min(first + a_slice, endpoints))]
            for first in range(0, endpoints, a_slice)
        ]
        self.unready: set[str] = set()

    def line(self, number: int) -> bytes:
        """The watch event of one slice."""
        from tests.apiserver.objects import endpoint, endpoint_slice

        placed = [
            endpoint(address, f"node{self.first + index % 100}", ready=address not in self.unready)
            for index, address in enumerate(self.slices[number])
        ]
        item = endpoint_slice("large", placed, suffix=f"{number:05}", protocol=self.protocol)
        return json.dumps({"type": "MODIFIED", "object": item}).encode()

    def change(self, kind: str, rng: random.Random) -> bytes:
        """Change one endpoint; the event that tells of it."""
        number = rng.randrange(len(self.slices))
        chunk = self.slices[number]
        at = rng.randrange(len(chunk))
        if kind == "replaced":
            chunk[at] = _address(self.fresh)
            self.fresh += 1
        elif kind == "scaled" and self.fresh % 2:
            chunk.append(_address(self.fresh))
            self.fresh += 1
        elif kind == "scaled":
            del chunk[at]
            self.fresh += 1
        else:
            self.unready = set() if self.unready else {chunk[at]}
        return self.line(number)


class Loop:
    """For how long the event loop stood still at most, since `begin`."""

    def __init__(self) -> None:
        self.most = 0.0

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            before = time.perf_counter()
            await asyncio.sleep(TICK_SECONDS)
            self.most = max(self.most, time.perf_counter() - before - TICK_SECONDS)


class _Node:
    """The parts of a daemon that bring an EndpointSlice to the kernel. reconciler, kernel: as the daemon has them."""

    def __init__(self, mode: str) -> None:
        from ctl.daemon.daemon import KINDS as KNOWN
        from ctl.daemon.http.health import Health
        from ctl.daemon.http.metrics import Metrics
        from ctl.daemon.jobs import Jobs
        from ctl.daemon.log import Log
        from ctl.daemon.sync.inbox import Inbox
        from ctl.daemon.sync.kernel import Kernel
        from ctl.daemon.sync.pace import Pace
        from ctl.daemon.sync.planes import CleanUp
        from ctl.daemon.sync.reconcile import Reconciler
        from ctl.sources.watch import Reflector, resources
        from dataplane.policy.node import NodeConfig

        async def describe(_: object) -> NodeConfig:
            return NodeConfig(name="node1", addresses=("192.0.2.1",))

        async def after(_: object) -> None:
            pass

        log = Log("error")
        self._mode, self._kinds, self._inbox = mode, KNOWN, Inbox(KNOWN)
        clean_up = CleanUp(lambda *_: None)
        self.kernel = Kernel(clean_up, clean_up.is_brief)
        self.reconciler = Reconciler(
            "node1", self._inbox, self.kernel, describe, Health(60.0), Metrics(), log, Pace(0.0), after, Jobs(log)
        )
        self._watch = {each.kind: Reflector(None, each, self._inbox, log) for each in resources("node1")}  # type: ignore[arg-type]

    async def use(self) -> None:
        """Make the plane."""
        from ctl.daemon.sync.planes import untouched
        from dataplane.planes.mode import Making
        from dataplane.planes.options import PlaneOptions
        from dataplane.planes.registry import mode_of

        await self.kernel.use(lambda: mode_of(self._mode).make(Making(PlaneOptions(hooks=()))), untouched)

    def tell(self, kind: str, item: Any) -> None:
        """Have the watch hear of an object, or of an event as a line."""
        line = item if isinstance(item, bytes) else json.dumps({"type": "ADDED", "object": item}).encode()
        self._watch[kind]._line(line)

    def fill(self, objects: Objects) -> None:
        """Tell of the large Service and of the small ones: all that there is."""
        from tests.apiserver.objects import endpoint, endpoint_slice, service

        self.tell("Service", service("large", "10.96.0.1", protocol=objects.protocol))
        for number in range(len(objects.slices)):
            self.tell("EndpointSlice", objects.line(number))
        for number in range(SMALL_SERVICES):
            placed = [endpoint(_address(200_000 + number), f"node{objects.first}")]
            self.tell("Service", service(f"small-{number}", f"10.97.0.{number}"))
            self.tell("EndpointSlice", endpoint_slice(f"small-{number}", placed))
        for kind in self._kinds:
            self._inbox.complete(kind, set(self._inbox._known[kind]))


async def _change(node: _Node, loop: Loop, line: bytes) -> dict[str, float]:
    """Seconds that one event takes to be decoded, until the kernel has it, and for which the event loop stood still."""
    await asyncio.sleep(0.02)
    loop.most = 0.0
    started = time.perf_counter()
    node.tell("EndpointSlice", line)
    decoded = time.perf_counter()
    await node.reconciler.step()
    done = time.perf_counter()
    await asyncio.sleep(0.002)
    assert not node.kernel.ledger, node.kernel.ledger.services()
    return {"decode": decoded - started, "all": done - started, "still": loop.most}


async def _measure(objects: Objects, changes: int, mode: str, folder: Path) -> Any:
    from ctl.daemon.heap import pause_garbage_collection, resume_garbage_collection
    from ctl.store.journal import Journal

    pause_garbage_collection()
    node = _Node(mode)
    await node.use()
    node.fill(objects)
    loop = Loop()
    ticker = asyncio.get_running_loop().create_task(loop.watch())
    started = time.perf_counter()
    await node.reconciler.start()
    load, load_still = time.perf_counter() - started, loop.most
    resume_garbage_collection()
    node.reconciler.journal = Journal(folder / "plan", 1)
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    rng = random.Random(1)
    for turn in range(changes * len(KINDS)):
        kind = KINDS[turn % len(KINDS)]
        for name, seconds in (await _change(node, loop, objects.change(kind, rng))).items():
            found[kind][name].append(seconds)
    ticker.cancel()
    node.kernel.close()
    return {"load_s": round(load, 3), "load_still_ms": round(load_still * 1e3, 1)} | {
        kind: {name: _quantiles(values) for name, values in of.items()} for kind, of in found.items()
    }


def _quantiles(values: list[float]) -> list[float]:
    """p50 and p99, in milliseconds."""
    ordered = sorted(values)
    return [round(ordered[min(len(ordered) - 1, len(ordered) * q // 100)] * 1e3, 2) for q in (50, 99)]


def _in_namespace(arguments: argparse.Namespace, tree: Path, endpoints: int) -> Any:
    """One size in a process and a network namespace of its own."""
    name = f"hp-large-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        command = ["ip", "netns", "exec", name, sys.executable, "-P", str(Path(__file__).resolve()), "--inside"]
        command += ["--endpoints", str(endpoints), "--changes", str(arguments.changes), "--mode", arguments.mode]
        command += ["--slice", str(arguments.slice), "--protocol", arguments.protocol]
        command += ["--strange"] if arguments.strange else []
        environment = os.environ | {"PYTHONPATH": f"{tree}{os.pathsep}{ROOT}"}
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment, cwd=tree).stdout
        return json.loads(out)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def _inside(arguments: argparse.Namespace) -> None:
    from dataplane.planes.mode import Making
    from dataplane.planes.options import PlaneOptions
    from dataplane.planes.registry import mode_of

    with tempfile.TemporaryDirectory() as folder:
        try:
            first = 2 if arguments.strange else 1
            objects = Objects(int(arguments.endpoints), arguments.slice, arguments.protocol, first)
            found = asyncio.run(_measure(objects, arguments.changes, arguments.mode, Path(folder)))
        finally:
            mode_of(arguments.mode).make(Making(PlaneOptions(hooks=()))).cleanup()
    print(json.dumps(found))


def main() -> None:
    """Measure every size in each tree, in shuffled order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoints", default="1000,5000,20000")
    parser.add_argument("--changes", type=int, default=60, help="of each kind")
    parser.add_argument("--mode", default="nftables")
    parser.add_argument("--slice", type=int, default=100, help="endpoints in a slice")
    parser.add_argument("--protocol", default="TCP")
    parser.add_argument("--strange", action="store_true", help="no endpoint carries this node's name")
    parser.add_argument("--tree", type=Path, action="append", default=[], help="another checkout to measure too")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.inside:
        _inside(arguments)
        return
    wanted = [(tree, int(size)) for tree in (ROOT, *arguments.tree) for size in arguments.endpoints.split(",")]
    for tree, size in random.sample(wanted, len(wanted)):
        found = _in_namespace(arguments, tree, size)
        print(json.dumps({"tree": str(tree), "mode": arguments.mode, "endpoints": size, **found}), flush=True)


if __name__ == "__main__":
    main()
