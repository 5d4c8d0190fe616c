"""The Service proxy of a node as events see it, whoever made it: hotplane's own daemon, or a peer."""

from typing import Protocol


class NodeProxy(Protocol):
    """A program that serves the Services of one node. What it has put into the kernel should outlive it."""

    def ready(self) -> None:
        """Have it run: start it unless it does. Raises LabError."""

    def start(self) -> None:
        """Start it over whatever is on the node, and wait until it serves all that is wanted by then, its last Service
        too. Raises LabError when it ends before or takes too long, with its last words."""

    def stop(self) -> None:
        """End it in order (SIGTERM), and wait for that."""

    def kill(self) -> None:
        """kill -9."""

    def leave(self) -> None:
        """End it, and leave nothing of it on the node. Raises HotplaneError."""
