"""Echo server: says who it is and whom it saw. `python -m dataplane.lab.traffic.echo --name pod1-1 --port 8080`.

TCP: each line received is answered with one line, an HTTP request (as curl sends it, in one segment) with a response.
UDP: each datagram is answered with one, from the very address it was sent to. Both IP families, on every address. The
answer is JSON:
`{"server": name, "protocol": "tcp"|"udp", "address": "ip:port" it was reached at, "client": "ip:port" it saw}`.
Prints `ready` on standard output once every port listens, then works until it is ended.
"""

import argparse
import contextlib
import resource
import selectors
import socket
import struct
import sys
from collections.abc import Callable

from dataplane.model.net import host_port

_IP_PKTINFO = 8
_IPV4_INFO = struct.Struct("=i4s4s")  # struct in_pktinfo: ifindex, local address, header destination
_IPV6_INFO = struct.Struct("=16si")  # struct in6_pktinfo: address, ifindex
_BACKLOG = 4096
_METHODS = (b"GET ", b"POST ", b"PUT ", b"DELETE ")
_BATCH = 64

Handler = Callable[[], None]


def answer(name: str, protocol: str, address: str, port: int, client: str, client_port: int) -> bytes:
    """One answer, with its newline."""
    return (
        f'{{"server":"{name}","protocol":"{protocol}","address":"{host_port(address, port)}",'
        f'"client":"{host_port(client, client_port)}"}}\n'
    ).encode()


def _socket(family: socket.AddressFamily, kind: socket.SocketKind, port: int) -> socket.socket:
    sock = socket.socket(family, kind)
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    return sock


class EchoServer:
    """All sockets of one server, in one thread."""

    def __init__(self, name: str, ports: list[int], protocols: list[str]) -> None:
        self.name = name
        self._selector = selectors.DefaultSelector()
        for port in ports:
            for family in (socket.AF_INET, socket.AF_INET6):
                if "tcp" in protocols:
                    self._listen_tcp(family, port)
                if "udp" in protocols:
                    self._listen_udp(family, port)

    def run(self) -> None:
        """Serve for ever."""
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _watch(self, sock: socket.socket, handler: Handler) -> None:
        self._selector.register(sock, selectors.EVENT_READ, handler)

    def _listen_tcp(self, family: socket.AddressFamily, port: int) -> None:
        sock = _socket(family, socket.SOCK_STREAM, port)
        sock.listen(_BACKLOG)
        self._watch(sock, lambda: self._accept(sock))

    def _accept(self, sock: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                connection, client = sock.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:  # the client gave up while it waited in the queue
                continue
            connection.setblocking(False)
            self._greet(connection, client)

    def _greet(self, connection: socket.socket, client: tuple[str, int]) -> None:
        local = connection.getsockname()
        reply = answer(self.name, "tcp", local[0], local[1], client[0], client[1])
        # Most clients have sent by the time we accept: answering now saves a round through the selector.
        if self._serve(connection, reply):
            self._watch(connection, lambda: self._continue(connection, reply))

    def _serve(self, connection: socket.socket, reply: bytes) -> bool:
        """Answer what there is to read; False when the connection is over (and closed)."""
        try:
            data = connection.recv(65536)
        except BlockingIOError:
            return True
        except OSError:  # reset, or its way is gone: over, just as at its orderly end
            data = b""
        if data and _send(connection, _http(reply) if data.startswith(_METHODS) else reply * data.count(b"\n")):
            return True
        connection.close()
        return False

    def _continue(self, connection: socket.socket, reply: bytes) -> None:
        descriptor = connection.fileno()
        if not self._serve(connection, reply):
            self._selector.unregister(descriptor)

    def _listen_udp(self, family: socket.AddressFamily, port: int) -> None:
        sock = _socket(family, socket.SOCK_DGRAM, port)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self._watch(sock, lambda: self._datagrams(sock, port))

    def _datagrams(self, sock: socket.socket, port: int) -> None:
        for _ in range(_BATCH):
            try:
                _, control, _, client = sock.recvmsg(65536, 64)
            except BlockingIOError:
                return
            except ConnectionRefusedError:  # a client went away before our answer reached it
                continue
            address, source = _arrival(control)
            reply = answer(self.name, "udp", address, port, client[0], client[1])
            with contextlib.suppress(OSError):  # no way back to this client (its route or node is gone)
                sock.sendmsg([reply], source, 0, client)


def _http(reply: bytes) -> bytes:
    """The answer to one HTTP request; the connection stays open for the next (RFC 9112)."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    return head % len(reply) + reply


def _send(connection: socket.socket, data: bytes) -> bool:
    """Send it all; False when the client is gone or does not read what it asks for."""
    try:
        connection.sendall(data)
    except OSError:
        return False
    return True


def _arrival(control: list[tuple[int, int, bytes]]) -> tuple[str, list[tuple[int, int, bytes]]]:
    """The address a datagram was sent to, and the control message that sends the answer from there."""
    for level, kind, data in control:
        if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
            _, local, _ = _IPV4_INFO.unpack(data)
            return socket.inet_ntop(socket.AF_INET, local), [(level, kind, _IPV4_INFO.pack(0, local, bytes(4)))]
        if level == socket.IPPROTO_IPV6 and kind == socket.IPV6_PKTINFO:
            local, _ = _IPV6_INFO.unpack(data)
            return socket.inet_ntop(socket.AF_INET6, local), [(level, kind, _IPV6_INFO.pack(local, 0))]
    raise RuntimeError("a datagram came without its destination address although IP_PKTINFO is on")


def main(arguments: list[str] | None = None) -> None:
    """Command line of the server."""
    parser = argparse.ArgumentParser(prog="echo", description="Echo server that says who it is and whom it saw.")
    parser.add_argument("--name", required=True)
    parser.add_argument("--port", type=int, action="append", required=True)
    parser.add_argument("--protocol", choices=("tcp", "udp"), action="append")
    options = parser.parse_args(arguments)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    try:
        server = EchoServer(options.name, options.port, options.protocol or ["tcp", "udp"])
    except OSError as error:
        sys.exit(f"cannot listen: {error.strerror}")
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    server.run()


if __name__ == "__main__":
    main()
