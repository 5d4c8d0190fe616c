"""Elements as netlink bytes: nft lists what hotplane writes, hotplane reads what nft lists, and a refusal is whole."""

import socket
import string
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.kernel.netlink.netlink import ACK, NETFILTER, Netlink, Refused, attribute, attributes, message
from dataplane.model.net import Family, packed
from dataplane.plan.planner import Planner
from dataplane.plan.types import Plan
from dataplane.planes.base import PlaneError
from dataplane.planes.nftables.netlink.fields import Element, Layouts, address_port, number, port
from dataplane.planes.nftables.netlink.store import ElementStore
from dataplane.planes.nftables.plane import NftablesPlane
from dataplane.planes.nftables.rules.skeleton import declarations
from dataplane.planes.nftables.rules.syntax import syntax_for
from dataplane.policy.node import NodeConfig
from tests.kernel.nftables_listing import Listed, listed, nft
from tests.unit.clusters import clusters, decoded, node_config, nodes

SYNTAX = {family: syntax_for(family, "hotplane") for family in Family}
LAYOUTS = Layouts(SYNTAX.values())
ADDRESSES = {
    Family.IPV4: st.ip_addresses(v=4).map(lambda address: address.packed),
    Family.IPV6: st.ip_addresses(network="2000::/3").map(lambda address: address.packed),
}
PORTS = st.integers(0, 65535).map(port)
NUMBERS = st.integers(0, 0xFFEF).map(number)  # the last sixteen have names of their own
# nft's grammar has no quotes inside a comment, and prints a comment of no characters as none.
COMMENTS = st.text(sorted(set(string.printable) - set('"\t\n\r\x0b\x0c')), max_size=120).map(str.encode)


class Tables:
    """An empty hotplane table of each family, and the element store that writes to them."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        in_netns(namespace, NftablesPlane).load(Plan(NodeConfig()))
        self.store = in_netns(namespace, ElementStore, LAYOUTS)

    def listed(self, family: Family) -> Listed:
        return listed(self.namespace, SYNTAX[family].ip)

    def read(self, family: Family) -> Listed:
        """What the store reads, spelled as nft spells it."""
        found = {}
        for name in declarations(SYNTAX[family]):
            if name == "service_cidrs":
                continue
            target = SYNTAX[family].target(name)
            layout = LAYOUTS.of(target)
            texts = {layout.key_text(k): layout.rest_text(v) for k, v in self.store.elements(target).items()}
            if texts:
                found[name] = texts
        return found


@pytest.fixture
def tables(namespace: str) -> Tables:
    return Tables(namespace)


@st.composite
def elements(draw: st.DrawFn, family: Family) -> dict[Element, bytes]:
    """Elements of the sets and maps that hold plain data."""
    syntax, found = SYNTAX[family], {}
    protocols = st.sampled_from((6, 17, 132)).map(lambda value: bytes((value, 0, 0, 0)))
    address = ADDRESSES[family]
    backends = st.tuples(address, PORTS).map(b"".join)
    for kind, head in ((syntax.services, [address]), (syntax.nodeports, [])):
        key = st.tuples(*head, protocols, PORTS).map(b"".join)
        indexed = st.tuples(key, NUMBERS).map(b"".join)
        plain = ((kind.endpoints, indexed, backends), (kind.slots, indexed, NUMBERS), (kind.pod, key, NUMBERS))
        commented = (kind.first, key, st.tuples(NUMBERS, COMMENTS).map(b"".join))
        for name, keys, values in (*plain, commented, (kind.long_names, key, COMMENTS)):
            for chosen, value in draw(st.dictionaries(keys, values, max_size=4)).items():
                found[(syntax.target(name), chosen)] = value
    for chosen in draw(st.lists(address, max_size=4)):
        found[(syntax.target("cluster_ips"), chosen)] = b""
        found[(syntax.target("hairpin"), chosen * 2)] = b""
    return found


def spelled(held: dict[Element, bytes]) -> Listed:
    found: Listed = {}
    for (target, key), value in held.items():
        layout = LAYOUTS.of(target)
        found.setdefault(target.rpartition(" ")[2], {})[layout.key_text(key)] = layout.rest_text(value)
    return found


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
@pytest.mark.parametrize("family", list(Family))
def test_what_is_written_is_what_nft_lists(tables: Tables, family: Family, data: st.DataObject) -> None:
    wanted = data.draw(elements(family))
    tables.store.change((), wanted.items())
    try:
        assert tables.listed(family) == spelled(wanted)
        assert tables.read(family) == spelled(wanted)
        gone = list(wanted)[::2]
        tables.store.change(gone, ())
        for element in gone:
            del wanted[element]
        assert tables.listed(family) == spelled(wanted)
    finally:
        tables.store.change(wanted, ())
    assert tables.read(family) == {}


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(node=nodes(), cluster=clusters())
def test_a_plan_in_the_kernel_is_read_as_nft_lists_it(namespace, node, cluster):  # type: ignore[no-untyped-def]
    plane = in_netns(namespace, NftablesPlane)
    plane.cleanup()
    planner = Planner(node_config(node))
    planner.update(decoded(cluster))
    plane.load(planner.plan)
    for family, state in plane._states().items():
        syntax = SYNTAX[family]
        held = {(syntax.target(name), k): v for name, found in state.elements.items() for k, v in found.items()}
        assert spelled(held) == listed(namespace, syntax.ip)


def test_verdicts_and_source_ranges_are_read(tables: Tables) -> None:
    for command in (
        "add chain ip hotplane lb-7",
        "add element ip hotplane shapes { ffff:77 : goto lb-7 }",
        "add set ip hotplane ranges-24 { type ipv4_addr . inet_proto . inet_service . ipv4_addr; }",
        "add element ip hotplane ranges-24 { 10.0.0.1 . 17 . 53 . 192.0.2.0 }",
    ):
        nft(tables.namespace, command)
    assert tables.store.elements("ip hotplane shapes") == {number(0x77): b"lb-7"}
    key = packed("10.0.0.1") + bytes((17, 0, 0, 0)) + port(53) + packed("192.0.2.0")
    assert tables.store.elements("ip hotplane ranges-24") == {key: b""}
    assert tables.store.chains("ip hotplane")["lb-7"] == 0
    assert tables.store.sets("ip hotplane")["ranges-24"] is False


def service(address: str, index: int) -> Element:
    return "ip hotplane endpoints", packed(address) + bytes((6, 0, 0, 0)) + port(80) + number(index)


def test_many_elements_in_one_transaction(tables: Tables) -> None:
    """More than one message of a transaction holds, and more than one answer of a dump."""
    wanted = {
        service(f"10.{a}.{b}.1", index): address_port("192.0.2.1", index)
        for a, b, index in product(range(10), range(200), range(6))
    }
    tables.store.change((), wanted.items())
    held = tables.store.elements("ip hotplane endpoints")
    assert {("ip hotplane endpoints", key): value for key, value in held.items()} == wanted


@pytest.mark.parametrize("position", ["first", "middle", "last"])
@pytest.mark.parametrize("mistake", ["removed", "added"])
def test_a_refused_transaction_leaves_nothing_and_names_the_element(
    tables: Tables, position: str, mistake: str
) -> None:
    target = "ip hotplane endpoints"
    there = service("10.0.0.1", 0)
    tables.store.change((), [(there, address_port("192.0.2.1", 1))])
    good = [(service(f"10.1.{n >> 8}.{n & 255}", 1), address_port("192.0.2.2", 2)) for n in range(3000)]
    place = {"first": 0, "middle": 1500, "last": 3000}[position]
    removed: list[Element] = []
    if mistake == "added":  # another backend for an index that is taken
        good.insert(place, (there, address_port("192.0.2.9", 9)))
        expected = r"File exists.*at: add element ip hotplane endpoints \{ 10\.0\.0\.1 \. 6 \. 80 \. ffff:0 \}"
    else:
        tables.store.change((), good)
        removed = [element for element, _ in good]
        removed.insert(place, service("10.0.0.2", 2))
        good = []
        expected = r"No such file.*at: delete element ip hotplane endpoints \{ 10\.0\.0\.2 \. 6 \. 80 \. ffff:2 \}"
    before = tables.store.elements(target)
    with pytest.raises(PlaneError, match=f"nothing of it was applied: {expected}"):
        tables.store.change(removed, good)
    assert tables.store.elements(target) == before
    # The store still works after the refusal.
    tables.store.change([there], ())
    assert len(tables.store.elements(target)) == len(before) - 1


def test_a_table_that_is_not_there(namespace: str) -> None:
    store = in_netns(namespace, ElementStore, LAYOUTS)
    assert not store.has_table("ip hotplane")
    with pytest.raises(PlaneError, match="endpoints cannot be read: No such file"):
        store.elements("ip hotplane endpoints")
    with pytest.raises(PlaneError, match=r"No such file.*add element ip hotplane endpoints"):
        store.change((), [(service("10.0.0.1", 0), address_port("192.0.2.1", 1))])


class Interrupted(Netlink):
    """Says of its first dumps that a change came between."""

    times = 2

    def _dump(self, *request):  # type: ignore[no-untyped-def]
        found = super()._dump(*request)
        self.times -= 1
        return None if self.times >= 0 else found


_TABLES = 10 << 8 | 1, bytes((socket.AF_INET, 0, 0, 0))


def test_an_interrupted_dump_starts_again(namespace: str) -> None:
    nft(namespace, "add table ip t")
    netlink = in_netns(namespace, Interrupted, NETFILTER)
    assert len(netlink.dump(*_TABLES)) == 1
    netlink.times = 1000
    with pytest.raises(Refused, match="keeps changing"):
        netlink.dump(*_TABLES)


class _Slow:
    """A netlink socket whose first part of an answer is followed by something else before the next one."""

    def __init__(self, sock: socket.socket, between: Callable[[], object]) -> None:
        self._sock, self._between, self.left = sock, between, 1

    def recv_into(self, *arguments: Any) -> int:
        length = self._sock.recv_into(*arguments)
        if self.left:
            self.left -= 1
            self._between()
        return length

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def test_a_dump_between_whose_pieces_a_change_came_starts_again(namespace: str) -> None:
    """The kernel makes each part when it is asked for, and says in the next one that a change came between."""
    nft(namespace, "".join(f"add table ip t{number}\n" for number in range(2000)))
    netlink = in_netns(namespace, Netlink, NETFILTER)
    slow = _Slow(netlink._socket, lambda: nft(namespace, "delete table ip t7"))
    netlink._socket = slow  # type: ignore[assignment]
    found = {bytes(dict(attributes(body))[1]).rstrip(b"\0").decode() for body in netlink.dump(*_TABLES, 4)}
    assert not slow.left
    assert found == {f"t{number}" for number in range(2000)} - {"t7"}


def test_a_refusal_is_not_lost_where_answers_are(namespace: str) -> None:
    netlink = in_netns(namespace, Netlink, NETFILTER)
    unknown = bytes((socket.AF_INET, 0, 0, 0))
    first = netlink.numbers(1000)
    requests = b"".join(message(first + each, 10 << 8 | 0xFF, ACK, unknown) for each in range(1000))
    answers = netlink.exchange(requests)
    assert 0 < len(answers) < 1000, "the kernel had no room for all of them"
    assert answers[0][0] == first
    assert all(isinstance(answer, Refused) for _, answer in answers)
    assert len(netlink.dump(*_TABLES)) == 0, "what was left of them is no answer to anything else"


def test_acknowledgements_that_were_lost_are_an_error(namespace: str) -> None:
    nft(namespace, "add table ip t")
    netlink = in_netns(namespace, Netlink, NETFILTER)
    kind, body = _TABLES
    ask = body + attribute(1, b"t\0")
    assert bytes(dict(attributes(netlink.request(kind, ask)[4:]))[1]) == b"t\0"
    first = netlink.numbers(1000)
    with pytest.raises(Refused, match="answers were lost"):
        netlink.exchange(b"".join(message(first + each, kind, 0, ask) for each in range(1000)))
