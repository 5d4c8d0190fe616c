"""The lab in which forwarding is measured: each way is what its name says, and each figure of each comes about."""

from tests.perf.forwarding import DSR, FIGURES, PLAIN, SNAT, TUNNEL, WAYS, check, ground, measured, spent


def test_each_figure_of_each_way_comes_about() -> None:
    """A connection is the client's SYN, ACK and RST and the endpoint's SYN-ACK, which passes by the node that took the
    client's packets unless that is dsr."""
    with ground() as made:
        check(made)
        found, failed = measured(made, 1, 0.02)
        passed = {way: by_kind["node1: xdp"].runs for way, by_kind in spent(made, 0.2).items()}
    assert not failed
    assert {(figure.operation, way) for figure in FIGURES for way in WAYS} == {
        (operation, way) for operation, by_way in found.items() for way, values in by_way.items() if values[0] > 0
    }
    assert {way: round(passed[way]) for way in (SNAT, TUNNEL, DSR, PLAIN)} == {SNAT: 4, TUNNEL: 4, DSR: 3, PLAIN: 0}
