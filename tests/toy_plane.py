"""A fourth plane, to show what one takes: this file, and one line in the registry's table.

It keeps its plan in a file for each network namespace and changes no kernel. As a program it is `hotplane` with that
line: `python -m tests.toy_plane …`; TOY_PLANE in the environment names the folder of its files.
"""

import os
import sys
from pathlib import Path

import msgspec

from dataplane.errors import PlaneError
from dataplane.kernel.namespaces.netns_cookie import netns_cookie
from dataplane.plan.change import PlanChange, apply_change, diff
from dataplane.plan.rows import rows
from dataplane.plan.types import Plan, PlanEntry, Table
from dataplane.planes import registry
from dataplane.planes.base import Plane
from dataplane.planes.mode import PLAIN, Making, Mode
from dataplane.policy.node import NodeConfig
from dataplane.policy.settings import Promises

NAME, FOLDER = "toy", "TOY_PLANE"


class _Kept(msgspec.Struct):
    node: NodeConfig
    entries: list[PlanEntry]


def file() -> Path:
    """Where the plan of this thread's network namespace is."""
    return Path(os.environ[FOLDER], f"{netns_cookie():x}")


class ToyPlane(Plane):
    """The four methods, and nothing else."""

    name = NAME

    def __init__(self) -> None:
        self._file = file()
        self._plan: Plan | None = None

    def load(self, plan: Plan) -> PlanChange:
        before = self._held() or Plan(plan.node)
        self._keep(plan)
        return diff(before, plan)

    def apply(self, change: PlanChange) -> None:
        if self._plan is None:
            raise PlaneError("toy plane: a change came before a plan was loaded; call load first")
        apply_change(self._plan, change)
        self._keep(self._plan)

    def read_back(self) -> Table:
        held = self._held()
        return rows(held) if held is not None else {}

    def cleanup(self) -> None:
        self._file.unlink(missing_ok=True)
        self._plan = None

    def _keep(self, plan: Plan) -> None:
        fresh = self._file.with_suffix(".new")
        fresh.write_bytes(msgspec.msgpack.encode(_Kept(plan.node, list(plan.entries.values()))))
        fresh.replace(self._file)
        self._plan = Plan(plan.node, dict(plan.entries), plan.service_cidrs, dict(plan.health_checks))

    def _held(self) -> Plan | None:
        if not self._file.exists():
            return None
        kept = msgspec.msgpack.decode(self._file.read_bytes(), type=_Kept)
        return Plan(kept.node, {entry.key: entry for entry in kept.entries})


class ToyMode(Mode):
    """What a mode must say of itself."""

    name = NAME
    promises = Promises.NFTABLES
    needs = ()

    def make(self, making: Making = PLAIN) -> Plane:
        return ToyPlane()


MODE: Mode = ToyMode()
LINE = {NAME: "tests.toy_plane"}
"""The registry's line."""


if __name__ == "__main__":
    registry._TABLE.update(LINE)
    registry.MODES = (*registry.MODES, NAME)
    from ctl.main import main  # what asks the registry comes after

    sys.exit(main())
