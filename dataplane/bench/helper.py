"""A process of the benchmark in the lab, which is spoken with in lines of JSON."""

import contextlib
import json
import subprocess
from typing import Any

from dataplane.kernel.wait import readable
from dataplane.lab.spec import LabError


class Helper:
    """A process in the lab that answers each line with a line of JSON."""

    def __init__(self, process: "subprocess.Popen[bytes]", what: str) -> None:
        self.process, self.what = process, what

    def ask(self, line: bytes, patience: float) -> dict[str, Any]:
        """One request. Raises LabError when the helper has died, is late or answers with an error."""
        pipe = self.process.stdin
        assert pipe is not None, "helpers are started with both pipes"
        try:
            pipe.write(line + b"\n")
            pipe.flush()
        except BrokenPipeError as error:
            raise LabError(f"{self.what} has ended; its words are above") from error
        return self.hear(patience)

    def hear(self, patience: float) -> dict[str, Any]:
        """The next answer. Raises LabError as `ask`."""
        answers = self.process.stdout
        assert answers is not None, "helpers are started with both pipes"
        ready = readable([answers.fileno()], patience)
        answer = answers.readline() if ready else b""
        if not answer:
            raise LabError(f"{self.what} {'has ended' if ready else f'gives no answer in {patience:.0f} s'}")
        found: dict[str, Any] = json.loads(answer)
        if "error" in found:
            raise LabError(f"{self.what}: {found['error']}")
        return found

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None, "helpers are started with both pipes"
        with contextlib.suppress(BrokenPipeError):  # it died with a request unread
            self.process.stdin.close()
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:  # in the middle of something that nobody waits for any more
            self.process.kill()
            self.process.wait()
