"""What a capture in iptables mode and its counters take from a filter table that others write in, too."""

import pytest

from dataplane.model.net import Family
from dataplane.planes.iptables.capture import commands, found_in
from dataplane.planes.iptables.counts import guarded
from dataplane.planes.iptables.rules import names

MARKED = (
    '[7:420] -A KUBE-FIREWALL -m comment --comment "kubernetes firewall for dropping marked packets" '
    "-m mark --mark 0x8000/0x8000 -j DROP\n"
)
"""Of kubelets before Kubernetes 1.25, in both families."""

LOCALNET = (
    "[{times}:60] -A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment "
    '"block incoming localnet connections" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP\n'
)
INVALID = "[{times}:60] -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n"


def saved(*rules: str) -> str:
    """A filter table as iptables-save -c prints it."""
    chains = "".join(f":{chain} - [0:0]\n" for chain in ("KUBE-SERVICES", "KUBE-FORWARD", "KUBE-FIREWALL"))
    return f"*filter\n:INPUT ACCEPT [0:0]\n{chains}{''.join(rules)}COMMIT\n"


def found(family: Family, *rules: str) -> tuple[frozenset[str], str]:
    """The guards that a capture finds, and its commands."""
    made = found_in(family, saved(*rules))
    assert made is not None
    return made.guards, commands(family, made, 64)


@pytest.mark.parametrize("family", list(Family))
def test_the_kubelets_rule_for_marked_packets_is_no_guard_of_loopback_addresses(family: Family) -> None:
    guards, text = found(family, INVALID.format(times=0), MARKED)
    assert guards == {names.FORWARD}
    assert "ct state invalid" in text
    assert "127.0.0.0/8" not in text
    assert guarded(family, saved(INVALID.format(times=2), MARKED)) == {names.FORWARD: 2}


def test_the_guard_of_loopback_addresses_is_told_beside_the_kubelets_rule() -> None:
    guards, text = found(Family.IPV4, MARKED, LOCALNET.format(times=0))
    assert guards == {names.FIREWALL}
    assert "ip daddr 127.0.0.0/8" in text
    assert 'log prefix "localnet"' in text


def test_only_ipv4_has_loopback_addresses_to_guard() -> None:
    guards, text = found(Family.IPV6, LOCALNET.format(times=1))
    assert guards == set()
    assert "127.0.0.0/8" not in text


def test_all_rules_of_a_guard_count() -> None:
    rules = (LOCALNET.format(times=2), MARKED, LOCALNET.format(times=3))
    assert guarded(Family.IPV4, saved(*rules)) == {names.FIREWALL: 5}
