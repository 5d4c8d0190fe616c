"""Optional Python and Debian packages, and the commands that install them."""

import importlib.util
from collections.abc import Iterable

from dataplane.errors import HotplaneError

_BENCH = "pip install 'hotplane[bench]'"
INSTALL = {
    "numpy": _BENCH,
    "bcc": "apt-get install python3-bpfcc",
    "nftables": "apt-get install python3-nftables",
}
"""Modules by name: the command that installs them."""


class MissingPackage(HotplaneError):
    """A command needs a Python module that this machine lacks. The text says which, and how to install it."""

    def __init__(self, command: str, module: str) -> None:
        super().__init__(f"{command} needs the Python module {module}: {INSTALL[module]}")


def require(command: str, modules: Iterable[str]) -> None:
    """Raise MissingPackage for the first of these modules that is not installed; imports none of them."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingPackage(command, module)
