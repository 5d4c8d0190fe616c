"""A peer's API server, a process of its own: `python -m dataplane.bench.peer.api LAB ADDRESS`.

It says where it listens, {"url": ...}, and obeys JSON lines; each is answered by one, times in nanoseconds of the
monotonic clock, which all processes of a machine share.
"""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import msgspec

from dataplane.bench.objects import Backend, Changes, Shape
from dataplane.bench.peer.cluster import cluster, filled_in, probe_slice
from dataplane.errors import HotplaneError
from dataplane.lab.apiserver.server import ApiServer
from dataplane.lab.lab import Lab

BOOKMARK_SECONDS = 60.0
_CHUNK = 1000


class Order(msgspec.Struct, frozen=True):
    """do: "fill" (the cluster anew: shape, local, remote, place), "move" (the probes' endpoint to place), "churn"
    (rate: changes of other Services a second, from now on; 0: no more)."""

    do: str
    shape: Shape = Shape(0)
    local: Backend = Backend("", "")
    remote: Backend = Backend("", "")
    place: str = ""
    rate: int = 0


class _Churn(threading.Thread):
    """Changes of one endpoint each, due at a steady rate, until `end`."""

    def __init__(self, server: ApiServer, changes: Changes, rate: int) -> None:
        super().__init__(daemon=True)
        self._server, self._changes, self._gap = server, changes, 1 / rate
        self._over = threading.Event()
        self.made = 0

    def run(self) -> None:
        start = time.monotonic()
        while not self._over.wait(max(0.0, start + self.made * self._gap - time.monotonic())):
            self._server.apply(filled_in(msgspec.json.decode(self._changes.next())))
            self.made += 1

    def end(self) -> float:
        """No more; how many a second there were."""
        self._over.set()
        self.join()
        return self.made


class Api:
    """The server and what is in it."""

    def __init__(self, lab: Lab, server: ApiServer) -> None:
        self._lab, self._server = lab, server
        self._last = Order("")
        self._changes = Changes(Shape(0))
        self._churn: _Churn | None = None

    def fill(self, order: Order) -> dict[str, float]:
        """The cluster of so many Services; it must be empty yet."""
        items: list[Any] = []
        for item in cluster(order.shape, order.local, order.remote, self._lab.nodes, order.place):
            items.append(item)
            if len(items) == _CHUNK:
                self._server.apply(*items)
                items = []
        self._server.apply(*items)
        self._server.forget()  # nobody watches yet, so nobody misses the history
        self._last, self._changes = order, Changes(order.shape)
        return {}

    def move(self, order: Order) -> dict[str, float]:
        """Move the probes' endpoint; `at`: just before watches hear of it."""
        found = probe_slice(self._last.local, self._last.shape.family, order.place)
        at = time.monotonic_ns()
        self._server.apply(filled_in(found))
        return {"at": float(at)}

    def churn(self, order: Order) -> dict[str, float]:
        """Begin or end changes; `made`: how many there were."""
        made = self._churn.end() if self._churn else 0.0
        self._churn = None
        if order.rate:
            self._churn = _Churn(self._server, self._changes, order.rate)
            self._churn.start()
        elif (undo := self._changes.undo()) is not None:
            self._server.apply(filled_in(msgspec.json.decode(undo)))
        return {"made": made}


def main(arguments: list[str]) -> None:
    """Entry point: lab, address to listen on."""
    name, address = arguments
    with ApiServer(address) as server:
        server.behave(gzip=False, bookmark_seconds=BOOKMARK_SECONDS)
        api = Api(Lab.open(name), server)
        actions: dict[str, Callable[[Order], dict[str, float]]] = {
            "fill": api.fill, "move": api.move, "churn": api.churn,
        }  # fmt: skip
        _say({"url": server.url})
        for line in sys.stdin.buffer:
            order = msgspec.json.decode(line, type=Order)
            try:
                _say(dict(actions[order.do](order)))
            except HotplaneError as error:
                _say({"error": str(error)})


def _say(answer: dict[str, Any]) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main(sys.argv[1:])
