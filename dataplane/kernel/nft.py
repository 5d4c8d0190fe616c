"""libnftables: run one transaction, list a table as JSON, explain what the kernel refused.

One `Nft` holds one libnftables context, whose netlink socket belongs to the network namespace that the thread was
in when the object was made; it stays with that namespace.
"""

import os
import re
from typing import Any

import msgspec
from nftables import Nftables

from dataplane.planes.base import PlaneError

_LOCATION = re.compile(r"^[^\s:]*:\d+:\d+-\d+: ")
_SHOWN = 160

JsonObject = dict[str, Any]


def _around_caret(line: str, carets: str) -> str:
    """The part of an offending line that the carets point at; transaction lines may be very long."""
    start = max(carets.find("^"), 0)
    first = max(start - _SHOWN // 2, 0)
    shown = line[first : first + _SHOWN].strip()
    return shown if len(line) <= _SHOWN else f"... {shown} ..."


def explain_refusal(output: str, limit: int = 5) -> str:
    """libnftables' error text as sentences: at most `limit` reasons, each with the piece of input it is about."""
    lines = output.splitlines()
    reasons: list[str] = []
    for number, line in enumerate(lines):
        if "Error:" not in line and "BUG:" not in line:
            continue
        reason = _LOCATION.sub("", line).removeprefix("Error: ").strip()
        following = lines[number + 1 : number + 3]
        if len(following) == 2 and following[1].strip().startswith("^"):
            reason += f" at: {_around_caret(*following)}"
        reasons.append(reason)
    if not reasons:
        return output.strip() or "no reason given"
    more = len(reasons) - limit
    return "; ".join(reasons[:limit]) + (f"; and {more} more" if more > 0 else "")


class Nft:
    """A libnftables context in the network namespace it was made in. Not for use by two threads at once."""

    def __init__(self) -> None:
        self._context = Nftables()
        # Names of protocols depend on /etc/protocols, which a minimal system lacks; numbers do not.
        self._context.set_numeric_proto_output(True)
        self._context.set_numeric_prio_output(True)
        self._context.set_stateless_output(True)

    def run(self, transaction: str) -> None:
        """Run the commands as one transaction: all of them or none. Raises PlaneError."""
        code, _, errors = self._context.cmd(transaction)
        if code != 0:
            reason = explain_refusal(self._located(transaction) or errors)
            raise PlaneError(f"nftables refused a change, nothing of it was applied: {reason}")

    def _located(self, transaction: str) -> str:
        """The errors of a refused transaction with the lines that they are about, found by a dry run.

        For commands in memory, libnftables prints the first line beside every error; for a file, the right one.
        """
        with os.fdopen(os.memfd_create("transaction"), "w", encoding="utf-8") as file:
            file.write(transaction)
            file.flush()
            self._context.set_dry_run(True)
            try:
                _, _, errors = self._context.cmd_from_file(f"/proc/self/fd/{file.fileno()}")
            finally:
                self._context.set_dry_run(False)
        return str(errors)

    def text(self, command: str) -> str:
        """The text that a `list` command prints. Raises PlaneError."""
        code, output, errors = self._context.cmd(command)
        if code != 0:
            raise PlaneError(f"nftables could not run '{command}': {explain_refusal(errors)}")
        return str(output)

    def listing(self, command: str) -> list[JsonObject]:
        """The objects that a `list` command prints as JSON, without the leading metainfo. Raises PlaneError."""
        self._context.set_json_output(True)
        try:
            output = self.text(command)
        finally:
            self._context.set_json_output(False)
        objects: list[JsonObject] = msgspec.json.decode(output)["nftables"] if output else []
        return [item for item in objects if "metainfo" not in item]

    def tables(self) -> set[tuple[str, str]]:
        """(family word, name) of every table in the namespace."""
        return {(item["table"]["family"], item["table"]["name"]) for item in self.listing("list tables")}
