"""The daemon while the node's clock is set back by days and forth again, as at a boot without a clock that goes on."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ctl.store import state
from dataplane.kernel.namespaces.netns import netns
from tests.faults.inject import Faults
from tests.kernel.daemon_lab import http, looking_plane, until
from tests.kernel.faulty_node import Node

_SOURCE = Path(__file__).with_name("clock.c")


class Clock:
    """The real-time clock of the processes that are started with `wrapper`."""

    def __init__(self, folder: Path) -> None:
        self._file, library = folder / "back", folder / "clock.so"
        self.set_back(0)
        subprocess.run(["cc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", library, _SOURCE], check=True)
        self.wrapper = ("env", f"LD_PRELOAD={library}", f"CLOCK_BACK={self._file}")

    def set_back(self, days: int) -> None:
        """Have the clock so many days behind from now on."""
        self._file.write_bytes(bytes(days))


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


@pytest.fixture
def node(namespace: str, tmp_path: Path, clock: Clock) -> Iterator[Node]:
    with Faults(tmp_path) as faults:
        node = Node(namespace, tmp_path, faults)
        node.wrapper = clock.wrapper
        try:
            node.service("a", "10.96.0.10")
            node.start()
            node.says(" loaded ")
            until(lambda: any(node.state.glob("*.msgpack")), "the plan is saved")
            yield node
        finally:
            node.kill()
            with netns(namespace):
                looking_plane("nftables").cleanup()
                state.forget(node.state)


def saved(node: Node) -> set[str]:
    """The Services of the plan that other commands find; a daemon that runs saves it first."""
    with netns(node.namespace):
        found = state.load(node.state)
    return {key.service for key in found.plan().entries} if found is not None else set()


def serves(node: Node, *names: str) -> None:
    until(lambda: node.services() == {f"default/{name}" for name in names}, f"{names} are served: {node.text}")


def test_the_plan_that_is_left_is_the_last_one(node: Node, clock: Clock) -> None:
    """Journals are read in the order in which they were begun, whatever the clock said then."""
    node.service("b", "10.96.0.11")
    serves(node, "a", "b")
    clock.set_back(3)
    assert saved(node) == {"default/a", "default/b"}
    (node.manifests / "b.yaml").unlink()
    serves(node, "a")
    assert node.process is not None
    node.process.kill()
    node.process.wait()
    assert saved(node) == {"default/a"}


def test_changes_and_health_go_on(node: Node, clock: Clock) -> None:
    for number, days in enumerate((3, 0, 400, 1)):
        clock.set_back(days)
        node.service(f"s{number}", f"10.96.1.{number}")
        serves(node, "a", *(f"s{each}" for each in range(number + 1)))
        assert http(node.namespace, "127.0.0.1", 10256, "/livez")[0] == 200
    assert " ERROR " not in node.text
    assert node.end() == 0
