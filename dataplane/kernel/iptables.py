"""iptables and ip6tables: save and restore, in the current network namespace.

Two variants of the tools exist side by side: *legacy* (the xtables kernel interface, whole tables at once) and
*nft* (the same rules kept as nf_tables expressions).
"""

import enum
import re
import shutil
from pathlib import Path
from typing import Protocol

from dataplane.errors import HotplaneError
from dataplane.kernel.tools import ToolError, run_tool
from dataplane.model.net import Family

# Wait for the lock that all xtables tools share, in all network namespaces: a restore of a big table holds it for
# seconds. kube-proxy waits 5 s and comes again at its next sync; a command that ends has no next one. Its -W (polling
# interval) is ignored by iptables 1.8 and later, with a warning, so it is left out.
_RESTORE_OPTIONS = ("-w", "60", "--noflush", "--counters")
_LOOK_SECONDS, _RESTORE_SECONDS = 120.0, 360.0
"""How long a tool may take; a restore waits a minute for the lock, and 30,000 Services take it another."""

_RIGHTS = re.compile(r"you must be root|xtables\.lock")
_HINT = "; the legacy tools need CAP_NET_ADMIN, CAP_NET_RAW and a writable /run/xtables.lock (docs/migration.md)"
_FAILED_LINE = re.compile(r"line:? (\d+)")


class Variant(enum.Enum):
    """Which implementation of iptables holds the rules."""

    LEGACY = "legacy"
    NFT = "nft"


class IptablesError(HotplaneError):
    """iptables refused: the tool's own message, with the input line that it names."""


class Tables(Protocol):
    """One family's tables, as the iptables plane uses them."""

    family: Family

    def present(self) -> frozenset[str]:
        """Names of the tables that exist already in this network namespace; looking creates none."""

    def save(self, table: str) -> str:
        """`iptables-save -t TABLE`: chain lines, then rules in the tool's canonical form."""

    def restore(self, text: str) -> None:
        """`iptables-restore --noflush`: each `*table ... COMMIT` block is applied whole or not at all, in turn."""


def _tool(family: Family, variant: Variant, verb: str = "") -> str:
    return f"{'iptables' if family is Family.IPV4 else 'ip6tables'}-{variant.value}{verb and '-' + verb}"


def installed(family: Family, variant: Variant) -> bool:
    """True if the tools of this variant are installed."""
    return shutil.which(_tool(family, variant, "restore")) is not None


def _succeeds(*command: str) -> bool:
    try:
        return run_tool(command, seconds=_LOOK_SECONDS).returncode == 0
    except FileNotFoundError:  # tools that are not installed hold no rules
        return False


def default_variant() -> Variant:
    """The variant that holds Service rules in this network namespace already; else legacy, kube-proxy's classic,
    where the tools are installed and the kernel has its nat tables of both families; else nft.

    A process without CAP_SYS_MODULE has them only where somebody loaded ip_tables and ip6_tables before: unlike all
    else, the kernel does not load these two itself. Asking for a legacy table instantiates it in this network
    namespace, so it is asked for only at the end, when it is likely to be used.
    """
    for variant in Variant:
        for family in Family:
            tables = KernelTables(family, variant)
            exists = variant is Variant.NFT or "nat" in tables.present()
            if exists and _succeeds(_tool(family, variant), "-t", "nat", "-S", "KUBE-MARK-MASQ"):
                return variant
    classic = (
        _succeeds(_tool(family, Variant.LEGACY), "-t", "nat", "-S", "POSTROUTING") for family in reversed(Family)
    )
    return Variant.LEGACY if all(classic) else Variant.NFT


class KernelTables:
    """`Tables` of the kernel. The caller's thread decides the network namespace. Root is needed."""

    def __init__(self, family: Family, variant: Variant) -> None:
        self.family = family
        self.variant = variant

    def present(self) -> frozenset[str]:
        if self.variant is Variant.NFT:
            return frozenset(re.findall(r"^\*(\S+)$", self._run("save").decode(), re.MULTILINE))
        # Listing through the tool would instantiate the tables, so ask the kernel which there are.
        names = "ip_tables_names" if self.family is Family.IPV4 else "ip6_tables_names"
        path = Path("/proc/thread-self/net") / names
        return frozenset(path.read_text().split()) if path.exists() else frozenset()

    def save(self, table: str) -> str:
        return self._run("save", "-t", table).decode()

    def restore(self, text: str) -> None:
        self._run("restore", *_RESTORE_OPTIONS, text=text)

    def _run(self, verb: str, *options: str, text: str | None = None) -> bytes:
        tool = _tool(self.family, self.variant, verb)
        try:
            done = run_tool(
                [tool, *options],
                input=None if text is None else text.encode(),
                seconds=_LOOK_SECONDS if text is None else _RESTORE_SECONDS,
            )
        except FileNotFoundError as error:
            raise IptablesError(f"{tool}: {error.strerror}; install the package iptables") from error
        except OSError as error:
            raise IptablesError(f"{tool}: cannot be started ({error.strerror})") from error
        except ToolError as error:
            raise IptablesError(str(error)) from error
        if done.returncode != 0:
            raise IptablesError(_explain(tool, done.returncode, done.stderr.decode(errors="replace"), text))
        return done.stdout


def _explain(tool: str, status: int, stderr: str, text: str | None) -> str:
    """One sentence: the tool, its exit status, what it said, and the input line that it named."""
    said = " ".join(stderr.split()) or "no message"
    found = _FAILED_LINE.search(stderr)
    lines = text.splitlines() if text is not None else []
    named = int(found[1]) if found else 0
    where = f"; the line is: {lines[named - 1]}" if 0 < named <= len(lines) else ""
    hint = _HINT if _RIGHTS.search(said) else ""
    return f"{tool} failed with status {status}: {said}{where}{hint}"
