"""Counters of perf_event_open(2): proved on events that every kernel counts, hardware or not."""

import gc
import mmap
import os
import time

import pytest

from dataplane.bench.machine.counters import HARDWARE, Counters, CountersError, Event, hardware

_SOFTWARE = 1
CPU_CLOCK, PAGE_FAULTS = Event(_SOFTWARE, 0), Event(_SOFTWARE, 2)


def test_every_processor_is_counted_over_the_same_time() -> None:
    with Counters({"clock": CPU_CLOCK, "faults": PAGE_FAULTS}) as counters:
        outside = time.perf_counter()
        before, inside = counters.read(), time.perf_counter()
        with mmap.mmap(-1, 512 << 12, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as pages:
            pages.madvise(mmap.MADV_NOHUGEPAGE)
            for page in range(0, len(pages), 1 << 12):  # touched one by one: a fault each
                pages[page] = 1
        time.sleep(0.1)
        least = time.perf_counter() - inside
        after, most = counters.read(), time.perf_counter() - outside
    processors = len(os.sched_getaffinity(0))
    assert 0.95 * least * processors < (after["clock"] - before["clock"]) / 1e9 < 1.05 * most * processors
    assert after["faults"] - before["faults"] >= 200


def test_what_cannot_be_counted_is_an_error_and_leaves_nothing_open() -> None:
    gc.collect()  # else what other tests left may be closed meanwhile
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(CountersError, match="perf_event_open on processor"):
        Counters({"clock": CPU_CLOCK, "none": Event(_SOFTWARE, 999)})
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_machines_own_counters_work_or_are_not_there() -> None:
    counters = hardware()
    if counters is None:
        with pytest.raises(CountersError):
            Counters(HARDWARE)
        return
    with counters:
        before = counters.read()
        sum(range(100_000))
        after = counters.read()
    assert all(after[name] > before[name] + 100_000 for name in HARDWARE)
