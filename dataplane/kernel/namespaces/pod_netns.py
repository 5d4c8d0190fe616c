"""Finds the network namespace of a pod by the pod's address, among the named ones of this machine and those of its
processes.

For nodes on which the kubelet's control groups are not in the version 2 hierarchy, and for virtual machines and
sandboxes that have a namespace and no pod's group.
"""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from pyroute2 import IPRoute

from dataplane.kernel.namespaces.netns import NETNS_DIR, netns
from dataplane.kernel.namespaces.netns_cookie import netns_cookie
from dataplane.model.net import canonical_address

_NAMED = (NETNS_DIR, Path("/run/docker/netns"))
_OUT_OF_REACH = (FileNotFoundError, ProcessLookupError, NotADirectoryError, PermissionError)


def cookies_by_address(addresses: Collection[str]) -> dict[str, int]:
    """The cookie of the network namespace that holds each of these addresses, of those that are found. This thread's
    own namespace is left out, and so is what may not be entered (CAP_SYS_ADMIN, CAP_SYS_PTRACE)."""
    found: dict[str, int] = {}
    for path in _namespaces():
        if len(found) == len(addresses):
            break
        try:
            with netns(path):
                held = _addresses().intersection(addresses)
                if held:
                    found |= dict.fromkeys(held, netns_cookie())
        except OSError:
            continue  # it went, or is no network namespace, or somebody else's
    return found


def _namespaces() -> Iterator[str]:
    """A path to each network namespace but this thread's."""
    seen = {os.stat("/proc/thread-self/ns/net").st_ino}
    for path in _paths():
        try:
            number = os.stat(path).st_ino
        except _OUT_OF_REACH:
            continue
        if number not in seen:
            seen.add(number)
            yield path


def _paths() -> Iterator[str]:
    for directory in _NAMED:
        try:
            yield from (str(path) for path in directory.iterdir())
        except _OUT_OF_REACH:
            continue
    yield from (f"/proc/{name}/ns/net" for name in os.listdir("/proc") if name.isdigit())


def _addresses() -> set[str]:
    with IPRoute() as netlink:
        texts = (message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS") for message in netlink.get_addr())
        return {canonical_address(str(text)) for text in texts if text}
