"""Classify endpoints by nodeName: which certainly run on another node, and which may run on this one.

An endpoint belongs to this node only if its nodeName is this node's name (discovery.k8s.io/v1). Another or no nodeName
does not prove that it runs elsewhere: hand-written slices often have no nodeName, and if `--node-name` is mistyped,
this node's own pods have another name. Such an endpoint can be its own client on this node; the connection is then
masqueraded like every hairpin connection (kube-proxy does so with any nodeName).
"""

from collections.abc import Iterable, Sequence

from dataplane.model.objects import Endpoint
from dataplane.policy.difference import Backends
from dataplane.policy.endpoints import BackendSets, Candidate


class Places:
    """Known node names, and how many slices have endpoints of which kind.

    here: this node's name. vouched: the objects come from an API server, whose control plane takes nodeName from the
    pods; otherwise (manifests) another node's name is trusted only if a Node object has it.
    """

    def __init__(self, here: str, *, vouched: bool) -> None:
        self.here = here
        self._vouched = vouched
        self._nodes: set[str] = set()
        self._own = self._nameless = self._others = 0  # slices that have such an endpoint

    def rename(self, here: str, slices: Iterable[Iterable[Endpoint]]) -> None:
        """Change this node's name and count again. slices: the endpoints of all slices."""
        self.here = here
        self._own = self._nameless = self._others = 0
        for endpoints in slices:
            self.count(endpoints)

    def add_node(self, name: str) -> None:
        """Add the name of a Node object."""
        self._nodes.add(name)

    def remove_node(self, name: str) -> None:
        """Remove the name of a deleted Node object, if known. This node's own stays, as do the settings from its
        Node."""
        if name != self.here:
            self._nodes.discard(name)

    def count(self, endpoints: Iterable[Endpoint], sign: int = 1) -> None:
        """Count the endpoints of an added (sign 1) or removed (sign -1) slice."""
        names = [endpoint.traits.node for endpoint in endpoints]
        if self._vouched and self.here in self._nodes:  # then only this count is used
            self._nameless += sign if "" in names else 0
            return
        nameless, own = names.count(""), names.count(self.here) if self.here else 0
        self._nameless += sign if nameless else 0
        self._own += sign if own else 0
        self._others += sign if nameless + own < len(names) else 0

    def count_many(self, slices: Sequence[Sequence[Endpoint]]) -> None:
        """Count the endpoints of many added slices."""
        here, nameless, own, others = self.here, 0, 0, 0
        for endpoints in slices:
            names = {endpoint.traits.node for endpoint in endpoints}
            if "" in names:
                nameless += 1
                names.discard("")
            if here and here in names:
                own += 1
                names.discard(here)
            if names:
                others += 1
        self._nameless += nameless
        if not (self._vouched and here in self._nodes):  # see `count`
            self._own += own
            self._others += others

    @property
    def confirmed(self) -> bool:
        """True if a Node object or an endpoint has this node's name."""
        return self.here in self._nodes or self._own > 0

    @property
    def certain(self) -> bool:
        """True if it is known for every endpoint whether it runs on this node."""
        return self._vouched and not self._nameless and self.confirmed

    @property
    def knowledge(self) -> tuple[bool, frozenset[str]]:
        """The state that the result of `elsewhere` depends on, besides its argument."""
        return self.confirmed, frozenset() if self._vouched else frozenset(self._nodes)

    def elsewhere(self, name: str) -> bool:
        """True if an endpoint with this nodeName (not this node's) certainly runs on another node."""
        return bool(name) and self.confirmed and (self._vouched or name in self._nodes)

    def doubtful(self, name: str) -> bool:
        """True if an endpoint with this nodeName does not count as this node's but may run here."""
        return name != self.here and not self.elsewhere(name)

    def unplaced(self, candidates: Iterable[Candidate], sets: BackendSets) -> Backends:
        """Return the Cluster set's backends, in its order, that do not count as this node's but may run here. If that
        is all of them (no endpoint has this node's name), the set itself is returned, which takes no memory."""
        doubtful = {(endpoint.address, port) for endpoint, port in candidates if self.doubtful(endpoint.traits.node)}
        found = [b for b in sets.cluster if not b.local and (b.address, b.port) in doubtful] if doubtful else []
        return sets.cluster if len(found) == len(sets.cluster) else tuple(found)

    def doubt(self) -> str:
        """Return a warning if no object has this node's name; "" if one has, or there is nothing to judge by."""
        if self.confirmed or not (self._others or self._nodes):
            return ""
        return (
            f"node name {self.here!r}: no Node object and no endpoint has this name, so no endpoint counts as this "
            "node's: policies Local find nobody here, hints for nodes do not apply; give the node's Kubernetes name "
            "by --node-name"
        )
