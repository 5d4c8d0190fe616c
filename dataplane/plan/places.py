"""Where endpoints run, as far as their nodeName tells: which surely run on another node, and which may run here.

An endpoint belongs to this node only if its nodeName is this node's name (discovery.k8s.io/v1). That it does not say
so does not prove that it runs elsewhere: hand-written slices often have no nodeName, and where `--node-name` is
mistyped this node's own pods carry another name. Such an endpoint can be its own client on this node; it is then
masqueraded like every hairpin connection (kube-proxy does so whatever the nodeName).
"""

from collections.abc import Iterable
from operator import attrgetter

from dataplane.model.objects import Endpoint
from dataplane.policy.difference import Backends
from dataplane.policy.endpoints import BackendSets, Candidate

_node = attrgetter("traits.node")


class Places:
    """What is known of node names.

    here: this node's name. vouched: the objects come from an API server, whose control plane takes nodeName from the
    pods; otherwise (manifests) another node's name is believed only where a Node object has it.
    """

    def __init__(self, here: str, *, vouched: bool) -> None:
        self.here = here
        self._vouched = vouched
        self._nodes: set[str] = set()
        self._own = self._nameless = self._others = 0  # slices that have such an endpoint

    def rename(self, here: str, slices: Iterable[Iterable[Endpoint]]) -> None:
        """This node has another name. slices: the endpoints of all slices there are."""
        self.here = here
        self._own = self._nameless = self._others = 0
        for endpoints in slices:
            self.count(endpoints)

    def add_node(self, name: str) -> None:
        """A Node object is there."""
        self._nodes.add(name)

    def remove_node(self, name: str) -> None:
        """A Node object is gone; fine if it never was there. This node's own stays known, as all that it said does."""
        if name != self.here:
            self._nodes.discard(name)

    def count(self, endpoints: Iterable[Endpoint], sign: int = 1) -> None:
        """The endpoints of a slice came (sign 1) or went (sign -1)."""
        if self._vouched and self.here in self._nodes:  # then nothing else is asked for any more
            self._nameless += sign if "" in map(_node, endpoints) else 0
            return
        names = list(map(_node, endpoints))
        nameless, own = names.count(""), names.count(self.here) if self.here else 0
        self._nameless += sign if nameless else 0
        self._own += sign if own else 0
        self._others += sign if nameless + own < len(names) else 0

    @property
    def confirmed(self) -> bool:
        """True if a Node object or an endpoint has this node's name."""
        return self.here in self._nodes or self._own > 0

    @property
    def certain(self) -> bool:
        """True if there is nobody whose place is not known."""
        return self._vouched and not self._nameless and self.confirmed

    @property
    def knowledge(self) -> tuple[bool, frozenset[str]]:
        """What `elsewhere` depends on beside the name it is asked about."""
        return self.confirmed, frozenset() if self._vouched else frozenset(self._nodes)

    def elsewhere(self, name: str) -> bool:
        """True if an endpoint with this nodeName, which is not this node's, surely runs on another node."""
        return bool(name) and self.confirmed and (self._vouched or name in self._nodes)

    def doubtful(self, name: str) -> bool:
        """True if an endpoint with this nodeName does not count as this node's and may yet run here."""
        return name != self.here and not self.elsewhere(name)

    def unplaced(self, candidates: Iterable[Candidate], sets: BackendSets) -> Backends:
        """The Cluster set's backends, in its order, that do not count as this node's and may yet run here. Where that
        is all of them, as where nobody has this node's name, it is the set itself, which takes no memory."""
        doubtful = {(endpoint.address, port) for endpoint, port in candidates if self.doubtful(endpoint.traits.node)}
        found = [b for b in sets.cluster if not b.local and (b.address, b.port) in doubtful] if doubtful else []
        return sets.cluster if len(found) == len(sets.cluster) else tuple(found)

    def doubt(self) -> str:
        """A sentence for people where nobody has this node's name; "" where all is well, or nothing tells."""
        if self.confirmed or not (self._others or self._nodes):
            return ""
        return (
            f"node name {self.here!r}: no Node object and no endpoint has this name, so no endpoint counts as this "
            "node's: policies Local find nobody here, hints for nodes do not apply; give the node's Kubernetes name "
            "by --node-name"
        )
