"""Flows of every kind between pods, Services and the outside, many at a time, each answer judged by what is denied."""

import contextlib
import errno
import heapq
import json
import random
import selectors
import socket
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.model.net import Family, Protocol
from tests.kernel.host_lab import CLUSTER_IP, FAMILIES, LOCAL, PORT, HostLab
from tests.past_stack.denials import Book, Ends

SILENCE = 0.3
"""Seconds without an answer after which a datagram is looked at."""
REST = 1.0
"""Seconds in which a socket may still hear an old answer, so that no new question is asked."""
LATE = 30.0
"""Seconds after which a datagram that nothing disturbed is lost."""
LAST = 180.0
"""Seconds that connections have after everything is allowed again: TCP waits up to two minutes between tries."""
AT_ONCE = 8
SHORT, LONG = (1, 3), (20, 60)
LONG_SHARE = 0.05
MOST_SAID = 50
_RESET = struct.pack("ii", 1, 0)
_IP_LOCAL_PORT_RANGE = 51
_DIRECT, _SERVICE = (33000, 46999), (47000, 60999)
"""Source ports. A pod that has one port both for a Service and for its endpoint has one flow there, not two
(docs/decisions.md, eBPF plane), so the two kinds share none."""
_UNDER_WAY = (errno.EINPROGRESS, errno.EAGAIN)


class Way(NamedTuple):
    """From whom to where, who answers, and by what the client's port is taken."""

    client: str
    target: tuple[str, int]
    server: str
    ports: tuple[int, int]


def ways(lab: HostLab, family: Family) -> list[Way]:
    """All of one family."""
    at = {name: (lab.address(name, family), PORT) for name in ("pod1-1", "pod1-2", "pod2-1")}
    local, remote = ((CLUSTER_IP[name][family], 80) for name in ("local", "remote"))
    return [
        *(Way(one, at[other], other, _DIRECT) for one in at for other in at if one != other),
        Way("pod1-1", local, "pod1-2", _SERVICE), Way("pod2-1", local, "pod1-2", _SERVICE),
        Way("pod1-2", remote, "pod2-1", _SERVICE), Way("client", at["pod1-1"], "pod1-1", _DIRECT),
        Way("client", (lab.node.addresses[family], LOCAL), "pod1-2", _SERVICE),
    ]  # fmt: skip


class Flow:
    """An open socket. left: exchanges to come. sent: when it asked, 0 = no answer is awaited. due: when to look at it
    again. work: what to do then."""

    def __init__(self, sock: socket.socket, way: Way, ends: Ends, left: int) -> None:
        self.sock, self.way, self.ends, self.left = sock, way, ends, left
        self.sent = self.due = 0.0
        self.work: Callable[[Flow], None] | None = None
        self.connecting = ends.protocol is Protocol.TCP
        self.silent = False

    def __str__(self) -> str:
        name = f"{self.ends.protocol.text} {self.way.client} -> {self.way.target[0]}:{self.way.target[1]}"
        with contextlib.suppress(OSError):
            name += f" from port {self.sock.getsockname()[1]}"
        return name


class Flows:
    """Opens, uses and closes flows. opened: how many so far. exchanges: that succeeded. dropped: questions that nobody
    answered while they were denied. let_through, lost: what should not be. faults: the first MOST_SAID of these in
    words, with answers of a wrong server."""

    def __init__(self, lab: HostLab, book: Book, seed: int, most: int) -> None:
        self._lab, self._book, self._most = lab, book, most
        self._random = random.Random(seed)
        self._ways = {family: ways(lab, family) for family in FAMILIES}
        self._selector = selectors.DefaultSelector()
        self._open: set[Flow] = set()
        self._timers: list[tuple[float, int, Flow]] = []
        self._turn = 0
        self.opened = self.exchanges = self.dropped = 0
        self.let_through = self.lost = 0
        self.faults: list[str] = []

    def run(self, count: int, each_turn: Callable[[], None], all_allowed: Callable[[], None]) -> None:
        """Open so many flows. each_turn: called again and again. all_allowed: ends every denial, before the flows that
        are left come to their end."""
        while self.opened < count:
            for _ in range(min(AT_ONCE, self._most - len(self._open), count - self.opened)):
                self._begin()
            self._look()
            each_turn()
        all_allowed()
        last = time.monotonic() + LAST
        while self._open and time.monotonic() < last:
            self._look()
            each_turn()
        for flow in list(self._open):
            self._lose(flow, "is still unanswered at the end")
        self._selector.close()

    def _look(self) -> None:
        for key, _ in self._selector.select(0.005):
            if key.data in self._open:
                self._on_event(key.data)
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            due, _, flow = heapq.heappop(self._timers)
            if flow in self._open and flow.due == due and flow.work is not None:
                flow.work(flow)

    def _after(self, flow: Flow, seconds: float, work: Callable[[Flow], None]) -> None:
        self._turn += 1
        flow.due, flow.work = time.monotonic() + seconds, work
        heapq.heappush(self._timers, (flow.due, self._turn, flow))

    def _begin(self) -> None:
        family, protocol = self._random.choice(FAMILIES), self._random.choice((Protocol.TCP, Protocol.UDP))
        way = self._random.choice(self._ways[family])
        kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
        sock = in_netns(self._lab.lab.place(way.client).netns, socket.socket, family.socket_family, kind)
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_IP, _IP_LOCAL_PORT_RANGE, struct.pack("=I", way.ports[1] << 16 | way.ports[0]))
        pods = frozenset({way.client, way.server} & {"pod1-1", "pod1-2"})
        left = self._random.randint(*(LONG if self._random.random() < LONG_SHARE else SHORT))
        flow = Flow(sock, way, Ends(family, protocol, pods, time.monotonic()), left)
        self.opened += 1
        self._open.add(flow)
        flow.sent = time.monotonic()
        failed = sock.connect_ex(way.target)
        if failed and failed not in _UNDER_WAY:
            self._lose(flow, f"cannot connect: {errno.errorcode[failed]}")
            return
        self._selector.register(sock, selectors.EVENT_WRITE if flow.connecting else selectors.EVENT_READ, flow)
        if flow.connecting:
            self._after(flow, SILENCE, self._on_silence)
        else:
            self._ask(flow)

    def _on_event(self, flow: Flow) -> None:
        """A connection has come about, or an answer is there."""
        answered = time.monotonic()
        if flow.connecting:
            failed = flow.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if failed:
                self._lose(flow, f"did not come about: {errno.errorcode[failed]}")
                return
            flow.connecting = False
            self._selector.modify(flow.sock, selectors.EVENT_READ, flow)
            self._judge(flow, answered)
            self._ask(flow)
            return
        try:
            answer = flow.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            self._lose(flow, f"broke: {error!r}")
            return
        answered = time.monotonic()
        if not answer:
            self._lose(flow, "was closed by the server")
            return
        server = json.loads(answer)["server"]
        if server != flow.way.server:
            self._fault(f"{flow}: answered by {server}")
        if flow.sent:
            self._judge(flow, answered)
            self.exchanges += 1
            self._next(flow)

    def _judge(self, flow: Flow, answered: float) -> None:
        what = self._book.let_through(flow.ends, flow.sent, answered)
        if what:
            self.let_through += 1
            when = f"opened at {flow.ends.opened:.4f}, sent at {flow.sent:.4f}, answered at {answered:.4f}"
            self._fault(f"let through: {flow}: {when}, in spite of {what}")
        flow.sent = 0.0

    def _next(self, flow: Flow) -> None:
        flow.left -= 1
        if flow.left <= 0:
            self._end(flow)
        else:
            self._after(flow, self._random.uniform(0, 0.1), self._ask)

    def _ask(self, flow: Flow) -> None:
        flow.sent, flow.silent = time.monotonic(), False
        try:
            flow.sock.send(b"?\n")
        except OSError as error:
            self._lose(flow, f"cannot send: {error!r}")
            return
        self._after(flow, SILENCE, self._on_silence)

    def _on_silence(self, flow: Flow) -> None:
        """Nothing was heard for a while. TCP sends again by itself; a datagram is given up where it was denied."""
        now = time.monotonic()
        disturbed = self._book.disturbed(flow.ends, flow.sent, now)
        if disturbed and not flow.silent:
            flow.silent = True
            self.dropped += 1
        if flow.ends.protocol is Protocol.TCP:
            return
        if disturbed:
            self._after(flow, REST, self._rested)
        elif now - flow.sent < LATE:
            self._after(flow, SILENCE, self._on_silence)
        else:
            self._lose(flow, "a datagram was not answered")

    def _rested(self, flow: Flow) -> None:
        flow.sent = 0.0
        self._next(flow)

    def _lose(self, flow: Flow, why: str) -> None:
        self.lost += 1
        self._fault(f"lost: {flow}: {why} at {time.monotonic():.4f}, asked at {flow.sent:.4f}")
        self._end(flow)

    def _fault(self, text: str) -> None:
        if len(self.faults) < MOST_SAID:
            self.faults.append(text)

    def _end(self, flow: Flow) -> None:
        self._open.discard(flow)
        with contextlib.suppress(KeyError):
            self._selector.unregister(flow.sock)
        if flow.ends.protocol is Protocol.TCP and self._random.random() < 0.5:
            flow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        flow.sock.close()
