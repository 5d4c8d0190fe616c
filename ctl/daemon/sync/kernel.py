"""The daemon's access to the kernel: one plane, used by one thread, with refused entries isolated from the others.

Every call runs in one worker thread, which belongs to the network namespace that the daemon was started in, so that
health checks are answered while a large plan is loaded. A refused change is split into independent parts: those that
the kernel takes are applied, the others stay on the ledger.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from ctl.daemon.sync.ledger import Ledger, groups
from dataplane.errors import HotplaneError
from dataplane.kernel.nft.generation import Generation
from dataplane.kernel.tools import end_tools
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.rows import row
from dataplane.plan.types import Plan, PlanEntry, Table
from dataplane.planes.base import MOST_REFUSALS, EntryRefused, Plane, PlaneError, load_others
from dataplane.planes.exclusions import Exclusions

_T = TypeVar("_T")
_GRACE = 5.0
"""Seconds that running programs, such as iptables-restore, have to finish when the daemon ends."""

SWITCH_SECONDS = 0.0005
"""The interpreter's thread switch interval. With Python's default of 5 ms, the event loop would be delayed by that much
each time it wakes up while the worker computes."""


class Done(NamedTuple):
    """The result of a change. seconds: time in the kernel and in compiling. errors: refusals, "" key for settings.

    changed: the part that was applied; the clean-up needs it. loaded: by a whole load. refused: those of the errors
    that name an entry which the mode can never hold; trying again does not help.
    """

    seconds: float
    changed: PlanChange
    errors: tuple[str, ...] = ()
    loaded: bool = False
    refused: tuple[str, ...] = ()


class Untouched:
    """Detects changes to this namespace's nftables rules by other processes, by the rules' generation number.

    commits: returns how many transactions this process has committed so far.
    """

    def __init__(self, generation: Generation, commits: Callable[[], int]) -> None:
        self._generation = generation
        self._commits = commits
        self._expected, self._ours = generation.read(), commits()
        self.touched = False

    def look(self) -> bool:
        """True if another process has changed the rules."""
        self.touched |= self._generation.read() != self._expected
        return self.touched

    def committed(self) -> None:
        """Account for commits of this process since the last `look`; any further one was another process's."""
        now, ours = self._generation.read(), self._commits()
        self.touched |= now - self._expected > ours - self._ours
        self._expected, self._ours = now, ours

    def trust(self) -> None:
        """Take the current rules as correct."""
        self.trust_since(self.now())

    def now(self) -> tuple[int, int]:
        """The generation, and the commits of this process. Raises GenerationError."""
        return self._generation.read(), self._commits()

    def trust_since(self, before: tuple[int, int]) -> None:
        """Take the rules as correct as they were made since `before`, of `now`, other than by others' later changes."""
        self._expected, self._ours = before
        self.touched = False


class Kernel:
    """Holds a plan in the kernel. Methods are for the event loop; `plane` may only be touched by `call`.

    untouched: detects changes by others, None if the plane's state has no generation number. clean_up: called after
    each change, with its plan and true for a load. brief: true if the clean-up after a change is short enough for the
    event loop.
    """

    def __init__(
        self, clean_up: Callable[[PlanChange, Plan, bool], object], brief: Callable[[PlanChange], bool] = lambda _: True
    ) -> None:
        self.ledger = Ledger()
        self.untouched: Untouched | None = None
        self._plane: Plane | None = None
        self._clean_up, self._brief = clean_up, brief
        self._unclean: tuple[EntryChange, ...] = ()
        self._unclean_load = False
        self._worker = ThreadPoolExecutor(1, "plane")
        sys.setswitchinterval(SWITCH_SECONDS)
        self.lock = asyncio.Lock()

    @property
    def plane(self) -> Plane:
        """The plane in use; `use` must have been called."""
        assert self._plane is not None, "use comes first"
        return self._plane

    def has(self, mode: str) -> bool:
        """True if the plane in use is of this mode, whatever it holds."""
        return self._plane is not None and self._plane.name == mode

    def exclude(self, exclusions: Exclusions) -> None:
        """Have the plane in use keep these on the node's stack, at once, whatever its thread does. Raises
        PlaneError."""
        if self._plane is not None:
            self._plane.exclude(exclusions)

    async def use(
        self, make: Callable[[], Plane], untouched: Callable[[Plane], Untouched | None] = lambda _: None
    ) -> None:
        """Use another plane from now on, made in the worker thread; it holds nothing until `load`."""
        async with self.lock:
            self._plane = await self.call(make)
            self.untouched = await self.call(untouched, self._plane)

    async def call(self, function: Callable[..., _T], *arguments: object) -> _T:
        """Call a function in the plane's thread."""
        return await asyncio.get_running_loop().run_in_executor(self._worker, function, *arguments)

    async def look(self) -> bool:
        """True if another process has changed the plane's rules, as far as they have a generation number. Not beside a
        change, which reads the number too, and whose commits would be taken for another process's."""
        async with self.lock:
            return self.untouched is not None and await self.call(self.untouched.look)

    async def load(self, plan: Plan) -> Done:
        """Load the plan, whatever the kernel holds. A refusal is in `errors`; then nothing has changed."""
        async with self.lock:
            return await self.call(self._load, plan)

    async def apply(self, change: PlanChange, plan: Plan) -> Done:
        """Apply a change that the plan already includes, together with all changes that failed before."""
        async with self.lock:
            if self._quick(change):
                return self._apply(change, plan)
            return await self.call(self._apply, change, plan)

    def _quick(self, change: PlanChange) -> bool:
        """True if a change takes about a millisecond: it is then applied at once, without waiting for another thread
        to get a processor."""
        return not (self.ledger or self._is_unclean) and self.plane.is_brief(change) and self._brief(change)

    def close(self) -> None:
        """End the worker once it is idle; programs that it waits for are ended after a few seconds."""
        try:
            self._worker.submit(lambda: None).result(_GRACE)
        except TimeoutError:
            end_tools()
        except RuntimeError:  # there is no worker yet, and the system has no room for one
            pass
        self._worker.shutdown()

    def _load(self, plan: Plan) -> Done:
        started = time.perf_counter()
        # What another process changes between a load's end and a look at the generation would be taken for the load's
        # own, so the look comes first. It makes the table be read back once after each load.
        before = self.untouched.now() if self.untouched is not None else None
        try:
            change, refusals = load_others(self.plane, plan)
        except PlaneError as error:
            return self._load_piecewise(plan, error, started, before)
        self._trust_since(before)
        self.ledger.behind([PlanChange(entries=(EntryChange(None, plan.entries[each.key]),)) for each in refusals])
        messages = tuple(map(str, refusals))
        return self._cleaned(Done(time.perf_counter() - started, change, messages, True, messages), plan)

    def _trust_since(self, before: tuple[int, int] | None) -> None:
        if self.untouched is not None and before is not None:
            self.untouched.trust_since(before)

    def _load_piecewise(self, plan: Plan, error: PlaneError, started: float, before: tuple[int, int] | None) -> Done:
        """Load a plan of which the kernel refuses an entry without naming it: first the entries that the kernel already
        holds correctly, then the rest part by part. Entries that it holds with other contents are missing meanwhile."""
        nothing = PlanChange()
        try:
            held = self.plane.read_back()
            good = {key: entry for key, entry in plan.entries.items() if _is_held(entry, held)}
            self.plane.load(replace(plan, entries=good, health_checks={}))  # these are part of the rest
        except PlaneError as second:
            return Done(time.perf_counter() - started, nothing, tuple(dict.fromkeys((str(error), str(second)))))
        self._trust_since(before)
        self.ledger.clear()
        entries = tuple(EntryChange(None, entry) for key, entry in plan.entries.items() if key not in good)
        rest = PlanChange(entries=entries, health_checks=dict(plan.health_checks) or None)
        try:
            self.plane.apply(rest)
        except PlaneError as second:
            done = self._apply_in_parts(rest, plan, second, started, again=False)
        else:
            done = self._cleaned(Done(0.0, rest), plan)
        return done._replace(seconds=time.perf_counter() - started, loaded=True)

    def _apply(self, change: PlanChange, plan: Plan) -> Done:
        started = time.perf_counter()
        due = self.ledger.due(change, plan)
        if not due:
            self.ledger.clear()
            return self._cleaned(Done(0.0, due), plan) if self._is_unclean else Done(0.0, due)
        if self.untouched is not None:
            self.untouched.look()
        try:
            self.plane.apply(due)
        except PlaneError as error:
            return self._apply_in_parts(due, plan, error, started)
        self.ledger.clear()
        if self.untouched is not None:
            self.untouched.committed()
        return self._cleaned(Done(time.perf_counter() - started, due), plan)

    def _apply_in_parts(
        self, due: PlanChange, plan: Plan, error: PlaneError, started: float, *, again: bool = True
    ) -> Done:
        """Apply the parts of a change that the kernel does not refuse. again: if it refuses all, load the plan."""
        parts = _Parts(self.plane)
        parts.settings(due)
        parts.entries(groups(due.entries))
        self.ledger.behind(parts.failed)
        if again and not parts.done and not parts.refused:
            self._unclean += due.entries
            done = self._load(plan)
            errors = tuple(dict.fromkeys((str(error), *done.errors)))
            return done._replace(seconds=time.perf_counter() - started, errors=errors)
        changed = PlanChange(entries=tuple(entry for part in parts.done for entry in part.entries), node=due.node)
        done = Done(time.perf_counter() - started, changed, tuple(parts.errors), refused=tuple(parts.refused))
        return self._cleaned(done, plan)

    def _cleaned(self, done: Done, plan: Plan) -> Done:
        """Remove the UDP flows that the change made stale; a failure is reported like a refusal, and tried again."""
        entries = (*self._unclean, *done.changed.entries)
        loaded = done.loaded or self._unclean_load
        try:
            self._clean_up(PlanChange(entries=entries, node=done.changed.node), plan, loaded)
        except HotplaneError as error:
            self._unclean, self._unclean_load = entries, loaded
            return done._replace(errors=(*done.errors, str(error)))
        self._unclean, self._unclean_load = (), False
        return done

    @property
    def _is_unclean(self) -> bool:
        return bool(self._unclean) or self._unclean_load


def _is_held(entry: PlanEntry, held: Table) -> bool:
    """True if the kernel holds an entry as planned."""
    return all(held.get(frontend.key) == row(frontend, entry) for frontend in entry.frontends)


class _Parts:
    """Applies a change part by part, and collects the applied parts, the failed ones and their errors."""

    def __init__(self, plane: Plane) -> None:
        self._plane = plane
        self.done: list[PlanChange] = []
        self.failed: list[PlanChange] = []
        self.errors: list[str] = []
        self.refused: list[str] = []  # those of the errors that name an entry which the plane cannot hold

    def settings(self, due: PlanChange) -> None:
        change = replace(due, entries=())
        if change and (error := self._try(change)) is not None:
            self._failed(change, error)

    def entries(self, parts: Sequence[tuple[EntryChange, ...]]) -> None:
        """Leave out entries that are refused by name; else halve until each refusal is isolated to one group."""
        if not parts:
            return
        change = PlanChange(entries=tuple(entry for part in parts for entry in part))
        error = self._try(change)
        if error is None:
            return
        named = {each.key: each for each in (error, *error.others)} if isinstance(error, EntryRefused) else {}
        bad = [any(entry.key in named for entry in part) for part in parts]
        if any(bad):
            messages = [str(each) for each in named.values()]
            self.refused += messages
            self.errors += messages
            self.failed += [PlanChange(entries=part) for part, is_bad in zip(parts, bad, strict=True) if is_bad]
            self.entries([part for part, is_bad in zip(parts, bad, strict=True) if not is_bad])
        elif len(parts) == 1:
            self._failed(change, error)
        elif len(self.errors) - len(self.refused) >= MOST_REFUSALS:
            self.failed.append(change)
        else:
            middle = len(parts) // 2
            self.entries(parts[:middle])
            self.entries(parts[middle:])

    def _try(self, change: PlanChange) -> PlaneError | None:
        try:
            self._plane.apply(change)
        except PlaneError as error:
            return error
        self.done.append(change)
        return None

    def _failed(self, change: PlanChange, error: PlaneError) -> None:
        self.failed.append(change)
        names = sorted({entry.key.service for entry in change.entries})[:3]
        self.errors.append(f"{', '.join(names)}: {error}" if names else str(error))
