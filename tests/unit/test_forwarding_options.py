"""`--lb-mode` and what belongs to it: from the command line, from the file, and in modes that can only do SNAT."""

from pathlib import Path

import pytest

from ctl import context
from ctl.config import ConfigError, parse_config
from ctl.context import build_context
from ctl.daemon.settings import settings_of, waits_for_restart
from ctl.lb_options import LbOptions
from ctl.main import main
from ctl.parser import parse
from dataplane.errors import UsageError
from dataplane.model.forwarding import DEFAULT_PORT, DEFAULT_VNI, MORE, Dispatch, TunnelOffer
from dataplane.policy.forwarding import LbMode, TunnelPeer, parse_peers
from dataplane.policy.node import NodeConfig

HEAD = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
FULL = "lbMode: hybrid\nlbPort: 9000\nlbVNI: 7\nlbPeers: ['node2=192.0.2.2, 2001:DB8::2', 'node3=192.0.2.3']\n"
PEERS = (TunnelPeer("node2", "192.0.2.2"), TunnelPeer("node2", "2001:db8::2"), TunnelPeer("node3", "192.0.2.3"))


@pytest.fixture(autouse=True)
def _no_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "namespace_addresses", lambda: ["192.0.2.1"])


def settings(folder: Path, text: str, *words: str) -> LbOptions:
    path = folder / "config.yaml"
    path.write_text(HEAD + text)
    return settings_of(parse(["--config", str(path), "--mode", "ebpf", *words, "run"])).lb


def node(*words: str) -> NodeConfig:
    return build_context(parse([*words, "doctor"])).node


def test_without_them_all_is_snat() -> None:
    for mode in ("nftables", "ebpf", "iptables"):
        found = node("--mode", mode)
        assert (found.lb_mode, found.lb_peers, found.snat_only) == (LbMode.SNAT, (), mode != "ebpf")
        assert found.offer == TunnelOffer(DEFAULT_PORT, DEFAULT_VNI, MORE)
        assert found.lb_dispatch is Dispatch.VXLAN
    assert settings_of(parse(["run"])).lb == LbOptions()


def test_from_the_command_line_and_from_the_file(tmp_path: Path) -> None:
    assert settings(tmp_path, FULL) == LbOptions(LbMode.HYBRID, 9000, 7, PEERS)
    given = ("--lb-mode", "tunnel", "--lb-port", "9001", "--lb-vni", "8", "--lb-peer", "Node4=192.0.2.4")
    assert settings(tmp_path, FULL, *given) == LbOptions(LbMode.TUNNEL, 9001, 8, (TunnelPeer("node4", "192.0.2.4"),))
    found = node("--mode", "ebpf", *given, "--lb-peer", "node5=192.0.2.5")
    assert found.lb_mode is LbMode.TUNNEL
    assert found.offer == TunnelOffer(9001, 8, MORE)
    assert found.lb_peers == (TunnelPeer("node4", "192.0.2.4"), TunnelPeer("node5", "192.0.2.5"))


def test_how_packets_are_wrapped(tmp_path: Path) -> None:
    """The command line first; whatever is sent, everything is opened."""
    assert settings(tmp_path, "lbDispatch: geneve\n").dispatch is Dispatch.GENEVE
    assert settings(tmp_path, "lbDispatch: geneve\n", "--lb-dispatch", "vxlan").dispatch is Dispatch.VXLAN
    found = node("--mode", "ebpf", "--lb-mode", "dsr", "--lb-dispatch", "geneve")
    assert (found.lb_dispatch, found.offer.also) == (Dispatch.GENEVE, MORE)


def test_peers_are_named_with_what_they_open() -> None:
    assert parse_peers(["n2=192.0.2.2,Geneve,2001:db8::2", "n3=192.0.2.3,vxlan"]) == (
        TunnelPeer("n2", "192.0.2.2", (Dispatch.GENEVE,)),
        TunnelPeer("n2", "2001:db8::2", (Dispatch.GENEVE,)),
        TunnelPeer("n3", "192.0.2.3"),
    )


@pytest.mark.parametrize("mode", ["tunnel", "dsr", "hybrid"])
@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--mode", "nftables"), "the nftables mode can only do SNAT towards other nodes"),
        (("--mode", "iptables"), "the iptables mode can only do SNAT towards other nodes"),
        (("--mode", "ebpf", "--hooks", "connect"), "the ebpf mode without the hooks tc and xdp can only do SNAT"),
    ],
)
def test_what_a_mode_cannot_do_is_refused_and_not_quietly_left(
    mode: str, words: tuple[str, ...], why: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"--lb-mode {mode}: {why}; use --mode ebpf with tc or xdp"):
        node(*words, "--lb-mode", mode)
    path = tmp_path / "config.yaml"
    path.write_text(f"{HEAD}lbMode: {mode}\n")
    for use, command in ((settings_of, "run"), (build_context, "doctor")):
        args = parse(["--config", str(path), *words, command])
        with pytest.raises(UsageError, match=f"lbMode: {mode}: {why}"):
            use(args)
    assert node(*words, "--lb-mode", "snat").snat_only


def test_one_packet_hook_is_enough() -> None:
    for hooks in ("tc", "xdp", "connect,tc"):
        assert not node("--mode", "ebpf", "--hooks", hooks, "--lb-mode", "dsr").snat_only


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("lbMode: DSR\n", "lbMode: is 'DSR'; choose one of snat, tunnel, dsr, hybrid"),
        ("lbDispatch: gre\n", "lbDispatch: is 'gre'; choose one of vxlan, geneve, ipip"),
        ("lbPort: 65536\n", "lbPort: is 65536; write 1 to 65535"),
        ("lbPort: -1\n", "lbPort: is -1"),
        ("lbVNI: 16777216\n", "lbVNI: is 16777216; write 1 to 16777215"),
        ("lbPeers: ['node2']\n", "lbPeers: 'node2' is not NODE=ADDRESS"),
    ],
)
def test_faults_of_the_file_are_named(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        parse_config((HEAD + text).encode(), "x")


@pytest.mark.parametrize(
    "text",
    [
        "node2",
        "=192.0.2.2",
        "node2=",
        "node2=192.0.2",
        "node2=192.0.2.2,",
        "no de=192.0.2.2",
        "n=127.0.0.1",
        "n=geneve",
        "n=192.0.2.2,gre",
    ],
)
def test_a_peer_is_a_node_and_its_addresses(text: str) -> None:
    with pytest.raises(ValueError, match=r"NODE=ADDRESS|address"):
        parse_peers([text])
    with pytest.raises(UsageError, match="--lb-peer: "):
        node("--mode", "ebpf", "--lb-peer", text)


@pytest.mark.parametrize(
    "words",
    [("--lb-port", "0"), ("--lb-vni", "16777216"), ("--lb-port", "x"), ("--lb-mode", "x"), ("--lb-dispatch", "x")],
)
def test_wrong_words_end_with_a_sentence(words: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--mode", "ebpf", *words, "doctor"]) == 2
    said = capsys.readouterr().err
    assert words[0] in said
    assert words[1] in said


def test_a_reload_may_change_them() -> None:
    old, new = (settings_of(parse(["--mode", "ebpf", "--lb-mode", mode, "run"])) for mode in ("snat", "dsr"))
    assert waits_for_restart(old, new) == []
    assert (old.lb.mode, new.lb.mode) == (LbMode.SNAT, LbMode.DSR)
