"""A change of a plan as sentences for the page."""

from ctl.ui.view import Event
from dataplane.plan.change import EntryChange, PlanChange

MOST = 20
"""So many changes are told one by one; of more at a time, the number."""


def told(where: str, change: PlanChange) -> list[Event]:
    """What changed on the node `where`. O(1) in the number of Services that change."""
    texts = list(dict.fromkeys(f"{each.key.service}: {_text(each)}" for each in change.entries[:MOST]))
    if len(change.entries) > MOST:
        texts.append(f"and {len(change.entries) - MOST} more changes")
    return [Event("change", where, text) for text in texts]


def _text(change: EntryChange) -> str:
    old, new = change.old, change.new
    if new is None:
        return "removed"
    if old is None:
        number = len({*new.cluster, *new.local})
        return f"added, {number} endpoint{'' if number == 1 else 's'}"
    before, after = {*old.cluster, *old.local}, {*new.cluster, *new.local}
    parts = [f"{backend} came" for backend in sorted(after - before)]
    parts += [f"{backend} went" for backend in sorted(before - after)]
    return ", ".join(parts) or "changed"
