"""What `explain --live` prints: what was said of a packet beside what was seen of it."""

import msgspec


class Comparison(msgspec.Struct, frozen=True):
    """One thing that was said and seen. agrees: both are the same, as far as both are known."""

    what: str
    said: str
    saw: str
    agrees: bool


class Live(msgspec.Struct, frozen=True):
    """The comparison of a flow. agreed: nothing differs. outcome: a sentence of the trace's."""

    agreed: bool
    outcome: str
    compared: tuple[Comparison, ...]
