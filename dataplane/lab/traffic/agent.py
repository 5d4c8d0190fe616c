"""Probe agent: `python -m dataplane.lab.traffic.agent` stays in one place of a lab and probes from there on request.

JSON lines: a `probe.Request` on standard input gives one list of `probe.ProbeResult` on standard output (or an object
`{"error": text}` for a request that cannot be tried). Ends when standard input does, so it never outlives its owner.
"""

import resource
import sys

import msgspec

from dataplane.lab.traffic.probe import Request, run


def main() -> None:
    """Serve requests until standard input ends."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    decode = msgspec.json.Decoder(Request).decode
    for line in sys.stdin.buffer:
        try:
            request = decode(line)
            reply = msgspec.json.encode(run(request.probes, request.concurrency))
        except ValueError as error:  # msgspec's errors are ValueErrors too
            reply = msgspec.json.encode({"error": str(error)})
        sys.stdout.buffer.write(reply + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
