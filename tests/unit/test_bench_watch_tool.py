"""watch.c over loopback: what is due is begun and told, one by one, whatever becomes of it."""

import errno
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest

from dataplane.bench.figures.watched import PATIENCE, closed_loop, figures, operations, seen
from dataplane.bench.load.native import load_tool, watch_tool
from tests.unit.ports import closed_port, free_ports


class Tool:
    """The program, by its pipes."""

    def __init__(self) -> None:
        path = watch_tool()
        assert path is not None
        self.process = subprocess.Popen([str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def ask(self, line: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found


@pytest.fixture
def tool() -> Iterator[Tool]:
    tool = Tool()
    with tool.process:
        yield tool
        assert tool.process.stdin is not None
        tool.process.stdin.close()
        assert tool.process.wait(60) == 0


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with (
        free_ports(2) as number,
        subprocess.Popen([*load_tool().argv, "serve", str(number), "2"], stdout=subprocess.PIPE) as server,
    ):
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        try:
            yield number
        finally:
            server.kill()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_what_is_due_is_begun_until_it_is_told_to_stop(tool: Tool, port: int, address: str) -> None:
    for _ in range(2):  # one request leaves nothing to the next
        assert tool.ask(f"watch {address} {port} - 500 4 200") == {"flows": 4}
        time.sleep(0.3)
        answer = tool.ask("stop")
        assert [due for due, _ in answer["connects"]] == [2000 * n for n in range(len(answer["connects"]))]
        assert len(answer["connects"]) == pytest.approx(500 * answer["seconds"], abs=2)
        assert len(answer["exchanges"]) == pytest.approx(200 * answer["seconds"], abs=2)
        found = seen(answer, 4)
        assert (found["failures"], found["flow_failures"], found["ended"]) == (0, 0, 0)
        assert 0 < found["p50"] < found["max"]


def test_refusals_are_told_by_name_and_open_no_flow(tool: Tool) -> None:
    with closed_port() as port:
        assert tool.ask(f"watch 127.0.0.1 {port} - 100 3 100") == {"flows": 0}
        time.sleep(0.1)
        answer = tool.ask("stop")
    assert {took for _, took in answer["connects"]} == {-errno.ECONNREFUSED}
    assert answer["exchanges"] == []


def test_a_server_that_stalls_delays_only_what_it_has(tool: Tool) -> None:
    """It accepts, and answers a byte on two of three flows; the third ends after a while."""
    with socket.create_server(("127.0.0.1", 0), backlog=200) as server:
        begun, ending, over = threading.Event(), threading.Event(), threading.Event()

        def serve() -> None:
            flows = [server.accept()[0] for _ in range(3)]
            begun.set()
            for flow in flows:
                flow.settimeout(0.02)
            while not over.is_set():
                if ending.is_set():
                    flows[2].close()
                for flow in flows[:2]:
                    with suppress(TimeoutError, ConnectionError):  # they end with the program's answer
                        flow.sendall(flow.recv(100))
            for flow in reversed(flows):
                flow.close()

        thread = threading.Thread(target=serve)
        thread.start()
        assert tool.ask(f"watch 127.0.0.1 {server.getsockname()[1]} - 0 3 300") == {"flows": 3}
        assert begun.wait(60)
        time.sleep(0.3)
        ending.set()
        answer = tool.ask("stop")
        over.set()
        thread.join()
    flows = [operations(answer["exchanges"][flow::3]) for flow in range(3)]
    lost = [figures(found, answer["seconds"])["failures"] for found in flows]
    assert min(lost[2], len(flows[2])) == len(flows[2]) > 10
    assert lost[0] + lost[1] < 0.5 * (len(flows[0]) + len(flows[1]))
    assert max(took for _, took in answer["exchanges"]) < PATIENCE


def test_a_window_lasts_until_something_has_ended(tool: Tool) -> None:
    """A busy machine may let nothing end in a window of milliseconds: that is slow, not nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer_late, args=(server, 2))
        thread.start()
        answer = tool.ask(f"exchanges 127.0.0.1 {server.getsockname()[1]} - 2 0.01")
        thread.join()
    found = closed_loop(answer, "exchanges")
    assert found["operations"] >= 1
    assert found["failures"] == 0
    assert found["p50"] > 0.25e9
    assert found["seconds"] > 0.25


def answer_late(server: socket.socket, count: int) -> None:
    """Take `count` connections, and answer what comes on them when 0.3 s have passed; then all have ended."""
    with ExitStack() as open_flows:
        flows = [open_flows.enter_context(server.accept()[0]) for _ in range(count)]
        asked = [flow.recv(1) for flow in flows]
        time.sleep(0.3)
        for flow, byte in zip(flows, asked, strict=True):
            with suppress(ConnectionResetError):  # the first answer ends the window, and that the other flows
                flow.sendall(byte)
        for flow in flows:
            with suppress(ConnectionResetError):
                flow.recv(1)  # nothing more is answered: the program ends its flow


def test_a_window_in_which_nothing_ends_is_over_once_patience_is(tool: Tool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:  # the kernel accepts, and nobody answers
        answer = tool.ask(f"exchanges 127.0.0.1 {server.getsockname()[1]} - 2 0.01")
    found = closed_loop(answer, "exchanges")
    assert (found["operations"], found["failures"]) == (0, 2)
    assert found["seconds"] * 1e9 >= PATIENCE


@pytest.mark.parametrize("line", ["", "watch nowhere 80 - 1", "watch 127.0.0.1 80 nowhere 1", "lunch 127.0.0.1 80 - 1"])
def test_what_is_no_request_is_answered_with_an_error(tool: Tool, line: str) -> None:
    assert "error" in tool.ask(line)
