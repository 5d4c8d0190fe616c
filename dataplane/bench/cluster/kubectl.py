"""kubectl, the only way to the cluster: calls with a time limit, and what it says of failures as sentences."""

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from dataplane.lab.spec import LabError

CALL_SECONDS = 30.0
_GRACE_SECONDS = 5.0
"""What a call gets beyond the time that kubectl itself was told."""
INSTALL = "install it (Debian: apt-get install kubernetes-client, or https://kubernetes.io/docs/tasks/tools/)"
_SECRETS = (
    (re.compile(r"(?i)\b(bearer|basic)\s+\S+"), r"\1 ***"),
    (re.compile(r"(?i)\b(token|password|secret|client-key-data)([=:]\s*)\S+"), r"\1\2***"),
    (re.compile(r"(https?://)[^/\s:@]+:[^/\s@]+@"), r"\1***@"),
)
_HINTS = (
    ("(Forbidden)", "violates PodSecurity", "the namespace's Pod Security level forbids it"),
    ("(Forbidden)", "exceeded quota", "ask for more quota, or use a cluster without one"),
    ("(Forbidden)", "failed quota", "ask for more quota, or use a cluster without one"),
    ("(Forbidden)", "", "docs/bench-cluster.md lists the permissions that the account needs"),
    ("Unauthorized", "", "the kubeconfig's credentials are not accepted"),
    ("You must be logged in", "", "the kubeconfig's credentials are not accepted"),
    ("context", "does not exist", "kubectl config get-contexts names those that there are"),
    ("context was not found", "", "kubectl config get-contexts names those that there are"),
    ("Unable to connect to the server", "", "is this the right kubeconfig, and does the API server run?"),
)


class ClusterError(LabError):
    """The cluster refused something, was late with it, or cannot be reached. The text says what, and what to do."""


class KubectlError(ClusterError):
    """A call failed. said: kubectl's own message, without secrets."""

    def __init__(self, text: str, said: str = "") -> None:
        super().__init__(text)
        self.said = said

    @property
    def is_missing(self) -> bool:
        """True if there is no such object."""
        return "(NotFound)" in self.said

    @property
    def is_forbidden(self) -> bool:
        """True if the call is forbidden: RBAC, a quota, an admission controller."""
        return "(Forbidden)" in self.said or "denied the request" in self.said


def without_secrets(text: str) -> str:
    """The text with credentials blotted out."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def sentence(what: str, stderr: str) -> str:
    """Return what failed and why, in one sentence: kubectl's last line about an error, and what to do about it."""
    lines = [line.strip() for line in without_secrets(stderr).splitlines() if line.strip()]
    telling = [line for line in lines if re.match(r"(?i)(error|unable|the connection)", line)] or lines
    said = telling[-1] if telling else "it says nothing"
    said = re.sub(r"(?i)^error: ", "", said)
    hint = next((hint for first, second, hint in _HINTS if first in stderr and second in stderr), "")
    return f"{what}: {said}" + (f"; {hint}" if hint else "")


class Kubectl:
    """kubectl with a kubeconfig and a context. What it starts is in a session of its own, so that Ctrl-C does not end
    it in the middle of a removal."""

    def __init__(self, kubeconfig: Path | None = None, context: str = "", namespace: str = "") -> None:
        """namespace: of every call. Raises ClusterError when there is no kubectl or no such file."""
        program = shutil.which("kubectl")
        if program is None:
            raise ClusterError(f"kubectl is not in PATH: {INSTALL}")
        if kubeconfig is not None and not os.access(kubeconfig, os.R_OK):
            raise ClusterError(f"--kubeconfig {kubeconfig}: there is no such file, or it cannot be read")
        self._base = [program]
        self._base += ["--kubeconfig", str(kubeconfig)] if kubeconfig is not None else []
        self._base += ["--context", context] if context else []
        self._base += ["--namespace", namespace] if namespace else []

    def run(self, what: str, *arguments: str, input: bytes = b"", seconds: float = CALL_SECONDS) -> bytes:
        """One call to its end; its standard output. what: names it in errors. Raises KubectlError."""
        own = [] if arguments[0] == "exec" else [f"--request-timeout={seconds:.0f}s"]
        try:
            done = subprocess.run(
                [*self._base, *own, *arguments], input=input, capture_output=True, check=False,
                timeout=seconds + _GRACE_SECONDS, start_new_session=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            late = f"{what}: kubectl {arguments[0]} gives no answer in {seconds:.0f} s; is the API server reachable?"
            raise KubectlError(late) from error
        except OSError as error:
            raise KubectlError(f"{what}: {self._base[0]} cannot be run: {error.strerror}; {INSTALL}") from error
        if done.returncode:
            said = done.stderr.decode(errors="replace")
            raise KubectlError(sentence(what, said), without_secrets(said))
        return done.stdout

    def json(self, what: str, *arguments: str, input: bytes = b"", seconds: float = CALL_SECONDS) -> Any:
        """One call that prints an object. Raises KubectlError."""
        out = self.run(what, *arguments, "-o", "json", input=input, seconds=seconds)
        try:
            return msgspec.json.decode(out)
        except msgspec.DecodeError as error:
            raise KubectlError(f"{what}: kubectl {arguments[0]} prints no JSON: {error}") from error

    def items(self, what: str, *arguments: str) -> list[Any]:
        """The objects of a `get` of many. Raises KubectlError."""
        found: list[Any] = self.json(what, "get", *arguments).get("items", [])
        return found

    def execute(self, pod: str, *argv: str, input: bytes = b"", seconds: float = CALL_SECONDS) -> bytes:
        """Run something in a pod to its end; its standard output. Raises KubectlError."""
        interactive = ["-i"] if input else []
        return self.run(f"pod {pod}", "exec", *interactive, pod, "--", *argv, input=input, seconds=seconds)

    def command(self, pod: str, *argv: str) -> Sequence[str]:
        """The command line that runs something in a pod with standard input and output."""
        return [*self._base, "exec", "-i", pod, "--", *argv]
