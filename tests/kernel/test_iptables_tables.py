"""The iptables plane and the kernel's tables: what is sent is what is held, in both variants and both families."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.kernel import sysctl
from dataplane.kernel.iptables import IptablesError, KernelTables, Variant, default_variant
from dataplane.kernel.sysctl import SysctlError
from dataplane.model.net import Family
from dataplane.plan.planner import Planner
from dataplane.plan.rows import rows
from dataplane.planes.base import PlaneError
from dataplane.planes.iptables.fake import FakeTables
from dataplane.planes.iptables.plane import IptablesPlane
from dataplane.planes.iptables.readback import chains_of, rules_of
from dataplane.planes.iptables.rules.names import is_service_chain
from tests.golden.iptables.net import inside, namespace
from tests.golden.iptables.plans import NODE, every_kind, slice_of

VARIANTS = pytest.mark.parametrize("variant", list(Variant))


@pytest.fixture(autouse=True)
def _own_namespace() -> Iterator[None]:
    with namespace("tables") as name, inside(name):
        yield


def kernel_chains(tables: KernelTables | FakeTables, table: str) -> tuple[set[str], dict[str, list[str]]]:
    saved = tables.save(table)
    return chains_of(saved), dict(rules_of(saved))


@VARIANTS
def test_the_kernel_prints_the_rules_as_they_were_sent(variant: Variant) -> None:
    planner = Planner(NODE)
    planner.update(every_kind())
    kernel = [KernelTables(family, variant) for family in Family]
    fake = [FakeTables(family) for family in Family]
    change = planner.update([slice_of("plain", "10.42.0.9"), slice_of("nobody", "fd00:10:42::9")])
    for tables in (kernel, fake):
        fresh = Planner(NODE)
        fresh.update(every_kind())
        plane = IptablesPlane(tables=tables)
        plane.load(fresh.plan)
        plane.apply(change)
    for held, wanted in zip(kernel, fake, strict=True):
        for table in ("filter", "nat"):
            assert kernel_chains(held, table) == kernel_chains(wanted, table)


@VARIANTS
def test_load_change_reload_and_clean_up(variant: Variant) -> None:
    planner = Planner(NODE)
    planner.update(every_kind())
    plane = IptablesPlane(variant=variant)
    assert {c.key for c in plane.load(planner.plan).entries} == set(planner.plan.entries)
    assert plane.read_back() == rows(planner.plan)
    assert default_variant() is variant
    assert sysctl.read("net/ipv4/conf/all/route_localnet") == "1"
    plane.apply(planner.update([slice_of("nobody", "10.42.0.9")]))
    assert plane.read_back() == rows(planner.plan)
    assert not IptablesPlane(variant=variant).load(planner.plan)
    plane.apply(planner.update(deletes=[item.ref for item in every_kind()]))
    for family in Family:
        assert not any(map(is_service_chain, chains_of(KernelTables(family, variant).save("nat"))))
    plane.cleanup()
    plane.cleanup()
    for family in Family:
        for table in ("filter", "nat"):
            assert "KUBE-" not in KernelTables(family, variant).save(table)
    assert sysctl.read("net/ipv4/conf/all/route_localnet") == "0"


def test_cleaning_up_where_nothing_is_makes_no_tables() -> None:
    IptablesPlane().cleanup()
    for family in Family:
        assert not KernelTables(family, Variant.LEGACY).present()
    assert subprocess.run(["nft", "list", "tables"], capture_output=True, check=True).stdout == b""


def test_an_empty_namespace_gets_the_classic_variant() -> None:
    assert default_variant() is Variant.LEGACY
    assert subprocess.run(["nft", "list", "tables"], capture_output=True, check=True).stdout == b""


def test_without_one_family_s_classic_tables_both_get_the_other_variant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a process that may not load modules finds ip_tables in the kernel and ip6_tables not."""
    refusing = tmp_path / "ip6tables-legacy"
    refusing.write_text("#!/bin/sh\necho 'ip6tables: cannot initialize: iptables who?' >&2\nexit 3\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert default_variant() is Variant.NFT


@VARIANTS
def test_a_refused_restore_names_the_line(variant: Variant) -> None:
    tables = KernelTables(Family.IPV4, variant)
    with pytest.raises(IptablesError, match=r"iptables-\w+-restore failed .*KUBE-SEP-GONE.*; the line is: "):
        tables.restore("*nat\n:KUBE-SVC-GONE - [0:0]\n-A KUBE-SVC-GONE -j KUBE-SEP-GONE\nCOMMIT\n")
    assert "GONE" not in tables.save("nat")


def test_a_change_that_the_kernel_refuses_leaves_its_tables_alone() -> None:
    class Breaking(KernelTables):
        broken = False

        def restore(self, text: str) -> None:
            super().restore(text.replace("--to-destination 10.42.0.66", "--to-nowhere") if self.broken else text)

    tables = Breaking(Family.IPV4, Variant.LEGACY)
    planner = Planner(NODE)
    planner.update(every_kind())
    plane = IptablesPlane(tables=[tables])
    plane.load(planner.plan)
    before = [kernel_chains(tables, table) for table in ("filter", "nat")]
    tables.broken = True
    with pytest.raises(PlaneError, match="to-nowhere"):
        plane.apply(planner.update([slice_of("nobody", "10.42.0.66")]))
    assert [kernel_chains(tables, table) for table in ("filter", "nat")] == before


def test_sysctls_that_do_not_exist_are_named() -> None:
    with pytest.raises(SysctlError, match="net/ipv4/no_such_thing"):
        sysctl.ensure("net/ipv4/no_such_thing", 1)
    assert sysctl.ensure("net.ipv4.ip_forward", 1)
    assert not sysctl.ensure("net.ipv4.ip_forward", 1)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(hosts=st.lists(st.sets(st.integers(1, 40), max_size=5), min_size=1, max_size=4))
def test_any_run_of_endpoint_changes_is_read_back_from_the_kernel(hosts: list[set[int]]) -> None:
    planner = Planner(NODE)
    planner.update(every_kind())
    plane = IptablesPlane(variant=Variant.LEGACY)
    plane.load(planner.plan)
    for each in hosts:
        pods = [f"10.42.0.{host}" for host in each]
        plane.apply(planner.update([slice_of(name, *pods, local=tuple(pods[:1]), family=Family.IPV4)
                                    for name in ("sticky", "at-home", "away", "guarded")]))  # fmt: skip
        assert plane.read_back() == rows(planner.plan)
