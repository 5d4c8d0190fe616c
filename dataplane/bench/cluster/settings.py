"""Settings of a run in a cluster: scenarios, paths to the server, numbers of Services, and rounds."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from msgspec.structs import replace

from dataplane.bench.modes import AGAIN, DIRECT
from dataplane.bench.profiles import PROFILES, Settings
from dataplane.bench.scenarios import RENAMED, Position
from dataplane.errors import UsageError

PROFILE = "cluster"
"""Name of the profile in results files."""
HOST, CLUSTER_IP, NODE_PORT = "host-network", "cluster-ip", "node-port"
CLIENT_NODE, SERVER_NODE = "client node", "server node"
"""Where results files have the nodes' names, among the machine's versions."""
WAYS = (DIRECT, AGAIN, HOST, CLUSTER_IP, NODE_PORT)
"""The modes of bench.modes that there are here: ways to the same server."""
SCENARIOS = ("connect", "TCP_CRR", "TCP_RR", "TCP_STREAM", "UDP_RR")
MOST_SERVICES = 30000
ROUNDS, SECONDS = 9, 1.0
PORT = 29310
"""The server's, in its pod and, with its node's network, on the node: outside the usual ranges of others."""


class SiteOptions(NamedTuple):
    """Options of a run in a cluster. kubeconfig, context: None, "": kubectl's own. timeout: seconds that pods, Services
    and the namespace's removal may take each. family: "" for the cluster's first."""

    image: str
    kubeconfig: Path | None = None
    context: str = ""
    namespace: str = "hotplane-bench"
    client_node: str = ""
    server_node: str = ""
    pull_policy: str = "IfNotPresent"
    port: int = PORT
    timeout: float = 120.0
    family: str = ""
    python: bool = False
    keep: bool = False


def settings(
    modes: Sequence[str] = (),
    scenarios: Sequence[str] = (),
    services: Sequence[int] = (),
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    seed: int = 1,
) -> Settings:
    """Settings of a run; empty is everything, of services one. Raises UsageError for what does not exist."""
    scenarios = [RENAMED.get(name, name) for name in scenarios]
    for option, wanted, known in (("--modes", modes, WAYS), ("--scenario", scenarios, SCENARIOS)):
        unknown = [name for name in wanted if name not in known]
        if unknown:
            raise UsageError(f"{option} {','.join(unknown)}: there is none in a cluster; choose of {', '.join(known)}")
    sizes = tuple(sorted(set(services))) or (1,)
    if not 1 <= sizes[0] <= sizes[-1] <= MOST_SERVICES:
        raise UsageError(f"--services {','.join(map(str, sizes))}: numbers from 1 to {MOST_SERVICES}")
    if rounds < 1:
        raise UsageError(f"--rounds {rounds}: at least 1")
    if not 0.01 <= seconds <= 60:
        raise UsageError(f"--seconds {seconds:g}: from 0.01 to 60")
    return replace(
        PROFILES["quick"], profile=PROFILE,
        modes=tuple(way for way in WAYS if not modes or way in modes or way in (DIRECT, AGAIN)),
        scenarios=tuple(name for name in SCENARIOS if not scenarios or name in scenarios),
        services=sizes, fixed_services=sizes, few_services=(), position_services=(), bar_services=(),
        positions=(Position.LAST,), rounds=rounds, light_rounds=rounds, seconds=seconds, seed=seed, endpoints=1,
    )  # fmt: skip
