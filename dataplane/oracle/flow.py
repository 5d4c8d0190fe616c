"""Parse packets in the notation of the command line: `SRC -> DST:PORT/PROTO`."""

from dataplane.errors import UsageError
from dataplane.model.net import Protocol, canonical_address, family_of
from dataplane.oracle.types import Packet

FORM = "'SRC -> DST:PORT/PROTO', optionally followed by ' via DEVICE'; IPv6 destinations as [addr]:port"


def parse_flow(text: str) -> Packet:
    """Read `SRC -> DST:PORT/PROTO [via DEVICE]`. A source port is allowed; it matters to Maglev alone.

    Raises UsageError with a sentence that says what is wrong and how to write it.
    """
    source, arrow, rest = text.partition("->")
    if not arrow:
        raise _wrong(text, "the arrow '->' is missing")
    target, via, device = f"{rest.strip()} ".partition(" via ")
    if via and not device.strip():
        raise _wrong(text, "no device stands after 'via'")
    destination, slash, protocol = target.strip().partition("/")
    if not slash:
        raise _wrong(text, "the protocol is missing after the destination: add /tcp, /udp or /sctp")
    address, port = _address_port(text, destination)
    if not port:
        raise _wrong(text, f"the destination port is missing in {destination!r}")
    source_address, source_port = _address_port(text, source.strip())
    packet = Packet(
        _address(text, source_address),
        _address(text, address),
        _port(text, port),
        _protocol(text, protocol),
        device.strip(),
        _port(text, source_port) if source_port else 0,
    )
    if family_of(packet.source) is not family_of(packet.destination):
        raise _wrong(text, "source and destination are of different IP families")
    return packet


def _wrong(text: str, why: str) -> UsageError:
    return UsageError(f"flow {text[:200]!r}: {why}; write {FORM}")


def _address_port(text: str, endpoint: str) -> tuple[str, str]:
    """Split `addr`, `addr:port`, `[addr]` or `[addr]:port`; the port is "" when there is none."""
    if endpoint.startswith("["):
        address, bracket, port = endpoint[1:].partition("]")
        if not bracket or (port and not port.startswith(":")):
            raise _wrong(text, f"the brackets in {endpoint!r} are not in order")
        return address, port[1:]
    if endpoint.count(":") > 1:
        return endpoint, ""
    address, _, port = endpoint.partition(":")
    return address, port


def _address(text: str, address: str) -> str:
    try:
        return canonical_address(address)
    except ValueError as error:
        raise _wrong(text, str(error)) from error


def _port(text: str, port: str) -> int:
    if not (port.isascii() and port.isdecimal() and len(port) <= 5 and 1 <= int(port) <= 65535):
        raise _wrong(text, f"{port[:20]!r} is not a port number from 1 to 65535")
    return int(port)


def _protocol(text: str, name: str) -> Protocol:
    known = {protocol.text: protocol for protocol in Protocol}
    protocol = known.get(name.strip().lower())
    if protocol is None:
        raise _wrong(text, f"{name.strip()!r} is not a protocol that Services know ({', '.join(known)})")
    return protocol
