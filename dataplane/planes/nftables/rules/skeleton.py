"""The constant part of hotplane's table: sets, maps, base chains and the few chains that every Service shares.

It depends only on the node's settings. Its commands may be run over an existing table of the same version: sets and
maps stay as they are, chains get exactly these rules.
"""

import ipaddress
from collections.abc import Iterable

from dataplane.model.net import Family, family_of, is_loopback
from dataplane.planes.nftables.rules import flowtable
from dataplane.planes.nftables.rules.flowtable import flowtable_objects, flowtable_rules
from dataplane.planes.nftables.rules.refusals import (
    IN_CHANGE,
    NO_ENDPOINT,
    POLICY_DROP,
    REFUSALS,
    SOURCE_RANGE,
    UNALLOCATED,
    UNKNOWN_PORT,
    refusal_chains,
)
from dataplane.planes.nftables.rules.syntax import (
    BY_SOURCE_ACTION,
    CLEAR_NUMBER,
    DROP_ACTION,
    HAS_NUMBER,
    LAST,
    REJECT_ACTION,
    RESTRICTED_ACTION,
    STRAY_RULE,
    VERSION_CHAIN,
    Kind,
    Syntax,
    number_text,
)
from dataplane.policy.node import NodeConfig

BASE_CHAINS = {
    "prerouting": "type nat hook prerouting priority -100; policy accept;",
    "output": "type nat hook output priority -100; policy accept;",
    "mark-hairpin": "type nat hook postrouting priority 98; policy accept;",
    "postrouting": "type nat hook postrouting priority 100; policy accept;",
    # The last nat chains of their hooks: they see the first packet of a connection that no proxy has translated.
    "unclaimed-prerouting": f"type nat hook prerouting priority {LAST}; policy accept;",
    "unclaimed-output": f"type nat hook output priority {LAST}; policy accept;",
    flowtable.CHAIN: flowtable.HOOK,
}
"""Those that a table may have: not each node's settings want all."""


def _sets(syntax: Syntax, kind: Kind) -> dict[str, str]:
    """Return the maps and sets of one kind of frontend key: name to declaration.

    Numbers of backends have the type of a packet priority, in which they travel. Declared by `typeof` with ports in
    it, nftables 1.0.6 would either refuse a rule for a map that exists (`th dport`) or silently make the rule match
    TCP alone (`tcp dport`).
    """
    actions = f"map type {kind.key_type} : classid;"
    backend = f"{syntax.address_type} . inet_service"
    return {
        **dict.fromkeys((kind.first, kind.pod, kind.node, kind.outside), actions),
        kind.long_names: f"set type {kind.key_type};",
        kind.endpoints: f"map type {kind.key_type} . classid : {backend};",
        kind.slots: f"map type {kind.key_type} . classid : classid;",
        kind.slot_endpoints: f"map type {kind.key_type} . classid : {backend};",
        kind.local_slot_endpoints: f"map type {kind.key_type} . classid : {backend};",
    }


def declarations(syntax: Syntax) -> dict[str, str]:
    """Return every constant set and map: name to `set|map` and its declaration."""
    key, address = syntax.services.key_type, syntax.address_type
    return {
        **_sets(syntax, syntax.services),
        **_sets(syntax, syntax.nodeports),
        "shapes": "map type classid : verdict;",
        "restricted": f"map type {key} : classid;",
        "cluster_ips": f"set type {address};",
        "service_cidrs": f"set type {address}; flags interval;",
        "hairpin": f"set type {address} . {address};",
    }


def _one_of(values: Iterable[str]) -> str:
    """Return a single value, or an anonymous set of several."""
    texts = list(values)
    return texts[0] if len(texts) == 1 else f"{{ {', '.join(texts)} }}"


def collapsed(cidrs: Iterable[str], family: Family) -> list[str]:
    """Return CIDRs of a family without overlaps, which interval sets reject."""
    mine = [cidr for cidr in cidrs if family_of(cidr) is family]
    if family is Family.IPV4:
        return [str(n) for n in ipaddress.collapse_addresses(ipaddress.IPv4Network(c, strict=False) for c in mine)]
    return [str(n) for n in ipaddress.collapse_addresses(ipaddress.IPv6Network(c, strict=False) for c in mine)]


def _pod_match(syntax: Syntax, family: Family, node: NodeConfig) -> str:
    """Return the match of packets from pods; "" if pods of this family cannot be detected."""
    detector = node.detector
    if detector.interface:
        return f'iifname "{detector.interface}{"*" if detector.interface_is_prefix else ""}"'
    cidrs = collapsed(detector.cidrs, family)
    return f"{syntax.ip} saddr {_one_of(cidrs)}" if cidrs else ""


def _node_port_rules(syntax: Syntax, family: Family, node: NodeConfig) -> list[str]:
    """Return the rules for node ports. Loopback only on request and never in IPv6 (kube-proxy's localhostNodePorts)."""
    look_up = f"meta priority set {syntax.nodeports.key} map @{syntax.nodeports.first} goto nodeport-dispatch"
    settings = node.nodeports
    rules = []
    if settings.any_local:
        rules.append(f"fib daddr type local {syntax.ip} daddr != {syntax.loopback} {look_up}")
    else:
        addresses = [a for a in settings.addresses if family_of(a) is family and not is_loopback(a)]
        if addresses:
            rules.append(f"{syntax.ip} daddr {_one_of(addresses)} {look_up}")
    if settings.loopback and family is Family.IPV4:
        rules.append(f"{syntax.ip} daddr {syntax.loopback} {look_up}")
    return rules


def _by_source(syntax: Syntax, kind: Kind, pod: str) -> list[str]:
    """Return the rules that dispatch by source of the packet, pods first (see policy.node.Source)."""
    rules = [f"{pod} meta priority set {kind.key} map @{kind.pod} goto forward"] if pod else []
    return [
        *rules,
        f"fib saddr type local meta priority set {kind.key} map @{kind.node} goto forward",
        f"meta priority set {kind.key} map @{kind.outside} goto forward",
        f"goto {IN_CHANGE.chain}",
    ]


def chains(syntax: Syntax, family: Family, node: NodeConfig) -> dict[str, list[str]]:
    """Return every constant chain with its rules, except `restricted`, in an order in which they can be added.

    Only nat chains, which the first packet of a connection passes and no other. Addresses that no frontend of ours
    claims are refused in the last of them, because another proxy may yet translate them; an address that the node
    itself holds is never among them.

    A frontend's element holds a number, not a verdict: the kernel walks every element of every verdict map again
    whenever a transaction adds a jump (5 ms for 30,000), and `shapes`, the only verdict map, has few. Where a number is
    looked at, `shapes` comes first, since most are in there; what else it may be is asked after a miss. Each chain and
    each expression on that way counts (docs/cost-model.md).
    """
    mark = node.masquerade_mark
    pod = _pod_match(syntax, family, node)
    reject, drop, by_source, restricted = map(
        number_text, (REJECT_ACTION, DROP_ACTION, BY_SOURCE_ACTION, RESTRICTED_ACTION)
    )
    to_shape = "meta priority vmap @shapes"
    to_source = f"meta priority {by_source} goto {syntax.services.by_source}"
    entrance = [
        # A packet that carries another one inside (VXLAN) begins with that one's priority, and with what a program set.
        CLEAR_NUMBER,
        f"meta priority set {syntax.services.key} map @{syntax.services.first} {to_shape}",
        f"{HAS_NUMBER} goto dispatch",
        *_node_port_rules(syntax, family, node),
    ]
    return {
        VERSION_CHAIN: [],
        **refusal_chains(),
        "mark-packet": [f"meta mark set meta mark or {mark:#x}"],
        "mark-off-pod": [*([f"{pod} return"] if pod else []), "goto mark-packet"],
        syntax.services.by_source: _by_source(syntax, syntax.services, pod),
        syntax.nodeports.by_source: _by_source(syntax, syntax.nodeports, pod),
        "refuse": [
            STRAY_RULE,
            f"meta priority {reject} goto {NO_ENDPOINT.chain}",
            f"meta priority {drop} goto {POLICY_DROP.chain}",
            f"goto {IN_CHANGE.chain}",
        ],
        "forward": [to_shape, "goto refuse"],
        "unrestricted": [to_shape, to_source, "goto refuse"],
        "dispatch": [to_source, f"meta priority {restricted} goto restricted", "goto refuse"],
        "nodeport-dispatch": [to_shape, f"meta priority {by_source} goto {syntax.nodeports.by_source}", "goto refuse"],
        "prerouting": entrance,
        "output": entrance,
        **_source_chains(syntax, mark),
        **dict.fromkeys(("unclaimed-prerouting", "unclaimed-output"), _unclaimed(syntax, node)),
        **flowtable_rules(node),
    }


def _source_chains(syntax: Syntax, mark: int) -> dict[str, list[str]]:
    """Return the chains by which sources are masqueraded. mark: of packets that are to be."""
    return {
        # By the mark, before the ebpf mode keeps what is marked off its own ports at 99 (planes.ebpf.flows.port_split).
        "mark-hairpin": [
            # The priority of a connection's first packet, the only one that comes here, carries a number; it is cleared
            # so that later readers of the priority do not see it, and before any chain that sets a source, after which
            # the kernel asks no other. Other priorities are not changed.
            CLEAR_NUMBER,
            f"ct status dnat {syntax.ip} saddr . {syntax.ip} daddr @hairpin jump mark-packet",
        ],
        "postrouting": [
            f"meta mark & {mark:#x} == {mark:#x} meta mark set meta mark & {~mark & 0xFFFFFFFF:#x} "
            "masquerade fully-random",
        ],
    }


def _unclaimed(syntax: Syntax, node: NodeConfig) -> list[str]:
    """Return the rules that refuse new connections to addresses and ports that nobody serves."""
    if not node.reject_unknown_ports:
        return []
    new = "ct state new fib daddr type != local"
    return [
        f"{syntax.ip} daddr @cluster_ips {new} goto {UNKNOWN_PORT.chain}",
        f"{syntax.ip} daddr @service_cidrs {new} goto {UNALLOCATED.chain}",
    ]


def restricted_rules(syntax: Syntax, prefixes: Iterable[int]) -> list[str]:
    """Return the rules of the chain that checks source ranges: one hash lookup for each prefix length in use.

    An interval set over (frontend, source) would be one lookup, but its whole content is copied in each transaction
    that touches it.
    """
    key = syntax.services.key
    let_in = f"meta priority set {key} map @restricted goto unrestricted"
    rules = [
        f"{key} . {syntax.ip} saddr & {_mask(syntax, prefix)} @{ranges_name(prefix)} {let_in}"
        for prefix in sorted(prefixes, reverse=True)
    ]
    return [*rules, f"goto {SOURCE_RANGE.chain}"]


def _mask(syntax: Syntax, prefix: int) -> str:
    network = ipaddress.ip_network(f"{'0.0.0.0' if syntax.bits == 32 else '::'}/{prefix}")
    return str(network.netmask)


def rewrite_restricted(syntax: Syntax, prefixes: Iterable[int]) -> str:
    """Return commands that make the check of source ranges use sets of exactly these prefix lengths."""
    return rewrite_chain(syntax, "restricted", restricted_rules(syntax, prefixes))


def ranges_name(prefix: int) -> str:
    """Return the name of the set of source ranges of one prefix length."""
    return f"ranges-{prefix}"


def ranges_declaration(syntax: Syntax) -> str:
    """Return the declaration of a set of source ranges: frontend and network address."""
    return f"set type {syntax.services.key_type} . {syntax.address_type};"


def add_ranges(syntax: Syntax, prefix: int) -> str:
    """Return the command that adds the set of one prefix length, if it does not exist."""
    what, _, specification = ranges_declaration(syntax).partition(" ")
    return f"add {what} {syntax.target(ranges_name(prefix))} {{ {specification} }}\n"


def rewrite_chain(syntax: Syntax, name: str, rules: Iterable[str]) -> str:
    """Return commands that give an existing chain exactly these rules."""
    target = syntax.target(name)
    return f"flush chain {target}\n" + "".join(f"add rule {target} {rule}\n" for rule in rules)


def skeleton_objects(syntax: Syntax, family: Family, node: NodeConfig) -> str:
    """Return commands that add the table, its sets, maps and empty chains, where they do not exist."""
    lines = [f"add table {syntax.ip} {syntax.table}"]
    lines += [f"add counter {syntax.target(refusal.reason)}" for refusal in REFUSALS]
    for name, declaration in declarations(syntax).items():
        what, _, specification = declaration.partition(" ")
        lines.append(f"add {what} {syntax.target(name)} {{ {specification} }}")
    captures = [refusal.capture_chain for refusal in REFUSALS]
    for name in [*captures, *chains(syntax, family, node), "restricted"]:
        hook = f" {{ {BASE_CHAINS[name]} }}" if name in BASE_CHAINS else ""
        lines.append(f"add chain {syntax.target(name)}{hook}")
    return "\n".join([*lines, *flowtable_objects(syntax, node)]) + "\n"


def skeleton_rules(syntax: Syntax, family: Family, node: NodeConfig, *, active: bool = True) -> str:
    """Return commands that write the rules of every constant chain except `restricted`. If not `active`, base chains
    get no rules, so that no packet enters the others."""
    return "".join(
        rewrite_chain(syntax, name, rules if active or name not in BASE_CHAINS else ())
        for name, rules in chains(syntax, family, node).items()
    )


def activation(syntax: Syntax, family: Family, node: NodeConfig) -> str:
    """Return commands that write the rules of the base chains."""
    wanted = chains(syntax, family, node)
    return "".join(rewrite_chain(syntax, name, wanted[name]) for name in wanted if name in BASE_CHAINS)


def set_service_cidrs(syntax: Syntax, family: Family, cidrs: Iterable[str]) -> str:
    """Return commands that give the set of service CIDRs exactly these elements."""
    target = syntax.target("service_cidrs")
    wanted = collapsed(cidrs, family)
    add = f"add element {target} {{ {', '.join(wanted)} }}\n" if wanted else ""
    return f"flush set {target}\n{add}"
