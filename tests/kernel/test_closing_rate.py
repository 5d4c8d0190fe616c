"""An endpoint that closes first, behind a node port of another node: connections go on at one pace, though each leaves
a source port behind that the endpoint remembers."""

from tests.perf.closing_rate import measure

SECONDS, WORKERS, PORTS = (3, 12, 48), 6, 1500
"""So few source ports that each is needed again while the endpoint still remembers it: on a busy machine in a longer
time."""
PATIENCE = 1.0
"""A SYN that is lost or refused is sent again after a second."""


def test_ports_that_the_endpoint_remembers_hold_nobody_up() -> None:
    for seconds in SECONDS:
        found = measure(("nftables", "ebpf"), seconds, WORKERS, PORTS)
        ebpf = found["ebpf"]
        if ebpf.reasons["xdp:new_flow"] > PORTS:
            break
    assert ebpf.failed == found["nftables"].failed == 0
    assert ebpf.reasons["xdp:new_flow"] > PORTS, "too few connections for any port to be needed twice"
    assert ebpf.worst < found["nftables"].worst + PATIENCE
