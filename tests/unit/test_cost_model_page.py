"""The page of costs takes the tables that are made for it, each in its place, again and again."""

import pytest

from tests.perf.cost_model import PAGE
from tests.perf.page import write

NAMES = ("machine", "connections", "own", "past", "connect", "rules", "bulk", "packets", "programs")


def test_every_table_has_its_place_and_replaces_the_one_before() -> None:
    once = write(PAGE.read_text(), {name: f"| table-1 {name} |" for name in NAMES})
    twice = write(once, {name: f"| table-2 {name} |\n| more |" for name in NAMES})
    for name in NAMES:
        assert f"<!-- {name} -->\n| table-2 {name} |\n| more |\n<!-- end -->" in twice
    assert "table-1" not in twice
    assert twice.count("<!-- end -->") == len(NAMES)


def test_a_table_without_a_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 places for the table nowhere"):
        write(PAGE.read_text(), {"nowhere": ""})
