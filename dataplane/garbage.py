"""Python's cyclic garbage collector while very many values are made at once, none of them in a cycle.

The collector walks every container that lives, again and again as they grow in number: at 30,000 Services that adds a
third to the time of a load, and later it is 0.3 s at once in the midst of a small change.
"""

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def no_garbage_collection(*, keep: bool = False) -> Iterator[None]:
    """Hold the collector during the body of a `with`. References are counted all the while, so memory is freed.

    keep: what lives at the end will live long: the collector does not walk it again. What is no longer referenced is
    freed all the same; only a cycle that is garbage already would stay.
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
