"""The nftables plane and its table: all-or-nothing, drift, adoption, and what belongs to others."""

import subprocess

import msgspec
import pytest

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.kernel.nft import uapi
from dataplane.kernel.nft.transaction import Nft
from dataplane.model.net import Family, Protocol
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.rows import rows
from dataplane.plan.types import EntryKey, FrontendKind, PlanEntry, SourceRanges
from dataplane.planes.base import PlaneError
from dataplane.planes.nftables.plane import NftablesPlane
from tests.kernel.nftables_net import LB, NODE_CONFIG, VIP, entry, plan_of, pods

FOREIGN = "add table ip other\nadd set ip other s { type ipv4_addr; }\nadd element ip other s { 192.0.2.1 }\n"


class Kernel:
    """A namespace with a plane in it, and nft beside it."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self.plane = self.another()

    def another(self) -> NftablesPlane:
        return in_netns(self.namespace, NftablesPlane)

    def nft(self, *arguments: str) -> str:
        command = ["ip", "netns", "exec", self.namespace, "nft", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def dump(self) -> str:
        return self.nft("-s", "list", "ruleset")


@pytest.fixture
def kernel(namespace: str) -> Kernel:
    return Kernel(namespace)


def several() -> list[PlanEntry]:
    """One of everything, in both families."""
    made = []
    for version in (4, 6):
        made += [
            entry(version, pods(version, 0, 1, 2), name="plain"),
            entry(version, pods(version, 0, 1), port=81, affinity=60, name="sticky"),
            entry(version, (), port=82, name="nobody"),
            entry(
                version,
                pods(version, 0, 1),
                pods(version, 1),
                kind=FrontendKind.LOAD_BALANCER,
                address=LB[version],
                ranges=SourceRanges(("192.0.2.0/24",) if version == 4 else ("2001:db8::/64",)),
                external_local=True,
                name="limited",
            ),
            entry(version, pods(version, 0), kind=FrontendKind.NODE_PORT, address="", port=30080, name="np"),
            entry(version, pods(version, 0), port=83, protocol=Protocol.SCTP, name="sctp"),
        ]
    return made


def test_a_refused_change_changes_nothing(kernel: Kernel) -> None:
    plan = plan_of(*several())
    kernel.plane.load(plan)
    before = kernel.dump()
    old = plan.entries[EntryKey("default", "plain", "", Protocol.TCP, Family.IPV4)]
    good = EntryChange(old, entry(4, pods(4, 0), name="plain"))
    absent = EntryChange(entry(4, pods(4, 0), port=99, name="absent"), None)
    with pytest.raises(PlaneError, match=r"nothing of it was applied: .*No such file"):
        kernel.plane.apply(PlanChange((good, absent)))
    assert kernel.dump() == before
    # The plane's own books are as before, too: the good half alone goes through.
    kernel.plane.apply(PlanChange((good,)))
    kernel.plane.apply(PlanChange((EntryChange(good.new, old),)))
    assert sorted(kernel.dump().split()) == sorted(before.split())  # a chain that comes back is listed last


def test_a_change_before_a_load_is_refused(kernel: Kernel) -> None:
    with pytest.raises(PlaneError, match="load first"):
        kernel.plane.apply(PlanChange((EntryChange(None, several()[0]),)))


def test_an_identical_table_is_adopted_unchanged(kernel: Kernel) -> None:
    plan = plan_of(*several())
    assert len(kernel.plane.load(plan).entries) == len(plan.entries)
    before = kernel.dump()
    second = kernel.another()
    assert not second.load(plan)
    assert kernel.dump() == before
    old = several()[0]
    new = entry(4, pods(4, 1), name="plain")
    second.apply(PlanChange((EntryChange(old, new),)))
    assert second.read_back()[new.frontends[0].key].cluster == (("10.244.0.3", 8080),)


def test_adoption_says_and_repairs_what_differs(kernel: Kernel) -> None:
    plan = plan_of(*several())
    kernel.plane.load(plan)
    other = plan_of(*several()[2:], entry(4, pods(4, 2), port=90, name="new"))
    change = kernel.another().load(other)
    assert kernel.plane.read_back() == rows(other)
    assert {(c.key.name, c.old is None, c.new is None) for c in change.entries} == {
        ("plain", False, True),
        ("sticky", False, True),
        ("new", True, False),
    }
    gone = next(c.old for c in change.entries if c.key.name == "sticky")
    assert gone is not None
    assert [b.address for b in gone.cluster] == ["10.244.0.2", "10.244.0.3"]


@pytest.mark.parametrize(
    "damage",
    [
        f"delete element ip hotplane services {{ {VIP[4]} . tcp . 80 }}",
        f"delete element ip6 hotplane endpoints {{ {VIP[6]} . tcp . 80 . ffff:1 }}",
        f"add element ip hotplane endpoints {{ {VIP[4]} . tcp . 80 . ffff:9 : 192.0.2.9 . 1 }}",
        "flush chain ip hotplane lb-3-offpod",
        "flush chain ip hotplane dispatch",
        "flush chain ip6 hotplane prerouting",
        "flush chain ip hotplane restricted",
        "flush set ip hotplane ranges-24",
        "flush map ip hotplane slot_endpoints",
        "delete table ip6 hotplane",
    ],
)
def test_drift_is_seen_and_repaired(kernel: Kernel, damage: str) -> None:
    plan = plan_of(*several())
    kernel.plane.load(plan)
    before = kernel.dump()
    kernel.nft(damage)
    assert kernel.plane.read_back() != rows(plan)
    kernel.plane.load(plan)
    assert kernel.plane.read_back() == rows(plan)
    assert kernel.plane.read_back() == kernel.another().read_back()
    assert sorted(kernel.dump().split()) == sorted(before.split())


def test_a_table_of_another_version_is_replaced(kernel: Kernel) -> None:
    kernel.nft(
        "add table ip hotplane; add chain ip hotplane version-0; add map ip hotplane services "
        "{ type ipv4_addr : verdict; }"
    )
    plan = plan_of(*several())
    kernel.plane.load(plan)
    assert kernel.plane.read_back() == rows(plan)
    assert "version-0" not in kernel.dump()


def test_what_stood_in_when_a_process_was_killed_goes(kernel: Kernel) -> None:
    for end in (lambda: kernel.plane.load(plan_of()), kernel.plane.cleanup):
        kernel.nft("add table ip hotplane-stand-in; add table ip6 hotplane-stand-in")
        end()
        assert "stand-in" not in kernel.dump()


def test_tables_of_others_stay(kernel: Kernel) -> None:
    for line in FOREIGN.splitlines():
        kernel.nft(line)
    before = kernel.dump()
    kernel.plane.load(plan_of(*several()))
    kernel.plane.apply(PlanChange(node=msgspec.structs.replace(NODE_CONFIG, masquerade_mark=0x8000)))
    kernel.plane.cleanup()
    assert kernel.dump() == before
    kernel.plane.cleanup()


def test_only_the_wanted_families_are_programmed(namespace: str) -> None:
    plane = in_netns(namespace, NftablesPlane, (Family.IPV6,), "second")
    plan = plan_of(*several())
    plane.load(plan)
    assert plane.read_back() == {k: v for k, v in rows(plan).items() if k.family is Family.IPV6}
    assert in_netns(namespace, Nft).tables() == {("ip6", "second")}


def test_tables_of_every_family_are_known(kernel: Kernel) -> None:
    families = ("ip", "ip6", "inet", "arp", "bridge", "netdev")
    for family in families:
        kernel.nft("add", "table", family, f"of-{family}")
    assert in_netns(kernel.namespace, Nft).tables() == {(family, f"of-{family}") for family in families}


def test_a_kernel_without_nf_tables_has_no_tables(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    """This one has no subsystem of that number, of which it says the same."""
    kernel.nft("add", "table", "ip", "other")
    nft = in_netns(kernel.namespace, Nft)
    monkeypatch.setattr(uapi, "SUBSYSTEM", 99)
    assert nft.tables() == set()


def test_errors_name_the_offending_input(namespace: str) -> None:
    nft = in_netns(namespace, Nft)
    elements = ", ".join(f"192.0.2.{number}" for number in range(200))
    with pytest.raises(PlaneError, match=r"No such file or directory.* at: .*absent") as caught:
        nft.run(f"add table ip t\nadd element ip absent s {{ {elements} }}\n")
    assert len(str(caught.value)) < 500
    assert nft.tables() == set()


def test_long_names_survive(kernel: Kernel) -> None:
    service = entry(4, pods(4, 0))
    long = msgspec.structs.replace(service, key=service.key._replace(namespace="n" * 63, name="s" * 63, port="p" * 15))
    plan = plan_of(long)
    kernel.plane.load(plan)
    assert kernel.plane.read_back() == rows(plan)
    assert not kernel.another().load(plan)
