"""A daemon's change and its repair, of which one call fails, whichever: each Service is wholly as it was or as it is
to be, the next try makes all of it good, and the daemon goes on.

The calls are counted in a change (a repair) without faults first. A few of each kind are tried, all with --soak.
"""

import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import pytest

from ctl.main import main
from dataplane.errors import HotplaneError
from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.tools import run_tool
from tests.faults.inject import ALL, Faults
from tests.kernel.daemon_lab import PATIENCE, looking_plane, until
from tests.kernel.faulty_node import Node

SLICE = """\
kind: EndpointSlice
metadata: {{name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
endpoints: [{endpoints}]
ports: [{{port: 8080}}]
"""
KINDS = {"nftables": ("send", "write", "open"), "iptables": ("fork",), "ebpf": ("bpf", "send")}
REPAIRED = KINDS | {"ebpf": ("send",)}
"""What is flushed in ebpf mode is its slow path."""
PLANES = {"nftables": ("nftables",), "iptables": ("iptables",), "ebpf": ("ebpf", "nftables")}
NAMES = ("a", "b")
FEW, MORE = ("10.244.0.1",), ("10.244.0.1", "10.244.0.2", "10.244.0.3")
FLUSH = {
    "nftables": ("nft", "delete", "table", "ip", "hotplane"),
    "ebpf": ("nft", "delete", "table", "ip", "hotplane"),
    "iptables": ("iptables-legacy", "-w", "-t", "nat", "-F", "KUBE-SERVICES"),
}

Held = dict[str, tuple[str, ...]]


class Serving:
    """A daemon that serves two Services, of which the kernel's endpoints are looked at."""

    def __init__(self, node: Node, mode: str) -> None:
        self.node, self.mode = node, mode

    def want(self, addresses: tuple[str, ...]) -> Held:
        """Have both Services lead to these addresses; what the kernel holds when they do. The manifest that changes
        is one, so that it is one change."""
        texts = [
            SLICE.format(name=name, endpoints=", ".join(f"{{addresses: [{each}]}}" for each in addresses))
            for name in NAMES
        ]
        partial = self.node.manifests / "slices"
        partial.write_text("---\n".join(texts))
        partial.rename(self.node.manifests / "slices.yaml")
        return {f"default/{name}": addresses for name in NAMES}

    def held(self, plane: str) -> Held:
        with netns(self.node.namespace):
            rows = looking_plane(plane).read_back().values()
        return {row.service: tuple(sorted(backend[0] for backend in row.cluster)) for row in rows}

    def comes_to(self, wanted: Held, allowed: tuple[Held, ...], what: str) -> None:
        """Wait for what is wanted; until then each Service is as in one of those that are allowed, or not there."""
        end = time.monotonic() + PATIENCE
        while True:
            assert self.node.alive, (what, self.node.text)
            try:
                held = [self.held(plane) for plane in PLANES[self.mode]]
            except HotplaneError:  # read in the middle of a change; the next look tells
                held = []
            if held and all(each == wanted for each in held):
                return
            for service, addresses in (item for each in held for item in each.items()):
                assert any(each.get(service) == addresses for each in allowed), (what, held)
            assert time.monotonic() < end, (what, held, self.node.text)
            time.sleep(0.05)

    def flush(self) -> None:
        with netns(self.node.namespace):
            assert run_tool(list(FLUSH[self.mode]), seconds=30.0).returncode == 0


@pytest.fixture(params=["nftables", "iptables", "ebpf"])
def serving(request: pytest.FixtureRequest, namespace: str, tmp_path: Path) -> Iterator[Serving]:
    with Faults(tmp_path) as faults:
        node = Node(namespace, tmp_path, faults)
        served = Serving(node, request.param)
        try:
            for name in NAMES:
                node.service(name, f"10.96.0.{ord(name)}")
            wanted = served.want(FEW)
            node.start("--iptables-sync-period", "300ms", "--nftables-sync-period", "300ms", mode=request.param)
            node.says(" loaded ")
            served.comes_to(wanted, (wanted,), "the start")
            yield served
        finally:
            node.kill()
            with netns(namespace):
                assert main(["--state-dir", str(node.state), "cleanup"]) == 0


def _each_fails(serving: Serving, kinds: tuple[str, ...], soak: bool, act: Callable[[str], None]) -> None:
    """Do it without faults to count the calls, then with the chosen ones of these kinds failing."""
    faults = serving.node.faults
    for kind in kinds:
        faults.fail(kind, 0)
        act(f"no {kind} fails")
        count = faults.count(kind)
        assert count > 0, kind
        few, fired = {1, count}, 0
        for number in range(1, count + 1) if soak else sorted(few):
            faults.fail(kind, number)
            act(f"{kind} {number} of {count}")
            fired += faults.count(kind) >= number
            faults.fail(kind, 0)
        assert fired, f"no {kind} failed"
    assert "Traceback" not in serving.node.text
    act("nothing fails any more")
    assert serving.node.end() == 0, serving.node.text
    assert "Traceback" not in serving.node.text


def test_a_change_of_endpoints(serving: Serving, soak: bool) -> None:
    turns = cycle((MORE, FEW))
    few: Held = {f"default/{name}": FEW for name in NAMES}
    before = [few]

    def change(what: str) -> None:
        wanted = serving.want(next(turns))
        serving.comes_to(wanted, (*before, wanted), what)
        before[:] = [wanted]

    _each_fails(serving, KINDS[serving.mode], soak, change)


def test_a_disk_so_full_that_even_the_log_cannot_be_written(serving: Serving) -> None:
    """It serves on, with whatever changes, and speaks again once there is room."""
    few: Held = {f"default/{name}": FEW for name in NAMES}
    serving.node.faults.fail("write", ALL)
    more = serving.want(MORE)
    serving.comes_to(more, (few, more), "a change")
    serving.flush()
    serving.comes_to(more, (more,), "a repair")
    assert serving.node.faults.count("write") > 0
    serving.node.faults.fail("write", 0)
    serving.comes_to(serving.want(FEW), (few, more), "there is room")
    until(lambda: "the log could not be written for a while" in serving.node.text, "it speaks again")
    assert "Traceback" not in serving.node.text
    assert serving.node.end() == 0, serving.node.text


def test_a_repair(serving: Serving, soak: bool) -> None:
    wanted = serving.want(FEW)

    def repair(what: str) -> None:
        serving.flush()
        serving.comes_to(wanted, (wanted,), what)

    _each_fails(serving, REPAIRED[serving.mode], soak, repair)
    until(lambda: "the kernel differs from the plan" in serving.node.text, "drift was found")
