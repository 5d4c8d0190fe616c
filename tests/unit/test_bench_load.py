"""Both load generators do what they say, over loopback, and say it alike."""

import json
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dataplane.bench.figures.hdr import percentile
from dataplane.bench.load import native
from dataplane.bench.load.native import Tool, load_tool, python_tool
from tests.unit.ports import closed_port, free_ports

COUNT = 3
WINDOWS = (0.1, 1.0, 10.0)
"""Seconds of a window in which something must come to its end: where others have the processor it may take a longer
one."""


@pytest.fixture(scope="module", params=["c", "python"])
def tool(request: pytest.FixtureRequest) -> Tool:
    found = python_tool() if request.param == "python" else load_tool()
    assert found.kind == request.param, found.note
    return found


@pytest.fixture(scope="module")
def port(tool: Tool) -> Iterator[int]:
    with (
        free_ports(COUNT) as number,
        subprocess.Popen([*tool.argv, "serve", str(number), str(COUNT)], stdout=subprocess.PIPE) as server,
    ):
        assert server.stdout is not None
        try:
            assert server.stdout.readline() == b"ready\n"
            yield number
        finally:
            server.kill()


def ask(tool: Tool, *lines: str) -> list[dict[str, float]]:
    done = subprocess.run(
        [*tool.argv, "run"], input="".join(f"{line}\n" for line in lines), check=True, capture_output=True, text=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def ask_until(tool: Tool, request: str, enough: float) -> tuple[float, dict[str, float]]:
    """Ask with "SECONDS" in a request replaced, in longer and longer windows until one has so many operations; the
    window's length, and what was found."""
    for seconds in WINDOWS:
        [found] = ask(tool, request.replace("SECONDS", str(seconds)))
        assert found["failures"] == 0
        if found["operations"] > enough:
            break
    return seconds, found


@pytest.mark.parametrize("operation", ["connect", "crr", "rr", "urr", "dns"])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_operations_succeed_and_latencies_are_in_order(tool: Tool, port: int, operation: str, address: str) -> None:
    seconds, found = ask_until(tool, f"{operation} {address} {port + COUNT - 1} SECONDS -", 1)
    assert found["operations"] > 1
    assert 0 < found["p50"] <= found["p90"] <= found["p99"] <= found["p999"] <= found["p9999"] <= found["max"]
    assert found["seconds"] >= seconds
    assert found["p50"] * found["operations"] / 2 <= found["seconds"] * 1e9


def test_a_window_has_an_operation_even_if_its_time_is_over_before_one(tool: Tool, port: int) -> None:
    operations = ("connect", "crr", "rr", "urr", "dns", "udp", "stream")
    for found in ask(tool, *(f"{operation} 127.0.0.1 {port} 0 -" for operation in operations)):
        assert found["operations"] > 0
        assert found["failures"] == 0
        assert found["seconds"] > 0


def test_datagrams_are_counted_where_they_arrive(tool: Tool, port: int) -> None:
    first, second = ask(tool, f"udp 127.0.0.1 {port} 0.1 -", f"udp 127.0.0.1 {port} 0.1 127.0.0.9")
    for found in (first, second):
        assert found["failures"] == 0
        assert 0 < found["operations"] <= found["sent"]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_server_says_its_port_and_goes_on(port: int, address: str) -> None:
    with socket.create_connection((address, port + 1), 60) as connection:
        connection.sendall(b"P")
        assert int.from_bytes(connection.recv(2, socket.MSG_WAITALL)) == port + 1
        connection.sendall(b"+")
        assert connection.recv(1) == b"+"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_stream_is_counted_where_it_arrives(tool: Tool, port: int, address: str) -> None:
    for number in (port, port + 1):
        seconds, found = ask_until(tool, f"stream {address} {number} SECONDS -", 1 << 20)
        assert found["operations"] > 1 << 20
        assert not found["operations"] % (128 << 10)
        assert seconds <= found["seconds"] < 60


@pytest.mark.parametrize("operation", ["crr", "rr", "urr"])
def test_paced_operations_are_as_many_as_were_due(tool: Tool, port: int, operation: str) -> None:
    [found] = ask(tool, f"{operation} 127.0.0.1 {port} 0.5 - 200")
    assert (found["operations"], found["failures"]) == (100, 0)
    assert found["seconds"] >= 0.49
    counts = dict(found["counts"])  # type: ignore[call-overload]
    assert sum(counts.values()) == 100
    assert percentile(counts, 1.0) == pytest.approx(found["max"], rel=0.01)
    assert found["behind"] <= 100


def test_a_stall_delays_everything_that_was_due_in_it(tool: Tool) -> None:
    """A server that stops for a third of a second: in a closed loop one operation would have seen it, here a third."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = threading.Thread(target=_answer_with_a_stall, args=(listener,))
        client.start()
        [found] = ask(tool, f"rr 127.0.0.1 {listener.getsockname()[1]} 1.0 - 300")
        client.join()
    assert found["operations"] == 300
    assert found["p90"] > 100e6
    assert found["max"] > 300e6
    assert found["behind"] > 60


def _answer_with_a_stall(listener: socket.socket) -> None:
    connection, _ = listener.accept()
    with connection:
        for number in range(300):
            data = connection.recv(1)
            if number == 100:
                time.sleep(0.35)
            connection.sendall(data)


def test_what_nobody_serves_fails_and_is_not_counted(tool: Tool) -> None:
    operations = ("connect", "crr", "rr", "urr", "dns", "udp", "stream")
    with closed_port() as closed:
        answers = ask(tool, *(f"{operation} 127.0.0.1 {closed} 0.02 -" for operation in operations))
    for found in answers:
        assert found["operations"] == 0
        assert found["failures"] > 0


def test_requests_that_are_none_are_answered(tool: Tool) -> None:
    for found in ask(
        tool, "nonsense", "lunch 127.0.0.1 80 0.1 -", "connect not-an-address 80 0.1 -", "crr ::1 80 0.1 - -5"
    ):
        assert "error" in found


def test_no_compiler_means_python_and_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataplane.bench.load.native.CACHE", tmp_path)  # what was compiled earlier would do without
    monkeypatch.setattr(shutil, "which", lambda name: None)
    found = load_tool()
    assert found.kind == "python"
    assert "apt-get install gcc" in found.note


def test_a_source_that_does_not_compile_means_python_and_a_note(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = tmp_path / "load.c"
    broken.write_text("int main( {")
    monkeypatch.setattr(native, "SOURCE", broken)
    monkeypatch.setattr(native, "CACHE", tmp_path)
    found = load_tool()
    assert found.kind == "python"
    assert "does not compile" in found.note
