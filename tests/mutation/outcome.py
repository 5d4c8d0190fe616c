"""Running the tests of a mutation, and what came out."""

import contextlib
import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import NamedTuple

from dataplane.kernel.namespaces import netns
from tests.mutation.mutation import Mutation, MutationError, node_ids
from tests.mutation.tree import fault, python_of

SECONDS = 300.0
"""For the tests of one mutation. Tests of the kernel that compile a program take up to a minute on a busy machine."""

_FAILED = re.compile(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)
_NOT_BUILT = re.compile(r"CompileError|permission denied.*processed \d+ insns|program .* verifier", re.DOTALL)
_PATIENCE = 30.0
_PASSED, _TESTS_FAILED, _INTERRUPTED = 0, 1, 2


class Verdict(Enum):
    """KILLED: a test noticed. SURVIVED: none did. The others say nothing of the tests: the source has changed since,
    the program with the fault is none, or the tests themselves fail or cannot be run."""

    KILLED = "killed"
    SURVIVED = "SURVIVED"
    DOES_NOT_APPLY = "DOES NOT APPLY"
    NOT_BUILT = "CANNOT BE BUILT"
    BROKEN = "TESTS BROKEN"


class Outcome(NamedTuple):
    """by: the test that noticed, or why there is no verdict."""

    verdict: Verdict
    by: str = ""
    seconds: float = 0.0


class Run(NamedTuple):
    """A run of pytest. status: its exit status, None when it ran out of time."""

    status: int | None
    output: str
    failed: tuple[str, ...]


def run_tests(tree: Path, tests: Sequence[str], seconds: float, *, all_of_them: bool = False) -> Run:
    """Run tests in a copy; only up to the first that fails, unless all are wanted."""
    arguments = [
        "-p",
        "no:cacheprovider",
        "--color=no",
        "--tb=short",
        "--first",
        *([] if all_of_them else ["-x"]),
        *tests,
    ]
    with subprocess.Popen(
        [python_of(tree), "-m", "pytest", *arguments],
        cwd=tree, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True, text=True, errors="replace",
    ) as process:  # fmt: skip
        try:
            output, status = process.communicate(timeout=seconds)[0], process.returncode
        except subprocess.TimeoutExpired:
            output, status = _ended(process), None
        except BaseException:
            _ended(process)
            raise
        finally:
            _clear_up(process.pid)
    return Run(status, output, tuple(dict.fromkeys(_FAILED.findall(output))))


def _ended(process: subprocess.Popen[str]) -> str:
    """End pytest and all that it started; first as ^C does, upon which it clears up."""
    process.send_signal(signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        return process.communicate(timeout=_PATIENCE)[0]
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()[0]


def _clear_up(pid: int) -> None:
    """Remove the network namespaces of a pytest that could not do so itself, and end what it left running."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    for name in netns.names():
        if name.startswith("hp-") and str(pid) in re.findall(r"\d+", name):
            netns.remove(name)


def broken_tests(tree: Path, mutations: Sequence[Mutation], seconds: float) -> dict[str, str]:
    """Those of the mutations' tests that fail without any fault: node id, and why."""
    wanted = dict.fromkeys(test for mutation in mutations for test in _known(tree, mutation))
    run = run_tests(tree, list(wanted), seconds, all_of_them=True)
    if run.status == _PASSED:
        return {}
    if run.failed:
        return dict.fromkeys(run.failed, "fails without any fault")
    return dict.fromkeys(wanted, f"pytest ended with status {run.status}: {run.output[-500:]}")


def _known(tree: Path, mutation: Mutation) -> list[str]:
    try:
        return node_ids(tree, mutation)
    except MutationError:
        return []  # told when its turn comes


def try_out(tree: Path, mutation: Mutation, broken: dict[str, str], seconds: float) -> Outcome:
    """Put a fault into a copy and run its tests."""
    began = time.monotonic()
    try:
        tests = node_ids(tree, mutation)
        with fault(tree, mutation):
            run = run_tests(tree, tests, seconds)
    except MutationError as error:
        return Outcome(Verdict.DOES_NOT_APPLY, str(error))
    took = time.monotonic() - began
    if run.status is None:
        return Outcome(Verdict.KILLED, f"{tests[0]} (ran out of time)", took)
    if run.status == _PASSED:
        return Outcome(Verdict.SURVIVED, ", ".join(tests), took)
    if run.status not in (_TESTS_FAILED, _INTERRUPTED) or not run.failed:
        return Outcome(Verdict.BROKEN, f"pytest ended with status {run.status}: {run.output[-500:]}", took)
    if _NOT_BUILT.search(run.output):
        return Outcome(Verdict.NOT_BUILT, run.output[-1500:], took)
    if run.failed[0] in broken:
        return Outcome(Verdict.BROKEN, f"{run.failed[0]}: {broken[run.failed[0]]}", took)
    return Outcome(Verdict.KILLED, run.failed[0], took)
