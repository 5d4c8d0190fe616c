"""`hotplane version`: versions of hotplane and of what it stands on."""

import argparse
import importlib.metadata
import platform
from typing import Any

from ctl import VERSION
from ctl.output import add_output_option, print_records

PACKAGES = ("aiohttp", "cffi", "msgspec", "prometheus_client", "pyroute2", "pyyaml")
_ABSENT = "not installed"


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    parser = subparsers.add_parser(
        "version",
        help="the version of hotplane, of the kernel and of the tools it uses",
        description="The versions that a report of a fault needs. `--version` prints hotplane's alone.",
    )
    add_output_option(parser)


def run(args: argparse.Namespace) -> int:
    """Print one record a component."""
    versions = {
        "hotplane": VERSION,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "bcc": _of_package("bcc"),
        "libnftables": _of_package("nftables"),
        **{name: _of_package(name) for name in PACKAGES},
    }
    if args.output == "table":
        print_records([{"component": k, "version": v} for k, v in versions.items()], "table", ("component", "version"))
    else:
        print_records([versions], args.output, ())
    return 0


def _of_package(name: str) -> str:
    """The version that a Python package says it has."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return _ABSENT
