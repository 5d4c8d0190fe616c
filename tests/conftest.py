"""Fixtures that all tests share: network namespaces of their own, and a check that neither one of them nor eBPF pins of
this run are left behind."""

import os
import re
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings

from dataplane.kernel.namespaces import netns
from dataplane.planes.ebpf.attach.programs import remove_instances
from dataplane.planes.ebpf.maps.pins import default_instance, instance_names
from tests.namespaces import namespaces

_BEFORE: pytest.StashKey[frozenset[str]] = pytest.StashKey()
_LEFT: pytest.StashKey[list[str]] = pytest.StashKey()

# How long an example takes, or to make one, says more of who else has the processor than of the code; how many of the
# first ten are too large or left out, says more of the seed.
_BY_CHANCE = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]
_TIMELESS = settings(deadline=None, suppress_health_check=_BY_CHANCE)
settings.register_profile("default", _TIMELESS)
settings.register_profile("soak", _TIMELESS, max_examples=2000)
settings.register_profile("first", _TIMELESS, phases=(Phase.explicit, Phase.reuse, Phase.generate))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--soak", action="store_true", help="more hypothesis examples and more repetitions")
    parser.addoption("--first", action="store_true", help="an example that fails is told as it is, not simplified")
    parser.addoption(
        "--slowness",
        type=float,
        default=1.0,
        help="what probes' time limits are multiplied by (an emulated machine: 6)",
    )


def pytest_configure(config: pytest.Config) -> None:
    chosen = [profile for profile in ("soak", "first") if config.getoption(f"--{profile}")]
    settings.load_profile(chosen[0] if chosen else "default")
    # A shell's background job starts with SIGINT ignored, and so would the programs that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[_BEFORE] = frozenset(netns.names())


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run that leaves namespaces or pins of its own behind fails. Those of other processes carry another pid."""
    before: frozenset[str] = session.config.stash[_BEFORE]
    left = [name for name in netns.names() if name not in before and _made_by_this_run(name)]
    left += [f"pins {name}" for name in instance_names() if _made_by_this_run(name)]
    worked: list[str] = session.config.stash.get(_LEFT, [])  # by the workers of this run
    left += worked
    session.config.stash[_LEFT] = left
    if left:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if hasattr(session.config, "workeroutput"):  # a worker of a run on several processors: it has no summary
        session.config.workeroutput["left"] = left


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """What a worker left behind counts for the whole run."""
    node.config.stash.setdefault(_LEFT, []).extend(getattr(node, "workeroutput", {}).get("left", []))


def _made_by_this_run(name: str) -> bool:
    return name.startswith("hp-") and str(os.getpid()) in re.findall(r"\d+", name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    left = config.stash.get(_LEFT, [])
    if left:
        terminalreporter.section("left behind", red=True)
        terminalreporter.write_line(", ".join(left))


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> bool:
    """Whether this is the longer run (tests/run --soak)."""
    return bool(request.config.getoption("--soak"))


@pytest.fixture(scope="session")
def slowness(request: pytest.FixtureRequest) -> float:
    """How much slower than usual this machine is (--slowness): nothing else than time limits may depend on it."""
    return float(request.config.getoption("--slowness"))


@pytest.fixture
def make_namespace() -> Iterator[Callable[[str], str]]:
    """Make an empty network namespace, loopback up: a word in, its unique name out. All go after the test."""
    instances = set()
    made: list[str] = []
    with namespaces() as create:

        def make(word: str = "t") -> str:
            made.append(create(word))
            return made[-1]

        try:
            yield make
        finally:
            for name in filter(netns.exists, made):  # a test may have removed its own
                with netns.netns(name):
                    instances.add(default_instance())
    left = instances & set(instance_names())
    for instance in left:
        remove_instances(instance)
    assert not left, f"eBPF pins left behind: {left}"


@pytest.fixture
def namespace(make_namespace: Callable[[str], str]) -> str:
    """One network namespace of the test's own."""
    return make_namespace("t")
