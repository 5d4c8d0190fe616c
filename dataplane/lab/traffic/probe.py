"""Probes: connect to an address from where this process is, and say truthfully what came back.

`run` tries many probes at once in one thread; each attempt has a fresh socket. An attempt ends as
*answered* (an echo server said its name), *refused* (TCP reset or ICMP port unreachable), *timeout* (silence) or
*error* (any other errno, such as EHOSTUNREACH).
"""

import enum
import errno
import heapq
import itertools
import selectors
import socket
import struct
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence

import msgspec

from dataplane.model.net import Family, Protocol, family_of, host_port

DEFAULT_TIMEOUT = 20.0
"""Seconds for an answer that must come, though the machine has other work."""
QUIET_TIMEOUT = 0.3
"""Seconds after which silence that is wanted is believed."""
DEFAULT_CONCURRENCY = 128

_IP_RECVERR = 11
_IPV6_RECVERR = 25
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_FROM_ICMP = (2, 3)  # SO_EE_ORIGIN_ICMP, SO_EE_ORIGIN_ICMP6 (byte 4 of struct sock_extended_err)


class Outcome(enum.StrEnum):
    ANSWERED = "answered"
    REFUSED = "refused"
    TIMEOUT = "timeout"
    ERROR = "error"


class Probe(msgspec.Struct, frozen=True, omit_defaults=True):
    """A probe request: `count` attempts at `address`:`port`.

    timeout: seconds of silence, from the last packet sent, after which an attempt counts as timed out.
    source, source_port: bind to these (any address may be given that the place holds). A source port needs count 1.
    packets: exchanges in each attempt: lines on one TCP connection, or datagrams from one UDP socket.
    connected: UDP only, connect(2) the socket; otherwise sendto(2), and `Attempt.peer` tells who answered.
    """

    address: str
    port: int
    protocol: Protocol = Protocol.TCP
    count: int = 1
    timeout: float = DEFAULT_TIMEOUT
    source: str = ""
    source_port: int = 0
    packets: int = 1
    connected: bool = True

    @property
    def text(self) -> str:
        """Where it goes, as text."""
        return f"{host_port(self.address, self.port)}/{self.protocol.text}"


class Attempt(msgspec.Struct, frozen=True, array_like=True):
    """How one attempt ended.

    servers: name of the server in each answer, in order (one a packet; before a timeout or error, those so far).
    client: "ip:port" that the server saw. peer: "ip:port" this side sees as its partner (getpeername(2), or the
    source of the answer on an unconnected UDP socket). local: "ip:port" of this side's socket.
    detail: for REFUSED "icmp" or "rst"; for ERROR the errno's name. seconds: from the start to the end of it.
    """

    outcome: Outcome
    servers: tuple[str, ...] = ()
    client: str = ""
    peer: str = ""
    local: str = ""
    detail: str = ""
    seconds: float = 0.0

    @property
    def server(self) -> str:
        """Name of the (first) server that answered, "" when none did."""
        return self.servers[0] if self.servers else ""


class ProbeResult(msgspec.Struct, frozen=True):
    """All attempts of one probe, in the order they were started, and their sums."""

    attempts: tuple[Attempt, ...]

    def count(self, outcome: Outcome) -> int:
        """Number of attempts with this outcome."""
        return sum(1 for attempt in self.attempts if attempt.outcome is outcome)

    @property
    def outcomes(self) -> Counter[Outcome]:
        """Attempts by outcome."""
        return Counter(attempt.outcome for attempt in self.attempts)

    @property
    def servers(self) -> Counter[str]:
        """Answered attempts by name of the server."""
        return Counter(attempt.server for attempt in self.attempts if attempt.outcome is Outcome.ANSWERED)

    @property
    def clients(self) -> Counter[str]:
        """Answered attempts by client address (without port) that the server saw."""
        answered = (attempt for attempt in self.attempts if attempt.outcome is Outcome.ANSWERED)
        return Counter(split_port(attempt.client)[0] for attempt in answered)

    @property
    def details(self) -> Counter[str]:
        """Refused and failed attempts by detail."""
        return Counter(attempt.detail for attempt in self.attempts if attempt.detail)


class Request(msgspec.Struct, frozen=True):
    """A request to an agent: these probes, at most `concurrency` attempts at a time (1: strictly one by one)."""

    probes: tuple[Probe, ...]
    concurrency: int = DEFAULT_CONCURRENCY


def split_port(text: str) -> tuple[str, int]:
    """The reverse of `host_port`."""
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


class Answer(msgspec.Struct, frozen=True):
    """Answer of an echo server."""

    server: str
    client: str


_decode_answer = msgspec.json.Decoder(Answer).decode


class _Try:
    """One attempt under way: a small state machine that owns a socket."""

    __slots__ = (
        "answers",
        "client",
        "deadline",
        "done",
        "index",
        "local",
        "pending",
        "probe",
        "slot",
        "sock",
        "started",
    )

    def __init__(self, probe: Probe, index: int, slot: int) -> None:
        self.probe, self.index, self.slot = probe, index, slot
        self.answers: list[str] = []
        self.client = self.local = ""
        self.pending = b""
        self.done = False
        self.started = time.monotonic()
        self.deadline = self.started + probe.timeout
        family = family_of(probe.address)
        kind = socket.SOCK_STREAM if probe.protocol is Protocol.TCP else socket.SOCK_DGRAM
        self.sock = socket.socket(family.socket_family, kind)
        self.sock.setblocking(False)

    def start(self) -> int:
        """Send the first packet; the selector events to wait for. Raises OSError."""
        probe, sock = self.probe, self.sock
        _hear_icmp(sock, family_of(probe.address))
        if probe.source or probe.source_port:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((probe.source, probe.source_port))
        if probe.protocol is Protocol.TCP:
            # Closing by reset leaves no TIME_WAIT behind, so ports never run out and may be used again at once.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            result = sock.connect_ex((probe.address, probe.port))
            if result not in (0, errno.EINPROGRESS):
                raise OSError(result, "connect")
            return selectors.EVENT_WRITE
        if probe.connected:
            sock.connect((probe.address, probe.port))
        self.send()
        return selectors.EVENT_READ

    def send(self) -> None:
        """Send one packet and start its time."""
        if self.probe.protocol is Protocol.UDP and not self.probe.connected:
            self.sock.sendto(b"?\n", (self.probe.address, self.probe.port))
        else:
            self.sock.send(b"?\n")
        self.deadline = time.monotonic() + self.probe.timeout

    def connected(self) -> None:
        """The TCP connection is there, or has failed (raises OSError)."""
        number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if number:
            raise OSError(number, "connect")
        self.send()

    def receive(self) -> str:
        """Read what came; the partner's "ip:port" when this was the last packet, else "". Raises OSError."""
        data, source = self.sock.recvfrom(65536)
        if self.probe.protocol is Protocol.TCP and not data:
            raise ConnectionResetError(errno.ECONNRESET, "closed by the server")
        self.pending += data
        if not self.pending.endswith(b"\n"):
            return ""
        answer = _decode_answer(self.pending)
        self.pending = b""
        self.answers.append(answer.server)
        self.client = answer.client
        if len(self.answers) < self.probe.packets:
            self.send()
            return ""
        peer = self.sock.getpeername() if self.probe.protocol is Protocol.TCP else source
        return host_port(peer[0], peer[1])

    def end(self, outcome: Outcome, peer: str = "", detail: str = "") -> Attempt:
        """Close the socket and report."""
        local = self.sock.getsockname()
        self.sock.close()
        return Attempt(
            outcome, tuple(self.answers), self.client, peer, host_port(local[0], local[1]), detail,
            round(time.monotonic() - self.started, 6),
        )  # fmt: skip

    def failed(self, error: OSError) -> Attempt:
        """Report an error of the socket."""
        if error.errno == errno.ECONNREFUSED:
            return self.end(Outcome.REFUSED, detail=self._refused_by())
        return self.end(Outcome.ERROR, detail=errno.errorcode.get(error.errno or 0, str(error)))

    def _refused_by(self) -> str:
        """Return "icmp" or "rst", the packet that refused it, from the socket's error queue (ip(7), IP_RECVERR)."""
        try:
            _, control, _, _ = self.sock.recvmsg(512, 512, socket.MSG_ERRQUEUE)
        except BlockingIOError:
            return "rst" if self.probe.protocol is Protocol.TCP else "icmp"
        origins = [data[4] for _, kind, data in control if kind in (_IP_RECVERR, _IPV6_RECVERR)]
        return "icmp" if any(origin in _FROM_ICMP for origin in origins) else "rst"


def _hear_icmp(sock: socket.socket, family: Family) -> None:
    """Let ICMP errors reach the socket with their origin; an unconnected UDP socket would never hear of them."""
    if family is Family.IPV6:
        sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_RECVERR, 1)
    else:
        sock.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)


class _Runner:
    def __init__(self, probes: Sequence[Probe], concurrency: int) -> None:
        self._selector = selectors.DefaultSelector()
        self._waiting: deque[tuple[int, int, Probe]] = deque(
            (index, slot, probe) for index, probe in enumerate(probes) for slot in range(probe.count)
        )
        self._concurrency = concurrency
        self._active = 0
        self._deadlines: list[tuple[float, int, _Try]] = []
        self._order = itertools.count()
        self._results: list[list[Attempt | None]] = [[None] * probe.count for probe in probes]

    def run(self) -> list[ProbeResult]:
        with self._selector:
            while self._waiting or self._active:
                while self._waiting and self._active < self._concurrency:
                    self._launch(*self._waiting.popleft())
                self._wait()
        return [ProbeResult(tuple(a for a in attempts if a is not None)) for attempts in self._results]

    def _launch(self, index: int, slot: int, probe: Probe) -> None:
        attempt = _Try(probe, index, slot)
        self._active += 1
        try:
            events = attempt.start()
        except OSError as error:
            self._finish(attempt, attempt.failed(error))
            return
        self._selector.register(attempt.sock, events, attempt)
        heapq.heappush(self._deadlines, (attempt.deadline, next(self._order), attempt))

    def _wait(self) -> None:
        if not self._active:
            return
        for key, events in self._selector.select(self._until_deadline()):
            self._ready(key.data, events)
        now = time.monotonic()
        if not self._deadlines or self._deadlines[0][0] > now:
            return
        # This process may have waited for a processor for longer than an attempt has: what has come by now counts.
        for key, events in self._selector.select(0):
            self._ready(key.data, events)
        while self._deadlines and self._deadlines[0][0] <= now:
            _, _, attempt = heapq.heappop(self._deadlines)
            if attempt.done:
                continue
            if attempt.deadline > now:  # a later packet of it has time of its own
                heapq.heappush(self._deadlines, (attempt.deadline, next(self._order), attempt))
                continue
            self._selector.unregister(attempt.sock)
            self._finish(attempt, attempt.end(Outcome.TIMEOUT))

    def _until_deadline(self) -> float | None:
        while self._deadlines and self._deadlines[0][2].done:
            heapq.heappop(self._deadlines)
        return max(0.0, self._deadlines[0][0] - time.monotonic()) if self._deadlines else None

    def _ready(self, attempt: _Try, events: int) -> None:
        try:
            if events & selectors.EVENT_WRITE:
                attempt.connected()
                self._selector.modify(attempt.sock, selectors.EVENT_READ, attempt)
                return
            peer = attempt.receive()
        except BlockingIOError:
            return
        except OSError as error:
            self._selector.unregister(attempt.sock)
            self._finish(attempt, attempt.failed(error))
            return
        if peer:
            self._selector.unregister(attempt.sock)
            self._finish(attempt, attempt.end(Outcome.ANSWERED, peer=peer))

    def _finish(self, attempt: _Try, result: Attempt) -> None:
        attempt.done = True
        self._active -= 1
        self._results[attempt.index][attempt.slot] = result


def run(probes: Iterable[Probe], concurrency: int = DEFAULT_CONCURRENCY) -> list[ProbeResult]:
    """Try all probes from this process's network namespace; one result for each, in the same order.

    At most `concurrency` attempts are under way at a time. Raises ValueError for a probe that cannot be tried.
    """
    listed = list(probes)
    for probe in listed:
        if probe.protocol is Protocol.SCTP:
            raise ValueError(f"probe of {host_port(probe.address, probe.port)}: SCTP cannot be probed, use TCP or UDP")
        if probe.source_port and probe.count > 1:
            raise ValueError(f"probe of {host_port(probe.address, probe.port)}: one source port serves one attempt")
    return _Runner(listed, concurrency).run()
