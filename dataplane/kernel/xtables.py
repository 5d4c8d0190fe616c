"""The built-in chains of legacy iptables and ip6tables in a network namespace: which have rules, which drop.

Asked by getsockopt(2), as the tools do (linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h). Only
tables that are there already are asked for (ip_tables_names in /proc/net), since asking for another one would make it,
and load its module.
"""

import ctypes
import errno
import os
import socket
import struct
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from dataplane.errors import HotplaneError
from dataplane.model.net import Family

_GET_INFO, _GET_ENTRIES = 64, 65  # IPT_SO_GET_INFO, IPT_SO_GET_ENTRIES; of IPv6 the same
_INFO = struct.Struct("=32sI5I5III")  # ipt_getinfo: name, valid_hooks, hook_entry, underflow, num_entries, size
_HEAD = struct.Struct("=32sI4x")  # ipt_get_entries: name, size; the entries begin at a multiple of 8
_LEVELS = {Family.IPV4: socket.SOL_IP, Family.IPV6: 41}  # SOL_IPV6
_TARGET_OFFSET = {Family.IPV4: 88, Family.IPV6: 140}
"""Where an entry (ipt_entry, ip6t_entry) has the 16 bits of the offset of its target."""

_CHAIN_NAME = 30
"""Bytes of a chain's name in the entry that it begins with, filled up with zeros (xt_error_target)."""

_VERDICT = struct.Struct("=32xi")  # xt_standard_target: xt_entry_target, verdict
_DROPS = -1  # -NF_DROP - 1
_HOOKS = ("prerouting", "input", "forward", "output", "postrouting")  # enum nf_inet_hooks
_ATTEMPTS = 20
_libc = ctypes.CDLL(None, use_errno=True)


class XtablesError(HotplaneError):
    """The legacy tables cannot be read: which, and why."""


class BuiltinChain(NamedTuple):
    """A built-in chain of a legacy table, by the hook to which it is attached. rules: it has any. drops: it has none
    and its policy is DROP."""

    family: Family
    table: str
    hook: str
    rules: bool
    drops: bool


def builtin_chains(hooks: Collection[str] = _HOOKS) -> Iterator[BuiltinChain]:
    """Yield the chains at these hooks, of every legacy table of this thread's network namespace. Raises
    XtablesError."""
    for family in Family:
        names = _table_names(family)
        if not names:
            continue
        try:
            with socket.socket(family.socket_family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                for name in names:
                    yield from _chains(sock, family, name, hooks)
        except OSError as error:
            raise XtablesError(f"the legacy tables of IPv{family.value} cannot be read: {error.strerror}") from error


def has_chain(family: Family, table: str, chain: str) -> bool:
    """Return whether a legacy table of this thread's network namespace has a chain that somebody made. The whole table
    is read. Raises XtablesError."""
    if table not in _table_names(family):
        return False
    name = chain.encode().ljust(_CHAIN_NAME, b"\0")
    try:
        with socket.socket(family.socket_family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
            return name in _entries(sock, family, table)
    except OSError as error:
        raise XtablesError(f"the legacy table {table} of IPv{family.value} cannot be read: {error.strerror}") from error


def _entries(sock: socket.socket, family: Family, table: str) -> bytes:
    """Return all entries of a table. Raises OSError."""
    for _ in range(_ATTEMPTS):
        *_, size = _INFO.unpack(_ask(sock, family, _GET_INFO, _INFO.pack(table.encode(), *[0] * 13)))
        try:
            return _ask(sock, family, _GET_ENTRIES, _HEAD.pack(table.encode(), size) + bytes(size))[_HEAD.size :]
        except BlockingIOError:  # it has another size by now
            continue
    raise OSError(errno.EAGAIN, f"table {table} keeps changing while it is read")


def _table_names(family: Family) -> list[str]:
    """Return the tables that are there; none where the kernel has no legacy tables of the family."""
    folder = Path("/proc/thread-self/net")
    path = folder / ("ip_tables_names" if family is Family.IPV4 else "ip6_tables_names")
    try:
        return path.read_text().split()
    except FileNotFoundError as error:
        if folder.is_dir():
            return []
        raise XtablesError(f"{folder}: is not there; mount /proc") from error
    except OSError as error:
        raise XtablesError(f"{path}: cannot be read: {error.strerror}") from error


def _chains(sock: socket.socket, family: Family, table: str, wanted: Collection[str]) -> Iterator[BuiltinChain]:
    """Yield the chains of one table; of a table that changes meanwhile as it is at the end. Its entries, which may be
    megabytes, are read only for the policy of a chain without rules."""
    for _ in range(_ATTEMPTS):
        _, valid, *rest = _INFO.unpack(_ask(sock, family, _GET_INFO, _INFO.pack(table.encode(), *[0] * 13)))
        entries, ends, size = rest[:5], rest[5:10], rest[11]
        hooks = [number for number, hook in enumerate(_HOOKS) if valid & 1 << number and hook in wanted]
        held = b""
        if any(entries[number] == ends[number] for number in hooks):
            try:
                asked = _HEAD.pack(table.encode(), size) + bytes(size)
                held = _ask(sock, family, _GET_ENTRIES, asked)[_HEAD.size :]
            except BlockingIOError:  # it has another size by now
                continue
        for number in hooks:
            rules = entries[number] != ends[number]
            drops = not rules and _policy(held, ends[number], family) == _DROPS
            yield BuiltinChain(family, table, _HOOKS[number], rules, drops)
        return
    raise OSError(errno.EAGAIN, f"table {table} keeps changing while it is read")


def _policy(entries: bytes, at: int, family: Family) -> int:
    """Return the verdict of the entry at this offset, which is the one that a chain ends with."""
    (target,) = struct.unpack_from("=H", entries, at + _TARGET_OFFSET[family])
    (verdict,) = _VERDICT.unpack_from(entries, at + target)
    return int(verdict)


def _ask(sock: socket.socket, family: Family, option: int, question: bytes) -> bytes:
    """Call getsockopt with a buffer that holds the question, which socket.getsockopt cannot. Raises OSError."""
    buffer = ctypes.create_string_buffer(question, len(question))
    length = ctypes.c_uint(len(question))
    if _libc.getsockopt(sock.fileno(), _LEVELS[family], option, buffer, ctypes.byref(length)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw
