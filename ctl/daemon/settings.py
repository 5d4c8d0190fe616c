"""All settings of `hotplane run` in one value."""

import argparse
import socket
from pathlib import Path

import msgspec

from ctl.config import KubeProxyConfiguration
from ctl.context import answers_ping, flowtable_packets
from ctl.daemon.node.nodes import NodeOptions
from ctl.daemon.options import effective
from ctl.lb_options import LbOptions, lb_options
from ctl.plane_options import host_routing, plane_options
from ctl.sources.manifests import NODE_PORTS, PortRange
from ctl.ui.server import listening_address
from dataplane.errors import UsageError
from dataplane.model.net import canonical_address
from dataplane.planes.host_routes import OFF
from dataplane.planes.options import PlaneOptions
from dataplane.planes.registry import DEFAULT_MODE, mode_of


class Settings(msgspec.Struct, frozen=True):
    """paths: manifests to follow instead of an API server. once: end after the first load. adopt: remove
    kube-proxy's rules then. unknown: fields of the file that have no meaning here. ui: where the page is served, ""
    for nowhere; ui_remote: an address that others can reach is wanted there."""

    config: KubeProxyConfiguration
    mode: str
    node: NodeOptions
    kubeconfig: str = ""
    master: str = ""
    token_over_http: bool = False
    paths: tuple[str, ...] = ()
    node_ports: PortRange = NODE_PORTS
    state_dir: Path = Path("/run/hotplane")
    once: bool = False
    adopt: bool = False
    unknown: tuple[str, ...] = ()
    options: PlaneOptions = PlaneOptions()
    lb: LbOptions = LbOptions()
    ui: str = ""
    ui_remote: bool = False

    @property
    def binds(self) -> tuple[str, str]:
        """Where health and metrics are served."""
        return self.config.healthz_bind_address, self.config.metrics_bind_address

    @property
    def balances_at_connect_time(self) -> bool:
        """True if connections of this node's processes are balanced at connect time."""
        return mode_of(self.mode).at_connect(self.options)

    @property
    def routes_past_stack(self) -> bool:
        """True if packets of this node's pods may go past its stack."""
        able = mode_of(self.mode).routes_past_stack(self.options)
        return able and self.options.host_routing != OFF and not self.once

    @property
    def sync_period(self) -> float:
        """Seconds between read-backs."""
        return self.config.section(mode_of(self.mode).promises).sync_period

    @property
    def min_sync_period(self) -> float:
        """Minimum time between two syncs, in seconds."""
        return self.config.section(mode_of(self.mode).promises).min_sync_period


def settings_of(args: argparse.Namespace) -> Settings:
    """Settings from a command line; reads the configuration file anew. Raises ConfigError, UsageError."""
    loaded = effective(args)
    config = loaded.config
    mode = args.mode or config.mode or DEFAULT_MODE
    mode_of(mode)
    try:
        node_ips = tuple(canonical_address(ip) for ip in args.node_ip)
    except ValueError as error:
        raise UsageError(f"--node-ip: {error}") from error
    options = msgspec.structs.replace(plane_options(args), host_routing=host_routing(args, config))
    name = (args.node_name or config.hostname_override or socket.gethostname()).strip().lower()
    return Settings(
        config=config,
        mode=mode,
        node=NodeOptions(
            name, node_ips, args.zone, args.host_ports, answers_ping(args, mode), flowtable_packets(args, mode)
        ),
        kubeconfig=args.kubeconfig or config.client_connection.kubeconfig,
        master=args.master or "",
        token_over_http=args.token_over_http,
        paths=tuple(args.filename),
        node_ports=args.node_ports,
        state_dir=Path(args.state_dir),
        once=args.once,
        adopt=args.adopt,
        unknown=loaded.unknown,
        options=options,
        lb=lb_options(args, config, mode_of(mode), options),
        ui=_page_address(args.ui, remote=args.ui_remote),
        ui_remote=args.ui_remote,
    )


def _page_address(text: str, *, remote: bool) -> str:
    """Where the page is served, as it was given. Raises UsageError."""
    if text:
        listening_address(text, remote=remote, option="--ui", allow="--ui-remote")
    return text


def waits_for_restart(old: Settings, new: Settings) -> list[str]:
    """Fields of the configuration that a reload changed and that a running daemon does not take over."""
    changed = {
        "hostnameOverride": new.node.name != old.node.name,
        "clientConnection.kubeconfig": new.kubeconfig != old.kubeconfig,
    }
    if new.balances_at_connect_time and not old.balances_at_connect_time:  # nobody watches Pods and Namespaces
        changed["mode (labels service.hotplane.io/connect-time)"] = True
    if new.mode == old.mode and mode_of(new.mode).watches_devices:  # with pods recognised as they were at the start
        changed["detectLocalMode"] = new.config.detect_local_mode != old.config.detect_local_mode
        changed["detectLocal"] = new.config.detect_local != old.config.detect_local
    return [name for name, is_changed in changed.items() if is_changed]
