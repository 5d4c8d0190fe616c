"""Clients in the session affinity tables, as planes read them from the kernel."""

from typing import NamedTuple

from dataplane.plan.types import FrontendKey


class Client(NamedTuple):
    """One remembered client.

    service: `namespace/name:port`, "" if unknown. frontend: None where the plane remembers by Service
    (iptables) or only a hash of the frontend (IPv6 in the nftables mode). address: "" if only a hash of it is kept.
    backend: None when the endpoint it was sent to is gone. seconds_left: None if the kernel does not report it.
    """

    service: str
    frontend: FrontendKey | None
    address: str
    backend: tuple[str, int] | None
    seconds_left: int | None
