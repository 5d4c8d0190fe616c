"""Programs on two processors at once: one client of a sticky Service, and tables that change under their readers."""

import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.inet import TCP

from dataplane.model.net import Family
from dataplane.planes.ebpf.maps.encode import frontend_key_bytes
from dataplane.planes.ebpf.maps.layout import fields_of
from tests.kernel.bpf_packets import bench as b
from tests.kernel.bpf_packets.bench import Bench, bench, entry, ip, ip_of

FAMILIES = (Family.IPV4, Family.IPV6)
PROCESSORS = sorted(os.sched_getaffinity(0))
WRITES = 200_000
PATIENCE = 240.0
"""Seconds for two processes to meet, on processors that have other work, too."""
OWN = {Family.IPV4: (b.CLIENT, b.NODE), Family.IPV6: (b.CLIENT_6, b.NODE_6)}


@pytest.fixture
def node() -> Iterator[Bench]:
    with bench() as made:
        yield made


def endpoints(family: Family, numbers: range) -> list[str]:
    """Pods of node 2."""
    prefix = "10.244.2." if family is Family.IPV4 else "fd00:10:244:2::"
    return [f"{prefix}{number:x}" if family is Family.IPV6 else f"{prefix}{number}" for number in numbers]


def on_each_processor(work: Callable[[int], None]) -> None:
    """Run a function in a thread on each of two processors; an exception of either is raised here."""
    assert len(PROCESSORS) > 1, "these tests need two processors"
    failed: list[Exception] = []

    def pinned(number: int) -> None:
        os.sched_setaffinity(0, {PROCESSORS[number]})
        try:
            work(number)
        except (AssertionError, OSError, threading.BrokenBarrierError) as error:
            failed.append(error)

    threads = [threading.Thread(target=pinned, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        raise failed[0]


@contextmanager
def beside(work: Callable[[], None]) -> Iterator[Callable[[], bool]]:
    """Run a function in a process of its own on the second processor; out: tells whether it still works."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.sched_setaffinity(0, {PROCESSORS[1]})
            work()
            status = 0
        finally:
            os._exit(status)
    ended: list[int] = []

    def goes_on() -> bool:
        if not ended:
            pid, status = os.waitpid(child, os.WNOHANG)
            ended.extend([status] if pid else [])
        return not ended

    yield goes_on
    status = ended[0] if ended else os.waitpid(child, 0)[1]
    assert status == 0


def frames(node: Bench, family: Family, port: int, first: int, count: int) -> Iterator[bytes]:
    """SYNs of one client to a node port, from ports of its own."""
    client, own = OWN[family]
    frame = bytearray(node.frame(ip(family, client, own) / TCP(sport=1, dport=port, flags="S")))
    at = 34 if family is Family.IPV4 else 54
    for number in range(count):
        struct.pack_into("!H", frame, at, first + number % 30000)
        yield bytes(frame)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sticky_client_has_one_server_on_two_processors(node: Bench, family: Family, soak: bool) -> None:
    """The clocks of two processors differ by less than a tick, and must not make an entry look old."""
    node.install(entry("sticky", endpoints(family, range(20, 60)), node_port=30095, affinity=10800, family=family))
    seen: list[set[str]] = [set(), set()]

    def connect(number: int) -> None:
        for frame in frames(node, family, 30095, 2000 + 30000 * number, 400_000 if soak else 15_000):
            out = node.tc(frame)
            if out.result == b.TC_REDIRECT:
                seen[number].add(out.data[30:34].hex() if family is Family.IPV4 else out.data[38:54].hex())
            else:
                _forget(node)

    on_each_processor(connect)
    assert len(seen[0] | seen[1]) == 1


def _forget(node: Bench) -> None:
    """Make room in the table of flows."""
    node.forget("tcp_flows")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("stale", [False, True], ids=["new", "stale"])
def test_a_clients_first_connections_at_once_go_to_one_server(node: Bench, family: Family, stale: bool) -> None:
    """Several processors choose for one client at the same time: the first time, and when its endpoint went."""
    port, both = 30096, threading.Barrier(2, timeout=120)
    wide = entry("wide", endpoints(family, range(20, 60)), node_port=port, affinity=10800, family=family)
    other = entry("wide", endpoints(family, range(100, 140)), node_port=port, affinity=10800, family=family)
    client, own = OWN[family]
    rounds = 600
    chosen: list[list[str]] = [[], []]

    def connect(number: int) -> None:
        for turn in range(rounds):
            tcp = struct.pack("!H", 2000 + 30000 * number + turn)
            frame = bytearray(template)
            frame[at : at + 2] = tcp
            if both.wait() == 0:
                _forget(node)
                if stale:
                    node.install(other if turn % 2 else wide)
                else:
                    node.forget("affinity")
            both.wait()
            chosen[number].append(str(ip_of(node.tc(bytes(frame)).data).dst))

    template = node.frame(ip(family, client, own) / TCP(sport=1, dport=port, flags="S"))
    at = 34 if family is Family.IPV4 else 54
    node.install(wide)
    on_each_processor(connect)
    different = [turn for turn, pair in enumerate(zip(*chosen, strict=True)) if len(set(pair)) > 1]
    assert len(set(chosen[0])) > 10
    assert different == []


def _writes(node: Bench, ours: bytes, theirs: bytes) -> list[tuple[bytes, bytes]]:
    """Two writes in turn, each of both frontends as they are, but with a new generation for ours. The kernel keeps one
    element to spare for each processor: the one that our frontend had holds theirs as soon as that is written too."""
    ours_now, theirs_now = (node.maps.get("frontends", key) or b"" for key in (ours, theirs))
    at, found = fields_of("frontend")["generation"], []
    for generation in (0x7FFFFFF0, 0x7FFFFFF1):
        fresh = bytearray(ours_now)
        struct.pack_into("=I", fresh, at, generation)
        found.append((ours + theirs, bytes(fresh) + theirs_now))
    return found


@pytest.mark.parametrize("checked", [True, False], ids=["as it is", "without the check"])
def test_no_reader_acts_on_half_a_change(checked: bool) -> None:
    """A frontend is written anew while a packet asks for it, and another one takes its place in the kernel's memory.
    This variant of the programs waits where that can happen; without the look at the generation it must show."""
    family, port = Family.IPV4, 30097
    flags = ["-DWIDE_WINDOW=1", *([] if checked else ["-DNO_GENERATION_CHECK=1"])]
    ours = entry("ours", endpoints(family, range(20, 24)), node_port=port)
    theirs = entry("theirs", endpoints(family, range(120, 124)), node_port=port + 1)
    right, wrong = (set(endpoints(family, range(first, first + 4))) for first in (20, 120))
    seen: set[str] = set()
    enough = mmap.mmap(-1, 1)  # shared: the reader has seen what it waits for
    end = time.monotonic() + PATIENCE

    def write() -> None:
        turn = 0
        while turn < WRITES or not (checked or enough[0] or time.monotonic() > end):
            made.maps.put_many("frontends", *writes[turn % 2], 2)
            turn += 1

    with enough, bench(*flags) as made:
        made.install(ours, theirs)
        writes = _writes(made, *(frontend_key_bytes(e.frontends[0].key) for e in (ours, theirs)))
        os.sched_setaffinity(0, {PROCESSORS[0]})
        try:
            with beside(write) as goes_on:
                while goes_on():
                    for frame in frames(made, family, port, 2000, 500):
                        out = made.tc(frame)
                        if out.result == b.TC_REDIRECT:
                            seen.add(str(ip_of(out.data).dst))
                        else:
                            _forget(made)
                    enough[0] |= bool(seen & wrong)
        finally:
            os.sched_setaffinity(0, PROCESSORS)
    assert seen & right
    assert bool(seen & wrong) is not checked
