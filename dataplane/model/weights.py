"""Weights of endpoints: the annotation of an EndpointSlice that gives its endpoints larger or smaller shares.

`7` holds for every endpoint of the slice. `10.0.0.1=5,web-2=0` names single ones, by their first address or by the name
of their Pod (`targetRef.name`); a number among them holds for the others, which have weight 1 otherwise. The range is
that of Cilium's annotation of slices.
"""

from dataplane.model.net import canonical_address
from dataplane.model.report import Report

WEIGHTS_ANNOTATION = "service.hotplane.io/weights"
MOST_WEIGHT = 65535
FIELD = f"metadata.annotations[{WEIGHTS_ANNOTATION}]"


class Weights:
    """The weights of one slice. Parts that cannot be read are reported, and the others count.

    text: the annotation's value.
    """

    def __init__(self, text: str, report: Report) -> None:
        self._others = 1
        self._named: dict[str, int] = {}
        self._unused: set[str] = set()
        for part in filter(None, (part.strip() for part in text.split(","))):
            self._read(part, report)

    def _read(self, part: str, report: Report) -> None:
        name, equals, number = (word.strip() for word in part.rpartition("="))
        if not (number.isascii() and number.isdecimal() and len(number) <= 5 and int(number) <= MOST_WEIGHT):
            what = f"{part[:80]!r} has no weight from 0 to {MOST_WEIGHT}"
            report.problem(FIELD, f"{what}; write NUMBER, ADDRESS=NUMBER or POD=NUMBER (it is ignored)")
            return
        if equals:
            self._named[_canonical(name)] = int(number)
            self._unused.add(_canonical(name))
        else:
            self._others = int(number)

    def of(self, address: str, pod: str) -> int:
        """Return the weight of an endpoint. address: canonical. pod: "" if it is no Pod."""
        self._unused.difference_update((address, pod))
        return self._named.get(address, self._named.get(pod, self._others))

    def note_unused(self, report: Report) -> None:
        """Note the names that no endpoint had."""
        for name in sorted(self._unused):
            report.note(FIELD, f"{name[:80]!r} is neither the address nor the Pod of an endpoint of this slice")


def _canonical(name: str) -> str:
    """An address in the form that endpoints have, anything else as it is."""
    try:
        return canonical_address(name)
    except ValueError:
        return name
