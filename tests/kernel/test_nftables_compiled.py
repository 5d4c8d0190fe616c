"""What hotplane sends for a text is what libnftables would have sent: the kernel holds the same, byte for byte."""

import subprocess
from collections.abc import Callable
from itertools import product
from pathlib import Path

import msgspec
import pytest

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.kernel.nft.transaction import Nft
from dataplane.model.net import Family
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.flows.port_split import ruleset
from dataplane.planes.nftables.rules.library import library, skeletons
from dataplane.planes.nftables.rules.shapes import Masquerade, Shape, add_shape, affinity_map
from dataplane.planes.nftables.rules.skeleton import add_ranges, rewrite_restricted, set_service_cidrs
from dataplane.planes.nftables.rules.syntax import syntax_for
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses
from tests.kernel.nftables_dump import Dump, dump

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "nftables"
SYNTAX = {family: syntax_for(family, "hotplane") for family in Family}
PODS = ("10.244.0.0/16", "fd10::/16")
MANY = ("10.1.0.0/16", "10.9.8.0/24", "192.168.7.9/32", "fd11::/20", "fd12:3::/64", "fd13::1/128")
ADDRESSES = ("192.168.0.2", "192.168.9.3", "fd00::2", "2001:db8::1:2")

NODES = {
    "cidrs": NodeConfig(detector=LocalDetector(PODS), nodeports=NodePortAddresses(addresses=ADDRESSES[::2])),
    "many": NodeConfig(detector=LocalDetector(MANY), nodeports=NodePortAddresses(addresses=ADDRESSES)),
    "device": NodeConfig(detector=LocalDetector(interface="cni0"), nodeports=NodePortAddresses(any_local=True)),
    "devices": NodeConfig(
        detector=LocalDetector(interface="veth", interface_is_prefix=True),
        nodeports=NodePortAddresses(any_local=True, loopback=True),
        masquerade_mark=0x80,
    ),
    "nothing": NodeConfig(reject_unknown_ports=False, nodeports=NodePortAddresses(addresses=("::1", "127.0.0.1"))),
}


@pytest.fixture
def both(make_namespace: Callable[[str], str]) -> Callable[[str], None]:
    """Gives a text to libnftables in one namespace and to hotplane in another, and compares."""
    theirs, ours = make_namespace("theirs"), make_namespace("ours")
    handle = in_netns(ours, Nft)
    handle.library = library()

    def give(text: str) -> None:
        command = ["ip", "netns", "exec", theirs, "nft", "-f", "-"]
        subprocess.run(command, input=text, text=True, check=True)
        handle.run(text)
        wanted = held(theirs)
        assert held(ours) == wanted
        assert wanted

    return give


def held(namespace: str) -> Dump:
    return dump(namespace, "ip", "ip6", "inet")


@pytest.mark.parametrize("name", ["ipv4-plain", "ipv4-sticky", "ipv6-plain", "ipv6-sticky"])
def test_the_texts_of_a_load(both: Callable[[str], None], name: str) -> None:
    """Those with ports in them left out: such elements are never read from text."""
    lines = (GOLDEN / f"{name}-1-load.nft").read_text().splitlines()
    kept = ("shapes", "service_cidrs", "cluster_ips", "hairpin")
    both("".join(f"{line}\n" for line in lines if "add element" not in line or line.split()[4] in kept))


@pytest.mark.parametrize("node", NODES.values(), ids=NODES)
def test_skeletons(both: Callable[[str], None], node: NodeConfig) -> None:
    both(skeletons(node))
    both(skeletons(msgspec.structs.replace(node, masquerade_mark=0x100)))


@pytest.mark.parametrize("family", list(Family))
def test_shapes_and_source_ranges(both: Callable[[str], None], family: Family) -> None:
    """Of sizes, timeouts and prefix lengths that nothing was compiled for."""
    syntax = SYNTAX[family]
    text = skeletons(NodeConfig())
    for nodeport, seconds in product((False, True), (7, 86400)):
        text += affinity_map(syntax, syntax.kind(nodeport), seconds)
    for size, sticky, local, nodeport in product((1, 2, 255, 256, 32768), (0, 7, 86400), (False, True), (False, True)):
        text += add_shape(syntax, Shape(nodeport, size, local, Masquerade.OFF_POD, sticky))
    prefixes = sorted({0, 1, 7, 8, 9, 16, 31, syntax.bits // 2, syntax.bits - 1, syntax.bits})
    text += "".join(add_ranges(syntax, prefix) for prefix in prefixes) + rewrite_restricted(syntax, prefixes)
    both(text)


@pytest.mark.parametrize(
    "cidrs",
    [("10.96.0.0/16", "fd96::/112"), ("0.0.0.0/0", "::/0"), ("255.255.0.0/16", "ff00::/8"),
     ("10.0.0.0/24", "10.0.1.0/25", "192.0.2.1/32", "fd96::1/128")],
)  # fmt: skip
def test_service_cidrs(both: Callable[[str], None], cidrs: tuple[str, ...]) -> None:
    both(skeletons(NodeConfig()) + "".join(set_service_cidrs(syntax, f, cidrs) for f, syntax in SYNTAX.items()))


def test_the_ports_of_the_slow_path(both: Callable[[str], None]) -> None:
    for taken in ([(61000, 65535)], [(1024, 29999)]):
        both(ruleset(0x4000, taken))


def test_what_goes_again(both: Callable[[str], None]) -> None:
    syntax = SYNTAX[Family.IPV4]
    shape = Shape(False, 3, False, Masquerade.NOBODY, 0)
    chain = syntax.target(shape.name)
    both(skeletons(NodeConfig()) + add_shape(syntax, shape) + add_ranges(syntax, 24))
    both(f"add element {syntax.target('shapes')} {{ ffff:77 : goto {shape.name} }}\n")
    both(
        f"delete element {syntax.target('shapes')} {{ ffff:77 }}\nflush chain {chain}\ndelete chain {chain}\n"
        f"delete set {syntax.target('ranges-24')}\ndelete map {syntax.target('slots')}\nflush table ip6 hotplane\n"
    )


def test_a_change_of_numbers_compiles_nothing(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another number of endpoints, another timeout, another prefix length or another address of the node."""
    nft = in_netns(namespace, Nft)
    nft.library = library()
    nft.run(skeletons(NODES["cidrs"]))
    syntax = SYNTAX[Family.IPV6]
    nft.run(add_ranges(syntax, 7) + rewrite_restricted(syntax, [7]))

    def never(*_: object) -> bytes:
        raise PlaneError("compiled again")

    monkeypatch.setattr("dataplane.kernel.nft.forms.compile_forms", never)
    timeout = 4711
    nft.run(affinity_map(syntax, syntax.services, timeout))
    for shape in (
        Shape(False, 321, True, Masquerade.EVERYBODY, timeout),
        Shape(True, 322, False, Masquerade.NOBODY, 0),
    ):
        nft.run(add_shape(syntax, shape))
    nft.run(add_ranges(syntax, 99) + rewrite_restricted(syntax, [99]))
    nft.run(skeletons(msgspec.structs.replace(NODES["cidrs"], nodeports=NodePortAddresses(addresses=ADDRESSES[1::2]))))
    with pytest.raises(PlaneError, match="compiled again"):
        nft.run(skeletons(NodeConfig(masquerade_mark=0x12345)))


def test_errors_name_the_offending_command(namespace: str) -> None:
    nft = in_netns(namespace, Nft)
    syntax = SYNTAX[Family.IPV4]
    nft.run("add table ip t\nadd chain ip t c\n")
    before = held(namespace)
    for text, reason in (
        ("add chain ip t d\nadd rule ip t c goto absent\n", r"No such file.* at: add rule ip t c goto absent"),
        ("add chain ip t d\ndelete chain ip t absent\n", r"No such file.* at: delete chain ip t absent"),
        (f"add chain ip t d\n{add_ranges(syntax, 24)}", r"No such file.* at: add set ip hotplane ranges-24"),
        (
            "add chain ip t d\nadd rule ip t c meta nonsense 5\n",
            r"could not compile .* at: add rule .*nonsense 5;",
        ),
        ("add chain ip t d\nlist ruleset\n", r"no such nftables command: list ruleset"),
    ):
        with pytest.raises(PlaneError, match=reason):
            nft.run(text)
        assert held(namespace) == before
