"""Other programs' netfilter rules as the kernel has them: what counts, what does not, and how soon it is noticed."""

import asyncio
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ctl.daemon.host_routing.chains import POLL_SECONDS, ChainWatch
from dataplane.kernel.foreign_chains import ForeignChains
from dataplane.kernel.iptables import KernelTables, Variant
from dataplane.kernel.namespaces.netns import netns
from dataplane.model.net import Family
from dataplane.plan.types import Plan
from dataplane.planes.ebpf.flows.port_split import TABLE
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.planes.nftables.standby import STAND_IN
from dataplane.planes.registry import modes
from dataplane.policy.node import NodeConfig, NodePortAddresses

OWN = frozenset({("ip", "hotplane"), ("inet", "hotplane-ports")})
ROOT = Path(__file__).resolve().parents[2]

UFW = (
    "nft add table ip filter",
    "nft add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
)
FIREWALLD = (
    "nft add table inet firewalld",
    "nft add chain inet firewalld filter_FORWARD { type filter hook forward priority 10; policy accept; }",
    "nft add rule inet firewalld filter_FORWARD ct state established,related accept",
    "nft add rule inet firewalld filter_FORWARD reject with icmpx admin-prohibited",
)
DOCKER = (
    "iptables-nft -N DOCKER-USER", "iptables-nft -A DOCKER-USER -j RETURN", "iptables-nft -I FORWARD -j DOCKER-USER",
)  # fmt: skip
KUBE_ROUTER = ("iptables-legacy -N KUBE-ROUTER-FORWARD", "iptables-legacy -I FORWARD -j KUBE-ROUTER-FORWARD")
CALICO = (
    "ip6tables-legacy -t raw -N cali-PREROUTING", "ip6tables-legacy -t raw -I PREROUTING -j cali-PREROUTING",
    "ip6tables-legacy -t mangle -N cali-POSTROUTING",
    "ip6tables-legacy -t mangle -A POSTROUTING -j cali-POSTROUTING",
)  # fmt: skip
COUNTS = {
    "ufw": (UFW, ["nftables chain ip filter FORWARD (forward) has the policy drop"]),
    "firewalld": (FIREWALLD, ["nftables chain inet firewalld filter_FORWARD (forward) has rules"]),
    "docker": (DOCKER, ["nftables chain ip filter FORWARD (forward) has rules"]),
    "kube-router": (KUBE_ROUTER, ["iptables-legacy chain filter FORWARD has rules"]),
    "calico": (
        CALICO,
        [
            "ip6tables-legacy chain mangle POSTROUTING has rules",
            "ip6tables-legacy chain raw PREROUTING has rules",
        ],
    ),
    "masquerade": (
        ("iptables-nft -t nat -A POSTROUTING -s 10.244.0.0/24 -j MASQUERADE",),
        ["nftables chain ip nat POSTROUTING (postrouting) has rules"],
    ),
    "legacy policy": (
        ("iptables-legacy -P FORWARD DROP", "ip6tables-legacy -P FORWARD DROP"),
        [
            "ip6tables-legacy chain filter FORWARD has the policy drop",
            "iptables-legacy chain filter FORWARD has the policy drop",
        ],
    ),
    "device": (
        (
            "nft add table netdev guard",
            "nft add chain netdev guard in { type filter hook ingress devices = { lo } priority 0; }",
            "nft add rule netdev guard in ip daddr 10.0.0.1 drop",
        ),
        ["nftables chain netdev guard in (ingress of lo) has rules"],
    ),
    "bridge": (
        (
            "nft add table bridge guard",
            "nft add chain bridge guard passing { type filter hook forward priority 0; }",
            "nft add rule bridge guard passing ether type arp drop",
        ),
        ["nftables chain bridge guard passing (forward) has rules"],
    ),
    "a table named like ours": (
        (
            "nft add table ip6 hotplane-x",
            "nft add chain ip6 hotplane-x f { type filter hook prerouting priority 0; }",
            "nft add rule ip6 hotplane-x f counter",
        ),
        ["nftables chain ip6 hotplane-x f (prerouting) has rules"],
    ),
}
COUNTS_NOT = {
    "nothing": (),
    "looked at by iptables-nft": ("iptables-nft -S", "iptables-nft -t nat -S", "ip6tables-nft -t mangle -S"),
    "looked at by iptables-legacy": ("iptables-legacy -S", "ip6tables-legacy -t nat -S"),
    "input and output": ("iptables-nft -A INPUT -j ACCEPT", "iptables-legacy -A OUTPUT -j ACCEPT"),
    "a chain that nothing leads to": ("iptables-nft -N CANARY", "iptables-nft -A CANARY -j DROP"),
    "arp": (
        "nft add table arp f",
        "nft add chain arp f in { type filter hook input priority 0; policy drop; }",
    ),
    "our own": (
        "nft add table ip hotplane",
        "nft add chain ip hotplane prerouting { type nat hook prerouting priority -100; }",
        "nft add rule ip hotplane prerouting counter",
        "nft add table inet hotplane-ports",
        "nft add chain inet hotplane-ports last { type nat hook postrouting priority 110; policy drop; }",
    ),
}


def do(*commands: str) -> None:
    """Run commands in this thread's network namespace."""
    for command in commands:
        words = command.split()
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.fixture(autouse=True)
def _inside(make_namespace: Callable[[str], str]) -> Iterator[None]:
    with netns(make_namespace("foreign")):
        yield


def look() -> list[str]:
    with ForeignChains(OWN) as chains:
        return chains.look()


@pytest.mark.parametrize("who", COUNTS)
def test_chains_that_count(who: str) -> None:
    commands, expected = COUNTS[who]
    do(*commands)
    assert look() == expected


@pytest.mark.parametrize("who", COUNTS_NOT)
def test_chains_that_do_not_count(who: str) -> None:
    do(*COUNTS_NOT[who])
    assert look() == []


def test_what_is_taken_away_counts_no_more() -> None:
    do(*DOCKER, *KUBE_ROUTER)
    assert len(look()) == 2
    do("iptables-nft -F", "iptables-legacy -F")
    assert look() == []


def test_a_large_legacy_table_is_read_to_the_policy_behind_it() -> None:
    rules = "".join(f"-A INPUT -s 10.0.{i // 250}.{i % 250} -j ACCEPT\n" for i in range(2000))
    text = f"*filter\n:INPUT ACCEPT\n:FORWARD DROP\n:OUTPUT ACCEPT\n{rules}COMMIT\n"
    subprocess.run(["iptables-legacy-restore"], input=text, text=True, check=True)
    assert look() == ["iptables-legacy chain filter FORWARD has the policy drop"]


def test_looking_makes_no_table() -> None:
    assert look() == []
    assert not any(KernelTables(family, Variant.LEGACY).present() for family in Family)
    assert subprocess.run(["nft", "list", "tables"], capture_output=True, check=True).stdout == b""


def test_tables_that_may_not_be_read_are_an_error() -> None:
    do("iptables-legacy -S")
    program = "from dataplane.kernel.xtables import builtin_chains; print(list(builtin_chains()))"
    words = ["setpriv", "--reuid", "65534", "--clear-groups", sys.executable, "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=ROOT)
    assert "XtablesError: the legacy tables of IPv4 cannot be read: Operation not permitted" in done.stderr


class Watched:
    """A watch of the chains. found: what it tells, each time with the number of the look that told it. looks: how often
    it has looked by itself."""

    def __init__(self) -> None:
        self.found: list[tuple[int, str | None]] = []
        self.looks = 0
        self._watch = ChainWatch(OWN, lambda why: self.found.append((self.looks, why)))

    def open(self) -> None:
        self._watch.open()
        assert self.found.pop()[1] is None

    def close(self) -> None:
        self._watch.close()

    async def look_on(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(POLL_SECONDS)
            self.looks += 1
            await self._watch.poll()

    async def noticed(self, there: bool, since: int) -> int:
        """Wait until something (or that there is nothing any more) is found, after so many findings; the number of the
        look that told it."""
        async with asyncio.timeout(60):
            while True:
                for look, why in self.found[since:]:
                    if bool(why) is there:
                        return look
                await asyncio.sleep(0.001)


def test_the_tables_of_our_own_are_all_named() -> None:
    """With all that makes one."""
    nodeports = NodePortAddresses(loopback=True)
    node = NodeConfig(name="n", addresses=("10.0.0.1", "fd00::1"), nodeports=nodeports, answer_ping=True)
    NftablesPlane().load(Plan(node=node))
    own = frozenset(table for mode in modes() for table in mode.tables)
    made = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert {("ip", "hotplane-ping"), ("ip", "hotplane-localnet")} <= {*map(_table, made)} <= own
    assert {_table(f"table {TABLE}"), *((f, f"hotplane{STAND_IN}") for f in ("ip", "ip6"))} <= own
    with ForeignChains(own) as chains:
        assert chains.look() == []
    assert look() != [], "they have rules, and would count"


def _table(line: str) -> tuple[str, str]:
    """Family and name in a line of `nft list tables`."""
    _, family, name = line.split()
    return family, name


async def watched(*steps: tuple[tuple[str, ...], bool], looks: bool) -> list[int]:
    """Do each step's commands while the chains are watched; how many looks had begun, after each step's end, when it
    was noticed. looks: whether the watch looks by itself at all."""
    watch, delays = Watched(), []
    watch.open()
    look_on = asyncio.create_task(watch.look_on()) if looks else None
    try:
        for commands, there in steps:
            for command in commands:
                since = len(watch.found)
                process = await asyncio.create_subprocess_exec(*command.split())
                assert await process.wait() == 0
            end = watch.looks
            delays.append(await watch.noticed(there, since) - end)
    finally:
        if look_on is not None:
            look_on.cancel()
        watch.close()
    return delays


GONE_NFT, GONE_LEGACY = ("iptables-nft -F FORWARD",), ("iptables-legacy -F FORWARD",)


def test_a_chain_that_comes_and_goes_is_noticed_when_the_kernel_tells() -> None:
    assert asyncio.run(watched((DOCKER, True), (GONE_NFT, False), looks=False)) == [0, 0]


def test_a_legacy_rule_that_comes_and_goes_is_noticed_by_looking() -> None:
    come, gone = asyncio.run(watched((KUBE_ROUTER, True), (GONE_LEGACY, False), looks=True))
    assert max(come, gone) <= 1, "by the next look"


def test_elements_of_others_and_changes_of_our_own_need_no_look() -> None:
    """A set of somebody else's may change a thousand times a second."""
    do("nft add table ip hotplane", "nft add table ip block", "nft add set ip block s { type ipv4_addr; }")

    async def run() -> int:
        found: list[str | None] = []
        watch = ChainWatch(OWN, found.append)
        watch.open()
        try:
            for command in (
                "nft add element ip block s { 10.0.0.1 }", "nft delete element ip block s { 10.0.0.1 }",
                "nft add chain ip hotplane c { type filter hook forward priority 0; }",
                "nft add rule ip hotplane c drop",
            ):  # fmt: skip
                process = await asyncio.create_subprocess_exec(*command.split())
                assert await process.wait() == 0
                await asyncio.sleep(0.05)
        finally:
            watch.close()
        return len(found)

    assert asyncio.run(run()) == 1
