"""Faults in what Services mean on a node."""

from tests.mutation.mutation import Mutation

_ENDPOINTS, _ROUTES, _SETS = ("test_policy_endpoints.py",), ("test_policy_routes.py",), ("test_large_sets.py",)

POLICY = (
    Mutation(
        "a hint counts though not every ready endpoint carries one",
        "endpoints.py",
        "if not here or any(not hints(endpoint) for endpoint, _ in ready):",
        "if not here or all(not hints(endpoint) for endpoint, _ in ready):",
        _ENDPOINTS,
    ),
    Mutation(
        "hints for zones go before those for nodes",
        "endpoints.py",
        "if by_node is not None:",
        "if by_node is not None and not ready[0][0].traits.zone_hints:",
        _ENDPOINTS,
    ),
    Mutation(
        "endpoints that terminate count though they do not serve",
        "endpoints.py",
        "candidate for candidate in candidates if candidate[0].traits.serving and candidate[0].traits.terminating",
        "candidate for candidate in candidates if candidate[0].traits.terminating",
        _ENDPOINTS,
    ),
    Mutation(
        "of an address in two slices the first stays, ready or not",
        "endpoints.py",
        "if held is not candidate and _usefulness(candidate[0], here) > _usefulness(held[0], here):",
        "if held is not candidate and False:",
        _ENDPOINTS,
    ),
    Mutation(
        "topology narrows those that terminate, too",
        "endpoints.py",
        'chosen, topology = (usable, "") if cluster_terminating else _topology(usable, node)',
        "chosen, topology = _topology(usable, node)",
        _ENDPOINTS,
    ),
    Mutation(
        "external policy Local keeps pods to the Local set",
        "routes.py",
        "pod=_forward(Scope.CLUSTER, has_cluster, masquerade=False),",
        "pod=_forward(Scope.LOCAL, has_local, masquerade=False),",
        _ROUTES,
    ),
    Mutation(
        "policy Local without a local endpoint rejects",
        "routes.py",
        "return Route(Action.FORWARD, scope, masquerade) if has_backends else DROP",
        "return Route(Action.FORWARD, scope, masquerade) if has_backends else REJECT",
        _ROUTES,
    ),
    Mutation(
        "off-pod sources keep their address where pods can be told",
        "routes.py",
        "off_pod = _forward(scope, present, masquerade_all or detects_pods)",
        "off_pod = _forward(scope, present, masquerade_all)",
        _ROUTES,
    ),
    Mutation(
        "a node's address in the pods' range counts as the node",
        "node.py",
        "if self.detector.matches(address, interface):",
        "if self.detector.matches(address, interface) and not self.is_local(address):",
        _ROUTES,
    ),
    Mutation(
        "a limited set takes in a newcomer and lets nobody go",
        "limit.py",
        "leave(ranked[most][1])",
        "pass",
        _SETS,
    ),
    Mutation(
        "slice by slice, ready endpoints elsewhere keep this node from those of its own that terminate",
        "merged.py",
        "cluster, local, ready = counts.everywhere.rule, counts.here.rule, counts.everywhere.ready",
        "cluster, local, ready = counts.everywhere.rule, counts.everywhere.rule, counts.everywhere.ready",
        ("test_large_sets.py::test_the_local_set_falls_back_by_itself_slice_by_slice",),
    ),
    Mutation(
        "a label that is not there does not meet NotIn",
        "network_policies.py",
        "return value is None or value not in requirement.values",
        "return value is not None and value not in requirement.values",
        ("test_network_policies.py",),
    ),
    Mutation(
        "an address keeps what is known of it while its Pod terminates",
        "network_policies.py",
        "if not (away or pod.terminating or pod.finished):",
        "if not (away or pod.finished):",
        ("test_network_policies.py",),
    ),
    Mutation(
        "a policy that cannot be read selects nobody",
        "network_policies.py",
        'return self._put_policy(ref, None) if ref.kind == "NetworkPolicy" else self.remove(ref)',
        "return self.remove(ref)",
        ("test_network_policies.py", "test_host_routing_keeper.py"),
    ),
    Mutation(
        "two endpoints that IP in IP calls the same get it all the same",
        "dispatch.py",
        "if len(same) > 1 for each in same",
        "if len(same) > 2 for each in same",
        ("test_forwarding_oracle.py::test_endpoints_that_ipip_cannot_tell_apart_are_told",),
    ),
)
