"""Indices and runs of slots: nobody is given what somebody has, and nothing gets lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataplane.planes.ebpf.maps.allocate import Ids, MapFull, Runs, capacity

SIZE = 64


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 11)), max_size=80))
def test_runs_never_overlap_and_come_back(steps: list[tuple[bool, int]]) -> None:
    runs, held = Runs("slots", SIZE), dict[int, int]()
    for give_back, count in steps:
        if give_back and held:
            base = sorted(held)[count % len(held)]
            runs.give_back(base, held.pop(base))
            continue
        if not _fits(held, capacity(count)):
            with pytest.raises(MapFull, match="slots is full"):
                runs.take(count)
            continue
        base = runs.take(count)
        if count:
            assert base % capacity(count) == 0
            assert base + capacity(count) <= SIZE
            for other, members in held.items():
                assert base + capacity(count) <= other or other + capacity(members) <= base
            held[base] = count
    again = Runs("slots", SIZE, held.items())
    for base, count in held.items():
        again.give_back(base, count)
    assert again.take(SIZE) == 0


def _fits(held: dict[int, int], length: int) -> bool:
    """Whether an aligned run of this length is free, by looking at every place for one."""
    taken = {slot for base, count in held.items() for slot in range(base, base + capacity(count))}
    return not length or any(
        taken.isdisjoint(range(at, at + length)) for at in range(0, SIZE - length + 1, length or 1)
    )


@given(st.sets(st.integers(0, 15), max_size=16), st.integers(0, 16))
def test_ids_are_given_once(used: set[int], wanted: int) -> None:
    ids = Ids("backends", 16, used)
    if wanted > 16 - len(used):
        with pytest.raises(MapFull):
            ids.take_many(wanted)
        wanted = 16 - len(used)
    given_out = list(ids.take_many(wanted))
    assert len(set(given_out)) == wanted
    assert used.isdisjoint(given_out)
    ids.give_back(*given_out)
    assert sorted([*ids.take_many(16 - len(used)), *used]) == list(range(16))


@pytest.mark.parametrize(("count", "length"), [(0, 0), (1, 1), (2, 2), (3, 4), (5, 8), (8, 8), (9, 16)])
def test_capacity(count: int, length: int) -> None:
    assert capacity(count) == length


@given(
    before=st.lists(st.integers(1, 9), max_size=6), gone=st.sets(st.integers(0, 5)), counts=st.lists(st.integers(0, 9))
)
def test_many_runs_are_those_taken_one_by_one(before: list[int], gone: set[int], counts: list[int]) -> None:
    one, many = Runs("slots", 1 << 12), Runs("slots", 1 << 12)
    for runs in (one, many):
        bases = [runs.take(count) for count in before]
        for at in gone:
            if at < len(before):
                runs.give_back(bases[at], before[at])
    assert many.take_each(counts) == [one.take(count) for count in counts]
    assert vars(many) == vars(one)
