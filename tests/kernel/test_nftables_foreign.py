"""What others keep in nftables does not exist for hotplane: it is neither read, nor touched, nor paid for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.kernel.nft import transaction as nft_module
from dataplane.kernel.nft.forms import Compiler
from dataplane.plan.change import PlanChange
from dataplane.plan.rows import rows
from dataplane.planes.base import PlaneError
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.policy.node import NodeConfig
from tests.kernel.foreign_tables import STRANGE, Ran, foreign_set, hotplane, listing, manifests
from tests.kernel.nftables_listing import nft
from tests.kernel.nftables_net import entry, plan_of, pods

WITNESS = """
import importlib.util, os, pathlib
spec = importlib.util.spec_from_file_location("real", "/usr/lib/python3/dist-packages/nftables/nftables.py")
real = importlib.util.module_from_spec(spec)
spec.loader.exec_module(real)
FILE = pathlib.Path(__file__).with_name("seen")

class Nftables(real.Nftables):
    def cmd_from_file(self, name):
        _, before, _ = self.cmd("list tables")
        with FILE.open("a") as file:
            file.write(f"{os.stat('/proc/thread-self/ns/net').st_ino} {' '.join(before.split())}\\n")
        return super().cmd_from_file(name)
"""
CRASHES = """
import os, signal

class Nftables:
    def cmd_from_file(self, name):
        os.kill(os.getpid(), signal.SIGSEGV)
"""


MOST_RUNS = 20


@pytest.fixture
def modules(tmp_path: Path) -> Callable[[str], Path]:
    """Makes a folder with a stand-in for libnftables' Python module."""

    def make(text: str) -> Path:
        folder = tmp_path / "modules"
        folder.mkdir(exist_ok=True)
        (folder / "nftables.py").write_text(text)
        return folder

    return make


def applied(ran: Ran, status: int = 0) -> str:
    assert ran.status == status, ran.text
    assert "Traceback" not in ran.text
    return ran.text


def test_libnftables_never_sees_the_namespace(namespace: str, tmp_path: Path, modules: Callable[[str], Path]) -> None:
    """It is asked in empty namespaces of its own, and of this process's there is no trace of it."""
    nft(namespace, "add table ip seen-by-nobody")
    folder, file = modules(WITNESS), manifests(tmp_path, 3)
    state = ("--state-dir", str(tmp_path / "state"))
    for words in (("apply", "-f", str(file)), ("check",), ("cleanup",)):
        text = applied(hotplane(namespace, tmp_path / "cache", *state, *words, modules=folder))
        assert "no libnftables here" in text
    live = str(in_netns(namespace, lambda: Path("/proc/thread-self/ns/net").stat().st_ino))
    seen = [line.split() for line in (folder / "seen").read_text().splitlines()]
    assert seen
    assert all(inode != live for inode, *_ in seen)
    assert all(name == "compiled" for _, *tables in seen for name in tables[2::3]), "what it made itself"


def test_with_a_warm_cache_it_is_not_asked_at_all(
    namespace: str, tmp_path: Path, modules: Callable[[str], Path]
) -> None:
    """Whatever its version does: apply, check, repair, a daemon's start and cleanup."""
    file, cache = manifests(tmp_path, 3), tmp_path / "cache"
    state = ("--state-dir", str(tmp_path / "state"), "--node-name", "n1")
    apply = (*state, "apply", "-f", str(file))
    applied(hotplane(namespace, cache, *apply))
    applied(hotplane(namespace, cache, *state, "cleanup"))
    folder = modules(CRASHES)
    for words in (
        apply,
        (*state, "check"),
        (*state, "check", "--repair"),
        (*state, "run", "--once", "-f", str(file)),
        (*state, "cleanup"),
    ):
        assert "no libnftables here" in applied(hotplane(namespace, cache, *words, modules=folder))
    assert nft(namespace, "list", "ruleset") == ""


def test_a_library_that_crashes_is_a_sentence(namespace: str, tmp_path: Path, modules: Callable[[str], Path]) -> None:
    """apply ends with it; a daemon says it, and tries again."""
    file, folder, cache = manifests(tmp_path, 3), modules(CRASHES), tmp_path / "cache"
    state = ("--state-dir", str(tmp_path / "state"), "--node-name", "n1")
    apply = hotplane(namespace, cache, *state, "apply", "-f", str(file), modules=folder)
    daemon = hotplane(namespace, cache, *state, "run", "-f", str(file), modules=folder, until="libnftables crashed")
    for text in (applied(apply, 1), applied(daemon)):
        assert "libnftables crashed (SIGSEGV)" in text
        assert "nothing was changed" in text
        assert "install another version" in text
    assert nft(namespace, "list", "ruleset") == ""


def test_a_version_that_crashes_has_what_another_one_compiled(
    namespace: str, tmp_path: Path, modules: Callable[[str], Path]
) -> None:
    """After an upgrade of libnftables, or of the kernel."""
    file, cache = manifests(tmp_path, 3), tmp_path / "cache"
    words = ("--state-dir", str(tmp_path / "state"), "apply", "-f", str(file))
    applied(hotplane(namespace, cache, *words))
    for path in cache.iterdir():
        path.rename(path.with_name(f"{path.name.partition('-')[0]}-of-old.json"))
    text = applied(hotplane(namespace, cache, *words, modules=modules(CRASHES)))
    assert "libnftables crashed (SIGSEGV)" in text
    assert "Used instead: what another version or kernel made" in text


def test_what_is_loaded_goes_on_serving_where_it_crashes(
    namespace: str, tmp_path: Path, modules: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(entry(4, pods(4, 0, 1)), entry(6, pods(6, 0, 1), affinity=60))
    plane = in_netns(namespace, NftablesPlane)
    plane.load(plan)
    before = nft(namespace, "list", "ruleset")
    monkeypatch.setattr(nft_module.COMPILER, "_known", Compiler()._known)
    monkeypatch.setattr(nft_module.COMPILER, "_cache", (tmp_path / "cache",))
    monkeypatch.syspath_prepend(modules(CRASHES))
    with pytest.raises(PlaneError, match=r"libnftables crashed \(SIGSEGV\).*what is loaded goes on serving"):
        plane.apply(PlanChange(node=NodeConfig(masquerade_mark=0x7000)))
    assert nft(namespace, "list", "ruleset") == before
    assert plane.read_back() == rows(plan)
    in_netns(namespace, NftablesPlane).cleanup()  # which needs nothing compiled
    assert nft(namespace, "list", "ruleset") == ""


def test_what_a_full_disk_or_a_stranger_left_is_compiled_again(namespace: str, tmp_path: Path) -> None:
    file, cache = manifests(tmp_path, 3), tmp_path / "cache"
    words = ("--state-dir", str(tmp_path / "state"), "apply", "-f", str(file))
    applied(hotplane(namespace, cache, *words))
    kept = {path.name: path.read_bytes() for path in cache.iterdir()}
    assert kept
    for path in cache.iterdir():
        path.write_bytes(path.read_bytes()[:-100])
    applied(hotplane(namespace, cache, *words))
    assert {path.name: path.read_bytes() for path in cache.iterdir()} == kept
    applied(hotplane(namespace, Path("/proc/nowhere"), *words))


RIGHTS = ("setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin", "--no-new-privs")
_NONE = 'echo 0 > /proc/sys/user/max_user_namespaces && ip link set lo up && exec "$@"'
NO_NAMESPACES = ("unshare", "--user", "--map-root-user", "--net", "sh", "-c", _NONE, "sh", *RIGHTS)
"""A user namespace in which nobody makes another one."""


def test_it_is_compiled_with_the_rights_of_the_daemon_or_ahead(namespace: str, tmp_path: Path) -> None:
    """In a user namespace of its own, or, where there may be none, by the container that begins with all rights."""
    file, cache = manifests(tmp_path, 3), tmp_path / "cache"

    def run(cache: Path, *words: str, wrapper: tuple[str, ...] = ()) -> Ran:
        options = ("--state-dir", str(tmp_path / "state"), "--node-name", "n1")
        return hotplane(namespace, cache, *options, *words, wrapper=wrapper)

    applied(run(tmp_path / "other", "apply", "-f", str(file), wrapper=RIGHTS))
    assert "table ip hotplane {" in nft(namespace, "list", "ruleset")
    text = applied(run(cache, "apply", "-f", str(file), wrapper=NO_NAMESPACES), 1)
    assert "no empty network namespace could be made for it" in text
    assert "run `hotplane run --init-only`" in text
    applied(run(cache, "run", "--init-only"))
    applied(run(cache, "apply", "-f", str(file), wrapper=NO_NAMESPACES))
    applied(run(cache, "run", "--once", "-f", str(file), wrapper=NO_NAMESPACES))


def test_strange_tables_stay_as_they_are(namespace: str, tmp_path: Path) -> None:
    (tmp_path / "strange.nft").write_text(STRANGE)
    nft(namespace, "-f", str(tmp_path / "strange.nft"))
    before = listing(namespace)
    file, cache = manifests(tmp_path, 3), tmp_path / "cache"
    state = ("--state-dir", str(tmp_path / "state"))
    for words in (("apply", "-f", str(file)), ("check",), ("apply", "-f", str(file)), ("cleanup",)):
        applied(hotplane(namespace, cache, *state, *words))
        assert listing(namespace) == before
        assert ("table ip hotplane {" in nft(namespace, "list", "ruleset")) == (words != ("cleanup",))


def test_the_size_of_other_tables_costs_nothing(make_namespace: Callable[[str], str], tmp_path: Path) -> None:
    """Processor time and memory of a command beside 50,000 networks of somebody else's, and of one without them."""
    full, bare = make_namespace("full"), make_namespace("bare")
    foreign_set(full, 50_000)
    file, cache = manifests(tmp_path, 300), tmp_path / "cache"
    words = ("--state-dir", str(tmp_path / "state"), "apply", "-f", str(file))
    applied(hotplane(bare, cache, *words))  # compiles
    found: dict[str, list[Ran]] = {full: [], bare: []}

    def costs_nothing() -> bool:
        # The first beside the big set fills an empty table, which costs less than to take one over.
        seconds = {where: min(one.seconds for one in ran[1:]) for where, ran in found.items()}
        megabytes = {where: min(one.megabytes for one in ran) for where, ran in found.items()}
        return seconds[full] <= 1.25 * seconds[bare] and megabytes[full] <= 1.1 * megabytes[bare]

    for number in range(MOST_RUNS):  # the least of more runs on a machine whose processors have other work, too
        for where, ran in found.items():
            ran.append(hotplane(where, cache, *words))
            applied(ran[-1])
        if number >= 2 and costs_nothing():
            return
    raise AssertionError(found)
