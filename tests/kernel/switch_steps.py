"""New connections between any two changes that a switch of modes makes to the kernel."""

import contextlib
import functools
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.iptables import KernelTables
from dataplane.kernel.namespaces.netns import in_netns
from dataplane.kernel.netlink import clsact
from dataplane.kernel.netlink.nfnetlink import Nfnetlink
from dataplane.lab.lab import Lab
from dataplane.planes.ebpf.maps.mapset import MapSet
from tests.kernel.host_lab import ask

CHANGES_THE_KERNEL: tuple[tuple[Any, str], ...] = (
    (bpf, "link_create"), (bpf, "link_update"), (bpf, "link_detach"), (clsact, "attach"), (clsact, "detach"),
    (MapSet, "remove"), (Nfnetlink, "transact"), (KernelTables, "restore"),
)  # fmt: skip
"""All by which planes change what packets meet, but for elements of maps that are added."""
PATIENCE = 60.0
MOST_SLOW = 3
"""When so many connections were slow, no more are made."""
_TCP_INFO_SIZE, _TOTAL_RETRANS_AT, _DSACK_DUPS_AT = 232, 100, 216  # struct tcp_info, linux/tcp.h
_RETRANS, _DSACK_DUPS = re.compile(r"\bretrans:\d+/(\d+)"), re.compile(r"\bdsack_dups:(\d+)")  # as ss tells them
_TOLD_SECONDS = 2.0
ECHO = 8080
"""Where the pods' servers listen."""
_RESET = struct.pack("ii", 1, 0)


class Steps:
    """After each call that changes the kernel, makes a connection each way (place, address, port). slow: those that
    lost a packet, or did not come about, with the step before them."""

    def __init__(self, lab: Lab, ways: Mapping[str, tuple[str, str, int]], patch: pytest.MonkeyPatch) -> None:
        self._ways = {name: (lab.place(place).netns, address, port) for name, (place, address, port) in ways.items()}
        self._lab, self._one = lab, threading.Lock()
        self.slow: list[str] = []
        self.count = 0
        for owner, name in CHANGES_THE_KERNEL:
            patch.setattr(owner, name, self._and_look(getattr(owner, name), name))

    def _and_look(self, change: Callable[..., Any], name: str) -> Callable[..., Any]:
        @functools.wraps(change)
        def changed(*words: Any, **more: Any) -> Any:
            try:
                return change(*words, **more)
            finally:
                self.look(name)

        return changed

    def look(self, step: str) -> None:
        """Make the connections now."""
        with self._one:
            self.count += 1
            if len(self.slow) >= MOST_SLOW:
                return
            for name, (namespace, address, port) in self._ways.items():
                problem = connect(self._lab, namespace, address, port)
                if problem:
                    self.slow.append(f"{name}: {problem} after step {self.count}, {step}")


def connect(lab: Lab, namespace: str, address: str, port: int) -> str:
    """A connection and an exchange; what was wrong with it, "" if nothing."""
    sock = in_netns(namespace, socket.socket, socket.AF_INET, socket.SOCK_STREAM)
    with contextlib.closing(sock):
        sock.settimeout(PATIENCE)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        try:
            sock.connect((address, port))
            server, _ = ask(sock)
        except OSError as error:
            return repr(error)
        lost = _lost(lab, sock, server)
    return f"{lost} packets lost" if lost else ""


def _lost(lab: Lab, sock: socket.socket, server: str) -> int:
    """How many packets either end sent again because they had been lost, if the client sent any. On a busy machine an
    acknowledgment may be late, and then the receiver says that it has a packet twice (RFC 2883)."""
    end = time.monotonic() + _TOLD_SECONDS
    while True:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_SIZE)
        (again,), (twice,) = (struct.unpack_from("=I", info, at) for at in (_TOTAL_RETRANS_AT, _DSACK_DUPS_AT))
        lost = max(0, again - twice)
        if again:
            told = lab.run(server, ["ss", "-Htin", "state", "established", f"( sport = :{ECHO} )"]).stdout
            lost += max(0, sum(map(int, _RETRANS.findall(told))) - sum(map(int, _DSACK_DUPS.findall(told))))
        if not lost or time.monotonic() > end:
            return int(lost)
        time.sleep(0.01)
