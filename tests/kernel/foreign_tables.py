"""Tables of other programs, and hotplane's commands beside them, each in a process whose cost is measured."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.kernel.nftables_listing import nft

ROOT = Path(__file__).resolve().parents[2]

STRANGE = """
table inet hotplane {
    comment "not ours, whatever it is called"
    set ports { type inet_service; flags interval; elements = { 0-1023, 6000-6063, 65535 } }
    chain hooked { type filter hook prerouting priority -150; policy accept; tcp dport @ports counter; }
}
table ip hotplane-of-somebody {
    flags dormant
    quota some { over 17 mbytes used 2 bytes; }
    limit slow { rate over 3/minute burst 7 packets; }
    counter odd { packets 18446744073709551615 bytes 1; }
    ct helper ftp { type "ftp" protocol tcp; l3proto ip; }
    synproxy proxy { mss 1460; wscale 7; timestamp sack-perm; }
    set blocked {
        type ipv4_addr . inet_service . ipv4_addr
        flags interval
        elements = { 10.0.0.0/8 . 1-7 . 192.0.2.0-192.0.2.77 comment "% $x ', {", 10.1.0.0/16 . 9 . 0.0.0.0/0 }
    }
    map where { type ipv4_addr . mark : verdict; elements = { 192.0.2.1 . 0x1 : jump elsewhere }; }
    chain elsewhere { quota name "some" limit name "slow" ip saddr . tcp dport . ip daddr @blocked drop; }
    chain base {
        type nat hook postrouting priority 50; policy accept;
        ip saddr . meta mark vmap @where
        ip saddr 192.0.2.0/24 tcp dport { 80, 443, 8000-9000 } counter log prefix "x" masquerade random,persistent
        tcp dport vmap { 1-5 : accept, 7 : goto elsewhere } comment "a ; comment"
    }
}
table bridge other { chain c { ether saddr 02:00:00:00:00:01 vlan id 7 drop; }; }
table arp other { chain c { type filter hook input priority 0; arp operation request accept; }; }
table netdev other { chain c { type filter hook ingress device "lo" priority 0; ip ttl < 2 drop; }; }
table ip6 other { set none { type ipv6_addr; size 3; flags dynamic; }; }
"""


def foreign_set(namespace: str, count: int) -> None:
    """Give a namespace a block list of so many separate networks."""
    networks = (f"{10 + (n >> 16)}.{n >> 8 & 255}.{n & 255}.0/25" for n in range(count))
    text = "add table inet blocks\nadd set inet blocks networks { type ipv4_addr; flags interval; }\n"
    text += f"add element inet blocks networks {{ {', '.join(networks)} }}\n"
    command = ["ip", "netns", "exec", namespace, "nft", "-f", "-"]
    subprocess.run(command, input=text, text=True, check=True, capture_output=True)


def listing(namespace: str) -> str:
    """All tables but hotplane's own, as `nft -j` lists them; handles included, for they stay as well."""
    items = json.loads(nft(namespace, "-j", "list", "ruleset"))["nftables"]
    for item in items:
        if "table" in item:  # nft 1.0.6 names a table's flags by what lies in freed memory
            item["table"].pop("flags", None)
    own = [("ip", "hotplane"), ("ip6", "hotplane"), ("inet", "hotplane-ports")]
    return json.dumps([i for i in items if not any(_of(v) in own for v in i.values())])


def _of(item: dict[str, Any]) -> tuple[str, str]:
    return item.get("family", ""), item.get("table") or item.get("name", "")


def manifests(folder: Path, count: int) -> Path:
    """A file with so many Services of five endpoints each."""
    items: list[dict[str, Any]] = []
    for n in range(count):
        name, vip = f"s{n}", f"10.96.{n >> 8}.{n & 255}"
        ports = [{"port": 80, "protocol": "TCP", "name": "http"}]
        meta = {"name": name, "namespace": "default"}
        spec = {"clusterIP": vip, "clusterIPs": [vip], "ports": ports}
        items.append({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})
        labels = {"kubernetes.io/service-name": name}
        endpoints = [{"addresses": [f"10.{244 + (n >> 10)}.{n >> 2 & 255}.{(n & 3) * 60 + e + 1}"]} for e in range(5)]
        items.append(
            {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "ports": ports,
             "metadata": {**meta, "labels": labels}, "endpoints": endpoints}
        )  # fmt: skip
    file = folder / "objects.json"
    file.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    return file


class Ran(NamedTuple):
    """A command that ended. seconds: of processor time, its children's included. megabytes: at most in memory."""

    status: int
    text: str
    seconds: float
    megabytes: float


_RUNNER = """
import sys
from collections.abc import Sequence
from pathlib import Path
from ctl.main import main
from dataplane.kernel.nft import transaction as nft
nft.COMPILER._cache = (Path(sys.argv[1]),)
status = main(sys.argv[2:])
loaded = "libnftables" in Path("/proc/self/maps").read_text() or "nftables" in sys.modules
print("libnftables is loaded" if loaded else "no libnftables here")
raise SystemExit(status)
"""


def hotplane(
    namespace: str,
    cache: Path,
    *words: str,
    modules: Path | None = None,
    until: str | None = None,
    wrapper: Sequence[str] = (),
) -> Ran:
    """Run a command line of hotplane in a namespace. cache: for compiled rules. modules: a folder whose Python modules
    come before all others. until: a part of a line with which a daemon has done enough, and is told to end. wrapper:
    what runs the command line."""
    path = os.pathsep.join(map(str, filter(None, (modules, ROOT))))
    command = ["ip", "netns", "exec", namespace, *wrapper, sys.executable, "-c", _RUNNER, str(cache), *words]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONPATH": path}
    ) as process:
        assert process.stdout is not None
        text = ""
        for line in process.stdout:
            text += line
            if until is not None and until in line:
                process.terminate()
                until = None
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    return Ran(process.returncode, text, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
