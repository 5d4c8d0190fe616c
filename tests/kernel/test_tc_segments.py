"""TCP connections through tc as two real ends lead them, over a network that loses, doubles and reorders: what the
entries say of a connection is never more than what both ends have left or reached, and in the end no less."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.kernel.namespaces import netns
from dataplane.model.net import Family
from dataplane.planes.ebpf.flows.collect import sweep
from dataplane.planes.ebpf.flows.entries import FLOW_TABLES
from tests.kernel.bpf_packets.bench import Bench
from tests.kernel.bpf_packets.between import SNAT_PORT, Between
from tests.kernel.bpf_packets.ends import ACK, FIN, NOTHING_MORE, OVER, PSH, RST, SYN, Segment, State, after
from tests.kernel.bpf_packets.talk import age, one_port
from tests.kernel.test_tc_packets import FAMILIES, _bench, node

__all__ = ["_bench", "node"]

NEAR, FAR = 1 << 19, 1 << 27
"""How far an injected segment's number is at most from the true one, where the sender has an idea of it, and at least
where he has none."""
SIZES = (1, 100, 1460, 64000, 300_000, 3_000_000)
SYNCHRONIZED = (State.ESTABLISHED, State.CLOSE_WAIT, State.FIN_WAIT_1, State.FIN_WAIT_2)
WHO = st.booleans()
NUMBER = st.integers(0, 2**32 - 1)
STEPS = st.one_of(
    st.tuples(st.sampled_from(["pass", "pass", "deliver", "deliver", "pass_copy", "deliver_copy"]), WHO, NUMBER),
    st.tuples(st.sampled_from(["lose_before", "lose_behind", "lose_run"]), WHO, NUMBER),
    st.tuples(st.sampled_from(["write", "write", "resend", "close", "flush", "flush"]), WHO, NUMBER),
)
ABORT = st.tuples(st.just("abort"), WHO, NUMBER)
FLAGS = st.sampled_from([SYN, SYN | ACK, ACK, PSH | ACK, FIN | ACK, FIN, RST, RST | ACK, 0, SYN | FIN, 0x3F])
ATTACK = st.tuples(
    st.sampled_from(["blind", "sequence known", "acknowledgment known", "both known"]), WHO, FLAGS, NUMBER, NUMBER,
    st.sampled_from([0, 1, 1000]),
)  # fmt: skip
SOAKING = settings.default is not None and settings.get_profile("soak") is settings.default
FEW = settings(
    max_examples=3000 if SOAKING else 80,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


class Watched(Between):
    """A connection whose entries are looked at after every step."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.takeable = {True: False, False: False}
        self.hidden_close = False

    def step(self, what: str, who: bool, number: int) -> None:
        """One thing that happens; nothing, where it cannot."""
        end, before, behind = self.ends[who], self.before[who], self.behind[who]
        if what in ("pass", "pass_copy") and before:
            self.come(who, number, what == "pass_copy")
        elif what in ("deliver", "deliver_copy") and behind:
            self.deliver(who, number, what == "deliver_copy")
        elif what == "lose_before" and before:
            self._lose(who, number % len(before), number % len(before) + 1)
        elif what == "lose_behind" and behind:
            del behind[number % len(behind)]
        elif what == "lose_run" and before:
            end_at = number % len(before)
            self._lose(who, end_at // 4, end_at)
        elif what == "write":
            end.write(SIZES[number % len(SIZES)])
        elif what == "resend":
            end.resend(self.ends[not who].holds)
        elif what == "close":
            end.close(number % 2)
        elif what == "abort":
            while before:  # an RST that overtakes data is not told from a forged one
                self.come(who, 0)
            end.abort()
        elif what == "flush":
            self.flush()
        self.collect()
        self.check()

    def _lose(self, who: bool, begin: int, end: int) -> None:
        """Segments never come to the node. When the first that it sees of a FIN was sent again, it cannot tell who
        closed first."""
        lost = self.before[who][begin:end]
        self.hidden_close |= not who and any(segment.flags & FIN for segment in lost)
        del self.before[who][begin:end]

    def come(self, who: bool, index: int, copy: bool = False) -> None:
        """A segment comes to the node."""
        queue = self.before[who]
        first = next((i for i, s in enumerate(queue) if s.flags & (SYN | RST)), index % len(queue))
        self._note_reset(who, queue[first])
        self.pass_node(who, first, copy)
        self.check()

    def _note_reset(self, who: bool, segment: Segment) -> None:
        """Remember whether there was an RST that its receiver may take, for all that the node can know."""
        if segment.flags & RST:
            numbers = (self.came_to[who], self.acknowledged[not who], self.ends[not who].rcv_nxt)
            if segment.seq in numbers or self.acknowledged[not who] is None or self.came_to[not who] is None:
                self.takeable[who] = True

    def flush(self) -> None:
        """Everything arrives, in order, and what is sent upon that, until all is quiet."""
        self.collect()
        for _ in range(400):
            moved = False
            for who in (True, False):
                if self.before[who]:
                    self.come(who, 0)
                    moved = True
                if self.behind[who]:
                    self.deliver(who, 0)
                    moved = True
            if not moved:
                return
        raise AssertionError("the ends never come to an end")

    def settle(self) -> None:
        """Nothing is lost any more, and what was is sent again."""
        for _ in range(8):
            self.flush()
            for who, end in self.ends.items():
                end.resend(self.ends[not who].holds)
            self.collect()
            if not any(self.before.values()):
                return

    def inject(self, kind: str, who: bool, flags: int, sequence: int, acknowledged: int, size: int) -> None:
        """A segment of somebody who knows addresses and ports, and at most one of the two numbers about. With both he
        may say what does not move them: a SYN, or an RST that is not exact."""
        true = (self.ends[who].nxt, self.ends[who].rcv_nxt)
        said = set().union(*self.facts())
        closing = {"FIN_FORWARD", "FIN_REPLY"} <= said or said & {"RST_FORWARD", "RST_REPLY"}
        if kind == "both known" and not flags & (SYN | RST):
            return
        if flags == SYN and (closing or "ESTABLISHED" not in said):
            return  # from here on it may be a new connection's
        sequence = _guess(true[0], sequence, kind in ("sequence known", "both known"))
        acknowledged = _guess(true[1], acknowledged, kind in ("acknowledgment known", "both known"))
        segment = Segment(sequence, acknowledged, flags, size)
        other = self.ends[not who]
        if flags & RST and sequence in (self.came_to[who], other.rcv_nxt, self.acknowledged[not who]):
            return
        if self.translated(who, segment):
            other.receive(segment)
        self.collect()
        self.check()

    def check(self) -> None:
        """What the entries say now."""
        client, backend = self.ends[True], self.ends[False]
        facts = self.facts()
        said = set().union(*facts)
        if self.opened and (not facts or "RESTING" in said):
            quiet = client.state in NOTHING_MORE and backend.state in NOTHING_MORE
            assert quiet or client.reset or backend.reset, (client.state, backend.state, facts)
        if "ESTABLISHED" in said:
            assert client.was_established
        if "SEEN_REPLY" in said:
            assert backend.was_established or backend.state is not State.LISTEN
        assert "FIN_FORWARD" not in said or client.closed
        assert "FIN_REPLY" not in said or backend.closed
        assert "RST_FORWARD" not in said or self.takeable[True]
        assert "RST_REPLY" not in said or self.takeable[False]


def _guess(true: int, number: int, known: bool) -> int:
    """A number near the true one, but not that one; or far from it."""
    if known:
        distance = number % (2 * NEAR) - NEAR
        return (true + (distance or 1)) % 2**32
    return number if abs(after(number, true)) > FAR else (true + 2**31) % 2**32


@pytest.fixture
def ports(node: Bench) -> Iterator[Bench]:
    with one_port(node, SNAT_PORT), netns.netns(node.namespace):
        yield node


def _established(node: Bench, family: Family, remote: bool, client: int, backend: int) -> Watched:
    node.forget(*FLOW_TABLES)
    made = Watched(node, family, remote, client, backend)
    made.ends[True].open()
    made.flush()
    assert made.ends[True].state is made.ends[False].state is State.ESTABLISHED
    assert all("ESTABLISHED" in said for said in made.facts())
    return made


def _end(made: Watched, first: bool) -> None:
    """Both ends close, and all arrives."""
    made.settle()
    made.check()
    for who in (first, not first):
        made.ends[who].close()
        made.settle()


def _check_over(made: Watched, node: Bench) -> None:
    """Both ends have left: so has the flow, but for a port that the backend remembers."""
    client, backend = made.ends[True], made.ends[False]
    made.check()
    assert client.reset or backend.reset or {client.state, backend.state} <= set(OVER)
    if not client.reset and not backend.reset:
        facts = made.facts()
        assert len(facts) <= 1
        assert all("RESTING" in said for said in facts), facts
        assert made.remote or not facts
        assert facts or not made.remote or backend.state is not State.TIME_WAIT or made.hidden_close
    if client.state not in OVER or backend.state not in OVER:
        return  # one has sent an RST that was lost, and the other one waits
    if client.reset and backend.reset and not any(made.takeable.values()):
        return  # both have, and neither came here
    age(node, 125, *FLOW_TABLES)
    sweep(node.maps)
    assert not made.facts()


@pytest.mark.parametrize("remote", [True, False], ids=["remote", "local"])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_entries_say_follows_the_ends(ports: Bench, family: Family, remote: bool) -> None:
    @FEW
    @given(
        NUMBER,
        NUMBER,
        st.booleans(),
        st.booleans(),
        st.lists(st.one_of(STEPS, STEPS, STEPS, STEPS, ABORT), min_size=10, max_size=60),
    )
    def play(client: int, backend: int, opened: bool, first: bool, steps: list[tuple[str, bool, int]]) -> None:
        if opened:
            made = _established(ports, family, remote, client, backend)
        else:
            ports.forget(*FLOW_TABLES)
            made = Watched(ports, family, remote, client, backend)
            made.ends[True].open()
            made.collect()
        for step in steps:
            made.step(*step)
        _end(made, first)
        _check_over(made, ports)

    play()


@pytest.mark.parametrize("remote", [True, False], ids=["remote", "local"])
@pytest.mark.parametrize("family", FAMILIES)
def test_who_knows_no_numbers_changes_nothing(ports: Bench, family: Family, remote: bool) -> None:
    @FEW
    @given(NUMBER, NUMBER, st.booleans(), st.lists(st.one_of(STEPS, ATTACK, ATTACK), min_size=10, max_size=40))
    def play(client: int, backend: int, first: bool, steps: list[tuple[Any, ...]]) -> None:
        made = _established(ports, family, remote, client, backend)
        for step in steps:
            if len(step) > 3:
                made.inject(*step)
            else:
                made.step(*step)
        _end(made, first)
        _check_over(made, ports)

    play()


@pytest.mark.parametrize("who", [True, False], ids=["client", "backend"])
@pytest.mark.parametrize("remote", [True, False], ids=["remote", "local"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_burst_of_losses_of_more_than_the_window_is_got_over(
    ports: Bench, family: Family, remote: bool, who: bool
) -> None:
    """What was lost is sent again, but not what came behind it; and then one acknowledgment is for all of it."""
    made = _established(ports, family, remote, 0xFFF00000, 0xFFF80000)
    made.ends[who].write(3_000_000)
    made.collect()
    del made.before[who][:20]
    made.settle()
    assert made.ends[not who].rcv_nxt == made.ends[who].nxt
    made.ends[who].write(100)
    _end(made, who)
    _check_over(made, ports)


@pytest.mark.parametrize("who", [True, False], ids=["client", "backend"])
@pytest.mark.parametrize("family", FAMILIES)
def test_acknowledgments_that_were_lost_are_made_up_for(ports: Bench, family: Family, who: bool) -> None:
    made = _established(ports, family, True, 0xFFF00000, 0xFFF80000)
    made.ends[who].write(6_000_000)
    made.collect()
    while made.before[who]:
        made.come(who, 0)
    while made.behind[who]:
        made.deliver(who, 0)
    del made.before[not who][:-1]
    _end(made, who)
    _check_over(made, ports)
