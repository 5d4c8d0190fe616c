"""The scenario table and the shares of traffic on the machines of the Vagrant lab, and commands in its places.

`python -m dataplane.lab.vagrant.run --ssh-config FILE table|shares|exec ...`; vagrant/lab calls it and says more.
"""

import argparse
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from msgspec.structs import replace

from dataplane.errors import HotplaneError
from dataplane.lab.scenarios import shares, table, verify
from dataplane.lab.scenarios.table import Cell
from dataplane.lab.spec import LabError
from dataplane.lab.traffic.probe import Probe
from dataplane.lab.vagrant.machines import Machines
from dataplane.lab.vagrant.proxies import VARIANTS, MachineProxies
from dataplane.lab.vagrant.report import Facts, Report, SharesRun, TableRun, about, earlier, write
from dataplane.lab.vagrant.settings import Settings, settings
from dataplane.model.net import Family, Protocol

_FAMILIES = {"ipv4": Family.IPV4, "ipv6": Family.IPV6}
_SHOWN = 20
_SHARING = ("iptables", "nftables", "ebpf", "ebpf-parity", "ebpf-tc", "ebpf-xdp")
"""Variants that `shares` runs unless told otherwise: the Services themselves ask for tunnel and dsr."""


def _name(family: Family) -> str:
    return next(name for name, known in _FAMILIES.items() if known is family)


def facts(machines: Machines, found: Settings) -> Facts:
    """Return the facts that the machines report about themselves."""
    node = machines.nodes[0].name

    def ask(*argv: str) -> str:
        return machines.run(node, list(argv)).stdout.decode().strip()

    return Facts(
        kernel=ask("uname", "-r"),
        system=ask("sh", "-c", ". /etc/os-release && echo $PRETTY_NAME"),
        nft=ask("nft", "--version"),
        iptables=ask("iptables", "--version"),
        virtualization=ask("sh", "-c", "systemd-detect-virt || true"),
        box=found.box,
        driver=found.driver,
        spec=found.spec,
    )


def check_ways(machines: Machines, families: Collection[Family], slowness: float) -> None:
    """See that every pod answers everybody at its own address, before any mode has rules: what is lost here is lost in
    every mode, after long waits. Raises LabError naming the first that does not."""
    targets = [(pod.name, address) for pod in machines.pods for f, address in pod.addresses.items() if f in families]
    probe = Probe("", table.TARGET_PORT, Protocol.TCP, timeout=verify.PATIENCE * slowness)
    places = [*machines.nodes, *machines.pods, machines.client]
    requests = {place.name: [replace(probe, address=address) for _, address in targets] for place in places}
    for place, results in machines.probe_all(requests).items():
        for (pod, address), result in zip(targets, results, strict=True):
            if set(result.servers) != {pod}:
                seen = ", ".join(f"{attempt.outcome} {attempt.server}".strip() for attempt in result.attempts)
                raise LabError(f"{place} does not reach {pod} at {address} ({seen}): provision the machines again")


def run_variant(machines: Machines, variant: str, cells: Sequence[Cell], slowness: float) -> TableRun:
    """The whole table through one variant of a mode. Raises LabError."""
    services = table.services(machines.topology, ipv6=machines.spec.ipv6)
    with MachineProxies(machines, variant) as proxies:
        started = time.monotonic()
        proxies.load(table.objects(services))
        loaded = time.monotonic()
        cells = proxies.sayable(cells)
        verdicts = Counter(d.verdict.value for d in verify.decisions(machines, proxies.oracles(), cells))
        findings = verify.verify(machines, proxies, cells, slowness=slowness)
        done = time.monotonic()
        return TableRun(
            variant=variant,
            cells=len(cells),
            verdicts=dict(verdicts),
            findings=[str(finding) for finding in findings],
            load_seconds=round(loaded - started, 1),
            probe_seconds=round(done - loaded, 1),
            counters=proxies.counters(),
            said=[text for text in proxies.said if text],
            families=dict(Counter(_name(cell.family) for cell in cells)),
        )


def run_table(machines: Machines, report: Report, args: argparse.Namespace, slow: float) -> int:
    """Each variant in turn, said on standard output and written as it goes. Returns the number of findings."""
    if machines.spec.nodes < table.SPEC.nodes or machines.spec.pods_of(1) < table.SPEC.pods_of(1):
        raise LabError(
            f"the table needs {table.SPEC.nodes} nodes with {table.SPEC.pods} pods each: set HOTPLANE_VM_PODS"
        )
    wanted = {_FAMILIES[name] for name in args.families}
    services = table.services(machines.topology, ipv6=machines.spec.ipv6)
    cells = [cell for cell in table.cells(services, machines.topology) if cell.family in wanted]
    print("\n".join(about(report.facts)), flush=True)
    check_ways(machines, wanted, slow)
    found = 0
    for variant in args.variants:
        result = run_variant(machines, variant, cells, slow)
        report.table.append(result)
        write(report, args.report)
        found += len(result.findings)
        print(result.line(), flush=True)
        for text in (*result.said, *result.findings[:_SHOWN]):
            print(f"    {text}", flush=True)
    return found


def share_out(machines: Machines, variant: str, families: Collection[Family], slowness: float) -> SharesRun:
    """The shares of the example Services' connections through one variant of a mode. Raises LabError."""
    services = shares.objects(machines.topology)
    with MachineProxies(machines, variant, peers=True) as proxies:
        proxies.load(services)
        ways = shares.ways(machines.topology, services, families)
        sayable = set(proxies.sayable(way.cell for way in ways))
        found = shares.measure(machines, proxies, [way for way in ways if way.cell in sayable], slowness=slowness)
        return SharesRun(variant, found, proxies.counters(), [text for text in proxies.said if text])


def run_shares(machines: Machines, report: Report, args: argparse.Namespace, slow: float) -> int:
    """The same through each variant in turn, said and written as it goes. Returns the number of findings."""
    wanted = {_FAMILIES[name] for name in args.families}
    print("\n".join(about(report.facts)), flush=True)
    check_ways(machines, wanted, slow)
    found = 0
    for variant in args.variants:
        result = share_out(machines, variant, wanted, slow)
        report.shares.append(result)
        write(report, args.report)
        print(result.line(), flush=True)
        findings = [text for share in result.shares for text in share.findings]
        for text in (*result.said, *(share.line() for share in result.shares), *findings[:_SHOWN]):
            print(f"    {text}", flush=True)
        found += len(findings)
    return found


def _names(text: str, known: Sequence[str]) -> list[str]:
    names = text.split(",")
    for name in names:
        if name not in known:
            raise argparse.ArgumentTypeError(f"there is no {name}; choose of {','.join(known)}")
    return names


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab", description="The Vagrant lab's scenario table, and shares of traffic.")
    parser.add_argument("--ssh-config", type=Path, required=True, help="what `vagrant ssh-config` printed")
    actions = parser.add_subparsers(dest="what", required=True)
    for name, variants in (("table", list(VARIANTS)), ("shares", list(_SHARING))):
        run = actions.add_parser(name)
        run.add_argument("--report", type=Path, default=Path("vagrant-report"), metavar="DIR")
        run.add_argument("--variants", type=lambda text: _names(text, list(VARIANTS)), default=variants)
        run.add_argument("--families", type=lambda text: _names(text, list(_FAMILIES)), default=["ipv4"])
    execute = actions.add_parser("exec")
    execute.add_argument("place")
    execute.add_argument("argv", nargs=argparse.REMAINDER)
    return parser


def _after_dashes(arguments: Sequence[str]) -> list[str]:
    return list(arguments[1:] if arguments[:1] == ["--"] else arguments)


def _run(args: argparse.Namespace, machines: Machines, found: Settings) -> int:
    report = earlier(args.report, facts(machines, found))
    if args.what == "table":
        return 1 if run_table(machines, replace(report, table=[]), args, found.slowness) else 0
    return 1 if run_shares(machines, replace(report, shares=[]), args, found.slowness) else 0


def main() -> int:
    """Command line: 0 all as the oracle says, 1 findings or failed; `exec`: the command's own status."""
    args = _arguments().parse_args()
    try:
        found = settings(os.environ)
        with Machines(found.spec, args.ssh_config) as machines:
            if args.what == "exec":
                return subprocess.run(machines.command(args.place, _after_dashes(args.argv)), check=False).returncode
            return _run(args, machines, found)
    except (HotplaneError, OSError) as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
