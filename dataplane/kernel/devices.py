"""Names of network devices, where only their indexes are told."""

import socket


def device_name(index: int) -> str:
    """The name of a device of this thread's network namespace, "" for none (0) and for one that is gone."""
    try:
        return socket.if_indextoname(index) if index else ""
    except OSError:
        return ""
