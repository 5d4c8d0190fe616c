"""A stand-in for kubectl and the cluster behind it: pods are places of a lab, hotplane programs Services there.

`StandIn` answers for the API server and the nodes, in a thread of the test's process; what stands in PATH as kubectl is
a few lines that ask it, since there are fifty calls in a run. What it says and how it ends is kubectl's.
"""

import contextlib
import json
import os
import shutil
import signal
import socketserver
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

import msgspec

from ctl.main import main
from dataplane.bench.cluster.manifests import ROLE, VOLUME, Role
from dataplane.bench.objects import cluster_ip
from dataplane.kernel.namespaces.netns import in_netns
from dataplane.lab.spec import LabSpec, Node, topology
from dataplane.model.net import Family

ROOT = Path(__file__).resolve().parents[1]
PYTHON = "/usr/bin/python3"
NOBODY = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--bounding-set=-all")
ENDED_SECONDS = 60.0
"""A process that was killed, or whose parent has ended, may take so long on a busy machine until it is gone."""
KINDS = {"Namespace": "namespaces", "Pod": "pods", "Service": "services"}

KUBECTL = """#!/usr/bin/python3 -SE
import json, socket, subprocess, sys
words = sys.argv[1:]
text = sys.stdin.read() if "-" in words else ""
with socket.socket(socket.AF_UNIX) as sock:
    sock.connect(SOCKET)
    sock.sendall(json.dumps([words, text]).encode())
    sock.shutdown(socket.SHUT_WR)
    with sock.makefile() as answer:
        out, said, argv = json.load(answer)
sys.stdout.write(out)
sys.stderr.write(said)
if not argv:
    sys.exit(1 if said else 0)
status = subprocess.call(argv, cwd="/")
if status:
    sys.stderr.write("command terminated with exit code %d\\n" % status)
sys.exit(status)
"""

Object = dict[str, Any]


class Refused(Exception):
    """A call fails. The text is what kubectl writes on standard error."""


class Settings(msgspec.Struct):
    """How the cluster behaves. refuse: by "Kind name", what the API server says to its creation. status: by
    pod, its status instead of a good one. late: seconds before any answer. stuck: namespaces do not go. objects: by
    kind in the plural, what there is besides, or of nodes instead. architecture: of the nodes. unanswered: node ports
    are not programmed. unreadable: kinds that may not be read."""

    refuse: dict[str, str] = {}
    status: dict[str, Object] = {}
    late: float = 0.0
    stuck: bool = False
    objects: dict[str, list[Object]] = {}
    architecture: str = "amd64"
    unanswered: bool = False
    unreadable: tuple[str, ...] = ()


class Cluster:
    """The objects, and what is done about them."""

    def __init__(self, folder: Path, lab: LabSpec | None) -> None:
        self.folder, self.lab, self.settings = folder, lab, Settings()
        self.nodes: tuple[Node, ...] = topology(lab or LabSpec(nodes=2)).nodes
        self.objects: dict[str, list[Object]] = {}
        self.calls: list[list[str]] = []

    def items(self, kind: str) -> list[Object]:
        extra = self.settings.objects.get(kind, [])
        if kind == "nodes":
            return extra or [self._node(node) for node in self.nodes]
        if kind == "endpointslices":
            return [self._slice(service) for service in self.objects.get("services", [])]
        return [*self.objects.get(kind, []), *extra]

    def _node(self, node: Node) -> Object:
        return {
            "metadata": {"name": node.name},
            "spec": {},
            "status": {
                "addresses": [{"type": "InternalIP", "address": a} for a in node.addresses.values()],
                "capacity": {"cpu": "2", "memory": "8Gi"},
                "conditions": [{"type": "Ready", "status": "True"}],
                "nodeInfo": {"architecture": self.settings.architecture, "kernelVersion": os.uname().release},
            },
        }

    def create(self, item: Object) -> None:
        kind, name = item["kind"], item["metadata"]["name"]
        if f"{kind} {name}" in self.settings.refuse:
            die(f"Error from server (Forbidden): {self.settings.refuse[f'{kind} {name}']}")
        there = self.objects.setdefault(KINDS[kind], [])
        if any(other["metadata"]["name"] == name for other in [*there, *self.settings.objects.get(KINDS[kind], [])]):
            die(f'Error from server (AlreadyExists): {KINDS[kind]} "{name}" already exists')
        item["metadata"]["uid"] = f"{kind}-{time.time_ns()}"
        if kind == "Pod":
            item["status"] = self._started(item)
        if kind == "Service":
            self._allocate(item, len(there))
        there.append(item)

    def _started(self, pod: Object) -> Object:
        """Give it a place; its status."""
        name, spec = pod["metadata"]["name"], pod["spec"]
        pod["metadata"]["annotations"] = {"place": ""}
        if name in self.settings.status:
            return self.settings.status[name]
        required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        [wanted] = required["nodeSelectorTerms"][0]["matchFields"][0]["values"]
        node = next(node for node in self.nodes if node.name == wanted)
        taken = {other["metadata"]["annotations"]["place"] for other in self.objects.get("pods", [])}
        place = node if spec["hostNetwork"] else next(each for each in node.pods if each.name not in taken)
        pod["metadata"]["annotations"] = {"place": place.name, "netns": place.netns}
        volume = self.folder / name
        volume.mkdir()
        volume.chmod(0o777)
        addresses = [{"ip": address} for address in place.addresses.values()]
        return {"phase": "Running", "podIPs": addresses, "conditions": [{"type": "Ready", "status": "True"}]}

    def _allocate(self, service: Object, number: int) -> None:
        family = Family.IPV6 if service["spec"]["ipFamilies"] == ["IPv6"] else Family.IPV4
        address = cluster_ip(number, family)
        service["spec"] |= {"clusterIP": address, "clusterIPs": [address]}
        if service["spec"]["type"] == "NodePort":
            for index, port in enumerate(service["spec"]["ports"]):
                port["nodePort"] = 30100 + index

    def _slice(self, service: Object) -> Object:
        """The EndpointSlice that a controller would write."""
        selector, family = service["spec"]["selector"], service["spec"]["ipFamilies"][0]
        pods = [p for p in self.objects.get("pods", []) if p["metadata"]["labels"].get(ROLE) == selector[ROLE]]
        name, namespace = service["metadata"]["name"], service["metadata"].get("namespace", "default")
        return {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-abcde", "namespace": namespace, "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": family,
            "ports": [
                {"name": p["name"], "protocol": p["protocol"], "port": p["targetPort"]}
                for p in service["spec"]["ports"]
            ],
            "endpoints": [
                {
                    "addresses": [entry["ip"]],
                    "conditions": {"ready": True},
                    "nodeName": next(n.name for n in self.nodes if pod["metadata"]["annotations"]["place"] in
                                     (n.name, *(each.name for each in n.pods))),
                }
                for pod in pods
                for entry in pod["status"]["podIPs"]
                if (":" in entry["ip"]) == (family == "IPv6")
            ],
        }  # fmt: skip

    def program(self) -> None:
        """What the nodes' proxies do once Services change."""
        if self.lab is None:
            return
        found = [{"apiVersion": "v1", "kind": "Node", **node} for node in self.items("nodes")]
        services = self.objects.get("services", [])
        if self.settings.unanswered:
            services = [each for each in services if each["spec"]["type"] == "ClusterIP"]
        found += [*services, *(self._slice(service) for service in services)]
        manifest = self.folder / "manifest.json"
        manifest.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": found}))
        for node in self.nodes:
            state = self.folder / "state" / node.name
            words = ["--mode", "nftables", "--node-name", node.name, "--state-dir", str(state), "apply", "--prune"]
            assert in_netns(node.netns, main, [*words, "-f", str(manifest)]) == 0

    def delete_namespace(self, name: str) -> None:
        found = [item for item in self.objects.get("namespaces", []) if item["metadata"]["name"] == name]
        if not found:
            die(f'Error from server (NotFound): namespaces "{name}" not found')
        if self.settings.stuck:
            message = "Some content in the namespace has finalizers remaining: example.org/hold in 1 resource instances"
            found[0]["status"] = {"phase": "Terminating", "conditions": [{"status": "True", "message": message}]}
            return
        for pod in self.objects.get("pods", []):
            volume = self.folder / pod["metadata"]["name"]
            end(str(volume))
            shutil.rmtree(volume, ignore_errors=True)
        self.objects.clear()


def end(word: str) -> None:
    """End the processes whose command line has this word in it now, and see them end."""
    found, latest = set(running(word)), time.monotonic() + ENDED_SECONDS
    for process in found:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(process), signal.SIGKILL)
    while found & set(running(word)) and time.monotonic() < latest:
        time.sleep(0.01)


def enter(netns: str) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{netns}", "--"]


def die(text: str) -> NoReturn:
    raise Refused(text)


def execute(cluster: Cluster, words: Sequence[str]) -> list[str]:
    """`exec [-i] POD -- ARGV` as a command line: as nobody, in the pod's network."""
    name = next(word for word in words if not word.startswith("-"))
    argv = list(words[words.index("--") + 1 :])
    pods = {pod["metadata"]["name"]: pod for pod in cluster.objects.get("pods", [])}
    if name not in pods:
        die(f'Error from server (NotFound): pods "{name}" not found')
    volume = str(cluster.folder / name)
    argv = [PYTHON if word == "python3" else word.replace(f"{VOLUME}/", f"{volume}/") for word in argv]
    return [*enter(pods[name]["metadata"]["annotations"]["netns"]), *NOBODY, *argv]


def parsed(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The words without options, and the options."""
    plain: list[str] = []
    options: dict[str, str] = {}
    valued = ("--kubeconfig", "--context", "--namespace", "-o", "--output", "-f", "--field-selector")
    rest = iter(words)
    for word in rest:
        if word in valued:
            options[word] = next(rest)
        elif word.startswith("--"):
            options[word.partition("=")[0]] = word.partition("=")[2]
        else:
            plain.append(word)
    return plain, options


def get(cluster: Cluster, kind: str, names: Sequence[str], output: str) -> str:
    plural = {"namespace": "namespaces", "service": "services", "configmap": "configmaps"}.get(kind, kind)
    if kind in cluster.settings.unreadable:
        die(f'Error from server (Forbidden): {plural} is forbidden: User "jane" cannot list resource "{plural}"')
    items = cluster.items(plural)
    if names:
        items = [item for item in items if item["metadata"]["name"] == names[0]]
        if not items:
            die(f'Error from server (NotFound): {plural} "{names[0]}" not found')
        return json.dumps(items[0])
    if output == "name":
        return "\n".join(f"{plural}/{item['metadata']['name']}" for item in items)
    return json.dumps({"items": items})


def create(cluster: Cluster, document: Object, namespace: str) -> str:
    items = document["items"] if document["kind"] == "List" else [document]
    for item in items:
        if item["kind"] != "Namespace":
            item["metadata"]["namespace"] = namespace
        cluster.create(item)
    if any(item["kind"] == "Service" for item in items):
        cluster.program()
    return "".join(f"{item['kind'].lower()}/{item['metadata']['name']} created\n" for item in items)


def answer(cluster: Cluster, words: list[str], text: str) -> tuple[str, list[str]]:
    """What kubectl prints, and what it then becomes. Raises Refused."""
    if "exec" in words:
        return "", execute(cluster, words[words.index("exec") + 1 :])
    plain, options = parsed(words)
    match plain:
        case ["version"]:
            return json.dumps({"serverVersion": {"gitVersion": "v1.34.1"}}), []
        case ["get", kind, *names]:
            return get(cluster, kind, names, options.get("--output") or options.get("-o", "")), []
        case ["create"]:
            return create(cluster, json.loads(text), options.get("--namespace", "default")), []
        case ["delete", "namespace", name]:
            cluster.delete_namespace(name)
            return f'namespace "{name}" deleted\n', []
    die(f'error: unknown command "{" ".join(plain)}"')


class StandIn(Cluster):
    """A cluster that is a lab, or one in which nothing runs; `env` has its kubectl first in PATH."""

    def __init__(self, lab: LabSpec | None = None) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="hp-cluster-")
        super().__init__(Path(self._folder.name), lab)
        self.folder.chmod(0o755)  # its pods are nobody's
        program = self.folder / "bin" / "kubectl"
        program.parent.mkdir()
        socket = str(self.folder / "socket")
        program.write_text(KUBECTL.replace("SOCKET", repr(socket)))
        program.chmod(0o755)
        self.env = os.environ | {"PATH": f"{program.parent}:{os.environ['PATH']}"}
        lock, cluster = threading.Lock(), self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                words, text = json.load(self.rfile)
                time.sleep(cluster.settings.late)
                with lock:
                    cluster.calls.append(words)
                    try:
                        out, argv = answer(cluster, words, text)
                        found = [out, "", argv]
                    except Refused as refusal:
                        found = ["", f"{refusal}\n", []]
                with contextlib.suppress(BrokenPipeError):  # nobody waits for it any more
                    self.wfile.write(json.dumps(found).encode())

        self._server = socketserver.ThreadingUnixStreamServer(socket, Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
        end(str(self.folder))
        self._folder.cleanup()

    def behave(self, **settings: Any) -> None:
        """From now on so, and otherwise well."""
        self.settings = Settings(**settings)

    def left(self) -> list[str]:
        """What is left of a run: objects, volumes, processes that do not end."""
        latest = time.monotonic() + ENDED_SECONDS
        while running(str(self.folder)) and time.monotonic() < latest:
            time.sleep(0.01)
        names = [role for role in Role if (self.folder / role).exists()]
        return [*names, *(kind for kind, items in self.objects.items() if items), *running(str(self.folder))]


def running(word: str) -> list[str]:
    """Ids of processes whose command line has this word in it."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if word in file.read_text():
                found.append(file.parent.name)
    return found
