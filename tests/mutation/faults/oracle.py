"""Faults in the executable specification. What only a naive second implementation would find is not here: its examples
are drawn at random."""

from tests.mutation.mutation import Mutation

_REFERENCE, _CHOOSE = ("test_oracle_reference.py",), ("test_oracle_choose.py",)

ORACLE = (
    Mutation(
        "affinity ends at its first timeout, whatever came since",
        "choose.py",
        "affinity.remember(decision, backend, now)",
        "affinity._clients.setdefault((decision.entry.key, decision.packet.source), Sticky(backend, now))",
        _CHOOSE,
    ),
    Mutation(
        "a client stays with an endpoint that went",
        "choose.py",
        "or sticky.backend not in decision.backends:",
        "or not decision.backends:",
        _CHOOSE,
    ),
    Mutation(
        "source ranges are looked at behind the route",
        "decide.py",
        "if not admits(frontend.source_ranges, packet):",
        "if frontend.routes.of(source).action is Action.FORWARD and not admits(frontend.source_ranges, packet):",
        _REFERENCE,
    ),
    Mutation(
        "a port that a clusterIP lacks is let through",
        "decide.py",
        "if packet.destination in self._owners:",
        "if not self._owners:",
        _REFERENCE,
    ),
    Mutation(
        "node ports answer at every address",
        "decide.py",
        "if exact is not None or not self._node.answers_node_ports(packet.destination):",
        "if exact is not None:",
        _REFERENCE,
    ),
    Mutation(
        "a process of this node meets the node's address",
        "decide.py",
        "if not self._node.is_local(decision.packet.source):",
        "if self._node.is_local(decision.packet.source):",
        _REFERENCE,
    ),
    Mutation(
        "with session affinity pods keep their address at connect time",
        "keeps.py",
        "needs_address = frontend.source_ranges is not None or decision.affinity_seconds > 0",
        "needs_address = frontend.source_ranges is not None",
        ("test_explain_reasons.py", "test_explain_command.py", "test_oracle_reference.py"),
    ),
    Mutation(
        "pods are forwarded for like outside clients",
        "oracle/types.py",
        "and self.source is Source.OUTSIDE",
        "and True",
        ("test_forwarding_oracle.py",),
    ),
)
