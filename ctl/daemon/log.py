"""The daemon's log: one line for each event that matters, as text for people or JSON for machines."""

import json
import logging
import sys
import time
from typing import TextIO

import msgspec

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("text", "json")


def _value(value: object) -> str:
    """A field's value as text; quoted when it would not read back as one word."""
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    if text and text.isprintable() and not any(c in text for c in ' "='):
        return text
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in quoted)


def _encodable(text: str) -> str:
    """Escape surrogates, which UTF-8 cannot encode: Python keeps a file name's undecodable bytes as such."""
    return text.encode("utf-8", "backslashreplace").decode()


class Log:
    """Writes lines `TIME LEVEL message key=value ...`, or the same as one JSON object.

    level: the least important level that is written. Values are shown with str(); times are UTC with milliseconds.
    Messages and keys stay as docs/logs.md lists them. Never raises if a line cannot be written (a full disk, a closed
    pipe), since logging must not fail its caller. The number of lost lines is logged as soon as possible.
    """

    def __init__(self, level: str = "info", form: str = "text", out: TextIO | None = None) -> None:
        self._least = LEVELS.index(level)
        self._json = form == "json"
        self._out = out or sys.stderr
        self._refused = 0

    def debug(self, message: str, **fields: object) -> None:
        self._write(0, message, fields)

    def info(self, message: str, **fields: object) -> None:
        self._write(1, message, fields)

    def warning(self, message: str, **fields: object) -> None:
        self._write(2, message, fields)

    def error(self, message: str, **fields: object) -> None:
        self._write(3, message, fields)

    def _write(self, level: int, message: str, fields: dict[str, object]) -> None:
        if level < self._least:
            return
        now = time.time()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now * 1000) % 1000:03d}Z"
        if self._json:
            plain = {k: v if isinstance(v, bool | int | float) else _encodable(str(v)) for k, v in fields.items()}
            line = msgspec.json.encode({"ts": stamp, "level": LEVELS[level], "msg": message, **plain}).decode()
        else:
            line = " ".join([stamp, LEVELS[level].upper(), message, *(f"{k}={_value(v)}" for k, v in fields.items())])
        try:
            print(line, file=self._out, flush=True)
        except OSError:
            self._refused += 1
            return
        if self._refused:
            refused, self._refused = self._refused, 0
            self.warning("the log could not be written for a while", lines=refused)


class _Forward(logging.Handler):
    """Forwards records of the logging module to the daemon's log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        write = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        write(record.getMessage(), logger=record.name)


def forward_logging(log: Log) -> None:
    """Write warnings and errors of the data plane's library to this log from now on."""
    library = logging.getLogger("dataplane")
    library.handlers = [_Forward(log)]
    library.propagate = False
