"""Read the session affinity clients from hotplane's tables."""

from collections.abc import Iterator, Mapping

from dataplane.model.net import Family, Protocol
from dataplane.plan.types import FrontendKey
from dataplane.planes.clients import Client
from dataplane.planes.nftables.netlink.fields import Layouts, address_of, port_of
from dataplane.planes.nftables.netlink.state import TableReader, table_state
from dataplane.planes.nftables.netlink.store import ElementStore
from dataplane.planes.nftables.rules.syntax import Kind, Syntax, syntax_for


def remembered_clients(table: str = "hotplane") -> list[Client]:
    """Return all affinity clients in this network namespace. Reads the whole tables. Raises PlaneError."""
    syntax = {family: syntax_for(family, table) for family in Family}
    store = ElementStore(Layouts(syntax.values()))
    found: list[Client] = []
    for family, mine in syntax.items():
        if store.has_table(mine.own):
            found.extend(_of_table(mine, family, store))
    return found


def _of_table(syntax: Syntax, family: Family, store: ElementStore) -> Iterator[Client]:
    state = table_state(syntax, store)
    reader = TableReader(syntax, family, state)
    services = {frontend: reader.service(key) for key, frontend in reader.frontends().items()}
    for name in sorted(state.sets):
        for nodeport in (False, True):
            kind = syntax.kind(nodeport)
            if name.startswith(f"{kind.affinity_prefix}-"):
                for key, slot, left in store.clients(syntax.target(name)):
                    yield _client(family, kind, key, slot, left // 1000, services, state.elements)


def _client(
    family: Family,
    kind: Kind,
    key: bytes,
    slot: bytes,
    seconds: int,
    services: Mapping[FrontendKey, str],
    elements: Mapping[str, Mapping[bytes, bytes]],
) -> Client:
    """One element of an affinity map: client and frontend (IPv6: two hashes of them) to a slot's number."""
    if family is Family.IPV6:
        return Client("", None, "", None, seconds)
    address, key = key[:4], key[4:]
    frontend = FrontendKey(family, address_of(key[:-8]) if key[:-8] else "", Protocol(key[-8]), port_of(key[-4:]))
    maps = (kind.slot_endpoints, kind.local_slot_endpoints)
    backend = next((data for name in maps if (data := elements.get(name, {}).get(key + slot))), None)
    return Client(
        service=services.get(frontend, ""),
        frontend=frontend,
        address=address_of(address),
        backend=(address_of(backend[:-4]), port_of(backend[-4:])) if backend else None,
        seconds_left=seconds,
    )
