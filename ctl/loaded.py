"""The planes that exist, by mode, and what the command line needs to know of what is loaded."""

from collections.abc import Callable
from pathlib import Path

from ctl import state
from ctl.ebpf import EbpfOptions, make_ebpf_plane, say
from ctl.modes import DEFAULT_MODE, MODES
from dataplane.errors import UsageError
from dataplane.kernel import sysctl
from dataplane.kernel.nft import Nft
from dataplane.kernel.rcu import wait_for_packets
from dataplane.model.net import Family
from dataplane.planes.base import Plane
from dataplane.planes.nftables.localnet import ROUTE_LOCALNET, guards_loopback, note_setting
from dataplane.policy.node import LocalDetector, NodeConfig


def make_plane(
    mode: str,
    *,
    loaded_for: NodeConfig | None = None,
    tcp_be_liberal: bool = False,
    ebpf: EbpfOptions | None = None,
    detector: LocalDetector | None = None,
    watch: bool = False,
    tell: Callable[[str], None] = say,
) -> Plane:
    """The plane of a mode, for this thread's network namespace.

    loaded_for: this node as an earlier run knew it, for reading back what that loaded. tcp_be_liberal: the
    configuration's conntrack.tcpBeLiberal. ebpf, detector, watch, tell: see ctl.ebpf.make_ebpf_plane. Raises
    UsageError for a mode that does not exist.
    """
    if mode == "nftables":
        from dataplane.planes.nftables.plane import NftablesPlane

        return NftablesPlane(loaded_for=loaded_for)
    if mode == "iptables":
        from dataplane.planes.iptables.plane import IptablesPlane

        return IptablesPlane(loaded_for=loaded_for, tcp_be_liberal=tcp_be_liberal)
    if mode == "ebpf":
        return make_ebpf_plane(ebpf or EbpfOptions(), detector, watch=watch, tell=tell)
    raise UsageError(f"there is no mode {mode}; choose one of {', '.join(MODES)}")


def loaded_plane(asked: str | None, state_dir: str) -> Plane:
    """The plane to look at what is loaded here: of the mode asked for, else last applied, else the default."""
    saved = state.load(Path(state_dir))
    mode = asked or (saved.mode if saved else DEFAULT_MODE)
    mine = saved if saved and saved.mode == mode else None
    return make_plane(
        mode, loaded_for=mine.node if mine else None, ebpf=(mine.ebpf if mine else None) or EbpfOptions(hooks=())
    )


def replace_plane(old: Plane, mode: str) -> int:
    """Remove what another mode holds here, now that `mode` answers, without breaking a connection.

    The ebpf mode stands on the nftables mode's table, so between these two that table stays. Returns how many flows of
    the ebpf mode's packet programs still drain; they do so by themselves. A packet that passed this mode's hook before
    its rules were there must still meet the old ones, so those under way are waited for.
    """
    wait_for_packets()
    routed = sysctl.read(ROUTE_LOCALNET)
    left = _remove(old, mode)
    # Every mode sets it where node ports answer on 127.0.0.0/8, and takes it back.
    reset = routed == "1" and _guards_loopback(mode) and sysctl.ensure(ROUTE_LOCALNET, 1)
    if reset and mode != "iptables":
        note_setting(Nft())
    return left


def _remove(old: Plane, mode: str) -> int:
    if old.name == "ebpf":
        from dataplane.planes.ebpf.plane import EbpfPlane

        assert isinstance(old, EbpfPlane), "the plane of that name"
        return old.drain(keep_slow=mode == "nftables")
    if not (old.name == "nftables" and mode == "ebpf"):
        old.cleanup()
    return 0


def _guards_loopback(mode: str) -> bool:
    """Whether a mode has what must stand beside route_localnet."""
    if mode != "iptables":
        return guards_loopback(Nft())
    from dataplane.kernel.iptables import KernelTables, Variant, installed
    from dataplane.planes.iptables.skeleton import LOCALNET_RULE

    variants = [KernelTables(Family.IPV4, variant) for variant in Variant if installed(Family.IPV4, variant)]
    return any("filter" in tables.present() and LOCALNET_RULE in tables.save("filter") for tables in variants)
