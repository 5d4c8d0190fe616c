"""The two ends of a TCP connection as RFC 9293 has them, with RFC 5961's answers to segments that do not fit.

There are no timers: whoever drives an end says when it sends again. Every segment is acknowledged at once."""

from collections.abc import Callable
from enum import Enum, auto
from typing import NamedTuple

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
AGGREGATE = 64000
"""Bytes of the largest segment: what offloading hands on at once."""
WINDOW = 8 << 20
"""Receive window of either end, with scaling."""
_MODULUS = 2**32


class State(Enum):
    """RFC 9293, section 3.3.2."""

    CLOSED = auto()
    LISTEN = auto()
    SYN_SENT = auto()
    SYN_RECEIVED = auto()
    ESTABLISHED = auto()
    FIN_WAIT_1 = auto()
    FIN_WAIT_2 = auto()
    CLOSING = auto()
    TIME_WAIT = auto()
    CLOSE_WAIT = auto()
    LAST_ACK = auto()


OVER = (State.CLOSED, State.TIME_WAIT)
NOTHING_MORE = (*OVER, State.CLOSING, State.LAST_ACK)
"""The end has closed, and has heard that the other one has: neither will send or take data."""
_SENDS = (State.ESTABLISHED, State.CLOSE_WAIT)
_TAKES = (State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2)


class Segment(NamedTuple):
    """seq, ack: sequence numbers; size: bytes of data."""

    seq: int
    ack: int
    flags: int
    size: int = 0

    @property
    def length(self) -> int:
        """In sequence space."""
        return self.size + bool(self.flags & SYN) + bool(self.flags & FIN)

    @property
    def end(self) -> int:
        return (self.seq + self.length) % _MODULUS


def after(number: int, other: int) -> int:
    """How far a number is behind another one; negative when it is before it."""
    return (number - other + 2**31) % _MODULUS - 2**31


class End:
    """An end. out: what it sends, until the driver takes it. reset: an RST ended it, its own or the other's."""

    def __init__(self, first: int, state: State) -> None:
        self.state, self.una, self.nxt, self.rcv_nxt = state, first, first, 0
        self.reset = self.was_established = self.closed = False
        self.out: list[Segment] = []
        self._unacked: list[Segment] = []
        self._early: list[Segment] = []

    def open(self) -> None:
        self.state = State.SYN_SENT
        self._send(SYN)

    def write(self, size: int) -> None:
        """Send data, in aggregates, as far as the window lets it."""
        while size and self.state in _SENDS:
            part = min(size, AGGREGATE, WINDOW - after(self.nxt, self.una))
            if part <= 0:
                return
            self._send(ACK | PSH, part)
            size -= part

    def close(self, size: int = 0) -> None:
        """Send a FIN, with the last bytes."""
        if self.state in _SENDS:
            self.state = State.FIN_WAIT_1 if self.state is State.ESTABLISHED else State.LAST_ACK
            self.closed = True
            self._send(ACK | FIN, size)

    def abort(self) -> None:
        """Be gone, with an RST where there is a connection."""
        if self.state not in (State.CLOSED, State.LISTEN, State.SYN_SENT, State.TIME_WAIT):
            self.out.append(Segment(self.nxt, self.rcv_nxt, RST | ACK))
        self._reset()

    def resend(self, held: Callable[[Segment], bool]) -> None:
        """Send again what was not acknowledged, but what `held` says that the other end has (RFC 2018)."""
        for segment in self._unacked:
            if segment.length == 0 or not held(segment):
                self.out.append(segment._replace(ack=self.rcv_nxt if segment.flags & ACK else 0))

    def holds(self, segment: Segment) -> bool:
        """Whether it has a segment that it cannot acknowledge yet."""
        return any(after(early.seq, segment.seq) <= 0 <= after(early.end, segment.end) for early in self._early)

    def receive(self, segment: Segment) -> None:
        """RFC 9293, section 3.10.7."""
        if self.state is State.CLOSED:
            self._refuse(segment)
        elif self.state is State.LISTEN:
            self._listening(segment)
        elif self.state is State.SYN_SENT:
            self._calling(segment)
        else:
            self._connected(segment)

    def _send(self, flags: int, size: int = 0) -> None:
        segment = Segment(self.nxt, self.rcv_nxt if flags & ACK else 0, flags, size)
        self.nxt = segment.end
        if segment.length:
            self._unacked.append(segment)
        self.out.append(segment)

    def _reset(self) -> None:
        self.state, self.reset = State.CLOSED, True
        self._unacked, self._early = [], []

    def _refuse(self, segment: Segment) -> None:
        if segment.flags & RST:
            return
        if segment.flags & ACK:
            self.out.append(Segment(segment.ack, 0, RST))
        else:
            self.out.append(Segment(0, segment.end, RST | ACK))

    def _listening(self, segment: Segment) -> None:
        if segment.flags & ACK:
            self._refuse(segment)
        elif segment.flags & SYN and not segment.flags & RST:
            self.state, self.rcv_nxt = State.SYN_RECEIVED, segment.end
            self._send(SYN | ACK)

    def _calling(self, segment: Segment) -> None:
        good = segment.flags & ACK and segment.ack == self.nxt
        if segment.flags & RST:
            if good:
                self._reset()
        elif segment.flags & ACK and not good:
            self._refuse(segment)
        elif segment.flags & SYN and good:
            self._acknowledged(segment.ack)
            self.state, self.was_established, self.rcv_nxt = State.ESTABLISHED, True, segment.end
            self._send(ACK)

    def _connected(self, segment: Segment) -> None:
        begin, last = after(segment.seq, self.rcv_nxt), after(segment.end, self.rcv_nxt)
        fits = 0 <= begin < WINDOW if not segment.length else last > 0 and begin < WINDOW
        if segment.flags & RST:
            if begin == 0:
                self._reset()
            elif fits:
                self._send(ACK)
        elif segment.flags & SYN and self.state is State.SYN_RECEIVED and last == 0:
            self.resend(lambda _: False)
        elif segment.flags & SYN or not fits:
            self._send(ACK)
        elif segment.flags & ACK:
            self._fitting(segment)

    def _fitting(self, segment: Segment) -> None:
        acknowledged = after(segment.ack, self.una)
        if self.state is State.SYN_RECEIVED:
            if segment.ack != self.nxt:
                self._refuse(segment)
                return
            self.state, self.was_established = State.ESTABLISHED, True
        if after(segment.ack, self.nxt) > 0 or acknowledged < -WINDOW:
            self._send(ACK)
            return
        if acknowledged > 0:
            self._acknowledged(segment.ack)
        if segment.length:
            if self.state in _TAKES:
                self._early.append(segment)
                self._take()
            if self.state is not State.CLOSED:
                self._send(ACK)

    def _acknowledged(self, number: int) -> None:
        self.una = number
        self._unacked = [s for s in self._unacked if after(s.end, number) > 0]
        if self.closed and number == self.nxt:
            following = {
                State.FIN_WAIT_1: State.FIN_WAIT_2,
                State.CLOSING: State.TIME_WAIT,
                State.LAST_ACK: State.CLOSED,
            }
            self.state = following.get(self.state, self.state)

    def _take(self) -> None:
        """Take what follows without a gap, FIN included."""
        self._early = [s for s in self._early if after(s.end, self.rcv_nxt) > 0]
        following = next((s for s in self._early if after(s.seq, self.rcv_nxt) <= 0), None)
        if following is None:
            return
        self.rcv_nxt = following.end
        if following.flags & FIN:
            then = {State.ESTABLISHED: State.CLOSE_WAIT, State.FIN_WAIT_1: State.CLOSING}
            self.state, self._early = then.get(self.state, State.TIME_WAIT), []
        else:
            self._take()
