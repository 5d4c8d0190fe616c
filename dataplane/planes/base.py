"""What every plane is: something that holds a plan in the kernel, and answers questions about it."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence

from dataplane.errors import PlaneError as PlaneError
from dataplane.plan.change import PlanChange
from dataplane.plan.types import EntryKey, FrontendKey, Plan, Table
from dataplane.planes.answers import Counted, Flow, Traffic, Usage
from dataplane.planes.clients import Client
from dataplane.planes.decisions import Asked, DecisionStream

MOST_REFUSALS = 64
"""Attempts refused without a name after which the rest waits for the next try."""


class EntryRefused(PlaneError):
    """One entry cannot be held, whatever the others are: a plan without it can be loaded.

    others: refusals of other entries of the same plan or change, as far as the plane looked for them.
    """

    def __init__(self, key: EntryKey, reason: str, others: "Sequence[EntryRefused]" = ()) -> None:
        super().__init__(f"{key.service}: {reason}")
        self.key, self.reason, self.others = key, reason, tuple(others)


def load_others(plane: "Plane", plan: Plan) -> tuple[PlanChange, list[EntryRefused]]:
    """Load a plan without the entries that the plane names as refused; what changed, and those. Raises PlaneError for
    any other refusal."""
    refusals: dict[EntryKey, EntryRefused] = {}
    while True:
        try:
            return plane.load(plan), list(refusals.values())
        except EntryRefused as error:
            named = {each.key: each for each in (error, *error.others) if each.key in plan.entries}
            if not named:
                raise
            refusals |= named
            plan = Plan(
                node=plan.node,
                entries={key: entry for key, entry in plan.entries.items() if key not in named},
                service_cidrs=plan.service_cidrs,
                health_checks=plan.health_checks,
                connect_off=plan.connect_off,
            )


class Plane(ABC):
    """A plane compiles a plan to the state of one kernel facility, in the network namespace in which it was made.

    A plane sees only the plan. The four abstract methods are all that a plane must have; each either does all it says
    or raises PlaneError having changed nothing (`load` of a very large plan is cut into transactions, each of which
    leaves a consistent table). All other methods have an answer that fits a plane which knows no more than its table.
    They read the kernel, raise PlaneError where it refuses, and work without a load, on what an earlier process left.

    name: of its mode. slow: a plane underneath, always complete, that gets whatever this one passes on.
    Stale UDP conntrack entries are not a plane's work: `planes.conntrack` finds them from the change.
    """

    name: str
    slow: "Plane | None" = None

    @abstractmethod
    def load(self, plan: Plan) -> PlanChange:
        """Bring the kernel from whatever an earlier run left to `plan`, without a gap in service; return what was
        changed in the plan's terms (adopting an identical table changes nothing). O(size of the plan)."""

    @abstractmethod
    def apply(self, change: PlanChange) -> None:
        """Apply a change to the plan last loaded or applied, so that each packet goes by the old plan or by the new
        one. O(size of the change)."""

    @abstractmethod
    def read_back(self) -> Table:
        """What the kernel holds now, in the plan's own terms. Changes nothing. Reads the whole table."""

    @abstractmethod
    def cleanup(self) -> None:
        """Remove every trace of this plane from this network namespace; fine when there is none."""

    def is_brief(self, change: PlanChange) -> bool:
        """True if `apply` takes about a millisecond for this change, and needs no thread of its own."""
        return False

    @property
    def left_out(self) -> frozenset[EntryKey]:
        """Entries of the plan last loaded that this plane could not take, and `slow` serves alone."""
        return frozenset()

    @property
    def commits(self) -> int | None:
        """How often this object has changed the namespace's nftables rules since its load, by which it can be told
        whether somebody else did; None where that says nothing of this plane's state."""
        return None

    def finish_load(self) -> Sequence[str]:
        """Wait for the background work of a load; for a process that ends soon after it. Returns a sentence for each
        thing that did not work."""
        return ()

    def give_way(self, stays: Collection[str]) -> int:
        """Another mode answers here already: remove everything without breaking a connection, but the rules of planes
        that the other mode consists of (their names: `stays`). Returns how many flows this plane goes on to serve
        until they end."""
        self.cleanup()
        return 0

    def stand_aside(self, aside: bool) -> None:  # noqa: B027 - nothing to do without a plane underneath
        """Have `slow` serve everything, or no longer."""

    def stored_name(self, service: str) -> str:
        """The name (EntryKey.service) under which `read_back` gives a Service port."""
        return service

    def remembered_clients(self) -> Sequence[Client]:
        """Clients that session affinity remembers."""
        return ()

    def flows(self) -> Sequence[Flow] | None:
        """Flows that this plane tracks by itself; None where conntrack alone knows of connections."""
        return None

    def frontend_counts(self) -> Mapping[FrontendKey, Counted] | None:
        """Counts of each frontend since its rules were written last; None where nothing is counted by frontend."""
        return None

    def traffic(self) -> Traffic | None:
        """What was counted by Service port and by decision; None where nothing is."""
        return None

    def answered_pings(self) -> int | None:
        """How many pings to addresses of Services were answered so far; None where nobody answers."""
        return None

    def usage(self) -> Usage | None:
        """What the plan last loaded takes of the kernel; None without a load, or where nobody counts."""
        return None

    def decisions(self, asked: Asked) -> DecisionStream | None:
        """Each decision from now on; None where the rules do not tell. Raises PlaneError where no plan is loaded."""
        return None
