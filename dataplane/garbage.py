"""Settings of the interpreter for large loads: its garbage collector paused, its threads' turns short.

The collector is of no use while very many objects are made, none of them in a cycle.

The collector walks every live container, repeatedly while their number grows: at 30,000 Services it adds a third to
the time of a load, and later a pause of 0.3 s within a small change.
"""

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def no_garbage_collection(*, keep: bool = False) -> Iterator[None]:
    """Pause the collector during the body of a `with`. Reference counting still frees memory.

    keep: objects alive at the end are long-lived, so that the collector skips them from then on. They are still freed
    by reference counting; only a cycle that is already garbage would leak.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
        if keep:
            gc.freeze()
    finally:
        if was_enabled:
            gc.enable()


TURN_SECONDS = 0.0005
"""How long a thread that computes may keep the interpreter from one that wakes up."""


@contextlib.contextmanager
def short_turns() -> Iterator[None]:
    """During the body of a `with`, a thread that comes back from the kernel gets the interpreter within half a
    millisecond. With Python's default of 5 ms, threads that mostly wait for the kernel would mostly wait for it."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, TURN_SECONDS))
    try:
        yield
    finally:
        sys.setswitchinterval(before)
