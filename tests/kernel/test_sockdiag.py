"""UDP sockets by sock_diag(7): found, disconnected, and what a refusal says."""

import errno
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.kernel.netlink.sockdiag import connected_udp_sockets, destroy

ROOT = Path(__file__).resolve().parents[2]
WITHOUT_NET_ADMIN = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
SCRIPT = """
import sys
from dataplane.errors import HotplaneError
from dataplane.kernel.netlink.sockdiag import connected_udp_sockets, destroy
[found] = connected_udp_sockets()
try:
    destroy(found)
except HotplaneError as error:
    sys.exit(str(error))
"""


@pytest.fixture
def client(make_namespace: Callable[[str], str]) -> tuple[str, socket.socket]:
    """A namespace, and the one connected UDP socket there."""
    name = make_namespace("diag")
    subprocess.run(["ip", "-n", name, "link", "set", "lo", "up"], check=True)
    sock = in_netns(name, socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
    sock.connect(("127.0.0.1", 9))
    return name, sock


def test_a_socket_is_disconnected_once(client: tuple[str, socket.socket]) -> None:
    name, sock = client
    with sock:
        [found] = in_netns(name, connected_udp_sockets)
        assert in_netns(name, destroy, found)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNABORTED
        assert in_netns(name, connected_udp_sockets) == []
    assert not in_netns(name, destroy, found)


def test_a_refusal_says_what_was_refused(client: tuple[str, socket.socket]) -> None:
    name, sock = client
    command = [*WITHOUT_NET_ADMIN, sys.executable, "-c", SCRIPT]
    with sock:
        done = in_netns(name, subprocess.run, command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (1, "Operation not permitted: UDP sockets by sock_diag\n")
