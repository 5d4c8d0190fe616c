#!/usr/bin/env bash
# Two JavaScript libraries for the PROXY protocol disagree with its specification about valid headers. proxy-protocol-js
# never looks at the length in a header of version 2: what follows the addresses (TLVs: ALPN, the server name, what
# cloud balancers add) comes back as the first bytes of the application's data, and build() of such a header writes a
# length without them. Of version 1 it refuses `PROXY UNKNOWN` without addresses. @balena/proxy-protocol-parser takes
# that line for a client over IPv6 with the address "\r\n", and the addresses in a LOCAL header for those of a client.
# The specification (haproxy.org, proxy-protocol.txt): the length "is used so that the receiver knows how many address
# bytes to skip even when it does not implement the presented protocol"; of UNKNOWN "the receiver must ignore anything
# presented before the CRLF is found"; of LOCAL it "must use the real connection endpoints and discard the protocol
# block". proxy-protocol for Python is right about all four.
#
# Seen with proxy-protocol-js 4.0.6, @balena/proxy-protocol-parser 1.0.2 and proxy-protocol 0.11.3 (the newest releases
# when this was written), node 20.20.2, python3 3.11.2 of Debian 12. Behind each header stands the request "GET".
#
# Output seen:
#   v2, PROXY, no TLV: js 192.0.2.1 data "GET"; balena 192.0.2.1; Python 192.0.2.1
#   v2, PROXY, ALPN h2: js 192.0.2.1 data "\u0001\u0000\u0002h2GET"; balena 192.0.2.1; Python 192.0.2.1
#   v2, LOCAL with addresses: js LOCAL data "GET"; balena 192.0.2.1; Python none
#   v1, UNKNOWN: js V1ProxyProtocolParseError; balena "\r\n"; Python none
#   length of ALPN h2's header: 17, written anew by js 12
#
# Exit 0: as described; 1: something has changed.
set -eu -o pipefail
folder=$(mktemp -d)
trap 'rm -rf -- "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --quiet --disable-pip-version-check proxy-protocol==0.11.3
npm install --prefix "$folder" --cache "$folder/cache" --silent --no-audit --no-fund --ignore-scripts \
    proxy-protocol-js@4.0.6 @balena/proxy-protocol-parser@1.0.2
cat >"$folder/made.py" <<'PYTHON'
"""Headers as JSON: name and hexadecimal digits, what Python's library says of the client."""

import ipaddress
import json
import struct

from proxyprotocol.detect import ProxyProtocolDetect

PROXY, LOCAL, TCP_IPV4 = 1, 0, 0x11
ENDS = ipaddress.ip_address("192.0.2.1").packed + ipaddress.ip_address("192.0.2.2").packed + struct.pack(">HH", 5, 6)
ALPN = b"\x01\x00\x02h2"


def version_2(command, tlvs=b""):
    head = b"\r\n\r\n\0\r\nQUIT\n" + bytes([0x20 | command, TCP_IPV4])
    return head + struct.pack(">H", len(ENDS + tlvs)) + ENDS + tlvs


def client(header):
    peer = ProxyProtocolDetect().unpack(header).peername
    return str(peer[0]) if peer else "none"


headers = {
    "v2, PROXY, no TLV": version_2(PROXY),
    "v2, PROXY, ALPN h2": version_2(PROXY, ALPN),
    "v2, LOCAL with addresses": version_2(LOCAL),
    "v1, UNKNOWN": b"PROXY UNKNOWN\r\n",
}
print(json.dumps([[name, header.hex(), client(header)] for name, header in headers.items()]))
PYTHON
cat >"$folder/tried.cjs" <<'JAVASCRIPT'
const { V1ProxyProtocol, V2ProxyProtocol, Command } = require("proxy-protocol-js");
const balena = require("@balena/proxy-protocol-parser");

const text = (bytes) => JSON.stringify(Buffer.from(bytes).toString("latin1"));

function byJs(bytes, first) {
  let read;
  try {
    read = first ? V1ProxyProtocol.parse(bytes.toString("latin1")) : V2ProxyProtocol.parse(new Uint8Array(bytes));
  } catch (error) {
    return error.constructor.name;
  }
  const client = read.command === Command.LOCAL ? "LOCAL" : read.proxyAddress.sourceAddress.address.join(".");
  return `${client} data ${text(read.data)}`;
}

const LENGTH = 14;
for (const [name, digits, python] of JSON.parse(process.argv[2])) {
  const header = Buffer.from(digits, "hex");
  const bytes = Buffer.concat([header, Buffer.from("GET")]);
  const { remoteAddress } = balena.decode(bytes);
  const told = /^[0-9.]+$/.test(remoteAddress) ? remoteAddress : JSON.stringify(remoteAddress);
  console.log(`${name}: js ${byJs(bytes, name.startsWith("v1"))}; balena ${told}; Python ${python}`);
}
const header = Buffer.from(JSON.parse(process.argv[2])[1][1], "hex");
const anew = Buffer.from(V2ProxyProtocol.parse(new Uint8Array(header)).build());
const [was, is] = [header, anew].map((bytes) => bytes.readUInt16BE(LENGTH));
console.log(`length of ALPN h2's header: ${was}, written anew by js ${is}`);
JAVASCRIPT
seen=$(NODE_PATH=$folder/node_modules node "$folder/tried.cjs" "$("$folder/venv/bin/python" "$folder/made.py")")
printf '%s\n' "$seen"
[[ $seen == 'v2, PROXY, no TLV: js 192.0.2.1 data "GET"; balena 192.0.2.1; Python 192.0.2.1
v2, PROXY, ALPN h2: js 192.0.2.1 data "\u0001\u0000\u0002h2GET"; balena 192.0.2.1; Python 192.0.2.1
v2, LOCAL with addresses: js LOCAL data "GET"; balena 192.0.2.1; Python none
v1, UNKNOWN: js V1ProxyProtocolParseError; balena "\r\n"; Python none
length of ALPN h2'"'"'s header: 17, written anew by js 12' ]]
