"""What a mode is: a plane's name, how it is made, and what can be known of it without one."""

import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from dataplane.oracle.keeps import Keeps
from dataplane.oracle.types import Decision
from dataplane.plan.change import PlanChange
from dataplane.plan.types import Frontend, OffPod
from dataplane.planes.answers import OffTarget
from dataplane.planes.base import Plane
from dataplane.planes.finding import Finding
from dataplane.planes.measured import Measured, Wanted
from dataplane.planes.options import PlaneOptions
from dataplane.planes.rights import Right
from dataplane.policy.node import LocalDetector, NodeConfig
from dataplane.policy.settings import Promises


def print_warning(text: str) -> None:
    """Print a warning on standard error."""
    print(f"hotplane: {text}", file=sys.stderr)


class Making(NamedTuple):
    """What a plane is made for.

    options: what people asked for. loaded_for: this node as an earlier run knew it, for reading back what that loaded.
    tcp_be_liberal: the configuration's conntrack.tcpBeLiberal. detector: how pods are recognised. watch: this process
    lives on, so the plane may watch devices and pods and collect closed flows. warn: called with a sentence when a
    feature is off or a map is full, and why.
    """

    options: PlaneOptions = PlaneOptions()
    loaded_for: NodeConfig | None = None
    tcp_be_liberal: bool = False
    detector: LocalDetector | None = None
    watch: bool = False
    warn: Callable[[str], None] = print_warning


PLAIN = Making()
"""A plane as it is when nobody asks for anything."""


class Mode(ABC):
    """A mode; the registry has them all. `name`, `promises`, `needs` and `make` are all that one must have.

    promises: whose defaults and limits it has (see Promises). needs: capabilities without which it cannot work.
    until_prepared: those that it needs besides until `prepare` was done. uses: those without which little is missing,
    and without_uses says what. stands_on: modes whose planes its own consists of besides.

    kube_proxy_chains: its rules bear the names of kube-proxy's own. tcp_be_liberal: they depend on
    conntrack.tcpBeLiberal. why_no_ping: what keeps it from answering pings to Services, "" where it can. hooks:
    those that its programs can be put on, as in PlaneOptions. watches_devices: it goes by devices, and recognises pods
    as it did when it was made.
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
    hooks: tuple[str, ...] = ()
    watches_devices: bool = False

    @property
    def planes(self) -> frozenset[str]:
        """Names of the planes that it consists of."""
        return frozenset((self.name, *self.stands_on))

    @abstractmethod
    def make(self, making: Making = PLAIN) -> Plane:
        """The plane, for this thread's network namespace."""

    @property
    def connect_time(self) -> bool:
        """True if it can balance connections when they are made."""
        return "connect" in self.hooks

    def at_connect(self, options: PlaneOptions) -> bool:
        """True if connections are balanced when they are made."""
        return self.connect_time and options.at_connect

    def measured(self, wanted: Wanted) -> Measured:
        """The plane, made to be measured."""
        return Measured(self.make())

    def can_serve(self, frontend: Frontend) -> bool:
        """True if it can do with a frontend what the plan says."""
        return True

    def prepare(self, node: NodeConfig, options: PlaneOptions) -> None:  # noqa: B027 - not every mode needs any
        """What takes more capabilities than `needs`, ahead of a process that has no others. Raises PlaneError."""

    def lead_from_loopback(self) -> None:  # noqa: B027 - not every mode leads away from there
        """Have this node's packets routed away from 127.0.0.0/8 from now on, with the guard that this takes (see
        planes.nftables.localnet). Raises PlaneError."""

    def is_prepared(self) -> bool:
        """True if that was done, as far as it needs `until_prepared`."""
        return True

    def is_here(self) -> bool:
        """True if something of this mode is in this network namespace by marks that nobody else sets, and answers."""
        return False

    def is_draining(self) -> bool:
        """True if flows of this mode go on in this network namespace until they end, while another mode answers."""
        return False

    def drain_on(self, change: PlanChange) -> int:
        """A change went to the mode that answers: take it into account while this one drains, and end that when it is
        over. Returns how many flows still go on; 0 where none drain."""
        return 0

    def keep_loopback_open(self) -> None:  # noqa: B027 - not every mode leads away from there
        """Another mode's removal took back the sysctl route_localnet: set it again if this mode's rules need it."""

    def findings(self, options: PlaneOptions) -> Iterable[Finding]:
        """What of this mode can work on this machine (`hotplane doctor`), tried; nothing is changed by it."""
        return ()

    def keeps(self, options: PlaneOptions) -> frozenset[Keeps]:
        """Whose address it leaves alone where the policy masquerades, if all that was asked for works."""
        return frozenset()

    def path(self, decision: Decision) -> str:
        """Where in the kernel a decision is made, as a sentence, "" where there is nothing to say of it."""
        return ""

    def off_targets(self, options: PlaneOptions, pods: Mapping[tuple[str, str], OffPod]) -> Collection[OffTarget]:
        """Everyone for whom connect time is to be off by the options and the plan's `connect_off`. Raises
        HotplaneError."""
        return ()

    def remove_stale(self, *, of: Collection[int] | None = None, age: float = 0.0) -> list[str]:
        """Remove what network namespaces that are gone left of this mode; names of what went. of: only those with these
        cookies. age: seconds for which nobody has written to it. Raises HotplaneError."""
        return []

    def remove_instances(self, prefix: str) -> None:  # noqa: B027 - most have no name but the network namespace's
        """Remove what planes left whose PlaneOptions.instance begins so, dead or alive."""
