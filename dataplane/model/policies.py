"""Validate NetworkPolicies from the wire form: which pods they select. What they allow is the network plugin's work.

Source: networking.k8s.io/v1 NetworkPolicySpec.podSelector, meta/v1 LabelSelector.
"""

from collections.abc import Iterator

from dataplane.model import wire
from dataplane.model.objects import NetworkPolicy, Operator, Requirement
from dataplane.model.report import Report

_FIELD = "spec.podSelector"
_OPERATORS = {operator.value: operator for operator in Operator}
_WITH_VALUES = (Operator.IN, Operator.NOT_IN)


def network_policy(item: wire.WireNetworkPolicy, report: Report) -> NetworkPolicy | None:
    """Validate a NetworkPolicy. A selector with a fault is not read in part: the fault is reported, and it is unknown
    which pods the policy selects (None)."""
    selector = item.spec.pod_selector if item.spec else None
    found = tuple(_requirements(selector or wire.LabelSelector(), report))
    return None if report.problems else NetworkPolicy(report.namespace, report.name, found)


def _requirements(selector: wire.LabelSelector, report: Report) -> Iterator[Requirement]:
    """Yield the terms of a selector; report those that are wrong."""
    for key, value in (selector.match_labels or {}).items():
        yield Requirement(key, Operator.IN, frozenset((value or "",)))
    for index, term in enumerate(selector.match_expressions or ()):
        field = f"{_FIELD}.matchExpressions[{index}]"
        if term is None:
            report.null(field)
            continue
        operator = _OPERATORS.get(term.operator or "")
        values = frozenset(value or "" for value in term.values or ())
        if not term.key:
            report.problem(f"{field}.key", "is missing; write the key of a label")
        elif operator is None:
            report.problem(f"{field}.operator", f"is {term.operator!r}; write {', '.join(_OPERATORS)}")
        elif bool(values) != (operator in _WITH_VALUES):
            wanted = "has none; write at least one" if operator in _WITH_VALUES else "must be left out"
            report.problem(f"{field}.values", f"{wanted} with the operator {operator.value}")
        else:
            yield Requirement(term.key, operator, values)
