"""One UDP socket of a pod asks two Services over one endpoint at once: nothing but the port that they come to tells the
answers apart. Connect time points the socket at the endpoint for the first, the packet programs serve the second."""

import json
import sys
from collections.abc import Iterator

import pytest

from dataplane.lab.scenarios.cluster import cluster_objects, pods
from dataplane.model.net import Family
from tests.kernel.host_lab import FAMILIES, HostLab, host_lab

_SOCKETS = 20
_SERVERS = {"local": "pod1-2", "remote": "pod2-1"}
_ADDRESS = {Family.IPV4: "10.96.1.{}", Family.IPV6: "fd00:10:96::1:{}"}
_NUMBERS = {"local-one": 1, "local-two": 2, "local-sticky": 3, "remote-one": 4, "remote-two": 5, "remote-sticky": 6}
_SERVICE = """---
kind: Service
apiVersion: v1
metadata: {{name: {name}}}
spec:
  clusterIP: {ipv4}
  clusterIPs: [{ipv4}, '{ipv6}']
  sessionAffinity: {affinity}
  selector: {{app: {name}}}
  ports: [{{name: udp, protocol: UDP, port: 80, targetPort: 8080}}]
"""
_ASK = """
import json, socket, sys
sockets, *asked = json.loads(sys.argv[1])
heard = []
for _ in range(sockets):
    with socket.socket(socket.AF_INET6 if ":" in asked[0] else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(60)
        for address in asked:
            sock.sendto(b"?\\n", (address, 80))
        found = [sock.recvfrom(4096) for _ in asked]
        heard.append([[sender[:2], json.loads(data)["client"]] for data, sender in found])
print(json.dumps(heard))
"""


@pytest.fixture(scope="module", params=["by the stack", "past the stack"])
def lab(request: pytest.FixtureRequest) -> Iterator[HostLab]:
    with host_lab(connect=True, past_stack=request.param == "past the stack") as made:
        manifest = "".join(
            _SERVICE.format(
                name=name,
                ipv4=_ADDRESS[Family.IPV4].format(number),
                ipv6=_ADDRESS[Family.IPV6].format(number),
                affinity="ClientIP" if name.endswith("sticky") else "None",
            )
            for name, number in _NUMBERS.items()
        )
        workloads = {name: pods(made.lab.topology, _SERVERS[name.partition("-")[0]]) for name in _NUMBERS}
        made.proxy.update(cluster_objects(manifest.encode(), workloads, FAMILIES, "manifest").objects)
        yield made


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("second", ["two", "sticky"])
@pytest.mark.parametrize("where", list(_SERVERS))
def test_two_services_asked_at_once(lab: HostLab, where: str, second: str, family: Family) -> None:
    """The endpoint sees two ports, and each Service answers once."""
    asked = [_ADDRESS[family].format(_NUMBERS[f"{where}-{name}"]) for name in ("one", second)]
    argv = [sys.executable, "-c", _ASK, json.dumps([_SOCKETS, *asked])]
    heard = json.loads(lab.lab.run("pod1-1", argv, timeout=600).stdout)
    for answers in heard:
        assert sorted(sender for sender, _ in answers) == sorted([address, 80] for address in asked)
        ends = [client.rpartition(":") for _, client in answers]
        assert {host.strip("[]") for host, _, _ in ends} == {lab.address("pod1-1", family)}
        assert len({port for _, _, port in ends}) == len(asked)
