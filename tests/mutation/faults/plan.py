"""Faults in the plan and in what changes of it mean."""

from tests.mutation.mutation import Mutation

_PLANNER, _UDP = ("test_planner.py",), ("test_udp.py",)

PLAN = (
    Mutation(
        "a difference leaves out entries that went",
        "change.py",
        "changes += [EntryChange(entry, None) for key, entry in old.entries.items() if key not in new.entries]",
        "changes += []",
        (*_PLANNER, "test_oracle_plan_changes.py"),
    ),
    Mutation(
        "an entry that went stays in the plan",
        "change.py",
        "plan.entries.pop(entry.key, None)",
        "plan.entries.get(entry.key, None)",
        _PLANNER,
    ),
    Mutation(
        "a clusterIP loses against an older externalIP",
        "claims.py",
        "return Claim(key.address not in self.cluster_ips, self.created, self.service)",
        "return Claim(False, self.created, self.service)",
        _PLANNER,
    ),
    Mutation(
        "a Service without a time of creation is older than all",
        "claims.py",
        'NO_TIME = "9999"',
        'NO_TIME = ""',
        _PLANNER,
    ),
    Mutation(
        "who loses a frontend is not planned anew",
        "claims.py",
        "affected.update(other.service for other in rest)",
        "pass",
        _PLANNER,
    ),
    Mutation(
        "an address that is externalIP and guarded LB IP is open",
        "frontends.py",
        "kinds[address] = _LOAD_BALANCER",
        "kinds.setdefault(address, _LOAD_BALANCER)",
        _PLANNER,
    ),
    Mutation(
        "source ranges of one family leave the other open",
        "frontends.py",
        "return SourceRanges(tuple(dict.fromkeys(cidrs)))",
        "return SourceRanges(tuple(dict.fromkeys(cidrs))) if cidrs else None",
        _PLANNER,
    ),
    Mutation(
        "a node that holds a VIP is kept out by its ranges",
        "frontends.py",
        "if primary and contains(cidrs, primary):",
        "if not primary:",
        _PLANNER,
    ),
    Mutation(
        "headless Services have frontends",
        "frontends.py",
        "return not (service.headless or service.proxied_elsewhere or service.type is _EXTERNAL_NAME)",
        "return not (service.proxied_elsewhere or service.type is _EXTERNAL_NAME)",
        _PLANNER,
    ),
    Mutation(
        "the scale-to-zero trap: flows of a Service that had nobody stay",
        "udp.py",
        "if old is None or (new and not old):",
        "if old is None:",
        _UDP,
    ),
    Mutation(
        "flows to endpoints that drain go",
        "udp.py",
        "return frozenset((b.address, b.port) for b in (*entry.cluster, *entry.local, *entry.lingering))",
        "return frozenset((b.address, b.port) for b in (*entry.cluster, *entry.local))",
        _UDP,
    ),
    Mutation(
        "TCP flows are taken for stale ones",
        "udp.py",
        "if entry is not None and entry.key.protocol is Protocol.UDP:",
        "if entry is not None:",
        _UDP,
    ),
    Mutation(
        "a node forwards before it announces itself",
        "plan/tunnels.py",
        "if not given and self.why_not_from_here(family):",
        "if False:",
        ("test_forwarding_plan.py",),
    ),
    Mutation(
        "a node that speaks another port is forwarded to",
        "plan/tunnels.py",
        "return node.addresses if node is not None and self._node.offer.meets(node.forwarding) else ()",
        "return node.addresses if node is not None else ()",
        ("test_forwarding_plan.py",),
    ),
    Mutation(
        "policy Local forwards, too",
        "planner.py",
        "if not (node.snat_only or service.external_local) and any(kind is not _CLUSTER_IP for kind, _ in won):",
        "if not node.snat_only and any(kind is not _CLUSTER_IP for kind, _ in won):",
        ("test_forwarding_plan.py",),
    ),
    Mutation(
        "a node that begins to speak is not forwarded to",
        "plan/tunnels.py",
        "for name in now - before:",
        "for name in ():",
        ("test_forwarding_plan.py",),
    ),
)
