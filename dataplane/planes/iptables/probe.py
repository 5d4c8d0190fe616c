"""Can the iptables plane run here? Each match and target, restored for real in a throwaway namespace."""

import subprocess
from collections.abc import Iterator

from dataplane.planes.finding import Finding, Status, try_command

# match or target -> (table, rule)
FEATURES = {
    "comment": ("nat", "-m comment --comment trial -j RETURN"),
    "statistic": ("nat", "-m statistic --mode random --probability 0.5 -j RETURN"),
    "recent": ("nat", "-m recent --name hotplane-trial --rcheck --seconds 10 --reap -j RETURN"),
    "addrtype": ("nat", "-m addrtype --dst-type LOCAL -j RETURN"),
    "mark": ("nat", "-m mark --mark 0x4000/0x4000 -j RETURN"),
    "MARK": ("nat", "-j MARK --or-mark 0x4000"),
    "MASQUERADE --random-fully": ("nat", "-j MASQUERADE --random-fully"),
    "DNAT": ("nat", "-p tcp -m tcp -j DNAT --to-destination {address}"),
    "conntrack": ("filter", "-m conntrack --ctstate INVALID -j DROP"),
    "REJECT": ("filter", "-j REJECT"),
    "sctp": ("filter", "-p sctp -m sctp --dport 1 -j RETURN"),
}


def _restore_input(names: list[str], address: str) -> str:
    tables: dict[str, list[str]] = {}
    for name in names:
        table, rule = FEATURES[name]
        tables.setdefault(table, []).append(f"-A TRIAL {rule.format(address=address)}")
    return "".join(f"*{table}\n:TRIAL - [0:0]\n" + "\n".join(rules) + "\nCOMMIT\n" for table, rules in tables.items())


def _probe_program(program: str, address: str, what: str) -> Finding:
    """All features in one restore; one by one only when that fails, to name what is not there."""
    command = [f"{program}-restore", "-w", "5"]
    trial = try_command(command, _restore_input(list(FEATURES), address))
    if trial.worked:
        return Finding("iptables", program, Status.OK, f"{_version(program)}; all matches and targets")
    trials = {name: try_command(command, _restore_input([name], address)) for name in FEATURES}
    absent = [name for name, alone in trials.items() if not alone.worked]
    if len(absent) == len(FEATURES):
        return Finding("iptables", program, Status.MISSING, f"{trial.reason}; no {what}", "apt-get install iptables")
    detail = f"without {', '.join(absent)}: Services that need them cannot be loaded in iptables mode"
    return Finding("iptables", program, Status.LIMITED, detail, "load the kernel's xt_* modules of these names")


def _version(program: str) -> str:
    done = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def probe_xtables() -> Iterator[Finding]:
    """iptables and ip6tables as they stand in PATH, then both variants of the kernel side by name."""
    yield _probe_program("iptables", "192.0.2.1:1", "iptables mode")
    yield _probe_program("ip6tables", "[2001:db8::1]:1", "IPv6 Services in iptables mode")
    for variant in ("iptables-legacy", "iptables-nft"):
        yield _probe_program(variant, "192.0.2.1:1", f"comparison with {variant}")
