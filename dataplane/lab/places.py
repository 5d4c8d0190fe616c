"""The places of a lab by name, computed from its spec alone."""

from dataplane.lab.spec import Client, LabSpec, LabSpecError, Node, Place, Pod, topology

Where = str | Place
"""A place, or its name: "node1", "pod1-2", "client", "net"."""


class Places:
    """The places of a lab of this shape."""

    def __init__(self, spec: LabSpec) -> None:
        """Raises LabSpecError for an impossible spec."""
        self.spec = spec
        self.topology = topology(spec)
        self._places = {place.name: place for place in self.topology.places()}

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The nodes, node 1 first; each holds its pods."""
        return self.topology.nodes

    @property
    def pods(self) -> tuple[Pod, ...]:
        """All pods, by node."""
        return tuple(pod for node in self.nodes for pod in node.pods)

    @property
    def client(self) -> Client:
        """The outside client."""
        return self.topology.client

    def place(self, where: Where) -> Place:
        """A place by its name. Raises LabSpecError naming those there are."""
        if isinstance(where, Place):
            return where
        if where not in self._places:
            raise LabSpecError(f"lab {self.spec.name} has no {where}; it has {', '.join(self._places)}")
        return self._places[where]
