"""Echo server and probes over loopback, and what a probe's result adds up to."""

import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.lab.traffic.probe import Attempt, Outcome, Probe, ProbeResult, run, split_port
from dataplane.model.net import Protocol, host_port
from tests.unit.ports import closed_port, free_ports

LOOPBACK = ("127.0.0.1", "::1")


@pytest.fixture(scope="module")
def echo() -> Iterator[int]:
    words = [sys.executable, "-m", "dataplane.lab.traffic.echo", "--name", "here", "--port"]
    with free_ports() as port, subprocess.Popen([*words, str(port)], stdout=subprocess.PIPE) as process:
        output: IO[bytes] | None = process.stdout
        assert output is not None
        assert output.readline() == b"ready\n"
        yield port
        process.kill()


@pytest.mark.parametrize("address", LOOPBACK)
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
@pytest.mark.parametrize("connected", [True, False])
def test_an_answer_tells_server_client_and_peer(echo: int, address: str, protocol: Protocol, connected: bool) -> None:
    [result] = run([Probe(address, echo, protocol, count=20, timeout=60, packets=3, connected=connected)])
    assert result.outcomes == {Outcome.ANSWERED: 20}
    assert result.servers == {"here": 20}
    assert result.clients == {address: 20}
    for attempt in result.attempts:
        assert attempt.servers == ("here",) * 3
        assert attempt.peer == host_port(address, echo)
        # An unconnected socket does not know its own address, only its port.
        assert split_port(attempt.local)[1] == split_port(attempt.client)[1]


@pytest.mark.parametrize("address", LOOPBACK)
@pytest.mark.parametrize("connected", [True, False])
def test_a_closed_port_refuses(address: str, connected: bool) -> None:
    with closed_port() as port:
        tcp, udp = run(
            [Probe(address, port, p, count=5, timeout=60, connected=connected) for p in (Protocol.TCP, Protocol.UDP)]
        )
    assert tcp.outcomes == {Outcome.REFUSED: 5}
    assert tcp.details == {"rst": 5}
    assert udp.outcomes == {Outcome.REFUSED: 5}
    assert udp.details == {"icmp": 5}


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_a_listener_that_never_answers_times_out(protocol: Protocol) -> None:
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as silent:
        silent.bind(("127.0.0.1", 0))
        if protocol is Protocol.TCP:
            silent.listen()
        [result] = run([Probe("127.0.0.1", silent.getsockname()[1], protocol, count=3, timeout=0.1)])
    assert result.outcomes == {Outcome.TIMEOUT: 3}
    assert result.servers == {}


def test_an_answer_that_came_while_this_process_was_away_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine it may get no processor between its last look and the end of the attempt's time."""
    answered = threading.Event()

    class Away(selectors.DefaultSelector):
        looks = 0

        def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
            self.looks += 1
            if self.looks > 1:
                return super().select(timeout)
            assert answered.wait(60)
            time.sleep(0.05)
            return []

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind(("127.0.0.1", 0))

        def answer() -> None:
            _, client = server.recvfrom(100)
            server.sendto(b'{"server": "here", "client": "x:1"}\n', client)
            answered.set()

        thread = threading.Thread(target=answer)
        thread.start()
        monkeypatch.setattr(selectors, "DefaultSelector", Away)
        [result] = run([Probe("127.0.0.1", server.getsockname()[1], Protocol.UDP, timeout=0.01)])
        thread.join()
    assert result.outcomes == {Outcome.ANSWERED: 1}


def test_a_server_that_closes_without_an_answer_is_an_error_and_not_an_answer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closer = threading.Thread(target=lambda: listener.accept()[0].close())
        closer.start()
        [result] = run([Probe("127.0.0.1", listener.getsockname()[1], timeout=60)])
        closer.join()
    assert result.outcomes == {Outcome.ERROR: 1}
    assert result.details == {"ECONNRESET": 1}


def test_source_address_and_port_are_bound(echo: int) -> None:
    with free_ports() as port:
        [result] = run([Probe("127.0.0.1", echo, timeout=60, source="127.0.0.7", source_port=port)])
    assert result.attempts[0].client == f"127.0.0.7:{port}"


def test_a_source_address_that_is_not_here_is_an_error(echo: int) -> None:
    [result] = run([Probe("127.0.0.1", echo, count=2, source="192.0.2.1")])
    assert result.outcomes == {Outcome.ERROR: 2}
    assert result.details == {"EADDRNOTAVAIL": 2}


@pytest.mark.parametrize("concurrency", [1, 7])
def test_results_keep_the_order_of_the_probes(echo: int, concurrency: int) -> None:
    with closed_port() as closed:
        results = run([Probe("127.0.0.1", p, count=3, timeout=60) for p in (echo, closed, echo)], concurrency)
    kinds = [list(result.outcomes) for result in results]
    assert kinds == [[Outcome.ANSWERED], [Outcome.REFUSED], [Outcome.ANSWERED]]
    assert [len(result.attempts) for result in results] == [3, 3, 3]


@pytest.mark.parametrize(
    ("probe", "reason"),
    [
        (Probe("127.0.0.1", 1, Protocol.SCTP), "SCTP"),
        (Probe("127.0.0.1", 1, source_port=7, count=2), "source port"),
    ],
)
def test_probes_that_cannot_be_tried_are_refused(probe: Probe, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        run([probe])


def test_a_thousand_connections_at_once_are_all_answered(echo: int) -> None:
    [result] = run([Probe("127.0.0.1", echo, count=1000, timeout=120)], concurrency=500)
    assert result.servers == {"here": 1000}


@given(st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str), st.integers(0, 65535))
def test_split_port_reverses_host_port(address: str, port: int) -> None:
    assert split_port(host_port(address, port)) == (address, port)


def test_sums_count_each_outcome_once() -> None:
    result = ProbeResult(
        (
            Attempt(Outcome.ANSWERED, ("a",), "1.2.3.4:5"),
            Attempt(Outcome.ANSWERED, ("b", "a"), "[fd00::1]:5"),
            Attempt(Outcome.REFUSED, detail="icmp"),
            Attempt(Outcome.TIMEOUT, ("a",)),
        )
    )
    assert result.servers == {"a": 1, "b": 1}
    assert result.clients == {"1.2.3.4": 1, "fd00::1": 1}
    assert result.details == {"icmp": 1}
    assert [result.count(outcome) for outcome in Outcome] == [2, 1, 1, 0]
