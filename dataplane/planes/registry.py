"""Registry of planes by mode: the only place that knows their names.

A mode (planes.mode.Mode) is imported when it is looked up, and its plane when one is made. A mode imports only the
modes that it stands on; this table imports none.
"""

import importlib
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from dataplane.errors import UsageError

if TYPE_CHECKING:
    from dataplane.planes.mode import Mode

_TABLE = {
    "iptables": "dataplane.planes.iptables.mode",
    "nftables": "dataplane.planes.nftables.mode",
    "ebpf": "dataplane.planes.ebpf.mode",
}
"""Mode -> the module with its `MODE`. A mode that stands on another one comes after it."""

_BASELINES = {"ipvs": "dataplane.planes.ipvs.mode"}
"""The same for baselines of the benchmark, which are no modes of the command line."""

MODES = tuple(_TABLE)
DEFAULT_MODE = "nftables"


@cache
def mode_of(name: str) -> "Mode":
    """A mode, or a baseline, by its name. Raises UsageError for one that does not exist."""
    module = _TABLE.get(name) or _BASELINES.get(name)
    if module is None:
        raise UsageError(f"there is no mode {name}; choose one of {', '.join(MODES)}")
    found: Mode = importlib.import_module(module).MODE
    return found


def modes() -> "Iterator[Mode]":
    """Every mode, each before those that stand on it."""
    return map(mode_of, MODES)
