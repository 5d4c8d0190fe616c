"""Options of planes; each plane uses those that apply to it."""

import msgspec

from dataplane.planes.host_routes import DEFAULT

HOOKS = ("connect", "tc", "xdp")
MASQUERADE = ("client", "kube-proxy")
NO_CGROUP = "none"


class PlaneOptions(msgspec.Struct, frozen=True):
    """Options given by the user. hooks: as named. cgroup: directory, "" = the hierarchy's root, "none". uplinks, pods:
    globs; none = found by themselves. kube_proxy_masquerade: exact parity, else clients keep their address where the
    backend is local. host_routing: whether packets of pods may go past the node's stack (planes.host_routes.CHOICES).
    instance: pin directory, "" = this network namespace's own. off_cgroups, off_netns: for whom connect time is off
    (see planes.ebpf.connect_time.off_targets.OffSelection)."""

    hooks: tuple[str, ...] = HOOKS
    cgroup: str = ""
    uplinks: tuple[str, ...] = ()
    pods: tuple[str, ...] = ()
    kube_proxy_masquerade: bool = False
    instance: str = ""
    off_cgroups: tuple[str, ...] = ()
    off_netns: tuple[str, ...] = ()
    host_routing: str = DEFAULT

    @property
    def at_connect(self) -> bool:
        """True if connect-time balancing is wanted."""
        return "connect" in self.hooks and self.cgroup != NO_CGROUP


LOOKING = PlaneOptions(hooks=())
"""For a plane that only looks at what is there, or removes it."""
