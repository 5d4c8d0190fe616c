"""The next process removes the rules that a process left when it was killed during a change of modes."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ctl.main import main
from ctl.store import state, unfinished_loads
from dataplane.kernel.namespaces import netns
from dataplane.planes.base import PlaneError
from dataplane.planes.registry import MODES
from tests.kernel.test_cli_apply import ECHO

TRACES = {"iptables": "KUBE-", "nftables": "table ip hotplane", "ebpf": "xdp"}


def traces() -> set[str]:
    """Modes of which something is in the current network namespace. The ebpf mode has the nftables mode's rules too."""
    commands = (["iptables-legacy-save", "-t", "nat"], ["nft", "list", "tables"], ["ip", "-d", "link", "show", "up0"])
    text = "".join(subprocess.run(each, capture_output=True, text=True, check=True).stdout for each in commands)
    return {mode for mode, word in TRACES.items() if word in text}


@pytest.mark.parametrize("killed", MODES)
@pytest.mark.parametrize("following", MODES)
def test_rules_of_a_killed_process_go(
    make_namespace: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: str, following: str
) -> None:
    manifest = tmp_path / "objects.yaml"
    manifest.write_text(ECHO)
    folder = tmp_path / "state"

    def apply(mode: str) -> int:
        options = ["--state-dir", str(folder), "--node-name", "n1", "--node-ip", "172.18.0.1", "--cgroup", "none"]
        return main([*options, "--mode", mode, "apply", "-f", str(manifest)])

    def dies(*_: object) -> None:
        raise PlaneError("killed")

    with netns.netns(make_namespace("unfinished")):
        for arguments in ("add up0 type veth peer name far0", "set up0 up", "set far0 up"):
            subprocess.run(["ip", "link", *arguments.split()], check=True)
        subprocess.run(["ip", "address", "add", "172.18.0.1/24", "dev", "up0"], check=True)
        with monkeypatch.context() as patched:
            patched.setattr(state, "save", dies)
            assert apply(killed) == 1
        assert killed in traces()
        assert apply(following) == 0
        assert traces() - {"nftables"} == {following} - {"nftables"}
        assert ("nftables" in traces()) == (following != "iptables")
        assert unfinished_loads.record(folder, following) == frozenset()
        assert main(["--state-dir", str(folder), "cleanup"]) == 0
        assert traces() == set()
    assert not folder.exists()
