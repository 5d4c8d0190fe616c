"""Read the iptables plane's affinity clients from `recent` lists."""

import re
from collections.abc import Iterator
from pathlib import Path

from dataplane.kernel.iptables import Variant, default_variant
from dataplane.kernel.tools import ToolError, run_tool
from dataplane.model.net import Family, canonical_address
from dataplane.planes.base import PlaneError
from dataplane.planes.clients import Client

_RECENT = Path("/proc/thread-self/net/xt_recent")
_ENDPOINT = re.compile(r'-A (KUBE-SEP-\S+) .*--comment "?([^" ]+)"? .*-j DNAT --to-destination (\S+)')
_LISTED = re.compile(r"src=(\S+) ")
_SECONDS = 120.0


def saved_counts(family: Family, table: str) -> str:
    """Return what iptables-save prints of a table, with the counters of its rules. Raises PlaneError."""
    tool = f"{'iptables' if family is Family.IPV4 else 'ip6tables'}-{_variant().value}-save"
    try:
        done = run_tool([tool, "-c", "-t", table], seconds=_SECONDS)
    except FileNotFoundError as error:
        raise PlaneError(f"{tool}: {error.strerror}; install the package iptables") from error
    except (OSError, ToolError) as error:
        raise PlaneError(f"{tool}: {error}") from error
    if done.returncode != 0:
        raise PlaneError(f"{tool} -t {table} failed: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout.decode(errors="replace")


def _variant() -> Variant:
    return default_variant()


def remembered_clients() -> list[Client]:
    """Return the clients in the `recent` lists of endpoint chains, in this network namespace. Raises PlaneError."""
    found: list[Client] = []
    for family in Family:
        for chain, service, endpoint in _ENDPOINT.findall(saved_counts(family, "nat")):
            address, _, port = endpoint.rpartition(":")
            backend = (address.strip("[]"), int(port))
            found.extend(Client(service, None, client, backend, None) for client in _listed(chain))
    return found


def _listed(chain: str) -> Iterator[str]:
    path = _RECENT / chain
    if path.exists():
        for line in path.read_text().splitlines():
            match = _LISTED.match(line)
            if match:
                yield canonical_address(match[1])
