"""Faults in what planes make of a plan."""

from tests.mutation.mutation import Mutation

_GOLDEN = ("test_nftables_commands.py",)
_KINDS = ("test_iptables_kinds.py", "test_iptables_seen.py")

PLANES = (
    Mutation(
        "hairpin pairs only for pods of this node",
        "elements/compile.py",
        "addresses = {b.address for b in entry.cluster if everybody or b.local}",
        "addresses = {b.address for b in entry.cluster if b.local}",
        (*_GOLDEN, "test_nftables_traffic.py::test_a_pod_that_is_not_known_to_be_here_reaches_itself"),
    ),
    Mutation(
        "no hairpin pairs for pods that may be here",
        "elements/compile.py",
        "addresses.update(b.address for b in entry.unplaced)",
        "pass",
        ("test_nftables_traffic.py::test_a_pod_that_is_not_known_to_be_here_reaches_itself",),
    ),
    Mutation(
        "elements that only packets in flight need are kept for ever",
        "nftables/elements/transaction.py",
        "[element for element in removed if element in needed] if needed else [],",
        "[],",
        _GOLDEN,
    ),
    Mutation(
        "unclaimed addresses are refused where they are the node's own, and only there",
        "nftables/rules/skeleton.py",
        'new = "ct state new fib daddr type != local"',
        'new = "ct state new fib daddr type local"',
        _GOLDEN,
    ),
    Mutation(
        "a chain goes before what leads to it",
        "nftables/elements/transaction.py",
        "parts = [delete_commands(self._layouts, (self._verdict(ref)[0] for ref in shapes))]",
        "parts = []",
        _GOLDEN,
    ),
    Mutation(
        "a frontend's restriction is not asked for",
        "elements/compile.py",
        "return RESTRICTED_ACTION",
        "return action",
        _GOLDEN,
    ),
    Mutation(
        "an affinity slot is given to two backends",
        "placement.py",
        "while slot in taken:",
        "while False:",
        ("test_nftables_seats.py",),
    ),
    Mutation(
        "what packets in flight need goes with the change itself",
        "in_flight.py",
        "on = {f for f in changed if f not in gone and not _refuses(added.get(f))}",
        "on = set[tuple[str, bytes]]()",
        ("test_nftables_parts.py",),
    ),
    Mutation(
        "a change's leftovers go without a wait",
        "commits.py",
        "wait_for_packets()",
        "pass",
        ("test_nftables_parts.py",),
    ),
    Mutation(
        "kube-proxy's chains: the chance of the last endpoint but one",
        "iptables/rules/service.py",
        'share = probability(remaining, places) if remaining > places else ""',
        'share = probability(remaining, places) if remaining > 1 + places else ""',
        _KINDS,
    ),
    Mutation(
        "kube-proxy's chains: no masquerade of what loops back",
        "iptables/rules/service.py",
        'f"-A {chain} -s {address}/{settings.host_bits} {comment}-j {names.MARK_MASQ}",',
        "",
        _KINDS,
    ),
    Mutation(
        "kube-proxy's chains: strangers to the ranges pass the firewall",
        "iptables/rules/service.py",
        'found += [self._to(f, names.PROXY_FIREWALL, firewall, "DROP") for f in self._load_balancer_ips]',
        "found += []",
        _KINDS,
    ),
    Mutation(
        "backends are dead before their frontends are written",
        "ebpf/maps/tables.py",
        'self.maps.remove("frontends", deferred.deleted)',
        "[self._backend_memory.__setitem__(i * BACKEND.size + BACKEND_FLAGS_AT, 0) for i in deferred.dead]; "
        'self.maps.remove("frontends", deferred.deleted)',
        ("test_ebpf_write_order.py",),
    ),
    Mutation(
        "a backend leaves a set before the frontend that leads to it there",
        "ebpf/maps/tables.py",
        "memory[offset + BACKEND_FLAGS_AT] |= flags",
        "memory[offset + BACKEND_FLAGS_AT] = flags",
        ("test_ebpf_write_order.py",),
    ),
    Mutation(
        "a frontend is written with the generation that it had",
        "ebpf/maps/tables.py",
        "self.generation = self.generation % 0xFFFFFFFF + 1",
        "self.generation = self.generation % 0xFFFFFFFF",
        ("test_ebpf_write_order.py",),
    ),
    Mutation(
        "the place of one that went is left empty",
        "moves.py",
        "moved[hole] = at(end) if last is None else last",
        "moved[hole] = last",
        ("test_nftables_seats.py",),
    ),
    Mutation(
        "the collector takes a flow of which one direction lives",
        "collect.py",
        "if not self._lifetimes.over(self._protocol, other, now):",
        "if False:",
        ("test_ebpf_collect.py::test_both_entries_go_when_neither_direction_is_used",),
    ),
    Mutation(
        "the slow path may take the programs' ports",
        "port_split.py",
        "return max(runs_beside([*taken, NODE_PORTS]), key=lambda run: run[1] - run[0])",
        "return max(runs_beside([NODE_PORTS]), key=lambda run: run[1] - run[0])",
        ("test_packets_devices.py",),
    ),
    Mutation(
        "packet programs work before all devices have theirs",
        "ebpf/plane.py",
        "self._kube_proxy_masquerade, ready=adopted)",
        "self._kube_proxy_masquerade)",
        ("test_mode_switch.py::test_no_connection_waits_at_any_step",),
    ),
    Mutation(
        "flows are counted while programs still open some",
        "flows/drain.py",
        "wait_for_packets()",
        "pass",
        ("test_mode_switch.py::test_a_flow_that_is_opened_while_frontends_go",),
    ),
    Mutation(
        "host routing goes on while nobody says who must stay",
        "host_routing/table.py",
        "since = self._told_ns if self._attended else time.monotonic_ns()",
        "since = time.monotonic_ns()",
        ("test_host_routing_daemon.py::test_a_daemon_that_stands_still_lets_nobody_past_the_stack",),
    ),
)
