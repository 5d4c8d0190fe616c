#!/usr/bin/env bash
# uvloop lets a writer go on only when 16 bytes are left in a transport's buffer, where asyncio does at 16 KiB: the
# low mark of a new transport is 16 instead of 16384, the high one 65536 in both. asyncio's documentation leaves
# defaults to the implementation, but uvloop's own are others once set_write_buffer_limits() was called without
# arguments: 16384, and it calls itself "a fast, drop-in replacement of the built-in asyncio event loop".
# (basetransport.pyx has a quarter of 64 without the "* 1024" of the line above.) Until then `await writer.drain()`,
# once it waits, waits for an empty buffer, so that the socket runs dry before the next write.
#
# Seen with uvloop 0.23.0 (the newest release when this was written), python3 3.11.2 of Debian 12. A protocol writes
# 300 kB in pieces to a pair of Unix sockets, whose other end then reads 4 kB at a time; told is what is buffered when
# resume_writing() comes.
#
# Output seen:
#   asyncio limits (16384, 65536), resumed with more than 4096 left: True
#   uvloop limits (16, 65536), resumed with more than 4096 left: False
#   uvloop, set_write_buffer_limits(): limits (16384, 65536), resumed with more than 4096 left: True
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check uvloop==0.23.0
seen=$("$folder/venv/bin/python" - <<'PYTHON'
import asyncio
import socket

import uvloop


class Writer(asyncio.Protocol):
    """Writes once, and keeps how much was left when it was told to go on."""

    def __init__(self):
        self.resumed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self.transport = transport

    def pause_writing(self):
        pass

    def resume_writing(self):
        if not self.resumed.done():
            self.resumed.set_result(self.transport.get_write_buffer_size())


async def told(name, set_limits):
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    loop = asyncio.get_running_loop()
    transport, writer = await loop.create_connection(Writer, sock=near)
    if set_limits:
        transport.set_write_buffer_limits()
    limits = transport.get_write_buffer_limits()
    for _ in range(75):
        transport.write(bytes(4000))
        await asyncio.sleep(0)
    while not writer.resumed.done():
        await loop.sock_recv(far, 4096)
        await asyncio.sleep(0)
    print(f"{name} limits {limits}, resumed with more than 4096 left: {writer.resumed.result() > 4096}")
    transport.abort()
    far.close()


asyncio.run(told("asyncio", False))
uvloop.run(told("uvloop", False))
uvloop.run(told("uvloop, set_write_buffer_limits():", True))
PYTHON
)
printf '%s\n' "$seen"
[[ $seen == "asyncio limits (16384, 65536), resumed with more than 4096 left: True
uvloop limits (16, 65536), resumed with more than 4096 left: False
uvloop, set_write_buffer_limits(): limits (16384, 65536), resumed with more than 4096 left: True" ]]
