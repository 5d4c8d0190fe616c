"""Sysctls of the current network namespace, through /proc/sys."""

from pathlib import Path

from dataplane.errors import HotplaneError

_ROOT = Path("/proc/sys")
ROUTE_LOCALNET = "net/ipv4/conf/all/route_localnet"
"""Enables routing of packets from and to loopback addresses, which node ports on 127.0.0.0/8 need."""


class SysctlError(HotplaneError):
    """A sysctl could not be read or written; the text names it and says why."""


def _path(name: str) -> Path:
    """`net/ipv4/conf/eth0.5/forwarding` or, for names without dots inside a part, `net.ipv4.ip_forward`."""
    return _ROOT / (name if "/" in name else name.replace(".", "/"))


def read(name: str) -> str:
    """Return the value of a sysctl as text, without the newline. Raises SysctlError."""
    try:
        return _path(name).read_text().strip()
    except OSError as error:
        raise SysctlError(f"cannot read the sysctl {name}: {error.strerror}") from error


def write(name: str, value: str | int) -> None:
    """Set a sysctl. Raises SysctlError."""
    try:
        _path(name).write_text(f"{value}\n")
    except OSError as error:
        raise SysctlError(
            f"cannot set the sysctl {name} to {value}: {error.strerror}; root and a writable /proc/sys are needed"
        ) from error


def write_if_present(name: str, value: str | int) -> bool:
    """Set a sysctl that not every kernel has; returns True if this one has it. Raises SysctlError."""
    if not _path(name).exists():
        return False
    write(name, value)
    return True


def ensure(name: str, value: int) -> bool:
    """Set a sysctl unless it has that value already; returns True if it was written. Raises SysctlError."""
    if read(name) == str(value):
        return False
    write(name, value)
    return True
