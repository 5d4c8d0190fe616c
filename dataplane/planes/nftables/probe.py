"""Can the nftables plane run here? Each thing its rules use, tried for real in a throwaway network namespace."""

import subprocess
from collections.abc import Iterator

from dataplane.planes.finding import Finding, Status, try_command

_SERVICES = "map services { type ipv4_addr . inet_proto . inet_service : verdict; }\n"
_NAT_HOOK = "type nat hook prerouting priority -100;\n"

# One table body a feature: what is needed for -> rules. nft 1.0.6 wants a newline before some closing braces.
FEATURES = {
    "nat chains": f"chain c {{ {_NAT_HOOK} tcp dport 1 dnat to 192.0.2.1:1\n }}",
    "verdict maps": f"{_SERVICES} chain c {{ {_NAT_HOOK} ip daddr . meta l4proto . th dport vmap @services\n }}",
    "address and port maps with numgen": (
        "map endpoints { typeof ip daddr . meta l4proto . th dport . numgen random mod 65536 : ip daddr . th dport; }\n"
        f"chain c {{ {_NAT_HOOK} dnat ip addr . port to ip daddr . meta l4proto . th dport . "
        "numgen random mod 3 map @endpoints\n }"
    ),
    "dynamic maps with timeouts": (
        "map affinity { typeof ip saddr . ip daddr : meta mark; flags dynamic,timeout; timeout 3h; }\n"
        f"chain c {{ {_NAT_HOOK} update @affinity {{ ip saddr . ip daddr timeout 1h : 1 }}\n }}"
    ),
    "interval sets": (
        "set ranges { type ipv4_addr . ipv4_addr; flags interval; elements = { 192.0.2.1 . 198.51.100.0/24 }; }"
    ),
    "fib lookups": f"chain c {{ {_NAT_HOOK} fib daddr type local accept\n }}",
    "reject in prerouting": (
        "chain c { type filter hook prerouting priority -110;\n tcp dport 1 reject with icmp type port-unreachable\n }"
    ),
    "masquerade with random ports": (
        "chain c { type nat hook postrouting priority 100;\n meta mark 1 masquerade fully-random\n }"
    ),
    "conntrack matches": (
        "chain c { type filter hook forward priority 0;\n ct state invalid drop\n ct status dnat accept\n }"
    ),
}

_FLOWTABLE = """table ip hotplane-trial {
    flowtable f { hook ingress priority 0; devices = { lo }; }
    chain c { type filter hook forward priority 0; ct packets > 1 flow add @f
    }
}
"""


def _version() -> str:
    done = subprocess.run(["nft", "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def probe_nft() -> Iterator[Finding]:
    """The nft program, each feature, IPv6, and libnftables for Python."""
    trial = try_command(["nft", "--version"], throwaway_namespace=False)
    if not trial.worked:
        yield Finding(
            "nftables", "nft", Status.MISSING, f"{trial.reason}: no nftables mode", "apt-get install nftables"
        )
        return
    yield Finding("nftables", "nft", Status.OK, _version())
    tables = {name: f"table ip hotplane-trial {{\n{body}\n}}\n" for name, body in FEATURES.items()}
    tables["IPv6 tables"] = (
        f"table ip6 hotplane-trial {{\nchain c {{ {_NAT_HOOK} tcp dport 1 dnat to [2001:db8::1]:1\n }}\n}}\n"
    )
    for name, ruleset in tables.items():
        trial = try_command(["nft", "-f", "-"], ruleset)
        if trial.worked:
            yield Finding("nftables", name, Status.OK)
        else:
            what = "no IPv6 Services in nftables mode" if name == "IPv6 tables" else "no nftables mode"
            status = Status.LIMITED if name == "IPv6 tables" else Status.MISSING
            yield Finding(
                "nftables", name, status, f"{trial.reason}; {what}", "use a kernel of 5.10 or later with nf_tables"
            )
    yield _flowtables()
    yield _libnftables()


def _flowtables() -> Finding:
    """Try what `--flowtable` needs."""
    trial = try_command(["nft", "-f", "-"], _FLOWTABLE)
    if trial.worked:
        return Finding("nftables", "flowtables", Status.OK)
    return Finding(
        "nftables",
        "flowtables",
        Status.LIMITED,
        f"this kernel has none, so --flowtable is refused ({trial.reason})",
        "use a kernel with CONFIG_NF_FLOW_TABLE_INET and CONFIG_NFT_FLOW_OFFLOAD, or do without the option",
    )


def _libnftables() -> Finding:
    """Try whether libnftables compiles what hotplane writes, in a process of its own as always."""
    from dataplane.kernel.nft.forms import Compiler
    from dataplane.kernel.nft.messages import messages
    from dataplane.planes.base import PlaneError
    from dataplane.planes.nftables.rules.library import library

    try:
        messages(library().groups[0].rules(), Compiler(()), library())
    except PlaneError as error:
        detail = f"{error}: no nftables mode"
        return Finding("nftables", "libnftables for Python", Status.MISSING, detail, "apt-get install python3-nftables")
    return Finding("nftables", "libnftables for Python", Status.OK)
