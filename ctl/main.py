"""The `hotplane` command: the one place where errors become sentences and exit statuses.

Only the chosen command's module is imported, so that every command starts fast.
"""

import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Sequence

from ctl.command_table import COMMANDS
from ctl.parser import parse
from dataplane.errors import HotplaneError, UsageError

DONE, FAILED, WRONG_USAGE = 0, 1, 2
INTERRUPTED, BROKEN_PIPE = 130, 141  # what a shell reports for a process ended by SIGINT, SIGPIPE


def _status(argv: Sequence[str]) -> int:
    try:
        args = parse(argv)
    except SystemExit as stop:  # argparse showed the help, or the usage error is already on stderr
        return stop.code if isinstance(stop.code, int) else DONE
    try:
        result: int = importlib.import_module(COMMANDS[args.command].module).run(args)
    except HotplaneError as error:
        _print_message(str(error))
        return WRONG_USAGE if isinstance(error, UsageError) else FAILED
    except ModuleNotFoundError as error:
        from ctl.extras import INSTALL, MissingPackage

        if error.name not in INSTALL:
            raise
        _print_message(str(MissingPackage(args.command, error.name)))
        return FAILED
    return result


def _print_message(text: str) -> None:
    """Print one message on stderr, its lines without terminal control characters."""
    from dataplane.model.objects import one_line

    lines = "\n    ".join(map(one_line, text.split("\n")))  # indented: no line of it looks like another message
    with contextlib.suppress(OSError):  # a full disk behind stderr: nobody can be told
        print(f"hotplane: {lines}", file=sys.stderr)


def _open_streams() -> None:
    """Open /dev/null for standard streams that were closed when the process started: else the next opened file would
    get their numbers, and printing would end in a traceback. A closed stdout is reported."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    closed = sys.stdout is None
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 - open until the end
    if closed:
        _print_message("standard output is closed; what would be printed is lost")


def _os_failure(error: OSError) -> int:
    """Print a sentence for an operating system error that was not handled where it happened; return FAILED."""
    reason = error.strerror or getattr(error, "args", ("",))[-1]
    file = error.filename or ("standard output" if error.errno == errno.ENOSPC else "")
    where = f"{file}: " if file else ""
    hint = "; run as root" if isinstance(error, PermissionError) and os.geteuid() else ""
    _print_message(f"{where}{reason}{hint}")
    return FAILED


def _forget_stdout() -> None:
    """Redirect stdout to /dev/null, else the interpreter reports an error when it flushes at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (default: this process's) and return the exit status.

    Expected failures (`HotplaneError`), and what the operating system refuses (no rights, a full disk), become one
    sentence on stderr and status 1 (wrong usage: 2); anything else is a defect and keeps its traceback.
    """
    _open_streams()
    try:
        status = _status(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _forget_stdout()
        return BROKEN_PIPE
    except OSError as error:
        status = _os_failure(error)
    except Exception as error:
        if type(error).__name__ != "NetlinkError":  # pyroute2 takes 200 ms to import, and is there if it was raised
            raise
        status = _os_failure(OSError(getattr(error, "code", 0), os.strerror(getattr(error, "code", 0))))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _forget_stdout()
        return BROKEN_PIPE
    except OSError as error:
        _forget_stdout()
        _print_message(f"standard output: {error.strerror}")
        return FAILED
    return status


if __name__ == "__main__":
    sys.exit(main())
