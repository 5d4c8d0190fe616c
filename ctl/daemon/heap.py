"""The daemon's heap: one for all threads, and garbage collection that leaves alone what stays."""

import ctypes
import gc

_libc = ctypes.CDLL(None)
_M_ARENA_MAX = -8  # malloc.h


def pause_garbage_collection() -> None:
    """Before the first load: use one heap for all threads, and no garbage collection, since there is no garbage yet."""
    _libc.mallopt(_M_ARENA_MAX, 1)
    gc.disable()


def resume_garbage_collection() -> None:
    """After the first load: exclude the objects that exist now from garbage collection, since they stay, and return
    the memory that the load needed to the system."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(20_000, 20, 50)
    trim()


def trim() -> None:
    """Give back what changes leave free among what stays, which the heap would never do by itself."""
    _libc.malloc_trim(0)
