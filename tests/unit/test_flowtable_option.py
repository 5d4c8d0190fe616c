"""`--flowtable`: what it asks for, of whom, and the rules that it becomes."""

import argparse

import pytest

from ctl.context import flowtable_packets
from ctl.main import main
from dataplane.errors import UsageError
from dataplane.kernel.nft.forms import Compiler, Library
from dataplane.kernel.nft.messages import messages
from dataplane.kernel.nft.uapi import Operation
from dataplane.model.net import Family
from dataplane.planes.base import PlaneError
from dataplane.planes.nftables.rules.flowtable import deletes_offloaded, flowtable_objects, flowtable_rules
from dataplane.planes.nftables.rules.syntax import syntax_for
from dataplane.policy.node import NodeConfig


@pytest.mark.parametrize(
    ("release", "able"),
    [
        ("5.10.0-46-cloud-amd64", False),
        ("6.1.0-56-cloud-amd64", False),
        ("6.3.13", False),
        ("6.4.0", True),
        ("6.12.117+deb12-cloud-amd64", True),
        ("10.0", True),
        ("next", False),
    ],
)
def test_udp_stays_out_where_the_kernel_cannot_take_a_flow_back(release: str, able: bool) -> None:
    assert deletes_offloaded(release) == able
    [(chain, [rule])] = flowtable_rules(NodeConfig(flowtable=20), release).items()
    assert chain == "fast-path"
    protocols = "{ tcp, udp }" if able else "tcp"
    assert rule == (f"ct status dnat ct state established meta l4proto {protocols} ct packets > 20 flow add @fast")


def test_without_the_option_there_is_nothing_of_it() -> None:
    assert flowtable_rules(NodeConfig(), "6.12.0") == {}
    assert flowtable_objects(syntax_for(Family.IPV4, "hotplane"), NodeConfig()) == []


def test_modes_without_a_flowtable_refuse_it_by_name() -> None:
    asked = argparse.Namespace(flowtable=20)
    words = r"--flowtable: the iptables mode has kube-proxy's rules to the letter.*use --mode nftables or ebpf"
    with pytest.raises(UsageError, match=words):
        flowtable_packets(asked, "iptables")
    assert [flowtable_packets(asked, mode) for mode in ("nftables", "ebpf")] == [20, 20]
    assert flowtable_packets(argparse.Namespace(), "iptables") == 0


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "9999999999"])
def test_it_is_a_number_of_packets(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["apply", f"--flowtable={text}", "-f", "-"]) == 2
    assert f"{text!r} is no number of packets; write one from 1 to 999999999" in capsys.readouterr().err


def test_a_flowtable_is_added_with_a_hook_and_without_devices() -> None:
    [sent] = messages("add flowtable ip hotplane fast { hook ingress priority 0; counter; }\n", Compiler(()), Library())
    assert sent.message.kind == Operation.NEW_FLOWTABLE.kind
    assert b"fast\0" in sent.message.attributes
    with pytest.raises(PlaneError, match="has no such nftables flowtable"):
        messages("add flowtable ip hotplane fast { hook ingress priority 0; }\n", Compiler(()), Library())
