"""What commands say of labs: which are up, where to ask, and what nodes said alike."""

from pathlib import Path

import pytest

from ctl.lab.apply import Done, told
from ctl.loaded import last_loaded
from ctl.main import main
from dataplane.errors import HotplaneError
from dataplane.kernel.namespaces import netns
from dataplane.lab import state
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabError, LabSpec


@pytest.fixture
def labs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(state, "STATE_DIR", tmp_path)
    monkeypatch.setattr(netns, "NETNS_DIR", tmp_path)
    return tmp_path


def test_a_lab_that_is_not_there_is_answered_by_those_that_are(labs: Path) -> None:
    with pytest.raises(LabError, match=r"^there is no lab lab: hotplane lab up --name lab$"):
        Lab.open("lab")
    for name in ("one", "two", "gone"):
        state.store(state.LabState(LabSpec(name), ready=True))
    state.store(state.LabState(LabSpec("half")))
    (labs / "damaged.json").touch()
    for name in ("hp-one-node1", "hp-two-node1", "hp-half-node1"):
        (labs / name).touch()
    with pytest.raises(LabError, match=r"; --name says which lab is meant: up are one, two$"):
        Lab.open("lab")
    with pytest.raises(LabError, match=r"^lab gone: its network namespaces are gone: hotplane lab up --name gone "):
        Lab.open("gone")


@pytest.mark.parametrize(("name", "option"), [("lab", ""), ("mine", " --name mine")])
def test_where_nothing_is_loaded_but_a_lab_is_up_its_nodes_may_be_asked(
    name: str, option: str, labs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said() -> str:
        with pytest.raises(HotplaneError) as raised:
            last_loaded(None, str(tmp_path / "none"))
        return str(raised.value)

    monkeypatch.setattr(netns, "is_first", lambda: True)
    assert said().endswith("; name the manifests with -f")
    state.store(state.LabState(LabSpec(name), ready=True))
    assert said().endswith("; name the manifests with -f")
    (labs / f"hp-{name}-node1").touch()
    assert said().endswith(f", or ask on a node of the lab: hotplane lab exec{option} node1 -- hotplane ...")
    state.store(state.LabState(LabSpec("another"), ready=True))
    (labs / "hp-another-node1").touch()
    among = ", or ask on a node of one of the labs that are up (another, mine): hotplane lab exec --name LAB node1"
    assert (among in said()) == (name == "mine"), "the lab with the default name is meant, else none before another"
    monkeypatch.setattr(netns, "is_first", lambda: False)
    assert said().endswith("; name the manifests with -f")


@pytest.mark.parametrize(
    "words",
    [
        ("exec", "node1", "--", "true"),
        ("call", "client", "node1:80"),
        ("apply", "-f", "examples"),
        ("ui", "--listen", "127.0.0.1:8099"),
    ],
    ids=lambda words: words[0],
)
def test_who_may_not_enter_a_lab_is_told_so(
    words: tuple[str, ...], labs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state.store(state.LabState(LabSpec("lab"), ready=True))
    (labs / "hp-lab-node1").touch()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert main(["lab", *words]) == 1
    assert capsys.readouterr().err == (
        "hotplane: a lab is made of network namespaces and cgroups, which are root's: run this as root\n"
    )


def test_what_nodes_say_alike_is_told_once() -> None:
    done = [Done("node1", None, "a\nb\n"), Done("node2", None, "b\nc\n"), Done("node3", None, "")]
    assert [*told(done)] == ["node1: a", "node1, node2: b", "node2: c"]
