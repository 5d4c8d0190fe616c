"""Objects with faults, conflicts or surprises: logged once each, and again when their faults are gone."""

from collections.abc import Callable, Collection, Mapping

from ctl.daemon.log import Log
from dataplane.model.algorithm import ALGORITHM_FIELD
from dataplane.model.objects import ObjectRef, Problem

Found = Mapping[ObjectRef, tuple[Problem, ...]]


class ObjectReports:
    """What was said of objects so far. warn: called with the object, a reason in one word and a sentence, for an Event
    that people see beside the object."""

    def __init__(self, log: Log, warn: Callable[[ObjectRef, str, str], None]) -> None:
        self._log, self._warn = log, warn
        self._refused: Found = {}
        self._noted: Found = {}
        self._doubt = ""

    def refused(self, problems: Found, planned: Found) -> None:
        """Report the faults that there are now. planned: those of them that the plan brings
        about: other objects, or what the mode cannot do."""
        if problems == self._refused:
            return
        for ref, found in problems.items():
            if self._refused.get(ref) != found:
                self._tell(ref, found, planned.get(ref, ()))
        for ref in self._refused:
            if ref not in problems:
                self._log.info("object without fault now, or gone", object=ref)
        self._refused = dict(problems)

    def _tell(self, ref: ObjectRef, found: Collection[Problem], planned: Collection[Problem]) -> None:
        for problem in found:
            reason = "InvalidObject"
            if problem in planned:
                reason = "TooManyEndpoints" if problem.field.startswith("endpoints") else "FrontendConflict"
                if problem.field == ALGORITHM_FIELD:
                    reason = "UnsupportedAlgorithm"
            self._log.warning("object refused", object=ref, field=problem.field, reason=problem.reason)
            self._warn(ref, reason, f"{problem.field}: {problem.reason}")

    def noted(self, notes: Found) -> None:
        """Report objects that are used but may have surprising effects."""
        if notes == self._noted:
            return
        for ref, found in notes.items():
            if self._noted.get(ref) != found:
                for note in found:
                    self._log.warning("object noted", object=ref, field=note.field, reason=note.reason)
        self._noted = dict(notes)

    def node_name(self, name: str, doubt: str) -> None:
        """Report whether this node's name is one that the objects know. doubt: why perhaps not, "" where they do."""
        if doubt == self._doubt:
            return
        if doubt:
            self._log.warning("this node's name is in doubt", reason=doubt)
        else:
            self._log.info("this node's name is known now", node=name)
        self._doubt = doubt
