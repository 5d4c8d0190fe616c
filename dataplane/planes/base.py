"""Base class of planes: a plane programs a plan into the kernel and answers queries about it."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from msgspec.structs import replace

from dataplane.errors import PlaneError as PlaneError
from dataplane.plan.change import PlanChange
from dataplane.plan.types import EntryKey, FrontendKey, Plan, Table
from dataplane.planes.answers import Counted, Flow, Refused, Traffic, Usage
from dataplane.planes.captures import CaptureStream
from dataplane.planes.clients import Client
from dataplane.planes.decisions import Asked, DecisionStream
from dataplane.planes.exclusions import Exclusions
from dataplane.planes.host_routes import HostRoutes

MOST_REFUSALS = 64
"""After this many refusals that name no entry, the rest waits for the next try."""


class EntryRefused(PlaneError):
    """The kernel cannot hold one entry; a plan without that entry can be loaded.

    others: refusals of other entries of the same plan or change, as far as the plane looked for them.
    """

    def __init__(self, key: EntryKey, reason: str, others: "Sequence[EntryRefused]" = ()) -> None:
        super().__init__(f"{key.service}: {reason}")
        self.key, self.reason, self.others = key, reason, tuple(others)


def load_others(plane: "Plane", plan: Plan) -> tuple[PlanChange, list[EntryRefused]]:
    """Load a plan without the entries that the plane refuses; return the change and the refusals. Raises PlaneError for
    any other error."""
    refusals: dict[EntryKey, EntryRefused] = {}
    while True:
        try:
            return plane.load(plan), list(refusals.values())
        except EntryRefused as error:
            named = {each.key: each for each in (error, *error.others) if each.key in plan.entries}
            if not named:
                raise
            refusals |= named
            plan = replace(plan, entries={key: entry for key, entry in plan.entries.items() if key not in named})


class Plane(ABC):
    """A plane compiles a plan to the state of one kernel facility, in the network namespace in which it was made.

    A plane sees only the plan. A plane must implement the four abstract methods; each either succeeds completely or
    raises PlaneError without any change (`load` of a very large plan is split into transactions, each of which leaves a
    consistent table). The other methods have defaults for a plane that only has its table. They read the kernel, raise
    PlaneError if it refuses, and work without a load, on the state of an earlier process.

    name: of its mode. slow: the slow path, a complete plane that gets the packets that this one passes on.
    counts_refusals_apart: `refused` reads a few counters, whatever the number of Services, and is asked often.
    Stale UDP conntrack entries are not a plane's work: `planes.conntrack` finds them from the change.
    """

    name: str
    slow: "Plane | None" = None
    counts_refusals_apart = False

    def prepare_load(self) -> None:  # noqa: B027 - nothing to do for a plane that only has its table
        """Begin, in the background, with what `load` into an empty kernel needs and no plan: before a process waits for
        what it will plan. Packets see nothing of it; `load` reports what fails, and does without a call of this."""

    @abstractmethod
    def load(self, plan: Plan) -> PlanChange:
        """Bring the kernel from the state of an earlier run to `plan`, without a gap in service; return the change
        in the plan's terms (adopting an identical table changes nothing). O(size of the plan)."""

    @abstractmethod
    def apply(self, change: PlanChange) -> None:
        """Apply a change to the plan last loaded or applied, so that each packet is handled by either the old or the
        new plan. O(size of the change)."""

    @abstractmethod
    def read_back(self) -> Table:
        """Read back what the kernel holds now, in the plan's terms. Read-only. Reads the whole table."""

    @abstractmethod
    def cleanup(self) -> None:
        """Remove every trace of this plane from this network namespace; no error if there is none."""

    def is_brief(self, change: PlanChange) -> bool:
        """True if `apply` takes about a millisecond for this change, and needs no thread of its own."""
        return False

    @property
    def left_out(self) -> frozenset[EntryKey]:
        """Entries of the plan last loaded that did not fit into this plane, so that only `slow` serves them."""
        return frozenset()

    @property
    def commits(self) -> int | None:
        """Number of times this object changed the namespace's nftables rules since its load, to detect changes by other
        processes; None if that number does not reflect this plane's state."""
        return None

    @property
    def commits_tell_all(self) -> bool:
        """Whether every change of this plane's state by other processes changes the namespace's nftables rules, too."""
        return True

    def is_gone(self) -> bool:
        """Return whether another process took the whole table away, this plane's or that of `slow`, as far as that
        costs little to see. Called in the thread of `load`. Raises PlaneError."""
        return self.slow is not None and self.slow.is_gone()

    def mend(self) -> Sequence[str]:
        """Put back what another process took away of what this plane has besides its table: programs, pins, smaller
        tables, sysctls. Returns a clause for each, () if all is there, which costs little to see. Called in the thread
        of `load`. Raises PlaneError."""
        return ()

    def directories(self) -> Collection[Path]:
        """Return the directories that lose an entry when another process takes something away that `mend` puts back."""
        return ()

    def finish_load(self) -> Sequence[str]:
        """Wait for the background work of a load; for a process that ends soon after it. Returns a sentence for each
        thing that did not work."""
        return ()

    def give_way(self, stays: Collection[str]) -> int:
        """Remove this plane after another mode has taken over, without breaking connections. stays: names of the planes
        of the other mode, whose rules are kept. Returns how many flows this plane serves until they end."""
        self.cleanup()
        return 0

    def stand_aside(self, aside: bool) -> None:  # noqa: B027 - nothing to do without a plane underneath
        """Let `slow` serve everything (aside True), or serve again."""

    def exclude(self, exclusions: Exclusions) -> None:  # noqa: B027 - most take no packet past the stack
        """Keep these on the node's stack from now on: when it returns, no new packet of theirs goes past it. A plane
        that was never told keeps everything there, and so does one that was not told for some seconds: who decides it
        may hang. May be called from any thread. Raises PlaneError."""

    def host_routes(self) -> HostRoutes | None:
        """Return which way packets go now; None if this plane takes none past the stack."""
        return None

    def why_not_forwarding(self) -> str:
        """Return why no packets that other nodes forward with the client's address kept can be taken here, as a clause;
        "" if they can."""
        return f"the {self.name} mode takes no forwarded packets"

    def stored_name(self, service: str) -> str:
        """Return the name (EntryKey.service) that `read_back` has for a Service port."""
        return service

    def remembered_clients(self) -> Sequence[Client]:
        """Return the clients in the session affinity tables."""
        return ()

    def flows(self) -> Sequence[Flow] | None:
        """Return the flows in this plane's own flow table; None if only conntrack tracks connections."""
        return None

    def frontend_counts(self) -> Mapping[FrontendKey, Counted] | None:
        """Return the counts of each frontend since its rules were last written; None if frontends have no counters."""
        return None

    def traffic(self) -> Traffic | None:
        """Return the counters by Service port and by decision; None if the plane has none."""
        return None

    def refused(self) -> Sequence[Refused] | None:
        """Return the packets refused so far, by reason, without reasons that there were none for; None if they are not
        counted."""
        return None

    def counted(self) -> tuple[Mapping[FrontendKey, Counted] | None, Sequence[Refused] | None]:
        """Return `frontend_counts` and `refused`; what both are read from is read once."""
        return self.frontend_counts(), self.refused()

    def answered_pings(self) -> int | None:
        """Return the number of pings to Service addresses answered so far; None if they are not answered."""
        return None

    def usage(self) -> Usage | None:
        """Return the kernel resources of the plan last loaded; None without a load, or if they are not counted."""
        return None

    def decisions(self, asked: Asked) -> DecisionStream | None:
        """Return a stream of decisions from now on; None if the rules report none. Raises PlaneError if no plan is
        loaded."""
        return None

    def capture(self, snap: int) -> CaptureStream | None:
        """Return a stream of the packets that are refused from now on, `snap` bytes of each; None if there is no way to
        see them. Raises PlaneError if no plan is loaded, or somebody captures already."""
        return None
