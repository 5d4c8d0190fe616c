"""Options of traffic from outside: forwarding with the client's address kept (`--lb-mode` and what belongs to it) and
the choice of endpoints (`--lb-algorithm`), from the command line or the configuration file."""

import argparse
from typing import NamedTuple

import msgspec

from ctl.config import KubeProxyConfiguration
from dataplane.errors import UsageError
from dataplane.model.forwarding import DEFAULT_PORT, DEFAULT_VNI
from dataplane.planes.mode import Mode
from dataplane.planes.options import PlaneOptions
from dataplane.planes.registry import modes
from dataplane.policy.algorithm import DEFAULT_SEED, DEFAULT_TABLE_SIZE, Algorithm
from dataplane.policy.forwarding import Dispatch, LbMode, TunnelPeer, parse_peers
from dataplane.policy.node import NodeConfig


class LbOptions(NamedTuple):
    """mode: of external traffic, where a Service does not say otherwise. port, vni: of forwarded packets. peers: nodes
    that take them, whatever their Node objects say. algorithm: how clients from outside get their endpoint, where a
    Service does not say otherwise. table_size, seed: of Maglev, see NodeConfig. dispatch: how packets to other nodes
    are wrapped, if they open it."""

    mode: LbMode = LbMode.SNAT
    port: int = DEFAULT_PORT
    vni: int = DEFAULT_VNI
    peers: tuple[TunnelPeer, ...] = ()
    algorithm: Algorithm = Algorithm.RANDOM
    table_size: int = DEFAULT_TABLE_SIZE
    seed: str = DEFAULT_SEED
    dispatch: Dispatch = Dispatch.VXLAN

    def applied(self, node: NodeConfig, mode: Mode, options: PlaneOptions) -> NodeConfig:
        """Return a node's settings with these. options: of the mode's plane."""
        only_snat = bool(mode.why_only_snat(options))
        return msgspec.structs.replace(
            node,
            lb_mode=LbMode.SNAT if only_snat else self.mode,
            lb_dispatch=self.dispatch,
            lb_port=self.port,
            lb_vni=self.vni,
            lb_peers=self.peers,
            snat_only=only_snat,
            lb_algorithm=Algorithm.RANDOM if mode.why_no_maglev else self.algorithm,
            maglev_table_size=0 if mode.why_no_maglev else self.table_size,
            hash_seed=self.seed,
        )


def lb_options(
    args: argparse.Namespace, config: KubeProxyConfiguration, mode: Mode, options: PlaneOptions
) -> LbOptions:
    """Return the options of a command line and a file, the former first. Raises UsageError for what is malformed, and
    for a way that the mode with these options does not have: nobody should believe that clients' addresses are kept."""
    try:
        peers = parse_peers(args.lb_peer) if args.lb_peer else parse_peers(config.lb_peers)
    except ValueError as error:
        raise UsageError(f"--lb-peer: {error}") from error
    asked = LbMode(args.lb_mode or config.lb_mode or LbMode.SNAT.value)
    if asked is not LbMode.SNAT and (why := mode.why_only_snat(options)):
        able = " or ".join(each.name for each in modes() if not each.why_only_snat(PlaneOptions()))
        given = f"--lb-mode {asked.value}" if args.lb_mode else f"lbMode: {asked.value}"
        raise UsageError(f"{given}: the {mode.name} mode {why}; use --mode {able} with tc or xdp, or --lb-mode snat")
    return LbOptions(
        asked,
        args.lb_port or config.lb_port or DEFAULT_PORT,
        args.lb_vni or config.lb_vni or DEFAULT_VNI,
        peers,
        _algorithm(args, config, mode),
        int(args.maglev_table_size or config.maglev_table_size or DEFAULT_TABLE_SIZE),
        args.hash_seed or config.hash_seed or DEFAULT_SEED,
        Dispatch(args.lb_dispatch or config.lb_dispatch or Dispatch.VXLAN.value),
    )


def _algorithm(args: argparse.Namespace, config: KubeProxyConfiguration, mode: Mode) -> Algorithm:
    """Return what is asked for. Raises UsageError for a mode that does not have it."""
    asked = Algorithm(args.lb_algorithm or config.lb_algorithm or Algorithm.RANDOM.value)
    if asked is Algorithm.MAGLEV and (why := mode.why_no_maglev):
        able = " or ".join(each.name for each in modes() if not each.why_no_maglev)
        given = "--lb-algorithm maglev" if args.lb_algorithm else "lbAlgorithm: maglev"
        raise UsageError(f"{given}: the {mode.name} mode {why}; use --mode {able}, or random")
    return asked
