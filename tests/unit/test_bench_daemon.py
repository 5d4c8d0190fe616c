"""Options of the daemon that the benchmark measures, by mode."""

import pytest

from dataplane.bench.events.daemon import hook_options
from dataplane.bench.modes import MODES


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("nftables", []),
        ("ebpf-connect", ["--hooks", "connect", "--host-routing", "off"]),
        ("ebpf-xdp", ["--hooks", "tc,xdp", "--host-routing", "off"]),
        ("ebpf-host", ["--hooks", "connect,tc", "--host-routing", "on"]),
    ],
)
def test_only_modes_that_say_so_go_past_the_stack(mode: str, options: list[str]) -> None:
    """Whatever the daemon's own default is."""
    assert hook_options(MODES[mode].hooks) == options
