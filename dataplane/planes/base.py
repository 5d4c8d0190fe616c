"""What every plane is: something that holds a plan in the kernel."""

from typing import Protocol

from dataplane.errors import HotplaneError
from dataplane.plan.change import PlanChange
from dataplane.plan.types import Plan, Table


class PlaneError(HotplaneError):
    """The kernel refused a change; nothing of it was applied. The text says what, where and what to do."""


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
