"""Base class of modes: a mode has a name, creates its plane, and answers queries that need no plane."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from dataplane.faults import ignore
from dataplane.oracle.keeps import Keeps
from dataplane.oracle.types import Decision
from dataplane.plan.change import PlanChange
from dataplane.plan.types import Frontend, OffPod
from dataplane.planes.answers import OffTarget
from dataplane.planes.base import Plane
from dataplane.planes.finding import Finding
from dataplane.planes.measured import Measured, Wanted
from dataplane.planes.options import PlaneOptions
from dataplane.planes.path import At, Step
from dataplane.planes.rights import Right
from dataplane.policy.node import LocalDetector, NodeConfig
from dataplane.policy.settings import Promises


def print_warning(text: str) -> None:
    """Print a warning on standard error."""
    print(f"hotplane: {text}", file=sys.stderr)


class Making(NamedTuple):
    """Settings to create a plane with.

    options: given by the user. loaded_for: this node's settings at an earlier load, to read back what that loaded.
    tcp_be_liberal: the configuration's conntrack.tcpBeLiberal. detector: how pods are recognised. watch: this process
    lives on, so the plane may watch devices and pods and collect closed flows. warn: called with a sentence when a
    feature is off or a map is full, and why; mended: when something that it told of is over.
    """

    options: PlaneOptions = PlaneOptions()
    loaded_for: NodeConfig | None = None
    tcp_be_liberal: bool = False
    detector: LocalDetector | None = None
    watch: bool = False
    warn: Callable[[str], None] = print_warning
    mended: Callable[[str], None] = ignore


PLAIN = Making()
"""The default settings."""


class Mode(ABC):
    """A mode; all are in the registry. Only `name`, `promises`, `needs` and `make` are required.

    promises: whose defaults and limits it has (see Promises). needs: capabilities without which it cannot work.
    until_prepared: those that it needs besides until `prepare` was done. uses: those without which little is missing,
    and without_uses says what. stands_on: modes whose planes its own consists of besides.

    kube_proxy_chains: its rules bear the names of kube-proxy's own. tcp_be_liberal: they depend on
    conntrack.tcpBeLiberal. why_no_ping, why_no_flowtable, why_no_maglev: what keeps it from answering pings to
    Services, from handing connections over to a flowtable, and from choosing endpoints by Maglev, "" where it can.
    hooks: those that its programs can be put on, as in PlaneOptions. watches_devices: it goes by devices, and
    recognises pods as it did when it was made.
    tables: nftables tables (family, name) that its own planes make.
    """

    name: str
    promises: Promises
    needs: tuple[Right, ...]
    until_prepared: tuple[Right, ...] = ()
    uses: tuple[Right, ...] = ()
    without_uses: str = ""
    stands_on: tuple[str, ...] = ()
    kube_proxy_chains: bool = False
    tcp_be_liberal: bool = False
    why_no_ping: str = "answers no ping"
    why_no_flowtable: str = "has no flowtable"
    why_no_maglev: str = "chooses endpoints at random"
    hooks: tuple[str, ...] = ()
    watches_devices: bool = False
    tables: frozenset[tuple[str, str]] = frozenset()

    @property
    def planes(self) -> frozenset[str]:
        """Names of the planes that the mode consists of."""
        return frozenset((self.name, *self.stands_on))

    @abstractmethod
    def make(self, making: Making = PLAIN) -> Plane:
        """Create the plane for this thread's network namespace."""

    @property
    def connect_time(self) -> bool:
        """True if it can balance connections when they are made."""
        return "connect" in self.hooks

    def at_connect(self, options: PlaneOptions) -> bool:
        """True if connections are balanced when they are made."""
        return self.connect_time and options.at_connect

    def in_effect(self, options: PlaneOptions) -> PlaneOptions:
        """Return the options of what is loaded in this thread's network namespace without the hooks that are off there,
        as far as this user may see that."""
        return options

    def routes_past_stack(self, options: PlaneOptions) -> bool:
        """True if it can take packets of pods past the node's stack; whether `--host-routing` lets it does not
        matter."""
        return False

    def why_only_snat(self, options: PlaneOptions) -> str:
        """Return what keeps it from forwarding external traffic with the client's address kept (policy.forwarding), as
        the end of a sentence; "" where it can."""
        return "can only do SNAT towards other nodes"

    def measured(self, wanted: Wanted) -> Measured:
        """Create the plane for a benchmark."""
        return Measured(self.make())

    def can_serve(self, frontend: Frontend) -> bool:
        """True if the mode can serve a frontend as planned."""
        return True

    def prepare(self, node: NodeConfig, options: PlaneOptions) -> None:  # noqa: B027 - not every mode needs any
        """Do the steps that take more capabilities than `needs`, for a later process that has only those. Raises
        PlaneError."""

    def check_kernel(self, node: NodeConfig) -> None:  # noqa: B027 - few options depend on it
        """Raise PlaneError for an option of the node that this kernel cannot do."""

    def lead_from_loopback(self) -> None:  # noqa: B027 - not every mode leads away from there
        """Let this node's packets to 127.0.0.0/8 be routed elsewhere, and install the guard that this requires (see
        planes.nftables.localnet). Raises PlaneError."""

    def is_prepared(self) -> bool:
        """True if `prepare` has done everything that needs `until_prepared`."""
        return True

    def is_here(self) -> bool:
        """True if this mode is active in this network namespace, detected by marks that only hotplane sets."""
        return False

    def is_draining(self) -> bool:
        """True if flows of this mode go on in this network namespace until they end, while another mode answers."""
        return False

    def drain_on(self, change: PlanChange) -> int:
        """Apply a change of the active mode's plan to this draining mode; finish draining when no flow is left. Returns
        the number of flows left; 0 if this mode does not drain."""
        return 0

    def keep_loopback_open(self) -> None:  # noqa: B027 - not every mode leads away from there
        """Set the sysctl route_localnet again, if this mode's rules need it, after another mode's removal reset it."""

    def findings(self, options: PlaneOptions) -> Iterable[Finding]:
        """Probe which parts of this mode work on this machine (`hotplane doctor`), without changing anything."""
        return ()

    def keeps(self, options: PlaneOptions) -> frozenset[Keeps]:
        """Return the clients that the mode does not masquerade although the policy does, if all hooks asked for
        work."""
        return frozenset()

    def path(self, decision: Decision, at: At) -> Sequence[Step]:
        """Return the steps that a packet takes through this mode's rules and programs, in order: none if nothing of
        the mode's own concerns it. The kernel is not read."""
        return ()

    def off_targets(self, options: PlaneOptions, pods: Mapping[tuple[str, str], OffPod]) -> Collection[OffTarget]:
        """Return everything for which options or the plan's `connect_off` disable connect-time balancing. Raises
        HotplaneError."""
        return ()

    def remove_stale(self, *, of: Collection[int] | None = None, age: float = 0.0) -> list[str]:
        """Remove this mode's remains of deleted network namespaces; return the names. of: only namespaces with these
        cookies. age: only if not written for so many seconds. Raises HotplaneError."""
        return []

    def remove_instances(self, prefix: str) -> None:  # noqa: B027 - most have no name but the network namespace's
        """Remove the state of all planes whose PlaneOptions.instance begins with the prefix, running or not."""
