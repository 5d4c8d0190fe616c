"""Routes of frontends by the source of the packet: the traffic policies as pure functions.

Source of the rules: Kubernetes Service API (internalTrafficPolicy, externalTrafficPolicy), KEP-2086, KEP-1669 and
kube-proxy's published behaviour.
"""

import enum
from functools import cache
from typing import NamedTuple

from dataplane.policy.node import Source


class Scope(enum.Enum):
    """The backend set of a Service port that a route chooses from."""

    CLUSTER = "cluster"
    LOCAL = "local"
    __hash__ = object.__hash__  # members are singletons, and Enum's own hash is slow Python code


class Action(enum.Enum):
    FORWARD = "forward"
    REJECT = "reject"
    DROP = "drop"
    __hash__ = object.__hash__


class Route(NamedTuple):
    """The action for packets of one source class; hairpin connections are masqueraded even if `masquerade` is False.

    For REJECT and DROP, scope and masquerade keep their defaults, so that equal outcomes compare equal.
    """

    action: Action
    scope: Scope = Scope.CLUSTER
    masquerade: bool = False


class Routes(NamedTuple):
    """One route for each source class (see `Source`)."""

    pod: Route
    node: Route
    outside: Route

    def of(self, source: Source) -> Route:
        """Return the route for a source class."""
        return {Source.POD: self.pod, Source.NODE: self.node, Source.OUTSIDE: self.outside}[source]


REJECT = Route(Action.REJECT)
DROP = Route(Action.DROP)
REJECT_ALL = Routes(REJECT, REJECT, REJECT)
DROP_ALL = Routes(DROP, DROP, DROP)


def _forward(scope: Scope, has_backends: bool, masquerade: bool) -> Route:
    return Route(Action.FORWARD, scope, masquerade) if has_backends else DROP


@cache
def cluster_ip_routes(
    has_cluster: bool, has_local: bool, internal_local: bool, detects_pods: bool, masquerade_all: bool
) -> Routes:
    """Routes of a clusterIP.

    Off-pod sources are masqueraded where pods can be recognised (`detects_pods`); masqueradeAll masquerades pods too.
    Without usable endpoints anywhere the packet is rejected; policy Local with endpoints only elsewhere drops it.
    """
    if not (has_cluster or has_local):
        return REJECT_ALL
    scope, present = (Scope.LOCAL, has_local) if internal_local else (Scope.CLUSTER, has_cluster)
    off_pod = _forward(scope, present, masquerade_all or detects_pods)
    return Routes(pod=_forward(scope, present, masquerade_all), node=off_pod, outside=off_pod)


@cache
def host_port_routes(loopback: bool) -> Routes:
    """Routes of a Pod's hostPort: to the Pod, with the client's address kept (the CNI plugin portmap). What is sent to
    a loopback address has one as its source, which no pod could answer, so that is masqueraded."""
    return Routes(*[Route(Action.FORWARD, Scope.CLUSTER, loopback)] * 3)


@cache
def external_routes(has_cluster: bool, has_local: bool, external_local: bool) -> Routes:
    """Routes of a node port, externalIP or load-balancer IP.

    Policy Cluster masquerades all sources. Policy Local: pods take the Cluster set unmasqueraded, the node itself the
    Cluster set masqueraded, everyone else the Local set with the client's address kept.
    """
    if not (has_cluster or has_local):
        return REJECT_ALL
    everyone = _forward(Scope.CLUSTER, has_cluster, masquerade=True)
    if not external_local:
        return Routes(everyone, everyone, everyone)
    return Routes(
        pod=_forward(Scope.CLUSTER, has_cluster, masquerade=False),
        node=everyone,
        outside=_forward(Scope.LOCAL, has_local, masquerade=False),
    )
