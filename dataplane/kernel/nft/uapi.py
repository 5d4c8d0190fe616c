"""Names of linux/netfilter/nf_tables.h: operations, attributes and flags of its netlink messages.

Attribute headers are in host byte order, numbers inside attributes in network byte order.
"""

import enum

from dataplane.kernel.netlink.netlink import attribute

SUBSYSTEM = 10  # NFNL_SUBSYS_NFTABLES
NESTED = 0x8000  # NLA_F_NESTED

FAMILIES = {"inet": 1, "ip": 2, "arp": 3, "netdev": 5, "bridge": 7, "ip6": 10}
"""NFPROTO_* of each family keyword (linux/netfilter.h)."""


class Operation(enum.IntEnum):
    """NFT_MSG_*."""

    NEW_TABLE = 0
    GET_TABLE = 1
    DELETE_TABLE = 2
    NEW_CHAIN = 3
    GET_CHAIN = 4
    DELETE_CHAIN = 5
    NEW_RULE = 6
    GET_RULE = 7
    DELETE_RULE = 8
    NEW_SET = 9
    GET_SET = 10
    DELETE_SET = 11
    NEW_ELEMENTS = 12
    GET_ELEMENTS = 13
    DELETE_ELEMENTS = 14
    NEW_OBJECT = 18
    GET_OBJECT = 19
    NEW_FLOWTABLE = 22
    GET_FLOWTABLE = 23
    DELETE_FLOWTABLE = 24

    @property
    def kind(self) -> int:
        """The type of its messages."""
        return SUBSYSTEM << 8 | self


TABLE, NAME = 1, 2
"""NFTA_{CHAIN,RULE,SET,SET_ELEM_LIST,OBJ,FLOWTABLE}_TABLE and NFTA_TABLE_NAME; NFTA_{SET,OBJ,FLOWTABLE}_NAME and
NFTA_SET_ELEM_LIST_SET."""


class Chain(enum.IntEnum):
    """NFTA_CHAIN_*."""

    NAME = 3
    HOOK = 4
    POLICY = 5
    USE = 6
    TYPE = 7


class Rule(enum.IntEnum):
    """NFTA_RULE_*."""

    CHAIN = 2
    EXPRESSIONS = 4
    USERDATA = 7


class Flowtable(enum.IntEnum):
    """NFTA_FLOWTABLE_*."""

    HOOK = 3
    FLAGS = 7


class FlowtableHook(enum.IntEnum):
    """NFTA_FLOWTABLE_HOOK_*, in Flowtable.HOOK."""

    NUMBER = 1
    PRIORITY = 2
    DEVICES = 3


class Set(enum.IntEnum):
    """NFTA_SET_*."""

    FLAGS = 3
    KEY_TYPE = 4
    KEY_LENGTH = 5
    DATA_TYPE = 6
    DATA_LENGTH = 7
    POLICY = 8
    DESCRIPTION = 9
    ID = 10
    TIMEOUT = 11
    GC_INTERVAL = 12
    USERDATA = 13
    OBJECT_TYPE = 15
    EXPRESSION = 17
    EXPRESSIONS = 18
    COUNT = 20


class Element(enum.IntEnum):
    """NFTA_SET_ELEM_*, and beside them where their list is in a message (NFTA_SET_ELEM_LIST_*)."""

    KEY = 1
    DATA = 2
    FLAGS = 3
    EXPIRATION = 5
    USERDATA = 6
    KEY_END = 10


DEVICE_NAME = 1  # NFTA_DEVICE_NAME
FLOWTABLE_COUNTER = 0x2  # NFT_FLOWTABLE_COUNTER
ELEMENT_LIST, ELEMENT_LIST_SET_ID = 3, 4
LIST_ELEMENT = 1  # NFTA_LIST_ELEM
DATA_VALUE, DATA_VERDICT = 1, 2
VERDICT_CODE, VERDICT_CHAIN = 1, 2
GOTO = -4 & 0xFFFFFFFF  # NFT_GOTO
ANONYMOUS, MAP, DYNAMIC = 0x1, 0x8, 0x10 | 0x20  # NFT_SET_ANONYMOUS; NFT_SET_MAP; NFT_SET_TIMEOUT, NFT_SET_EVAL
INTERVAL_END = 1  # NFT_SET_ELEM_INTERVAL_END


def text(kind: int, value: str) -> bytes:
    """An attribute that holds a name."""
    return attribute(kind, value.encode() + b"\0")


def number(kind: int, value: int, width: int = 4) -> bytes:
    """An attribute that holds a number, negative ones included."""
    return attribute(kind, (value & (1 << 8 * width) - 1).to_bytes(width, "big"))


def nested(kind: int, *parts: bytes) -> bytes:
    """An attribute that holds attributes."""
    return attribute(kind | NESTED, b"".join(parts))
