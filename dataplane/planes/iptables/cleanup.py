"""Remove all iptables rules of hotplane's iptables mode or kube-proxy."""

from dataplane.kernel.iptables import Tables
from dataplane.planes.iptables.readback import chains_of, rules_of
from dataplane.planes.iptables.rules import names
from dataplane.planes.iptables.rules.skeleton import LOCALNET_RULE, chain_lines

_OWN = {
    "nat": {*names.NAT_CHAINS, names.PROXY_CANARY},
    "filter": {*names.FILTER_CHAINS, names.PROXY_CANARY},
    "mangle": {names.PROXY_CANARY},
}


def _removal(table: str, saved: str) -> str:
    """Return restore input that removes our chains and the jumps to them; "" if there are none."""
    existing = chains_of(saved)
    own = {chain for chain in existing if chain in _OWN[table] or (table == "nat" and names.is_service_chain(chain))}
    if names.FIREWALL in existing and table == "filter" and names.KUBELET_CANARY not in existing:
        # The kubelet keeps an identical chain; where there is no kubelet, it is ours alone.
        own.add(names.FIREWALL)
    if not own:
        return ""
    jumps = [
        f"-D {chain} {rule}"
        for chain, rules in rules_of(saved).items()
        if chain not in own
        for rule in rules
        if rule.rpartition("-j ")[2] in own
    ]
    chains = sorted(own)
    lines = [f"*{table}", *chain_lines(tuple(chains)), *jumps, *(f"-X {chain}" for chain in chains), "COMMIT"]
    return "".join(f"{line}\n" for line in lines)


def clean_family(tables: Tables) -> bool:
    """Remove all rules from one family's tables, one transaction per table; return True if the localnet rule was there.

    Tables that do not exist are not touched, nor are policies and other rules. Raises IptablesError.
    """
    localnet = False
    for table in ("filter", "nat", "mangle"):
        if table in tables.present():
            saved = tables.save(table)
            removal = _removal(table, saved)
            localnet |= LOCALNET_RULE in saved and f"-X {names.FIREWALL}\n" in removal
            if removal:
                tables.restore(removal)
    return localnet
