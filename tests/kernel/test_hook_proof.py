"""`hotplane doctor` proves hooks with packets and connections: it notices programs that load and do not work."""

import os
from functools import partial
from typing import Any

import pytest

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bpf import BpfError
from dataplane.kernel.namespaces import cgroup, netns
from dataplane.planes.ebpf.attach import kernel_features, proof
from dataplane.planes.ebpf.attach.probe_hooks import probe_hooks
from dataplane.planes.ebpf.attach.programs import load_programs
from dataplane.planes.ebpf.maps.encode import address_bytes
from dataplane.planes.finding import Status
from dataplane.planes.options import PlaneOptions


def left() -> list[str]:
    """What proofs of this process have not removed."""
    groups = [path.name for path in cgroup.root().iterdir() if path.is_dir()]
    return [name for name in (*netns.names(), *groups) if "proof" in name and name.endswith(f"-{os.getpid()}")]


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Any:
    yield
    assert not left()


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that let everything pass, as if the tables were never filled."""
    monkeypatch.setattr(proof, "write_node", lambda *_: None)


@pytest.mark.parametrize("hook", ["tc", "xdp"])
def test_packets_prove_a_hook(hook: str) -> None:
    assert proof.packet_proof(hook) == ""


@pytest.mark.usefixtures("asleep")
@pytest.mark.parametrize(("hook", "ending"), [("tc", "tc_ingress:not_ready"), ("xdp", "xdp:not_ready")])
def test_packets_that_pass_untouched_are_noticed(hook: str, ending: str) -> None:
    problem = proof.packet_proof(hook)
    assert "was not sent on to its backend" in problem
    assert ending in problem


def test_a_wrong_source_address_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "load_programs", partial(load_programs, flags=("-DNO_FIB_SOURCE=1",)))
    monkeypatch.setattr(proof, "address_bytes", lambda _: address_bytes("198.18.0.55"))
    assert "masqueraded with 198.18.0.55 instead of the node's own 198.18.0.1" in proof.packet_proof("tc")


def test_connections_prove_the_connect_hook() -> None:
    assert proof.connect_proof(cgroup.ensure_root()) == (True, "")


@pytest.mark.usefixtures("asleep")
def test_sockets_that_are_not_balanced_are_noticed() -> None:
    tried, problem = proof.connect_proof(cgroup.ensure_root())
    assert tried
    assert "did not reach its Service" in problem
    assert "connect:not_ready" in problem


def test_without_tcx_clsact_is_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise BpfError(22, "link_create: Invalid argument")

    monkeypatch.setattr(bpf, "link_create", refuse)
    assert proof.tc_attachment() == ("clsact", "")


def test_the_doctor_tells_each_hook_and_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    source_lookup, coarse_clock, *_ = kernel_features.FEATURES
    without_clock = coarse_clock in kernel_features.missing()
    lacking = (source_lookup, coarse_clock) if without_clock else (source_lookup,)
    monkeypatch.setattr(kernel_features, "missing", lambda: lacking)
    group = cgroup.ensure_root()
    told = {finding.check: finding for finding in probe_hooks(PlaneOptions(cgroup=str(group)))}
    assert [each for each in told.values() if each.check.startswith("hook ") and each.status is not Status.OK] == []
    assert all("proved" in told[f"hook {name}"].detail for name in ("connect", "tc", "xdp"))
    assert told["source-address lookup"].status is Status.LIMITED
    assert "primary address of the device" in told["source-address lookup"].detail
    assert told["coarse clock"].status is (Status.LIMITED if without_clock else Status.OK)
    assert told["tc attachment"].status is Status.OK


@pytest.mark.usefixtures("asleep")
def test_the_doctor_tells_what_does_not_work() -> None:
    told = {finding.check: finding for finding in probe_hooks(PlaneOptions(cgroup=str(cgroup.ensure_root())))}
    for name in ("connect", "tc", "xdp"):
        assert told[f"hook {name}"].status is Status.MISSING
        assert "not_ready" in told[f"hook {name}"].detail
        assert told[f"hook {name}"].advice
