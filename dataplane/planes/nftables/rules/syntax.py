"""The parts of nftables text that differ between IPv4 and IPv6, and the names used in hotplane's tables."""

from typing import NamedTuple

from dataplane.model.net import Family

VERSION = 3
"""Version of the skeleton: raise it when a set, a map or a chain changes its shape; an older table is then replaced
(see `standby`)."""

VERSION_CHAIN = f"version-{VERSION}"

LAST = 2147483647
"""The highest priority that a chain may have."""

STRAY_RULE = "tcp flags & (fin | syn | rst | ack) != syn goto stray-packet"
"""Matches TCP packets that open no connection; comes before a connection is forwarded or refused."""

LOCAL_OFFSET = 32768
"""Index of the first backend of a Local set; a Cluster set starts at 0. So a set holds at most this many backends."""

REJECT_ACTION, DROP_ACTION, BY_SOURCE_ACTION, RESTRICTED_ACTION = 1, 2, 3, 4
"""Values of a frontend's element that are actions; all other values are numbers of shapes."""

COMMENT_LIMIT = 120
"""Longest comment put on an element (the kernel's limit is 128, a Service port's name may have 143 characters)."""


HAS_NUMBER = "meta priority & ffff:0 == ffff:0"
"""Matches packets whose priority is a number of `number_text`. As a mask, since the kernel has a shorter way for that
than for `>=`."""

CLEAR_NUMBER = f"{HAS_NUMBER} meta priority set 0:0"
"""Has such a packet carry no number any more; other priorities are not changed."""


def number_text(number: int) -> str:
    """A number below 65536 as a packet priority, the field in which it travels from one rule to the next: in a range
    (ffff:0 and above) that no queueing discipline uses."""
    return f"ffff:{number:x}"


class Kind(NamedTuple):
    """Names of the maps of one kind of frontend key. `key`: the packet fields that make it; `key_type`: their types."""

    key: str
    key_type: str
    first: str
    pod: str
    node: str
    outside: str
    by_source: str
    long_names: str
    endpoints: str
    slots: str
    slot_endpoints: str
    local_slot_endpoints: str
    shape_prefix: str
    affinity_prefix: str


class Syntax(NamedTuple):
    """Names and keywords of one family in nftables text. `ip`: the family keyword of tables, matches and dnat."""

    ip: str
    address_type: str
    table: str
    services: Kind
    nodeports: Kind
    loopback: str
    bits: int

    @property
    def own(self) -> str:
        """`family table`."""
        return f"{self.ip} {self.table}"

    def target(self, name: str) -> str:
        """`family table name`, as commands want it."""
        return f"{self.ip} {self.table} {name}"

    def kind(self, nodeport: bool) -> Kind:
        """The maps for node ports or for frontends with an address."""
        return self.nodeports if nodeport else self.services


def _kind(key: str, key_type: str, first: str, single: str, shape_prefix: str, affinity_prefix: str) -> Kind:
    return Kind(
        key=key,
        key_type=key_type,
        first=first,
        pod=f"{first}_pod",
        node=f"{first}_node",
        outside=f"{first}_outside",
        by_source=f"{single}by-source",
        long_names=f"{first}_long_names",
        endpoints=f"{single.replace('-', '_')}endpoints",
        slots=f"{single.replace('-', '_')}slots",
        slot_endpoints=f"{single.replace('-', '_')}slot_endpoints",
        local_slot_endpoints=f"{single.replace('-', '_')}local_slot_endpoints",
        shape_prefix=shape_prefix,
        affinity_prefix=affinity_prefix,
    )


def syntax_for(family: Family, table: str) -> Syntax:
    """Return the syntax of a family for a table name."""
    ip = "ip" if family is Family.IPV4 else "ip6"
    address_type = "ipv4_addr" if family is Family.IPV4 else "ipv6_addr"
    port, port_type = "meta l4proto . th dport", "inet_proto . inet_service"
    return Syntax(
        ip=ip,
        address_type=address_type,
        table=table,
        services=_kind(f"{ip} daddr . {port}", f"{address_type} . {port_type}", "services", "", "lb", "affinity"),
        nodeports=_kind(port, port_type, "nodeports", "nodeport-", "np", "nodeport-affinity"),
        loopback="127.0.0.0/8" if family is Family.IPV4 else "::1",
        bits=family.bits,
    )
