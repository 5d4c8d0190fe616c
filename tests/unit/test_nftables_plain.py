"""Entries compiled many at a time give the elements, references and messages of entries compiled one by one."""

from collections.abc import Iterable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from dataplane.kernel.netlink.netlink import attribute, attributes
from dataplane.model.net import Family, Protocol
from dataplane.plan.planner import Planner
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, PlanEntry
from dataplane.planes.nftables.elements.books import Books
from dataplane.planes.nftables.elements.placement import fresh
from dataplane.planes.nftables.elements.plain import PlainEntries
from dataplane.planes.nftables.netlink.fields import Element, Layout, Layouts, cut, port, ports
from dataplane.planes.nftables.netlink.wire import LIST_LIMIT, Encoder, decode, one, whole_lists
from dataplane.planes.nftables.rules.syntax import syntax_for
from dataplane.policy.endpoints import Backend
from dataplane.policy.routes import REJECT_ALL, cluster_ip_routes, host_port_routes
from tests.unit.clusters import clusters, decoded, node_config, nodes

SYNTAX = {family: syntax_for(family, "hotplane") for family in Family}
LAYOUTS = Layouts(SYNTAX.values())
ROUTES = cluster_ip_routes(True, False, False, True, False)


def one_by_one(entries: Iterable[PlanEntry]) -> tuple[dict[Element, bytes], Books]:
    books = Books(SYNTAX, LAYOUTS)
    transaction = books.transaction()
    for entry in entries:
        transaction.add(books.compile(entry, fresh(entry)))
    elements = transaction.elements()
    transaction.commit()
    return elements, books


def many(entries: Iterable[PlanEntry]) -> tuple[dict[Element, bytes], Books, int]:
    """The same with what is plain in columns; how many entries were."""
    books, count = Books(SYNTAX, LAYOUTS), 0
    plain = {family: PlainEntries(compiler) for family, compiler in books.compilers.items()}
    transaction = books.transaction()
    for entry in entries:
        if plain[entry.key.family].add(entry):
            count += 1
        else:
            transaction.add(books.compile(entry, fresh(entry)))
    columns = [each.take() for each in plain.values()]
    for each in columns:
        transaction.refer_many(each.references)
    elements = transaction.elements()
    transaction.commit()
    for each in columns:
        for target, keys, values in (column for own in each.own for column in (own[0], own[1].column())):
            assert len(set(keys)) == len(keys) == len(values)
            elements |= {(target, key): value for key, value in zip(keys, values, strict=True)}
        for target, keys in each.shared.items():
            new = books.references.use(target, keys)
            assert len(set(new)) == len(new)
            assert set(new) <= set(keys)
            elements |= {(target, key): b"" for key in keys}
    return elements, books, count


def plain_entry(name: str = "web", count: int = 3, **fields: object) -> PlanEntry:
    cluster = tuple(Backend(f"10.244.0.{n}", 8080, n == 1) for n in range(count))
    frontend = Frontend(
        FrontendKind.CLUSTER_IP,
        FrontendKey(Family.IPV4, "10.96.0.1", Protocol.TCP, 80),
        ROUTES if count else REJECT_ALL,
    )
    key = EntryKey("shop", name, "", Protocol.TCP, Family.IPV4)
    return replace(PlanEntry(key, cluster, (), (frontend,)), **fields)


@settings(max_examples=200)
@given(node=nodes(), cluster=clusters(), vouched=st.booleans())
def test_columns_hold_what_single_entries_hold(node, cluster, vouched):  # type: ignore[no-untyped-def]
    planner = Planner(node_config(node), vouched=vouched)
    planner.update(decoded(cluster))
    entries = list(planner.plan.entries.values())
    elements, books = one_by_one(entries)
    in_columns, other_books, _ = many(entries)
    assert in_columns == elements
    assert other_books.references.structures == books.references.structures
    assert vars(other_books.references) == vars(books.references)


def test_the_usual_entries_are_plain() -> None:
    for entry in (plain_entry(), plain_entry(count=0), plain_entry(unplaced=(Backend("10.244.0.2", 8080),))):
        elements, _ = one_by_one([entry])
        assert many([entry])[0] == elements
        assert many([entry])[2] == 1


def test_the_others_are_left_to_the_compiler() -> None:
    host_port = Frontend(
        FrontendKind.HOST_PORT, FrontendKey(Family.IPV4, "192.0.2.1", Protocol.TCP, 80), host_port_routes(False)
    )
    for entry in (
        plain_entry(affinity_seconds=60),
        plain_entry(count=65),
        plain_entry("x" * 120),
        plain_entry(frontends=(host_port,)),
        plain_entry(frontends=()),
    ):
        elements, books = one_by_one([entry])
        in_columns, other_books, plain = many([entry])
        assert plain == 0
        assert in_columns == elements
        assert vars(other_books.references) == vars(books.references)


@given(st.lists(st.binary(min_size=4, max_size=127), max_size=5), st.booleans())
def test_columns_are_encoded_as_single_elements(values: list[bytes], plain: bool) -> None:
    encoder = Encoder(Layout("map type ipv4_addr . inet_proto : classid;"))
    values = [value[:4] if plain else value for value in values]
    keys = [bytes((n,)) * 8 for n in range(len(values))]
    assert b"".join(encoder.elements(keys, values)) == b"".join(map(encoder.element, keys, values))


@pytest.mark.parametrize("count", [0, 1, 5000])
def test_elements_in_parts_are_encoded_as_single_elements(count: int) -> None:
    """The largest number is too long for one message."""
    encoder = Encoder(Layout("map type ipv6_addr . inet_service . classid : ipv4_addr . inet_service;"))
    random = Random(count)
    parts = [random.randbytes(width * count) for width in (16, 4, 4, 4, 4)]
    pieces = encoder.laid(count, parts[:3], parts[3:])
    single = [
        encoder.element(b"".join(each[:3]), b"".join(each[3:]))
        for each in zip(*(cut(part, count) for part in parts), strict=True)
    ]
    assert b"".join(pieces) == b"".join(single)
    assert (len(pieces) > 1) == (count == 5000)
    assert all(len(piece) <= LIST_LIMIT and len(piece) % len(single[0]) == 0 for piece in pieces)


def test_long_columns_are_cut_between_elements() -> None:
    encoder = Encoder(Layout("map type ipv4_addr . inet_service : ipv4_addr . inet_service;"))
    keys = [n.to_bytes(8) for n in range(5000)]
    pieces = encoder.elements(keys, keys)
    size = len(encoder.element(keys[0], keys[0]))
    assert len(pieces) > 1
    assert all(len(piece) <= LIST_LIMIT and len(piece) % size == 0 for piece in pieces)
    assert b"".join(pieces) == b"".join(map(encoder.element, keys, keys))


def test_ports_are_those_of_single_registers() -> None:
    values = [0, 1, 80, 443, 30080, 65535]
    assert cut(ports(values), len(values)) == list(map(port, values))
    assert cut(ports([]), 0) == []


def single(message: bytes, layout: Layout) -> list[tuple[bytes, bytes] | None]:
    """Elements of a message, each read by itself."""
    payload = next(part for kind, part in attributes(message) if kind == 3)
    return [one(element, layout) for _, element in attributes(payload)]


@given(st.lists(st.binary(max_size=120).filter(lambda text: b"\0" not in text), min_size=1, max_size=6), st.booleans())
def test_elements_with_comments_are_read_at_once_as_singly(comments: list[bytes], flagged: bool) -> None:
    """flagged: the last one has something else."""
    layout = Layout("map type ipv4_addr . inet_proto . inet_service : classid;")
    encoder = Encoder(layout)
    elements = [encoder.element(bytes((n,)) * 12, b"\1\2\3\4" + comment) for n, comment in enumerate(comments)]
    if flagged:
        more = attribute(5, (7).to_bytes(8))  # it runs out
        elements[-1] = attribute(0x8001, elements[-1][4:] + more)
    (message,) = whole_lists("ip hotplane services", [b"".join(elements)])
    assert list(decode(message, layout)) == single(message, layout)
    for missing in (5, 30):  # a message that breaks off is no worse for it
        list(decode(message[:-missing], layout))
