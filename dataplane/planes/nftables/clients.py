"""Who session affinity remembers in hotplane's tables."""

from collections.abc import Iterable, Iterator

from dataplane.kernel.nft import JsonObject, Nft
from dataplane.model.net import Family, Protocol
from dataplane.plan.types import FrontendKey
from dataplane.planes.clients import Client
from dataplane.planes.nftables.state import TableReader, table_state
from dataplane.planes.nftables.syntax import Kind, Syntax, syntax

_NUMBERS = {protocol.text: protocol for protocol in Protocol}


def remembered_clients(table: str = "hotplane") -> list[Client]:
    """Every client that the tables of this network namespace remember. Lists the whole tables. Raises PlaneError."""
    nft = Nft()
    present = nft.tables()
    found: list[Client] = []
    for family in Family:
        words = syntax(family, table)
        if (words.ip, table) in present:
            found.extend(_of_table(words, family, nft))
    return found


def _of_table(words: Syntax, family: Family, nft: Nft) -> Iterator[Client]:
    state = table_state(words, nft.text(f"list table {words.ip} {words.table}"))
    reader = TableReader(words, family, state)
    services = {frontend: reader.service(*where) for where, frontend in reader.frontends().items()}
    slots = {(target.rpartition(" ")[2], key): rest[3:] for (target, key), rest in state.elements.items()}
    for name in sorted(state.sets):
        for nodeport in (False, True):
            kind = words.kind(nodeport)
            if name.startswith(f"{kind.affinity_prefix}-"):
                for item in nft.listing(f"list map {words.target(name)}"):
                    for element in _elements(item):
                        yield _client(family, nodeport, kind, element, services, slots)


def _elements(item: JsonObject) -> Iterable[list[JsonObject]]:
    elements: list[list[JsonObject]] = item["map"].get("elem", [])
    return elements


def _client(
    family: Family,
    nodeport: bool,
    kind: Kind,
    element: list[JsonObject],
    services: dict[FrontendKey, str],
    slots: dict[tuple[str, str], str],
) -> Client:
    """One element of an affinity map: client and frontend (IPv6: two hashes of them) to a slot's number."""
    remembered, slot = element[0]["elem"], element[1]
    parts = remembered["val"]["concat"]
    if family is Family.IPV6:
        return Client("", None, "", None, remembered["expires"])
    protocol = parts[-2] if isinstance(parts[-2], int) else _NUMBERS[parts[-2]].value
    frontend = FrontendKey(family, "" if nodeport else parts[1], Protocol(protocol), parts[-1])
    key = f"{'' if nodeport else f'{parts[1]} . '}{protocol} . {parts[-1]} . {slot}"
    backend = slots.get((kind.slot_endpoints, key)) or slots.get((kind.local_slot_endpoints, key))
    address, _, port = (backend or "").partition(" . ")
    return Client(
        service=services.get(frontend, ""),
        frontend=frontend,
        address=parts[0],
        backend=(address, int(port)) if backend else None,
        seconds_left=remembered["expires"],
    )
