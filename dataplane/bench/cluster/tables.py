"""The nodes' connection tables: a benchmark that makes connections as fast as it can must leave others room in them."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from dataplane.bench.cluster.kubectl import ClusterError

MOST = 0.5
"""Share of a table that may be in use when a measurement begins."""
_ANSWER_SECONDS, _PAUSE_SECONDS = 30.0, 0.5


class Watch(Protocol):
    """inside.py's `tracked` in a pod with its node's network."""

    def ask(self, line: str, seconds: float) -> dict[str, Any]:
        """Connections that the node tracks (`count`) and how many it can (`most`); zeros where it does not say."""


def wait(watches: Sequence[Watch], seconds: float, say: Callable[[str], None]) -> None:
    """Until every node has room. Raises ClusterError when one has none after so many seconds."""
    end, told = time.monotonic() + seconds, False
    for watch in watches:
        while (seen := watch.ask("?", _ANSWER_SECONDS))["count"] > MOST * seen["most"]:
            full = f"{seen['count']:,} of {seen['most']:,}"
            if time.monotonic() > end:
                raise ClusterError(
                    f"a node's connection table stays full ({full}): raise net.netfilter.nf_conntrack_max there, or "
                    "measure with less --seconds"
                )
            if not told:
                told = True
                say(f"a node tracks {full} connections: waiting for room")
            time.sleep(_PAUSE_SECONDS)
