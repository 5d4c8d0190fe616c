"""What people are told of Service ports that do not fit into a map."""

from collections.abc import Collection, Mapping, Sequence

from dataplane.faults import Tell
from dataplane.plan.types import EntryKey

_SHOWN = 5


def _names(keys: Collection[EntryKey]) -> str:
    shown = ", ".join(sorted(key.service for key in keys)[:_SHOWN])
    return f"{shown} and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else shown


def full_sentences(left_out: Mapping[EntryKey, str]) -> Sequence[str]:
    """Return a sentence for each full map, with the Service ports that are left out because of it. left_out: by entry,
    the name of the map."""
    by_map: dict[str, list[EntryKey]] = {}
    for key, name in left_out.items():
        by_map.setdefault(name, []).append(key)
    return [
        f"map {name} is full: {len(keys)} Service ports are left to the slow path, which serves them: {_names(keys)}"
        for name, keys in by_map.items()
    ]


class Full:
    """Tells of Service ports that are left out, once each, and of those that fit in again. report: hears of the former,
    None = nobody wants to know; mended: of the latter."""

    def __init__(self, report: Tell | None, mended: Tell) -> None:
        self._report, self._mended = report, mended
        self._told: frozenset[EntryKey] = frozenset()

    def tell(self, left_out: Mapping[EntryKey, str], held: Collection[EntryKey]) -> None:
        """Tell what is new. left_out: as in `full_sentences`. held: what is in the maps."""
        if self._report is None or left_out.keys() == self._told:
            return
        told, self._told = self._told, frozenset(left_out)
        for sentence in full_sentences({key: name for key, name in left_out.items() if key not in told}):
            self._report(sentence)
        back = [key for key in told if key not in left_out and key in held]
        if back:
            self._mended(f"{len(back)} Service ports fit into the maps again: {_names(back)}")
