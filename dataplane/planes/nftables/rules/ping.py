"""The constant part of the tables that answer pings."""

from dataplane.model.net import Family
from dataplane.planes.nftables.rules.syntax import Syntax
from dataplane.policy.node import NodeConfig

COUNTER = "answered_ping"
"""Name of the counter of requests, and of the reason under which people see it."""
_SUFFIX = "-ping"
_REQUESTS = {Family.IPV4: "icmp type echo-request", Family.IPV6: "icmpv6 type echo-request"}
_RULES = """flush chain {target} count-in
flush chain {target} count-out
flush chain {target} prerouting
flush chain {target} requests
flush chain {target} output
add rule {target} count-in iifname != "lo" {request} jump requests
add rule {target} count-out {request} jump requests
add rule {target} requests {ip} daddr @answered counter name {counter} accept
add rule {target} requests ct status dnat ct reply {ip} saddr {address} reject
add rule {target} prerouting {mine} dnat to {address}
add rule {target} output {mine} dnat to {address}
"""
# Counted before it is translated: the nat chains see the first request of a series alone. For the same reason a series
# whose address leads nowhere any more is refused there.
_CHAINS = {
    "count-in": "filter hook prerouting priority -150",
    "count-out": "filter hook output priority -150",
    "prerouting": "nat hook prerouting priority -101",
    "output": "nat hook output priority -101",
}


def ping_table(syntax: Syntax) -> str:
    """`family table` of a family."""
    return f"{syntax.own}{_SUFFIX}"


def ping_objects(syntax: Syntax) -> str:
    """Commands that add the table, its set and its empty chains; fine over an existing one."""
    target = ping_table(syntax)
    text = f"add table {target}\nadd counter {target} {COUNTER}\n"
    text += f"add set {target} answered {{ type {syntax.address_type}; }}\nadd chain {target} requests\n"
    return text + "".join(f"add chain {target} {name} {{ type {what}; }}\n" for name, what in _CHAINS.items())


def ping_rules(syntax: Syntax, family: Family, node: NodeConfig) -> str:
    """Commands that give the chains their rules; a family in which the node has no address answers nothing."""
    address = node.primary(family)
    names = {"target": ping_table(syntax), "ip": syntax.ip, "request": _REQUESTS[family], "counter": COUNTER}
    text = _RULES.format(**names, mine=f"{_REQUESTS[family]} {syntax.ip} daddr @answered", address=address)
    return text if address else "".join(f"{line}\n" for line in text.splitlines() if line.startswith("flush"))
