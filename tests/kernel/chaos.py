"""A node of the lab that goes through everything that `hotplane apply` may be told, by processes that may be killed."""

import json
import os
import random
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

from ctl.main import main
from dataplane.kernel.namespaces.netns import enter, netns
from dataplane.lab.lab import Lab
from dataplane.lab.spec import CLUSTER_CIDR, Node
from dataplane.model.net import Family
from dataplane.planes.ebpf.maps.pins import PinDirectory, default_instance
from tests.apiserver.objects import endpoint, endpoint_slice, service

VIP, EXTERNAL, NODE_PORT = "10.96.8.1", "203.0.113.78", 30088
BULK_PORT = 9000
BULK = {"pod1-1": ("10.96.8.2", 30089), "pod2-1": ("10.96.8.3", 30090)}
"""Pods that transfers go to, each behind a Service of its own: clusterIP and node port."""
PODS = ("pod1-1", "pod1-2", "pod2-1", "pod2-2")
HOOKS = ("connect,tc,xdp", "tc,xdp", "tc", "connect,tc")
MODES = ("iptables", "nftables", "ebpf")
_OTHERS = 12


class Cluster:
    """What the manifests say. Its Service `web` always has an endpoint, the others change in any way."""

    def __init__(self, lab: Lab, seed: int) -> None:
        self.lab, self.draw = lab, random.Random(seed)
        self._objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.web(*PODS)
        for pod, (address, port) in BULK.items():
            kind: dict[str, Any] = {
                "type": "NodePort", "ports": [{"port": 80, "targetPort": BULK_PORT, "nodePort": port}]
            }  # fmt: skip
            self._put(service(f"bulk-{pod}", address, **kind))
            self._put(endpoint_slice(f"bulk-{pod}", [self._endpoint(pod)], port=BULK_PORT))

    def _put(self, item: dict[str, Any]) -> None:
        self._objects[item["kind"], item["metadata"]["name"]] = item

    def _endpoint(self, pod: str) -> dict[str, Any]:
        return endpoint(self.lab.place(pod).addresses[Family.IPV4], f"node{pod[3]}")

    def web(self, *pods: str) -> None:
        """The Service has these pods from now on, for TCP and UDP."""
        ports = [
            {"name": protocol, "protocol": protocol.upper(), "port": 80, "targetPort": 8080, "nodePort": NODE_PORT}
            for protocol in ("tcp", "udp")
        ]
        self._put(service("web", VIP, type="NodePort", ports=ports, externalIPs=[EXTERNAL]))
        slice_ = endpoint_slice("web", [self._endpoint(pod) for pod in pods])
        slice_["ports"] = [{"name": p, "protocol": p.upper(), "port": 8080} for p in ("tcp", "udp")]
        self._put(slice_)

    def change(self) -> None:
        """Endpoints come and go; other Services change altogether."""
        self.web(*self.draw.sample(PODS, self.draw.choice((2, 3, 3, 4))))
        for number in self.draw.sample(range(_OTHERS), 4):
            name = f"other-{number}"
            if self.draw.random() < 0.2:
                self._objects.pop(("Service", name), None)
                continue
            more: dict[str, Any] = self.draw.choice(
                [
                    {},
                    {"sessionAffinity": "ClientIP"},
                    {"internalTrafficPolicy": "Local"},
                    {"type": "NodePort", "externalTrafficPolicy": "Local",
                     "ports": [{"port": 80, "nodePort": 30100 + number}]},
                ]
            )  # fmt: skip
            addresses = [f"10.244.{n % 2 + 1}.{100 + n}" for n in self.draw.sample(range(20), self.draw.randrange(6))]
            self._put(service(name, f"10.96.9.{number + 1}", **more))
            self._put(endpoint_slice(name, [endpoint(a, f"node{a[7]}") for a in addresses]))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps({"kind": "List", "items": list(self._objects.values())}))


class ChaosNode:
    """One node. `mode` is what it was brought to last; its processes share nothing but files and the kernel."""

    def __init__(self, lab: Lab, node: Node, folder: Path) -> None:
        self._lab, self.node = lab, node
        self._folder = folder / node.name
        self._folder.mkdir(parents=True)
        self.manifests = self._folder / "cluster.json"
        config = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
                  "clusterCIDR": CLUSTER_CIDR[Family.IPV4]}  # fmt: skip
        (self._folder / "config").write_text(json.dumps(config))
        self.mode = ""
        self.said = ""

    def _child(self, words: tuple[str, ...]) -> int:
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            sys.stdout = sys.stderr = (self._folder / "said").open("w", buffering=1)
            enter(self.node.netns)
            address = self.node.addresses[Family.IPV4]
            status = main(
                ["--config", str(self._folder / "config"), "--state-dir", str(self._folder / "state"),
                 "--node-name", self.node.name, "--node-ip", address, "--cgroup", str(self._lab.cgroup(self.node.name)),
                 *words]
            )  # fmt: skip
        finally:
            if sys.exc_info()[0]:
                traceback.print_exc()
            sys.stdout.flush()
            os._exit(status)

    def run(self, *words: str, kill_after: float | None = None) -> bool:
        """A `hotplane` command on the node. Killed after so many seconds, if it is not done by then; whether it was
        done. Fails the test when it fails."""
        pid = self._child(words)
        if kill_after is not None:
            end = time.monotonic() + kill_after
            while time.monotonic() < end:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    return self._fine(words, status)
                time.sleep(0.002)
            os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            return not os.WIFSIGNALED(status) and self._fine(words, status)
        return self._fine(words, os.waitpid(pid, 0)[1])

    def _fine(self, words: tuple[str, ...], status: int) -> bool:
        self.said = (self._folder / "said").read_text()
        if "xtables lock" in self.said:  # one lock for the whole machine, and something else held it for long
            return self.run(*words)
        assert status == 0, (words, self.said)
        return True

    def apply(self, mode: str, hooks: str = HOOKS[0], kill_after: float | None = None) -> bool:
        """`hotplane apply` in a mode; whether it came to its end."""
        done = self.run("--mode", mode, "--hooks", hooks, "apply", "-f", str(self.manifests), kill_after=kill_after)
        if done:
            self.mode = mode
        return done

    def check(self) -> None:
        """The kernel holds what the manifests say, by this mode alone."""
        self.run("--mode", self.mode, "check", "-f", str(self.manifests))
        with netns(self.node.netns):
            pins = PinDirectory(default_instance())
            assert self.mode == "ebpf" or pins.path is None or pins.draining
        rules = self._rules()
        assert ("KUBE-" in rules) == (self.mode == "iptables")
        assert ("table ip hotplane" in rules) == (self.mode != "iptables")

    def _rules(self) -> str:
        words = (["nft", "list", "tables"], ["iptables-legacy-save", "-t", "nat"])
        return "".join(self._lab.run(self.node.name, each).stdout for each in words)

    def cleanup(self) -> None:
        self.run("cleanup")
        with netns(self.node.netns):
            path = PinDirectory(default_instance()).path
        assert path is None, f"{path} is left"
        left = self._rules()
        assert "hotplane" not in left, left
        assert "KUBE-" not in left, left
