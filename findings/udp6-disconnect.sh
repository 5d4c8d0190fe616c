#!/usr/bin/env bash
# A UDP socket of IPv6 that was connected and then disconnected (connect(2) with AF_UNSPEC) goes on receiving only from
# the address of its former peer, from any port; datagrams of everybody else are answered with "port unreachable". A
# socket of IPv4 hears everybody again, as does an IPv6 socket that was never connected. ss shows the rest of the
# connection: state UNCONN, yet with a peer address and port *.
#
# Seen with Linux 6.18.44, python3 3.11.2 of Debian 12, iproute2 6.1.0. POSIX (connect): AF_UNSPEC "shall reset the peer
# address". Only the kernel and Python's socket module are used, in a network namespace of its own.
#
# Output seen:
#   4 heard from 127.0.0.1, 127.0.0.2
#   6 never connected: heard from fd00::1, fd00::2
#   6 connected to fd00::1 and disconnected: heard from fd00::1
#   6 UNCONN [fd00::1]:*
#   ECONNREFUSED for who sends from fd00::2
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
space=finding-udp6-$$
trap 'ip netns del "$space"' EXIT
ip netns add "$space"
ip -n "$space" link set lo up
for address in fd00::1 fd00::2; do ip -n "$space" addr add "$address/128" dev lo nodad; done
seen=$(ip netns exec "$space" python3 - <<'PYTHON'
import ctypes, errno, socket, struct, subprocess

libc = ctypes.CDLL(None, use_errno=True)


def disconnect(sock):
    nobody = struct.pack("=H26x", socket.AF_UNSPEC)
    assert libc.connect(sock.fileno(), nobody, len(nobody)) == 0


def heard(family, senders, peer):
    """Addresses of those whose datagram arrives; the socket is bound, connected to `peer` (if any), disconnected."""
    sock = socket.socket(family, socket.SOCK_DGRAM)
    port = 7777
    sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", port))
    sock.settimeout(0.5)
    if peer:
        sock.connect((peer, 9))
        disconnect(sock)
    found, refused = [], []
    for sender in senders:
        with socket.socket(family, socket.SOCK_DGRAM) as other:
            other.bind((sender, 0))
            other.connect((senders[0], port))
            other.send(b"x")
            try:
                found.append(sock.recvfrom(9)[1][0])
            except TimeoutError:
                try:
                    other.send(b"x")
                except OSError as error:
                    refused.append(f"{errno.errorcode[error.errno]} for who sends from {sender}")
    lines = subprocess.run(["ss", "-Huan", "sport", "=", f":{port}"], capture_output=True, text=True).stdout.split()
    return found, refused, lines


print("4 heard from", ", ".join(heard(socket.AF_INET, ["127.0.0.1", "127.0.0.2"], "127.0.0.1")[0]))
both = ["fd00::1", "fd00::2"]
print("6 never connected: heard from", ", ".join(heard(socket.AF_INET6, both, "")[0]))
found, refused, line = heard(socket.AF_INET6, both, both[0])
print("6 connected to fd00::1 and disconnected: heard from", ", ".join(found))
print("6", line[0], line[4])
print(*refused, sep="\n")
PYTHON
)
printf '%s\n' "$seen"
[[ $seen == "4 heard from 127.0.0.1, 127.0.0.2
6 never connected: heard from fd00::1, fd00::2
6 connected to fd00::1 and disconnected: heard from fd00::1
6 UNCONN [fd00::1]:*
ECONNREFUSED for who sends from fd00::2" ]]
