"""Host routing as the daemon keeps it: who may go past the node's stack, written to the map `pods`, where an entry is
the permission. An empty map, or one whose daemon does not renew its lease, sends everything by the stack."""

import logging
import struct
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from pyroute2.netlink.exceptions import NetlinkError

from dataplane.kernel.netlink.conntrack import ConntrackError
from dataplane.kernel.netlink.conntrack_list import translated_connections
from dataplane.kernel.netlink.netlink import Refused
from dataplane.model.net import Protocol
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.attach.devices import Device, Network
from dataplane.planes.ebpf.flows.direct import direct_key
from dataplane.planes.ebpf.host_routing.devices import Judgement, LocalPod, judge
from dataplane.planes.ebpf.host_routing.surroundings import NeighbourNews, Surroundings, read_surroundings
from dataplane.planes.ebpf.maps.encode import address_bytes, address_text
from dataplane.planes.ebpf.maps.layout import constant, hook_names, reason_names, record, size_of
from dataplane.planes.ebpf.maps.mapset import MapSet
from dataplane.planes.exclusions import Exclusions

LEASE_SECONDS = 15.0
"""How long host routing goes on without its daemon. The thread that looks after devices renews it every RENEW_SECONDS,
up to so long after the daemon's event loop last said who must stay on the stack: it ends when either stands still."""
RENEW_SECONDS = 5.0
WAYS = ("into_pod", "out_of_node", "by_stack")
"""Names of the ways of packets, as reasons of tc_ingress."""
_POD = record("pod", "found_ns", "found_from", "ifindex", "routed", "flags", "mtu", "mac", "gateway")
_TIME = struct.Struct("=Q")
_FLOW = record("direct_flow", "last_ns", "flags", "ifindex", "begun", "pad", "low", "high")
_NO_HOP = bytes(size_of("direct_hop"))
_BRIDGED, _STACK = constant("POD_BRIDGED"), constant("DIRECT_STACK")
_UNTIL, _DISTRUST, _GENERATION = (
    constant(f"HOST_{name}").to_bytes(4, "little") for name in ("ROUTING_UNTIL", "DISTRUST_UNTIL", "GENERATION")
)
_FOR_EVER = (1 << 63) - 1
_log = logging.getLogger(__name__)


class HostRouting:
    """Who goes past the stack of this network namespace.

    The hook that attaches the packet programs calls `begin` with its maps, and `look` whenever devices, addresses or
    routes changed; until then, and after `close`, nobody goes past the stack. `exclude` may be called at any time, also
    before. Thread-safe.

    refused: why nobody ever goes past the stack, "" as long as somebody may.

    lasting: the permission outlives this process, as there is no daemon that would renew it. attended: somebody calls
    `exclude` again and again, and when he no longer does, nobody goes past the stack LEASE_SECONDS later.
    """

    def __init__(self, *, lasting: bool = False, attended: bool = False) -> None:
        self._lasting, self._attended = lasting, attended
        self._exclusions = Exclusions()
        self._told_ns = time.monotonic_ns()
        self.refused = ""
        self._behind = False
        self._judgement = Judgement()
        self._maps: MapSet | None = None
        self._programs: Callable[[], Collection[int]] = tuple
        self._again: Callable[[], object] = lambda: None
        self._known: dict[tuple[int, str], bytes] = {}
        self._stations: dict[tuple[int, bytes], int] = {}
        self._written: dict[bytes, bytes] = {}
        self._lock = threading.RLock()

    def begin(self, maps: MapSet, programs: Callable[[], Collection[int]], again: Callable[[], object]) -> None:
        """Work on these maps. programs: returns the ids of hotplane's own programs. again: has devices looked at again.
        Flows of datagrams that connection tracking translates already are noted as the stack's. Raises PlaneError."""
        with self._lock:
            self._maps, self._programs, self._again = maps, programs, again
            self._written = dict(maps.items("pods"))
            self._write()  # what an earlier process permitted
        if not any(maps.get("host_times", _UNTIL) or b""):
            maps.put("host_times", _GENERATION, _TIME.pack(1))
            maps.put("host_times", _UNTIL, _TIME.pack(1))  # from now on the programs note what the stack sends
            self._note_translated(maps)

    def _note_translated(self, maps: MapSet) -> None:
        """Give the flows that connection tracking translates to the stack. If they cannot be listed, unknown datagrams
        are the stack's until its entries have expired or were seen."""
        now = time.monotonic_ns()
        value = _FLOW.pack(now, _STACK, 0, 0, 0, _NO_HOP, _NO_HOP)
        try:
            for each in translated_connections():
                if each.protocol is Protocol.UDP:
                    maps.put("direct_udp", direct_key(each.backend, each.client, int(Protocol.UDP)), value)
                elif each.protocol is Protocol.TCP:
                    key = direct_key(each.backend, each.client, int(Protocol.TCP))
                    if maps.get("direct_tcp", key) is None:  # one that goes past the stack already shall go on
                        maps.put("direct_tcp", key, value)
        except (ConntrackError, PlaneError) as error:
            seconds = maps.node()["udp_stream_seconds"]
            assert isinstance(seconds, int), "a number in the header"
            _log.warning("flows that are translated already: %s; datagrams go by the stack for %d s", error, seconds)
            maps.put("host_times", _DISTRUST, _TIME.pack(now + seconds * 10**9))

    def refuse(self, why: str) -> None:
        """There are no programs for it, and will be none."""
        self.refused = why
        _log.warning("packets of pods go by the node's stack: %s", why)

    @property
    def begun(self) -> bool:
        """True between `begin` and `close`: there are programs that take packets past the stack."""
        return self._maps is not None

    def exclude(self, exclusions: Exclusions) -> None:
        """Keep these on the stack, and no others for what `exclude` said before. Who is taken out is out when this
        returns. To say the same again costs nothing but the time of day. Raises PlaneError."""
        with self._lock:
            if exclusions != self._exclusions or self._behind:
                self._exclusions = exclusions
                self._write()
            self._told_ns = time.monotonic_ns()

    def refresh(self) -> None:
        """Look at devices, routes, neighbours, queueing disciplines and others' programs again. Raises PlaneError."""
        self._again()

    def look(self, network: Network, devices: Collection[Device], *, new: bool) -> frozenset[int]:
        """Take in what the namespace has. Returns the ifindexes of devices that host routing may use. Raises PlaneError
        if the kernel cannot be read; then nobody goes past the stack.

        new: programs came to a device just now, so what the stack sent there before was not noted."""
        maps = self._maps
        if new and maps is not None:
            self._note_translated(maps)
        try:  # without the lock: who is to be kept on the stack does not wait for what is read here
            around = read_surroundings([device.ifindex for device in devices], self._programs())
        except (OSError, Refused, NetlinkError) as error:
            with self._lock:
                self._judgement = Judgement(dict.fromkeys((d.name for d in devices), f"cannot be looked at: {error}"))
                self._write()
            raise PlaneError(f"host routing: {error}") from error
        with self._lock:
            before = self._judgement.usable
            self._judgement = judge(network, devices, self._remember(network, around))
            self._write()
            if before - self._judgement.usable and self._maps is not None:
                self._disbelieve(self._maps)
            self.renew()
            return self._judgement.usable

    def _remember(self, network: Network, around: Surroundings) -> Surroundings:
        """Add neighbours and stations that the kernel forgot. It forgets those that it has not heard of for minutes,
        and what goes past the stack it does not hear of."""
        present = {link.ifindex: link for link in network.links}
        known = {key: mac for key, mac in self._known.items() if key[0] in present} | dict(around.neighbours)
        stations = {
            key: port for key, port in self._stations.items() if port in present and present[port].master == key[0]
        } | dict(around.stations)
        self._known, self._stations = known, stations
        return around._replace(neighbours=known, stations=stations)

    def gone(self, ifindex: int) -> None:
        """A device was deleted: its pods go by the stack from now on, and their successors too until they are looked
        at. Raises PlaneError."""
        with self._lock:
            pods = {address: pod for address, pod in self._judgement.pods.items() if pod.ifindex != ifindex}
            problems = {address: "its device was deleted" for address in self._judgement.pods if address not in pods}
            if problems:
                self._judgement = self._judgement._replace(pods=pods, problems={**self._judgement.problems, **problems})
                self._known = {key: mac for key, mac in self._known.items() if key[0] != ifindex}
                self._write()

    def is_news(self, news: NeighbourNews) -> bool:
        """True if a neighbour or station has a hardware address or a port that is not known yet. That one went is no
        news: see _remember."""
        with self._lock:
            if news.gone or not news.mac:
                return False
            if news.address:
                return self._known.get((news.ifindex, news.address)) != news.mac
            return news.ifindex not in (port for key, port in self._stations.items() if key[1] == news.mac)

    def _write(self) -> None:
        """Bring the map to what is allowed: who is out first."""
        maps = self._maps
        if maps is None:
            return
        wanted, self._behind = {}, True
        if self._exclusions.node is None:
            for address, pod in self._judgement.pods.items():
                if self._exclusions.reason(address) is None:
                    wanted[address_bytes(address)] = _pack(pod)
        gone = [key for key in self._written if key not in wanted]
        changed = any(self._written.get(key, value) != value for key, value in wanted.items())
        maps.remove("pods", gone)
        for key in gone:
            del self._written[key]
        for key, value in wanted.items():
            if self._written.get(key) != value:
                maps.put("pods", key, value)
                self._written[key] = value
        if gone or changed:
            self._disbelieve(maps)
        self._behind = False

    def _disbelieve(self, maps: MapSet) -> None:
        """Have the programs ask again where flows go that they remember."""
        (generation,) = _TIME.unpack(maps.get("host_times", _GENERATION) or bytes(_TIME.size))
        maps.put("host_times", _GENERATION, _TIME.pack((generation + 1) & 0xFFFFFFFF or 1))

    def renew(self) -> None:
        """Renew the lease; where host routing is attended, from the last `exclude` on. Raises PlaneError."""
        with self._lock:
            if self._maps is not None:
                since = self._told_ns if self._attended else time.monotonic_ns()
                until = _FOR_EVER if self._lasting else since + int(LEASE_SECONDS * 1e9)
                self._maps.put("host_times", _UNTIL, _TIME.pack(until))

    def reason(self, address: str) -> str | None:
        """Why packets from and to a pod of this node go by the stack, None if they do not. address: canonical text."""
        with self._lock:
            excluded = self._exclusions.reason(address)
            if excluded is not None:
                return excluded
            if address in self._judgement.pods:
                return None
            return self._judgement.problems.get(address, "no device of this node leads to it")

    def addresses(self) -> Sequence[tuple[str, str | None]]:
        """Addresses of pods of this node that are known, with their `reason`."""
        with self._lock:
            known = {*self._judgement.pods, *self._judgement.problems, *self._exclusions.addresses}
            return [(address, self.reason(address)) for address in sorted(known)]

    def devices(self) -> Sequence[tuple[str, str | None]]:
        """Devices with packet programs, and why host routing does not use them, None if it does."""
        with self._lock:
            return list(self._judgement.reasons.items())

    def counts(self) -> Mapping[str, int]:
        """Packets by way (WAYS) since the maps were made: into a pod, out of the node, by the stack."""
        with self._lock:
            return {} if self._maps is None else counts(self._maps)

    def close(self) -> None:
        """Let go of the maps. Nobody goes past the stack any more; where the permission is lasting, what is permitted
        stays so."""
        with self._lock:
            self._judgement = Judgement()
            if not self._lasting:
                self._write()
            self._maps, self._again, self._written = None, lambda: None, {}


def counts(maps: MapSet) -> Mapping[str, int]:
    """HostRouting.counts of maps that are open."""
    found = {}
    first = hook_names().index("tc_ingress") * constant("REASON_COUNT")
    for way in WAYS:
        values = maps.per_cpu("counters", first + reason_names().index(way))
        found[way] = sum(int.from_bytes(value, "little") for value in values)
    return found


def permitted(maps: MapSet) -> Sequence[str]:
    """Addresses of the pods that may go past the stack now, in maps that are open, in canonical text."""
    (until,) = _TIME.unpack(maps.get("host_times", _UNTIL) or bytes(_TIME.size))
    if until <= time.monotonic_ns():
        return ()
    return [address_text(key) for key, _ in maps.items("pods")]


def _pack(pod: LocalPod) -> bytes:
    flags = _BRIDGED if pod.bridged else 0
    return _POD.pack(0, 0, pod.ifindex, pod.routed, flags, pod.mtu, *pod.mac, *pod.gateway)
