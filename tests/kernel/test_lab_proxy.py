"""One mode after another in the same lab."""

import os

from dataplane.lab.lab import Lab
from dataplane.lab.scenarios.cluster import cluster_objects, pods
from dataplane.lab.spec import LabSpec
from dataplane.lab.traffic.probe import Outcome, Probe
from tests.kernel.modes import lab_proxy

EXTERNAL_IP, SOURCE_PORT = "203.0.113.9", 41234
MANIFEST = f"""
kind: Service
apiVersion: v1
metadata: {{name: nobody}}
spec:
  selector: {{app: nobody}}
  externalIPs: [{EXTERNAL_IP}]
  ports: [{{port: 80}}]
"""


def test_flows_of_one_mode_do_not_reach_the_next() -> None:
    """kube-proxy's iptables mode lets a node's own SYN to an externalIP without endpoints out; nftables refuses it,
    from the same port too."""
    spec = LabSpec(name=f"proxy{os.getpid()}", nodes=1, pods=1)
    seen = {}
    with Lab.up(spec) as lab:
        decoded = cluster_objects(MANIFEST.encode(), {"nobody": pods(lab.topology)}, spec.families, "manifest")
        probe = Probe(EXTERNAL_IP, 80, timeout=20.0, source_port=SOURCE_PORT)
        for mode in ("iptables", "nftables"):
            with lab_proxy(lab, mode) as proxy:
                proxy.update(decoded.objects)
                (attempt,) = lab.probe("node1", probe)[0].attempts
                seen[mode] = (attempt.outcome, attempt.detail)
    assert seen == {"iptables": (Outcome.ERROR, "EHOSTUNREACH"), "nftables": (Outcome.REFUSED, "icmp")}
