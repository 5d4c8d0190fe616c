"""Results of probes of this machine, and how probes try commands without side effects."""

import enum
import shutil
import subprocess
from collections.abc import Sequence

import msgspec


class Status(enum.Enum):
    """ok: works. limited: works in part, or could not be tried. missing: does not work."""

    OK = "ok"
    LIMITED = "limited"
    MISSING = "missing"


class Finding(msgspec.Struct, frozen=True):
    """One line of `hotplane doctor`.

    area: what it matters for (system, nftables, iptables, ebpf, lab). detail: what was seen, and for anything but OK
    what follows from it. advice: what to do; empty when there is nothing to do.
    """

    area: str
    check: str
    status: Status
    detail: str = ""
    advice: str = ""


class Trial(msgspec.Struct, frozen=True):
    """Result of a command: worked if it exited 0, else the first line of its error output."""

    worked: bool
    reason: str = ""


TIMEOUT_SECONDS = 20.0


def try_command(command: Sequence[str], text: str = "", *, throwaway_namespace: bool = True) -> Trial:
    """Run a command with `text` as its input, by default in a network namespace that ends with it (needs root)."""
    if shutil.which(command[0]) is None:
        return Trial(False, f"{command[0]} is not installed")
    if throwaway_namespace:
        command = ["unshare", "--net", "--", *command]
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    except OSError as error:
        return Trial(False, f"{command[0]}: {error.strerror}")
    except subprocess.TimeoutExpired:
        return Trial(False, f"no answer within {TIMEOUT_SECONDS:.0f} s")
    if done.returncode == 0:
        return Trial(True)
    said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return Trial(False, said[0] if said else f"exit status {done.returncode}")
