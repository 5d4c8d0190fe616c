"""Tell of a fault once while it lasts, and when it is over: for what is tried again and again."""

from collections.abc import Callable

Tell = Callable[[str], object]
"""Takes a sentence for people."""


def ignore(text: str) -> None:
    """Tell nobody."""


class Faults:
    """What fails now, by what it is. warn: told of each fault, and of each other reason for it. mended: told when it is
    over. For one thread."""

    def __init__(self, warn: Tell, mended: Tell = ignore) -> None:
        self._warn, self._mended = warn, mended
        self._now: dict[str, str] = {}

    def failed(self, what: str, why: str) -> None:
        """Note that something failed. why: the sentence for people."""
        if self._now.get(what) != why:
            self._now[what] = why
            self._warn(why)

    def worked(self, what: str, sentence: str) -> None:
        """Note that it works. sentence: told if it failed before."""
        if self._now.pop(what, None) is not None:
            self._mended(sentence)
