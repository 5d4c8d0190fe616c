"""The ipvs baseline in the kernel.

It is only a baseline for comparisons: it is no mode of the command line and not a complete plane. It loads whole plans
and cannot read them back. It needs a kernel with IPVS and dummy devices, and owns the IPVS table of its network
namespace: all other content of that table is deleted.

Limits of one virtual server a frontend (`render.says`): one set of destinations for every source, so policy Local
serves pods and the node from the Local set too, as kube-proxy's ipvs mode does; refusal where a plan says drop; no
loadBalancerSourceRanges; round robin instead of a random choice. The node's own packets to a virtual address come
from that very address until they are masqueraded.
"""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from dataplane.kernel import sysctl
from dataplane.plan.change import EntryChange, PlanChange
from dataplane.plan.types import Plan, Table
from dataplane.planes.base import Plane, PlaneError
from dataplane.planes.ipvs.render import TABLE, render

DEVICE = "kube-ipvs0"
_SETTINGS = {
    "net/ipv4/vs/conntrack": 1,
    "net/ipv4/vs/conn_reuse_mode": 1,
    "net/ipv4/vs/expire_nodest_conn": 1,
    "net/ipv4/vs/expire_quiescent_template": 1,
}
"""kube-proxy's: masquerading needs connection tracking, and nothing is to outlive its endpoint."""


class IpvsPlane(Plane):
    """A plan in IPVS, in the current network namespace."""

    name = "ipvs"

    def load(self, plan: Plan) -> PlanChange:
        """Replace the whole IPVS table by this plan. Not atomic: a packet in between may find no server.

        Returns the whole plan as new. Raises PlaneError, saying which tool refused what.
        """
        wanted = render(plan)
        if not Path("/proc/net/ip_vs").exists():
            _run(["modprobe", "ip_vs"])
        for key, value in _SETTINGS.items():
            sysctl.write(key, value)
        _run(["nft", "-f", "-"], wanted.rules)
        self._device(wanted.addresses)
        _run(["ipvsadm", "--clear"])
        _run(["ipvsadm", "--restore"], wanted.servers)
        return PlanChange(entries=tuple(EntryChange(None, entry) for entry in plan.entries.values()))

    def apply(self, change: PlanChange) -> None:
        """Not supported: this baseline only loads. Raises PlaneError."""
        raise PlaneError("ipvs: the baseline takes no changes; load the plan again")

    def read_back(self) -> Table:
        """Not supported by this baseline. Raises PlaneError."""
        raise PlaneError("ipvs: the baseline does not tell what it holds; ipvsadm --list does")

    def cleanup(self) -> None:
        """Remove the servers, the device and the rules, if any."""
        if Path("/proc/net/ip_vs").exists():
            _run(["ipvsadm", "--clear"])
        if Path("/sys/class/net", DEVICE).exists():
            _run(["ip", "link", "del", DEVICE])
        _run(["nft", "-f", "-"], f"table inet {TABLE} {{ }}\ndelete table inet {TABLE}\n")

    def _device(self, addresses: Sequence[str]) -> None:
        """Add the addresses to a dummy device, so that the kernel delivers packets locally, where IPVS handles them."""
        if Path("/sys/class/net", DEVICE).exists():
            _run(["ip", "link", "del", DEVICE])
        commands = [f"link add {DEVICE} type dummy", f"link set {DEVICE} up"]
        commands += [
            f"addr add {address}/{128 if ':' in address else 32} dev {DEVICE}{' nodad' if ':' in address else ''}"
            for address in addresses
        ]
        _run(["ip", "-batch", "-"], "".join(f"{command}\n" for command in commands))


def _run(argv: Sequence[str], text: str = "") -> None:
    try:
        done = subprocess.run(list(argv), input=text, capture_output=True, text=True, check=False)
    except OSError as error:
        raise PlaneError(f"ipvs: {argv[0]}: {error.strerror}; install its package") from error
    if done.returncode:
        raise PlaneError(f"ipvs: {' '.join(argv)}: {done.stderr.strip() or f'exit status {done.returncode}'}")
