"""The load of scenarios in which something happens, or many flows are open at once: watch.c in a place of the lab."""

from typing import TYPE_CHECKING, Any

from dataplane.lab.spec import LabError

if TYPE_CHECKING:
    from dataplane.bench.helper import Helper

PATIENCE = 30.0
RATE, FLOWS, FLOW_RATE = 500, 16, 400
"""New connections a second, flows that are open all the time, and bytes a second there and back on all of them. Little
enough for every mode at every size, so that what is slow is so because of what happens; a gap is told to 2 ms."""

Target = tuple[str, int]
"""Address and port."""


class Watcher:
    """Such a process, by the pipes that it obeys."""

    def __init__(self, helper: "Helper") -> None:
        self._helper = helper

    @property
    def pid(self) -> int:
        return self._helper.process.pid

    @property
    def is_alive(self) -> bool:
        """False once it has ended, also because an answer was late: that would be taken for the next one's."""
        return self._helper.process.poll() is None

    def begin(self, target: Target, *, rate: float = RATE, flows: int = FLOWS, flow_rate: float = FLOW_RATE) -> None:
        """Begin the load. Raises LabError, and begins none, where not all flows can be opened."""
        opened = self._ask("watch", target, rate, flows, flow_rate)["flows"]
        if opened < flows:
            self.end()
            raise LabError(f"{target[0]} port {target[1]}: {opened} of {flows} flows could be opened")

    def flood(self, target: Target, rate: float) -> None:
        """Begin a SYN flood. Raises LabError where this place may not."""
        self._ask("flood", target, rate)

    def end(self) -> dict[str, Any]:
        """End load or flood; what watch.c answers."""
        return self._obey(b"stop", PATIENCE)

    def closed_loop(self, operation: str, target: Target, count: int, seconds: float) -> dict[str, Any]:
        """So many `connects` or `exchanges` at once for so long; what watch.c answers."""
        return self._obey(self._line(operation, target, count, seconds), seconds + PATIENCE)

    def hold(self, target: Target, count: int) -> list[int]:
        """Open so many flows more; the ports that serve all that are held, 0 for one that does not answer."""
        return list(self._ask("hold", target, count)["ports"])

    def drop(self, target: Target) -> None:
        """End all flows that are held."""
        self._ask("drop", target, 0)

    def _ask(self, operation: str, target: Target, *numbers: float) -> dict[str, Any]:
        return self._obey(self._line(operation, target, *numbers), PATIENCE)

    def _obey(self, line: bytes, patience: float) -> dict[str, Any]:
        try:
            return self._helper.ask(line, patience)
        except LabError:
            self._helper.process.kill()
            self._helper.process.wait()
            raise

    @staticmethod
    def _line(operation: str, target: Target, *numbers: float) -> bytes:
        return f"{operation} {target[0]} {target[1]} - {' '.join(f'{number:g}' for number in numbers)}".encode()

    def close(self) -> None:
        """End the process."""
        self._helper.close()
