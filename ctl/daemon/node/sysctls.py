"""The conntrack limits and timeouts of the configuration, set as kube-proxy sets them; and a watch over them."""

import os
from collections.abc import Callable
from pathlib import Path

from ctl.config import Conntrack
from ctl.daemon.log import Log
from dataplane.kernel import sysctl
from dataplane.kernel.sysctl import SysctlError

_HASHSIZE = Path("/sys/module/nf_conntrack/parameters/hashsize")
_MAX = "net/netfilter/nf_conntrack_max"


_FORWARDING = ("net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding")


def wanted(conntrack: Conntrack, cpus: int) -> dict[str, int]:
    """Sysctl name -> value; what is 0 in the configuration stays as the kernel has it."""
    values = {
        "net/netfilter/nf_conntrack_tcp_timeout_established": int(conntrack.tcp_established_timeout),
        "net/netfilter/nf_conntrack_tcp_timeout_close_wait": int(conntrack.tcp_close_wait_timeout),
        "net/netfilter/nf_conntrack_udp_timeout": int(conntrack.udp_timeout),
        "net/netfilter/nf_conntrack_udp_timeout_stream": int(conntrack.udp_stream_timeout),
        "net/netfilter/nf_conntrack_tcp_be_liberal": int(conntrack.tcp_be_liberal),
    }
    if conntrack.max_per_core > 0:
        values[_MAX] = max(conntrack.max_per_core * cpus, conntrack.min)
    return {name: value for name, value in values.items() if value > 0}


def apply_sysctls(conntrack: Conntrack, log: Log) -> None:
    """Set what differs; what cannot be set is said and left (a container may see /proc/sys read-only).

    The limit and its hash table belong to the whole machine and are writable in the first network namespace only.
    """
    for name, value in wanted(conntrack, os.cpu_count() or 1).items():
        if name == _MAX and not os.access(f"/proc/sys/{name}", os.W_OK):
            continue
        try:
            if sysctl.ensure(name, value):
                log.info("set sysctl", name=name, value=value)
                if name == _MAX:
                    _grow_table(value // 4, log)
        except SysctlError as error:
            log.warning("cannot set sysctl", reason=error)


def _grow_table(buckets: int, log: Log) -> None:
    """A limit wants a hash table of a quarter of it (kube-proxy's rule)."""
    try:
        if int(_HASHSIZE.read_text()) < buckets:
            _HASHSIZE.write_text(f"{buckets}\n")
            log.info("set conntrack hash table", buckets=buckets)
    except OSError as error:
        log.warning("cannot set the size of conntrack's hash table", reason=error.strerror)


class SysctlWatch:
    """Tells when another program changes sysctls that the configuration sets, or takes away the node's forwarding.

    They stay as they are found, as with kube-proxy: who changes them by hand means it. conntrack: of the configuration.
    Made after `apply_sysctls`: what is otherwise by then was said there, or was never on.
    """

    def __init__(self, conntrack: Callable[[], Conntrack], log: Log) -> None:
        self._conntrack, self._log = conntrack, log
        self._were: set[str] = set()
        self._told: dict[str, int] = {}
        for name, value in self._wanted().items():
            self._is(name, value)

    async def look(self) -> None:
        """Compare them with what they were to be."""
        for name, value in self._wanted().items():
            if self._is(name, value):
                if self._told.pop(name, None) is not None:
                    self._log.info("a sysctl is again as it was set", name=name, value=value)
            elif name in self._were and self._told.get(name) != value:
                self._told[name] = value
                self._log.warning(
                    "another program changed a sysctl",
                    name=name,
                    wanted=value,
                    value=_value(name),
                    reason=_effect(name),
                )

    def _wanted(self) -> dict[str, int]:
        return {**dict.fromkeys(_FORWARDING, 1), **wanted(self._conntrack(), os.cpu_count() or 1)}

    def _is(self, name: str, value: int) -> bool:
        """Whether a sysctl has this value now; remembers that it had."""
        right = _value(name) == str(value)
        if right:
            self._were.add(name)
        return right


def _value(name: str) -> str:
    """A sysctl's value, "" where there is none."""
    try:
        return sysctl.read(name)
    except SysctlError:
        return ""


def _effect(name: str) -> str:
    if name in _FORWARDING:
        return f"packets of pods are not forwarded to other nodes or pods; sysctl -w {name.replace('/', '.')}=1"
    return "the configuration asks for the other value; SIGHUP or a restart of hotplane sets it again"
