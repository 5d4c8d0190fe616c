"""What every plane is: something that holds a plan in the kernel."""

from collections.abc import Sequence
from typing import Protocol

from dataplane.errors import PlaneError as PlaneError
from dataplane.plan.change import PlanChange
from dataplane.plan.types import EntryKey, Plan, Table

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


class Plane(Protocol):
    """A plane compiles a plan to the state of one kernel facility, in the current network namespace.

    A plane sees only the plan. Each method either does all it says or raises PlaneError having changed nothing
    (`load` of a very large plan is cut into transactions, each of which leaves a consistent table).
    Stale UDP conntrack entries are not a plane's work: `planes.conntrack` finds them from the change.
    """

    name: str

    def load(self, plan: Plan) -> PlanChange:
        """Bring the kernel from whatever an earlier run left to `plan`, without a gap in service; return what was
        changed in the plan's terms (adopting an identical table changes nothing). O(size of the plan)."""

    def apply(self, change: PlanChange) -> None:
        """Apply a change to the plan last loaded or applied, so that each packet goes by the old plan or by the new
        one. O(size of the change)."""

    def read_back(self) -> Table:
        """What the kernel holds now, in the plan's own terms. Changes nothing. Reads the whole table."""

    def cleanup(self) -> None:
        """Remove every trace of this plane from this network namespace; fine when there is none."""
