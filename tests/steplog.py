"""What a long proof saw, step by step: said at once, and kept for the log that comes with the project."""

import time


class Log:
    """Lines with the seconds since it was made, on the screen and kept in `lines`."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._start = time.monotonic()

    def say(self, text: str) -> None:
        """One step was seen."""
        line = f"{time.monotonic() - self._start:7.1f} s  {text}"
        print(line, flush=True)
        self.lines.append(line)
