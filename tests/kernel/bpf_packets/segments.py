"""TCP segments as two real ends would number them."""

from typing import Any

from scapy.layers.inet import TCP


class Numbers:
    """The sequence numbers of one connection. Each end acknowledges all that the other one has sent so far."""

    def __init__(self, client: int = 0xFFFFFF00, server: int = 1000) -> None:
        self._next = {True: client, False: server}

    def segment(self, ports: tuple[int, int], flags: str, data: bytes = b"", *, client: bool, **fields: Any) -> Any:
        """The next segment of an end; `fields` (seq, ack, options, ...) override what it would say."""
        size = len(data) + ("S" in flags) + ("F" in flags)
        header: dict[str, Any] = {"seq": self._next[client], "flags": flags}
        if "A" in flags:
            header["ack"] = self._next[not client]
        if "seq" not in fields:
            self._next[client] = (self._next[client] + size) % 2**32
        return TCP(sport=ports[0], dport=ports[1], **(header | fields)) / data

    def sent(self, *, client: bool) -> int:
        """What follows all that an end has sent."""
        return self._next[client]
