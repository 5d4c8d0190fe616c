"""The order in which hotplane's tables go, and in which one mode gives way to another: packets under way count."""

from collections.abc import Iterable
from typing import Any

import pytest

from ctl import loaded
from dataplane.model.net import Family
from dataplane.planes.nftables import load
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.planes.nftables.rules.syntax import syntax_for


class _Kernel:
    """Notes what is asked of it. present: tables that exist. chains: of each of them."""

    def __init__(self, present: Iterable[str], chains: Iterable[str] = ("prerouting", "output", "services")) -> None:
        self._present, self._chains = set(present), dict.fromkeys(chains, 1)
        self.did: list[str] = []

    def has_table(self, target: str) -> bool:
        return target in self._present

    def chains(self, target: str) -> dict[str, int]:
        assert target in self._present
        return self._chains

    def run(self, text: str) -> None:
        self.did.append(" | ".join(sorted(text.splitlines())))

    def wait(self) -> None:
        self.did.append("wait")


def _removed(kernel: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(load, "wait_for_packets", kernel.wait)
    load.remove_tables(kernel, kernel, [syntax_for(family, "hotplane") for family in Family])
    done: list[str] = kernel.did
    return done


def test_packets_leave_a_table_before_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _removed(_Kernel({"ip hotplane", "ip6 hotplane"}), monkeypatch) == [
        "flush chain ip hotplane output | flush chain ip hotplane prerouting"
        " | flush chain ip6 hotplane output | flush chain ip6 hotplane prerouting",
        "wait",
        "delete table ip hotplane | delete table ip6 hotplane",
    ]


def test_tables_that_are_not_there_or_not_whole_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _removed(_Kernel(set()), monkeypatch) == []
    assert _removed(_Kernel({"ip hotplane"}, ()), monkeypatch) == ["", "wait", "delete table ip hotplane"]


def test_the_old_mode_goes_after_the_packets_that_missed_the_new_one(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = _Kernel(set())
    plane = NftablesPlane.__new__(NftablesPlane)
    monkeypatch.setattr(loaded, "wait_for_packets", kernel.wait)
    monkeypatch.setattr(NftablesPlane, "cleanup", lambda _: kernel.did.append("cleanup"))
    loaded.replace_plane(plane, "iptables")
    assert kernel.did == ["wait", "cleanup"]
