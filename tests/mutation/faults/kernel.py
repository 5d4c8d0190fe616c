"""Faults in the netlink and bpf(2) handles."""

from tests.mutation.mutation import Mutation

KERNEL = (
    Mutation(
        "netlink attributes are not padded",
        "netlink.py",
        "return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload + bytes(-len(payload) % 4)",
        "return _ATTRIBUTE.pack(len(payload) + 4, kind) + payload",
        ("test_nftables_bytes.py::test_what_is_written_is_what_nft_lists",),
    ),
    Mutation(
        "a dump that was interrupted is taken for whole",
        "netlink.py",
        "return None if interrupted else found",
        "return found",
        ("test_nftables_bytes.py::test_a_dump_between_whose_pieces_a_change_came_starts_again",),
    ),
    Mutation(
        "a refusal in the middle of a transaction is not heard",
        "nfnetlink.py",
        "if isinstance(answer, Refused):",
        "if isinstance(answer, Refused) and number == first:",
        ("test_nftables_bytes.py::test_a_refused_transaction_leaves_nothing_and_names_the_element",),
    ),
    Mutation(
        "entries of conntrack are deleted by the client's side",
        "kernel/netlink/conntrack.py",
        "parts = _one_side(ORIGINAL, DESTINATION, flows.address, flows.port)",
        "parts = _one_side(ORIGINAL, SOURCE, flows.address, flows.port)",
        ("test_conntrack.py::test_exactly_the_named_flows_go",),
    ),
    Mutation(
        "conntrack entries of IPv6 are deleted by the kernel's filter",
        "kernel/netlink/conntrack.py",
        "if family is Family.IPV4 and all(map(_can_be_filtered, group))",
        "if all(map(_can_be_filtered, group))",
        ("test_conntrack.py::test_exactly_the_named_flows_go",),
    ),
    Mutation(
        "all but some: the kept ones go, too",
        "kernel/netlink/conntrack.py",
        "return not flows.keep and (bool(flows.address) or flows.backend is not None)",
        "return bool(flows.address) or flows.backend is not None",
        ("test_conntrack.py::test_all_but_some_and_a_port_at_any_address",),
    ),
    Mutation(
        "connections without a translated destination are listed",
        "conntrack_list.py",
        "for family, protocol, entry in _entries(_IPS_DST_NAT):",
        "for family, protocol, entry in _entries(0xFFFF):",
        ("test_conntrack.py::test_a_listing_holds_what_it_is_asked_for_and_little_else",),
    ),
    Mutation(
        "a chain without rules that drops does not count",
        "foreign_chains.py",
        'return "has rules" if rules else "has the policy drop" if drops else ""',
        'return "has rules" if rules else ""',
        ("test_foreign_chains.py::test_chains_that_count",),
    ),
    Mutation(
        "what iptables-nft made and nobody filled counts",
        "foreign_chains.py",
        'return "has rules" if rules else "has the policy drop" if drops else ""',
        'return "has rules"',
        ("test_foreign_chains.py::test_chains_that_do_not_count",),
    ),
    Mutation(
        "the policy of a legacy chain is read where its rules begin",
        "xtables.py",
        "drops = not rules and _policy(held, ends[number], family) == _DROPS",
        "drops = not rules and _policy(held, 0, family) == _DROPS",
        ("test_foreign_chains.py",),
    ),
)
