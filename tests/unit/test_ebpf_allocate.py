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
    before=st.lists(st.integers(1, 9), max_size=6),
    gone=st.sets(st.integers(0, 5)),
    count=st.integers(0, 9),
    many=st.integers(1, 9),
)
def test_a_row_of_runs_is_nobody_elses(before: list[int], gone: set[int], count: int, many: int) -> None:
    runs = Runs("slots", 8 * SIZE)
    held = {runs.take(members): members for members in before}
    for base in [base for at, base in enumerate(held) if at in gone]:
        runs.give_back(base, held.pop(base))
    row = runs.take_row(count, many)
    assert all(base == row[0] + at * capacity(count) for at, base in enumerate(row))
    for base in row if count else ():
        assert base % capacity(count) == 0
        assert base not in held
        held[base] = count
    taken = [slot for base, members in held.items() for slot in range(base, base + capacity(members))]
    assert len(set(taken)) == len(taken)
    for base, members in held.items():
        runs.give_back(base, members)
    assert runs.take(8 * SIZE) == 0


def test_a_row_that_does_not_fit_takes_nothing() -> None:
    runs = Runs("slots", SIZE)
    runs.take(1)
    before = runs.never_used
    with pytest.raises(MapFull, match="slots is full"):
        runs.take_row(5, 8)
    assert runs.never_used == before
    assert list(runs.take_row(5, 7)) == list(range(8, SIZE, 8))
    assert [runs.take(1), runs.take(2), runs.take(4)] == [1, 2, 4]
