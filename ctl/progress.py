"""A line on the terminal about what takes long."""

import contextlib
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator

SILENT_SECONDS = 2.0
"""What is over sooner is not worth a word."""
_STEP_SECONDS = 0.5
_CLEAR = "\r\033[K"


@contextlib.contextmanager
def stage(what: str) -> Iterator[Callable[[str], None]]:
    """While the block runs, say on a terminal behind stderr what is being done and for how long, once two seconds are
    over. The line is gone afterwards. Elsewhere, in logs and pipes, nothing is said. The block may call what it gets to
    say that something else is done now."""
    doing = [what]

    def now(what: str) -> None:
        doing[0] = what

    if not sys.stderr.isatty():
        yield now
        return
    over = threading.Event()
    teller = threading.Thread(target=_tell, args=(doing, over), daemon=True)
    teller.start()
    try:
        yield now
    finally:
        over.set()
        teller.join()


@contextlib.contextmanager
def drawn_line() -> Iterator[Callable[[str], None]]:
    """What the block gets draws a text over the one before, on a terminal behind stderr and no longer than its line; it
    is gone afterwards, however the block ends. Elsewhere each text is a line of its own."""
    drawn = sys.stderr.isatty()

    def draw(text: str) -> None:
        if drawn:
            text = text[: shutil.get_terminal_size().columns - 1]
        print(f"{_CLEAR}{text}" if drawn else text, end="" if drawn else "\n", file=sys.stderr, flush=True)

    try:
        yield draw
    finally:
        if drawn:
            print(_CLEAR, end="", file=sys.stderr, flush=True)


def waiting(what: str) -> None:
    """Say on a terminal behind stderr what a command waits for that may print nothing for long."""
    if sys.stderr.isatty():
        print(f"{what}; Ctrl-C ends it", file=sys.stderr, flush=True)


def _tell(doing: list[str], over: threading.Event) -> None:
    began = time.monotonic()
    if over.wait(SILENT_SECONDS):
        return
    with contextlib.suppress(OSError):  # the terminal went away: there is nobody to tell
        while not over.wait(_STEP_SECONDS):
            print(f"{_CLEAR}{doing[0]} … {time.monotonic() - began:.0f} s", end="", file=sys.stderr, flush=True)
        print(_CLEAR, end="", file=sys.stderr, flush=True)
