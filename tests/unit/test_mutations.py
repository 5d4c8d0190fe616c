"""The list of tests/mutate: each fault has its place in the source, and each test that should find it is there."""

import ast
from collections import Counter

import pytest

from tests.mutation.faults import MUTATIONS
from tests.mutation.mutation import ROOT, SOURCES, Mutation, MutationError, find, mutated, node_ids


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: f"{each.file}: {each.name}")
def test_a_mutation_applies_to_one_line(mutation: Mutation) -> None:
    path = find(ROOT, SOURCES, mutation.file)
    sound = path.read_text(encoding="utf-8")
    faulty = mutated(sound, mutation)
    differing = [pair for pair in zip(sound.split("\n"), faulty.split("\n"), strict=True) if len(set(pair)) > 1]
    assert len(differing) == 1
    if path.suffix == ".py":
        assert ast.dump(ast.parse(faulty)) != ast.dump(ast.parse(sound))


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda each: f"{each.file}: {each.name}")
def test_the_tests_of_a_mutation_are_there(mutation: Mutation) -> None:
    assert node_ids(ROOT, mutation)


def test_there_are_sixty_and_none_twice() -> None:
    assert len(MUTATIONS) >= 60
    assert [name for name, count in Counter(each.name for each in MUTATIONS).items() if count > 1] == []


def test_what_is_not_there_is_told() -> None:
    known = MUTATIONS[0]
    for wrong in (
        known._replace(file="no-such-file.py"),
        known._replace(file="__init__.py"),
        known._replace(before="no such text"),
        known._replace(before="\n"),
    ):
        with pytest.raises(MutationError):
            mutated(find(ROOT, SOURCES, wrong.file).read_text(encoding="utf-8"), wrong)
    for test in ("test_no_such_file.py", "test_planner.py::test_no_such_test"):
        with pytest.raises(MutationError):
            node_ids(ROOT, known._replace(tests=(test,)))
