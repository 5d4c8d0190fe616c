"""The commands of nftables' text that hotplane's own tables are made of, one a line."""

import re
from typing import NamedTuple

from dataplane.errors import PlaneError

_COMMAND = re.compile(
    r"(?P<verb>add|delete|flush) (?P<what>table|counter|flowtable|set|map|chain|rule|element) "
    r"(?P<family>inet|ip|ip6|arp|bridge|netdev) (?P<table>[\w./-]+)(?: (?P<name>[\w./-]+)(?: (?P<rest>.+))?)?"
)


class Command(NamedTuple):
    """One command. name: "" for a table. rest: declaration, hook, rule or elements, "" if there is none."""

    verb: str
    what: str
    family: str
    table: str
    name: str
    rest: str

    @classmethod
    def of(cls, line: str) -> "Command":
        """Raises PlaneError for what is no such command."""
        match = _COMMAND.fullmatch(line)
        if match is None:
            raise PlaneError(f"hotplane has no such nftables command: {line[:160]}")
        return cls(*match.groups(""))

    @property
    def text(self) -> str:
        """The command as it stood in the text."""
        return " ".join(filter(None, self))
