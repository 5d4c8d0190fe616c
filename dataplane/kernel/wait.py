"""Waiting for descriptors of any number: select(2) knows those below 1,024 only, poll(2) all of them."""

import select
from collections.abc import Iterable


def readable(descriptors: Iterable[int], seconds: float) -> set[int]:
    """Those of some descriptors that can be read from, or have ended, once there is one; none after `seconds`."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    return {descriptor for descriptor, _ in poll.poll(max(0.0, seconds) * 1000)}
