"""The `hotplane` command: global options, the table of commands, and the one place where errors become sentences.

Only the chosen command's module is imported, so that every command starts fast.
"""

import argparse
import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

from ctl import VERSION
from dataplane.errors import HotplaneError, UsageError
from dataplane.planes.registry import DEFAULT_MODE, MODES

DONE, FAILED, WRONG_USAGE = 0, 1, 2
INTERRUPTED, BROKEN_PIPE = 130, 141  # what a shell reports for a process ended by SIGINT, SIGPIPE


class Command(NamedTuple):
    """A command: the module that has its `register` and `run`, and its line in the overview."""

    module: str
    help: str


COMMANDS = {
    "demo": Command(
        "ctl.commands.demo", "build the lab, prove the example Services with real traffic, print the table"
    ),
    "apply": Command("ctl.commands.apply", "program this network namespace once from manifests"),
    "run": Command("ctl.commands.run", "the daemon: watch, reconcile, serve health and metrics"),
    "adopt": Command("ctl.commands.adopt", "take this node over from kube-proxy: load our rules, then remove its own"),
    "explain": Command("ctl.commands.explain", "what happens to a packet, and why"),
    "show": Command("ctl.commands.show", "what the kernel holds now"),
    "top": Command("ctl.commands.top", "live view per Service: connections, packets, bytes per second"),
    "monitor": Command("ctl.commands.monitor", "event stream: who asked for what, which endpoint, or why not"),
    "check": Command("ctl.commands.check", "compare the kernel with the plan; --repair"),
    "cleanup": Command("ctl.commands.cleanup", "remove every trace from this network namespace"),
    "lab": Command("ctl.commands.lab", "a small cluster of network namespaces: up, down, status, exec"),
    "bench": Command("ctl.commands.bench", "compare Service data planes side by side: run, report, compare"),
    "doctor": Command("ctl.commands.doctor", "what this kernel can and cannot do, and what to install"),
}


class _GlobalOption(NamedTuple):
    flag: str
    default: object
    metavar: str
    help: str
    repeatable: bool = False
    choices: tuple[str, ...] | None = None


GLOBAL_OPTIONS = (
    _GlobalOption("--config", None, "FILE", "a KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)"),
    _GlobalOption(
        "--node-name", None, "NAME", "this node's name (default: the config's hostnameOverride or the host name)"
    ),
    _GlobalOption(
        "--node-ip", (), "IP", "an address of this node; repeatable (default: those of this network namespace)", True
    ),
    _GlobalOption("--zone", None, "ZONE", "this node's zone (default: that of its Node object)"),
    _GlobalOption(
        "--mode", None, "MODE", f"{' | '.join(MODES)} (default: the config's mode or {DEFAULT_MODE})", choices=MODES
    ),
    _GlobalOption("--state-dir", "/run/hotplane", "DIR", "where state is kept between calls (default: /run/hotplane)"),
    _GlobalOption("--hooks", None, "LIST", "ebpf mode: of connect,tc,xdp (default: all that this kernel can do)"),
    _GlobalOption("--cgroup", None, "DIR|none", "ebpf mode: cgroup v2 directory for connect-time balancing"),
    _GlobalOption("--uplink", (), "GLOB", "ebpf mode: uplink devices; repeatable (default: found by themselves)", True),
    _GlobalOption(
        "--pod-device", (), "GLOB", "ebpf mode: pod devices; repeatable (default: found by themselves)", True
    ),
    _GlobalOption(
        "--masquerade",
        None,
        "client|kube-proxy",
        "ebpf mode: client keeps clients' addresses where the endpoint is local (default); kube-proxy: exact parity",
        choices=("client", "kube-proxy"),
    ),
    _GlobalOption(
        "--connect-time-off-cgroup",
        (),
        "PATH",
        "ebpf mode: a control group whose connections are balanced by their packets; repeatable",
        True,
    ),
    _GlobalOption(
        "--connect-time-off-netns",
        (),
        "COOKIE|NAME|PATH",
        "ebpf mode: the same for a network namespace; repeatable",
        True,
    ),
)


class _Extend(argparse.Action):
    """Append to a tuple; values before and after the command are combined."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), values))


def _add_global_options(parser: argparse.ArgumentParser, *, after_command: bool) -> None:
    """Add the global options; after the command they have no default, so as not to undo those before it."""
    group = parser.add_argument_group("global options")
    for option in GLOBAL_OPTIONS:
        kwargs: dict[str, Any] = {"metavar": option.metavar, "help": option.help}
        kwargs["default"] = argparse.SUPPRESS if after_command else option.default
        if option.choices:
            kwargs["choices"] = option.choices
        if option.repeatable:
            kwargs["action"] = _Extend
            if after_command:
                kwargs["dest"] = _after(option.flag)
        group.add_argument(option.flag, **kwargs)


def _dest(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _after(flag: str) -> str:
    """Return the name under which a repeatable option after the command is stored."""
    return f"_{_dest(flag)}_after"


class _Version(argparse.Action):
    """`--version`, in kube-proxy's form."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(f"hotplane {VERSION}")
        parser.exit()


class _CommandParser(argparse.ArgumentParser):
    """A command's parser: takes the global options too; an option of the command's own with the same name wins."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"conflict_handler": "resolve", "allow_abbrev": False, **kwargs})
        self.add_argument("--version", action=_Version, nargs=0, help=argparse.SUPPRESS)
        _add_global_options(self, after_command=True)


def _command_in(argv: Sequence[str]) -> str | None:
    """Return the command's name: the first argument that is neither a global option nor its value."""
    flags = {option.flag for option in GLOBAL_OPTIONS}
    arguments = iter(argv)
    for argument in arguments:
        if argument in flags:
            next(arguments, None)
        elif not argument.startswith("-"):
            return argument
    return None


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The whole parser with only `command` fully registered; the others are just names with a line of help."""
    parser = argparse.ArgumentParser(
        prog="hotplane",
        description="A Service data plane for Kubernetes nodes. Exit status: 0 done, 1 failed, 2 wrong usage.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and end")
    _add_global_options(parser, after_command=False)
    subparsers = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True, parser_class=_CommandParser
    )
    for name, entry in COMMANDS.items():
        if name == command:
            importlib.import_module(entry.module).register(subparsers)
        else:
            subparsers.add_parser(name, help=entry.help)
    return parser


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse a command line. Raises SystemExit: 2 with a message on stderr for wrong usage, 0 after --help."""
    args = build_parser(_command_in(argv)).parse_args(argv)
    for option in GLOBAL_OPTIONS:
        if option.repeatable:
            after = vars(args).pop(_after(option.flag), ())
            setattr(args, _dest(option.flag), (*getattr(args, _dest(option.flag)), *after))
    return args


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
