"""Plan values survive the way into the bytes of the maps and back."""

import ipaddress
import socket

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from dataplane.model.net import Family, Protocol, canonical_address
from dataplane.plan.types import EntryKey, Frontend, FrontendKey, FrontendKind, SourceRanges
from dataplane.planes.ebpf.maps.encode import (
    BACKEND,
    FRONTEND_KEY,
    SERVICE,
    Sets,
    address_bytes,
    address_text,
    backend_records,
    entry_key,
    frontend_bytes,
    frontend_key,
    frontend_key_bytes,
    full_keys,
    prefix_bytes,
    prefix_text,
    range_key,
    range_key_bytes,
    service_name,
    stored_frontend,
    stored_key,
    stored_service,
)
from dataplane.planes.ebpf.maps.layout import Sizes, constant, hook_names, layout_version, reason_names, record, unpack
from dataplane.policy.dispatch import SHORT_NAME
from dataplane.policy.routes import DROP, REJECT, Action, Route, Routes, Scope

ADDRESSES = st.one_of(
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str).filter(lambda text: not text.startswith("::ffff:")).map(canonical_address),
)
ROUTES = st.sampled_from(
    (REJECT, DROP, *(Route(Action.FORWARD, scope, masquerade) for scope in Scope for masquerade in (False, True)))
)


@given(ADDRESSES)
def test_addresses(text: str) -> None:
    raw = address_bytes(text)
    assert len(raw) == 16
    assert address_text(raw) == text


def test_ipv4_is_mapped_and_ports_are_in_network_order() -> None:
    raw = frontend_key_bytes(FrontendKey(Family.IPV4, "10.1.2.3", Protocol.UDP, 53))
    assert raw == bytes(10) + b"\xff\xff\x0a\x01\x02\x03" + b"\x00\x35" + b"\x11\x00"
    assert len(raw) == FRONTEND_KEY.size


@given(ADDRESSES | st.just(""), st.sampled_from(list(Protocol)), st.integers(1, 65535), st.sampled_from(list(Family)))
def test_frontend_keys(address: str, protocol: Protocol, port: int, family: Family) -> None:
    if address in ("0.0.0.0", "::"):
        address = ""  # no Service can have these: they stand for node ports
    if address:
        family = Family.IPV6 if ":" in address else Family.IPV4
    key = FrontendKey(family, address, protocol, port)
    assert frontend_key(frontend_key_bytes(key)) == key


@given(
    st.builds(Routes, ROUTES, ROUTES, ROUTES),
    st.sampled_from(list(FrontendKind)),
    st.none() | st.builds(SourceRanges, st.just(("10.0.0.0/8",))),
    st.tuples(*[st.integers(0, 2**32 - 1)] * 7),
)
def test_frontends(routes: Routes, kind: FrontendKind, ranges: SourceRanges | None, n: tuple[int, ...]) -> None:
    key = FrontendKey(Family.IPV4, "10.0.0.1", Protocol.TCP, 80)
    frontend = Frontend(kind, key, routes, ranges)
    stored = stored_frontend(frontend_bytes(frontend, 3, n[0], n[1], Sets(*n[2:6]), n[6], 9 if ranges else 0))
    assert stored[:4] == (n[0], n[1], Sets(*n[2:6]), n[6])
    assert stored.order == 3
    assert stored.frontend(key, ("10.0.0.0/8",)) == frontend


@given(st.dictionaries(st.tuples(ADDRESSES, st.sampled_from((80, 8080))), st.sampled_from((1, 2, 3))))
def test_backends_of_one_service(wanted: dict[tuple[str, int], int]) -> None:
    records = backend_records(wanted, Protocol.UDP, 1000, 7)
    assert [BACKEND.unpack(raw) for raw in records] == [
        (address_bytes(address), socket.htons(port), 17, flags, 1000, 7, 0) for (address, port), flags in wanted.items()
    ]


@given(st.ip_addresses(), st.integers(0, 128), st.integers(1, 2**31))
def test_prefixes(address: ipaddress.IPv4Address | ipaddress.IPv6Address, length: int, number: int) -> None:
    net = ipaddress.ip_network(f"{address}/{min(length, 32 if '.' in str(address) else 128)}", strict=False)
    assume(not str(net.network_address).startswith("::ffff:") or net.prefixlen < 96)
    text = str(net)
    assert prefix_text(*prefix_bytes(text)) == text
    assert range_key(range_key_bytes(number, text)) == (number, text)


def test_service_names() -> None:
    key = EntryKey("n" * 63, "s" * 63, "p" * 15, Protocol.TCP, Family.IPV6)
    packed = SERVICE.pack(service_name(key), 0, 0, 0, 0, 0, key.protocol, key.family, 0, 0)
    assert entry_key(unpack("service", packed)["name"], key.protocol, key.family) == key


def test_long_names_are_shortened_and_stay_apart() -> None:
    keys = [EntryKey("n" * 63, "s" * 63, "p" * 62 + end, Protocol.TCP, Family.IPV4) for end in "ab"]
    packed = [SERVICE.pack(service_name(key), 0, 0, 0, 0, 0, key.protocol, key.family, 0, 0) for key in keys]
    names = [unpack("service", raw)["name"] for raw in packed]
    found = [entry_key(name, Protocol.TCP, Family.IPV4) for name in names]
    assert found == [stored_key(key) for key in keys]
    assert found[0] != found[1]
    assert all(each.service == stored_service(key.service) for each, key in zip(found, keys, strict=True))
    assert full_keys(keys) == dict(zip(found, keys, strict=True))


def test_names_of_reasons_and_hooks_are_those_of_the_header() -> None:
    assert reason_names()[0] == "none"
    assert reason_names()[constant("REASON_NO_ENDPOINT")] == "no_endpoint"
    assert hook_names()[constant("HOOK_XDP")] == "xdp"
    assert len(reason_names()) == constant("REASON_COUNT")
    assert constant("HOOK_COUNT") * constant("REASON_COUNT") <= constant("COUNTERS")


def test_packing_by_position_fails_when_the_header_changes() -> None:
    with pytest.raises(TypeError, match="fields address, port, protocol, pad"):
        record("frontend_key", "address", "protocol", "port", "pad")


def test_ports_fit_the_order_of_the_header() -> None:
    fields = unpack("frontend_key", FRONTEND_KEY.pack(bytes(16), socket.htons(80), 6, 0))
    assert socket.ntohs(fields["port"]) == 80


def test_another_size_is_another_version_of_the_same_structs() -> None:
    small, large = layout_version(Sizes(backends=10)), layout_version(Sizes())
    assert small != large
    assert small.partition("-")[0] == large.partition("-")[0]


def test_the_short_name_is_as_long_as_the_programs_have_it() -> None:
    """Who explains a packet must not need the programs' headers, so both have it."""
    assert constant("SHORT_NAME") == SHORT_NAME
