"""The verdicts on bars of forwarding: a bar is met or missed where the whole interval is on one side of it."""

from tests.perf.forwarding import CONNECT, DSR, LIVE, PLAIN, SNAT, TUNNEL, Rounds, bars


def test_a_bar_within_the_interval_is_neither_met_nor_missed() -> None:
    ones = [1.0] * 9
    found: Rounds = {
        CONNECT: {SNAT: ones, DSR: [1.31, 1.35, 1.4] * 3, TUNNEL: [0.8, 0.9, 0.99] * 3},
        LIVE: {PLAIN: ones, DSR: [2.5, 3.0, 3.5] * 3, TUNNEL: [3.0] * 9},
    }
    rows = [[cell.strip() for cell in row.split("|")[1:-1]] for row in bars(found).splitlines()[2:]]
    assert [(row[1], row[3]) for row in rows] == [
        ("≥ 1.3", "met"),
        ("≥ 1", "**missed**"),
        ("≥ 3", "unclear"),
        ("≥ 3", "met"),
    ]
    assert rows[0][0].endswith(", dsr / snat")
