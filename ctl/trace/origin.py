"""Where a packet is sent from."""

from pathlib import Path

from ctl.flow_names import lab_here
from ctl.trace.send import Origin, of_process
from dataplane.errors import HotplaneError, UsageError
from dataplane.kernel.namespaces import cgroup, netns
from dataplane.lab.lab import CGROUP_PREFIX
from dataplane.lab.places import Places
from dataplane.lab.spec import Place
from dataplane.model.net import is_loopback
from dataplane.oracle.types import Packet


def origin_of(packet: Packet, from_netns: str | None, from_pid: int | None) -> Origin:
    """Where a packet with this source is sent from: where the options say, else the place of the lab or this network
    namespace that has the source as its address. Raises UsageError."""
    if from_netns and from_pid:
        raise UsageError("--from-netns and --from-pid say the same: leave one of them out")
    if from_pid:
        return of_process(from_pid)
    if from_netns:
        if "/" not in from_netns and not netns.exists(from_netns):
            raise UsageError(f"--from-netns {from_netns}: there is no such network namespace; ip netns lists them")
        return Origin(from_netns, None, f"network namespace {from_netns}")
    lab = lab_here()
    place = _place_of(lab, packet.source) if lab is not None else None
    if lab is not None and place is not None:
        return Origin(place.netns, _group(lab, place), place.name)
    from ctl.context import namespace_addresses

    if is_loopback(packet.source) or packet.source in namespace_addresses():
        return Origin()
    raise UsageError(
        f"--send: {packet.source} is no address of this node; name the pod that has it with --from-netns or --from-pid"
    )


def cookie_of(packet: Packet) -> int:
    """The cookie of the network namespace that has a packet's source, 0 if that is not known: what the programs call a
    socket by before it has an address."""
    from dataplane.kernel.namespaces.netns_cookie import netns_cookie

    try:
        origin = origin_of(packet, None, None)
        if not origin.netns:
            return netns_cookie()
        with netns.netns(origin.netns):
            return netns_cookie()
    except (HotplaneError, OSError):
        return 0


def _place_of(lab: Places, address: str) -> Place | None:
    return next((place for place in lab.topology.places() if address in place.addresses.values()), None)


def _group(lab: Places, place: Place) -> Path | None:
    """The control group of a place's processes, None if there is none."""
    mounted = cgroup.mount_points()
    group = mounted[0] / (CGROUP_PREFIX + lab.spec.name) / place.group if mounted else None
    return group if group is not None and group.is_dir() else None
