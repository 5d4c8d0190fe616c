"""A Service proxy of a few lines, for tests of what the benchmark makes of others' proxies: `toy_proxy.py [TRAIT...]`.

It asks the API server again and again and puts a rule for each port of each Service into one nftables table, which
outlives it. It writes a line for each time that something was new. Traits: "takes-rules" (they go with it on SIGTERM),
"late" (it thinks for LATE seconds first), "once" (it starts only once in its folder).
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

LATE = 0.4
_PAUSE = 0.02
_TABLE = """add table ip toy
delete table ip toy
table ip toy {{
  chain c {{
    type nat hook prerouting priority -100;
    {}
  }}
}}
"""


def _items(path: str) -> list[dict[str, Any]]:
    with urllib.request.urlopen(os.environ["API_SERVER"] + path) as answer:
        return list(json.load(answer)["items"])


def _rules() -> str:
    """Each port of a Service to the first endpoint of the port of that name."""
    places = {
        (each["metadata"]["labels"]["kubernetes.io/service-name"], port["name"]): (
            f"{each['endpoints'][0]['addresses'][0]}:{port['port']}"
        )
        for each in _items("/apis/discovery.k8s.io/v1/endpointslices")
        for port in each["ports"]
    }
    return "\n".join(
        f"ip daddr {each['spec']['clusterIP']} {port['protocol'].lower()} dport {port['port']} dnat to {place}"
        for each in _items("/api/v1/services")
        for port in each["spec"]["ports"]
        if (place := places.get((each["metadata"]["name"], port["name"])))
    )


def _end(*_: object) -> None:
    subprocess.run(["nft", "delete table ip toy"], check=True)
    print("ended in order", flush=True)
    sys.exit()


def main(traits: list[str]) -> None:
    """Entry point: traits."""
    mark = Path("started")
    if "once" in traits and mark.exists():
        sys.exit("something of me is there already")
    mark.touch()
    if "takes-rules" in traits:
        signal.signal(signal.SIGTERM, _end)
    if "late" in traits:
        time.sleep(LATE)
    known = ""
    while True:
        rules = _rules()
        if rules != known:
            subprocess.run(["nft", "-f", "-"], input=_TABLE.format(rules), text=True, check=True)
            known = rules
            print("something is new", flush=True)
        time.sleep(_PAUSE)


if __name__ == "__main__":
    main(sys.argv[1:])
