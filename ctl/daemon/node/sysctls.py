"""The conntrack limits and timeouts of the configuration, set as kube-proxy sets them."""

import os
from pathlib import Path

from ctl.config import Conntrack
from ctl.daemon.log import Log
from dataplane.kernel import sysctl
from dataplane.kernel.sysctl import SysctlError

_HASHSIZE = Path("/sys/module/nf_conntrack/parameters/hashsize")
_MAX = "net/netfilter/nf_conntrack_max"


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
