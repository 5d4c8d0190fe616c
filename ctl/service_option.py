"""`--service NAMESPACE/NAME[:PORT]`, in the one form that every command takes, and what is said of a Service that there
is not."""

import argparse
import difflib
from collections.abc import Collection

from dataplane.errors import HotplaneError, UsageError
from dataplane.planes.decisions import matches

FORM = "NAMESPACE/NAME[:PORT]"
_SHOWN = 3
"""As many Services are suggested."""

_ALIKE = 0.6
"""How alike two names must be, of 1, for one to be a slip for the other."""


def add_service_option(
    parser: argparse.ArgumentParser, text: str = "only this Service", *, repeatable: bool = False
) -> None:
    """Add the option; PORT is the port's name, as `show services` has it. repeatable: its value is a list."""
    if repeatable:
        parser.add_argument("--service", metavar=FORM, help=text, action="append", default=[])
    else:
        parser.add_argument("--service", metavar=FORM, help=text)


def named(asked: str, names: Collection[str], namespace: str | None) -> str:
    """Return the Service that was asked for, with its namespace: that of -n, else `default`, else the only one that has
    the name. names: of Service ports (namespace/name:port). Raises UsageError where several have it."""
    if "/" in asked:
        return asked
    if namespace:
        return f"{namespace}/{asked}"
    name = asked.partition(":")[0]
    found = {service for service in (each.partition(":")[0] for each in names) if service.partition("/")[2] == name}
    if len(found) > 1 and f"default/{name}" not in found:
        raise UsageError(f"there are Services {', '.join(sorted(found))}: name one with its namespace")
    (home,) = {service.partition("/")[0] for service in found} if len(found) == 1 else {"default"}
    return f"{home}/{asked}"


def require_service(asked: str, names: Collection[str]) -> None:
    """Raise HotplaneError if none of the Service ports (namespace/name:port) is the Service, or the Service port, that
    was asked for, with what was probably meant."""
    if not any(matches(name, asked) for name in names):
        raise HotplaneError(f"--service {asked}: there is no such Service here{_meant(asked, names)}")


def _meant(asked: str, names: Collection[str]) -> str:
    services = sorted({name.partition(":")[0] for name in names})
    service, _, port = asked.partition(":")
    if service in services:
        ports = sorted(name.partition(":")[2] for name in names if matches(name, service))
        return f": Service {service} has no port {port!r}, only {', '.join(map(repr, ports))}"
    names_alone = sorted({each.partition("/")[2] for each in services})
    alike = difflib.get_close_matches(service.rpartition("/")[2], names_alone, _SHOWN, _ALIKE)
    near = [each for name in alike for each in services if each.partition("/")[2] == name]
    if near:
        return f"; did you mean {' or '.join(near[:_SHOWN])}?"
    form = "" if "/" in asked else f"; write {FORM}"
    return f"{form}; show services lists them"
