"""The ports that tests use are theirs alone."""

import errno
import socket
from pathlib import Path

import pytest

from tests.unit.ports import closed_port, free_ports

FAMILIES = [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]


def _ask(client: socket.socket, address: str, port: int) -> int:
    """What becomes of one byte: an errno, 0 where it is answered."""
    try:
        client.connect((address, port))
        client.send(b"?")
        client.recv(1)
    except OSError as error:
        return error.errno or 0
    return 0


@pytest.mark.parametrize(("family", "address"), FAMILIES)
def test_a_closed_port_refuses_whoever_asks_and_nobody_else_gets_it(family: socket.AddressFamily, address: str) -> None:
    with closed_port() as port:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            with socket.socket(family, kind) as client:
                client.settimeout(60)
                assert _ask(client, address, port) == errno.ECONNREFUSED
            with socket.socket(family, kind) as other, pytest.raises(OSError) as refused:
                other.bind((address, port))
            assert refused.value.errno == errno.EADDRINUSE


def test_ports_of_two_tests_differ_and_are_none_that_the_system_gives_out() -> None:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    with free_ports(3) as first, free_ports(3) as second:
        ports = {*range(first, first + 3), *range(second, second + 3)}
    assert len(ports) == 6
    assert not [port for port in ports if low <= port <= high]


def test_a_port_that_a_server_has_is_passed_over() -> None:
    with free_ports() as port:
        pass
    with socket.create_server(("127.0.0.1", port)), free_ports() as other:
        assert other != port
