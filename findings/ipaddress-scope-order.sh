#!/usr/bin/env bash
# Of two link-local addresses that differ in their scope alone (fe80::1%eth0, fe80::1%eth1), Python's ipaddress calls
# each greater than the other. Neither is less, == tells them apart, and functools.total_ordering makes `a > b` of
# "not less, and not equal", `a <= b` of "less, or equal". The library reference: "Address objects can be compared with
# the usual set of comparison operators. Same IPv6 addresses with different scope zone IDs are not equal." So max() of
# the same two depends on their order, a >= b holds where a <= b does not, no order of the two passes for sorted, and
# summarize_address_range() refuses both orders: "last IP address must be greater than first".
#
# Seen with python3 3.11.2 of Debian 12; 3.9, 3.10, 3.12 and 3.13 do the same. Addresses have scopes since 3.9.
#
# Output seen:
#   a == b False, a < b False, b < a False
#   a > b True, b > a True
#   a <= b False, a >= b True
#   max(a, b) fe80::1%eth1, max(b, a) fe80::1%eth0
#   summarize_address_range(a, b) ValueError, (b, a) ValueError
#   without scopes: a > b False, b > a True
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
seen=$(python3 - <<'PYTHON'
from ipaddress import ip_address, summarize_address_range


def summary(first, last):
    try:
        return str(list(summarize_address_range(first, last)))
    except ValueError as error:
        return type(error).__name__


a, b = ip_address("fe80::1%eth0"), ip_address("fe80::1%eth1")
print(f"a == b {a == b}, a < b {a < b}, b < a {b < a}")
print(f"a > b {a > b}, b > a {b > a}")
print(f"a <= b {a <= b}, a >= b {a >= b}")
print(f"max(a, b) {max(a, b)}, max(b, a) {max(b, a)}")
print(f"summarize_address_range(a, b) {summary(a, b)}, (b, a) {summary(b, a)}")
a, b = ip_address("fe80::1"), ip_address("fe80::2")
print(f"without scopes: a > b {a > b}, b > a {b > a}")
PYTHON
)
printf '%s\n' "$seen"
[[ $seen == "a == b False, a < b False, b < a False
a > b True, b > a True
a <= b False, a >= b True
max(a, b) fe80::1%eth1, max(b, a) fe80::1%eth0
summarize_address_range(a, b) ValueError, (b, a) ValueError
without scopes: a > b False, b > a True" ]]
