"""One real connection through the kernel in each mode and family: what each hook told, and what explain had said."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ctl.main import main
from dataplane.kernel.namespaces.netns import netns
from dataplane.kernel.nft.trace import PREFIX, TraceMessages, TraceTable, Wanted
from dataplane.kernel.nft.transaction import Nft
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from dataplane.model.net import Family, Protocol
from dataplane.planes.registry import MODES
from tests.json_views import check_output
from tests.kernel.daemon_lab import until

PATIENCE = 60.0
SERVICES = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  type: NodePort
  clusterIP: 10.96.0.80
  clusterIPs: [10.96.0.80, "fd00:10:96::80"]
  ports:
  - {name: http, port: 80, targetPort: 8080, nodePort: 30080}
  - {name: dns, port: 53, targetPort: 8080, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: default}
spec: {clusterIP: 10.96.0.81, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: lb, namespace: default}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.82
  loadBalancerSourceRanges: [192.0.2.0/24]
  ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30082}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.10}]}}
---
apiVersion: v1
kind: Service
metadata: {name: here, namespace: default}
spec: {type: NodePort, clusterIP: 10.96.0.83, ports: [{name: http, port: 80, targetPort: 8080, nodePort: 30083}]}
"""
SLICE = """---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: NAME-FAMILY, namespace: default, labels: {kubernetes.io/service-name: NAME}}
addressType: FAMILY
ports: [{name: http, port: 8080, protocol: TCP}, {name: dns, port: 8080, protocol: UDP}]
endpoints: [{addresses: ["ADDRESS"], nodeName: NODE}]
"""


class Node(NamedTuple):
    """The lab with its first node, and where the state is."""

    lab: Lab
    state: str


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(f"trace-{os.getpid()}", nodes=2, pods=1, ipv6=True)) as lab:
        lab.start_echo(lab.pods, [8080])
        yield lab


@pytest.fixture(scope="module", params=MODES)
def node(lab: Lab, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """The lab's nodes with the Services loaded, in each mode."""
    folder = tmp_path_factory.mktemp(request.param)
    slices = [
        SLICE.replace("NAME", name)
        .replace("FAMILY", f"IPv{family.value}")
        .replace("ADDRESS", pod.addresses[family])
        .replace("NODE", pod.node)
        for name, families, pod in (
            ("web", Family, lab.pods[1]),
            ("lb", [Family.IPV4], lab.pods[1]),
            ("here", [Family.IPV4], lab.pods[0]),
        )
        for family in families
    ]
    (folder / "services.yaml").write_text(SERVICES + "".join(slices))
    state = str(folder / "state")
    words = ["--state-dir", state, "lab", "apply", "--name", lab.spec.name, "-f", str(folder / "services.yaml")]
    assert main([*words, "--mode", request.param, "--node", "node1"]) == 0
    yield Node(lab, state)
    with netns(lab.nodes[0].netns):
        assert main(["--state-dir", state, "cleanup"]) == 0


def tables(namespace: str) -> set[tuple[str, str]]:
    """The nftables tables of traces in a network namespace."""
    with netns(namespace):
        return {table for table in Nft().tables() if table[1].startswith(PREFIX)}


def trace(
    node: Node, capsys: pytest.CaptureFixture[str], *words: str, seconds: float = PATIENCE
) -> list[dict[str, Any]]:
    """The records of `trace -o json` on the node. seconds: to wait for an answer."""
    capsys.readouterr()
    logger = Path("/proc/sys/net/netfilter/nf_log/2")
    with netns(node.lab.place("node1").netns):
        before = logger.read_text()
        status = main(["--state-dir", node.state, "trace", *words, "--timeout", str(seconds), "-o", "json"])
        assert logger.read_text() == before
    printed = capsys.readouterr()
    assert status == 0, printed.err
    assert not tables(node.lab.place("node1").netns)
    return [check_output(("trace",), line) for line in printed.out.splitlines()]


def command(node: Node, *words: str) -> list[str]:
    """`trace` as a process of its own."""
    own = [sys.executable, "-m", "ctl.main", "--state-dir", node.state]
    return [*own, "trace", "--timeout", str(PATIENCE), *words]


def explained(node: Node, capsys: pytest.CaptureFixture[str], *words: str) -> list[dict[str, Any]]:
    """The records of `explain -o json` on the node. Its status is 0: nothing differs."""
    capsys.readouterr()
    with netns(node.lab.place("node1").netns):
        status = main(["--state-dir", node.state, "explain", *words, "-o", "json"])
    printed = capsys.readouterr()
    found: list[dict[str, Any]] = check_output(("explain",), printed.out)
    assert status == 0, ([each["live"] for each in found], printed.err)
    return found


def mode_of(node: Node) -> str:
    return Path(node.state).parent.name.rstrip("0123456789")


@pytest.mark.parametrize("family", list(Family))
def test_a_pods_connection_to_a_cluster_ip(node: Node, family: Family, capsys: pytest.CaptureFixture[str]) -> None:
    pod, endpoint = node.lab.pods[0].addresses[family], node.lab.pods[1].addresses[family]
    address = {Family.IPV4: "10.96.0.80", Family.IPV6: "[fd00:10:96::80]"}[family]
    *steps, verdict = trace(node, capsys, f"{pod} -> {address}:80/tcp", "--send")
    host = f"[{endpoint}]" if ":" in endpoint else endpoint
    assert (verdict["verdict"], verdict["endpoint"], verdict["seenAs"]) == ("answered", f"{host}:8080", pod)
    layers = [step["layer"] for step in steps]
    assert (layers[0], steps[0]["decision"]) == ("sender", "connects")
    told = {"iptables": "iptables", "nftables": "nftables", "ebpf": "ebpf"}[mode_of(node)]
    assert told in layers
    chosen = next(step for step in steps if step["after"] and step["direction"] == "request")
    assert chosen["after"].endswith(f"{host}:8080")
    times = [step["microseconds"] for step in steps]
    assert times == sorted(times)
    assert times[0] == 0
    assert any(step["layer"] == "conntrack" and "established" in step["decision"] for step in steps)
    assert any(step["direction"] == "answer" and step["layer"] == "stack" for step in steps)


def test_masquerading_of_the_outside_client(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """By a node port of a node that has no endpoint: the endpoint sees the node."""
    *steps, verdict = trace(node, capsys, "client -> node1:30080", "--send")
    assert verdict["verdict"] == "answered"
    assert verdict["seenAs"] == "172.18.0.1"
    last = [step for step in steps if step["after"] and step["direction"] == "request"][-1]
    assert last["after"].startswith("172.18.0.1:")
    if mode_of(node) == "ebpf":
        assert "xdp" in [step["hook"] for step in steps]
        assert "reply" in [step["decision"] for step in steps]


@pytest.mark.parametrize("node", ["ebpf"], indirect=True)
def test_a_flow_that_xdp_begins_and_tc_translates(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """The endpoint is on the node: XDP leaves the packet to tc as it is."""
    *steps, verdict = trace(node, capsys, "client -> node1:30083", "--send")
    assert verdict["verdict"] == "answered"
    xdp = next(step for step in steps if step["hook"] == "xdp" and step["direction"] == "request")
    tc = next(step for step in steps if step["hook"] == "tc_ingress" and step["direction"] == "request")
    assert (xdp["decision"], xdp["after"]) == ("begun", None)
    assert tc["after"].endswith(f" -> {verdict['endpoint']}")


@pytest.mark.parametrize(
    ("flow", "verdicts"), [("pod1-1 -> empty", {"rejected"}), ("client -> 203.0.113.10:80", {"dropped", "unanswered"})]
)
def test_refusals(node: Node, capsys: pytest.CaptureFixture[str], flow: str, verdicts: set[str]) -> None:
    seconds = PATIENCE if "rejected" in verdicts else 0.4
    *steps, verdict = trace(node, capsys, flow, "--send", seconds=seconds)
    assert verdict["verdict"] in verdicts
    assert not verdict["endpoint"] or verdict["endpoint"] == "203.0.113.10:80"
    if mode_of(node) != "iptables":
        assert any(step["layer"] == "nftables" and step["decision"].endswith("drop") for step in steps)


def test_what_explain_said_is_what_happens(
    node: Node, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ctl.trace.live.SEND_SECONDS", PATIENCE)
    flows = ["node1 -> web:http", "client -> node1:30080", "pod1-1 -> web:dns", "pod2-1 -> node1:30080"]
    flows += ["client -> node1:30083", "pod1-1 -> empty"]
    found = explained(node, capsys, "--live", *(word for flow in flows for word in ("--flow", flow)))
    verdicts = {each["asked"]: {c["what"]: c["saw"] for c in each["live"]["compared"]}["verdict"] for each in found}
    assert verdicts == {**dict.fromkeys(flows[:-1], "answered"), flows[-1]: "rejected"}
    assert all(each["live"]["agreed"] and each["path"] for each in found if each["asked"] != flows[-1])
    ways = {c["what"] for each in found for c in each["live"]["compared"]}
    assert ways >= {"verdict", "endpoint", "source", "program" if mode_of(node) == "ebpf" else "chains"}


@pytest.mark.parametrize("node", ["nftables"], indirect=True)
def test_the_elements_that_explain_names_are_in_the_kernel(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    found = explained(node, capsys, "--service", "default/web", "--service", "default/lb", "--from", "192.0.2.7")
    steps = {(s["kind"], s["name"], s["key"], s["hook"]) for each in found for s in each["path"]}
    commands = []
    for kind, name, key, hook in steps:
        family = "ip6" if "ip6" in name else "ip"
        if kind in ("map", "set"):
            commands.append(f"get element {name} {{ {key} }}")
        elif hook.split()[1] != "postrouting":
            commands.append(f"list chain {family} hotplane {name}")
    assert len(commands) > 10
    with netns(node.lab.place("node1").netns):
        for command in commands:
            subprocess.run(["nft", command], check=True, capture_output=True)


@pytest.mark.parametrize("node", ["iptables"], indirect=True)
def test_the_chains_that_explain_names_are_in_the_kernel(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    found = explained(node, capsys, "--service", "default/web", "--service", "default/lb", "--from", "192.0.2.7")
    chains = {step["name"] for each in found for step in each["path"]}
    assert {name.rsplit("-", 1)[0] for name in chains} >= {"KUBE", "KUBE-SVC", "KUBE-EXT", "KUBE-FW", "KUBE-SEP"}
    with netns(node.lab.place("node1").netns):
        held = subprocess.run(["iptables-legacy-save"], check=True, capture_output=True, text=True).stdout
    assert not {chain for chain in chains if f":{chain} " not in held}


@pytest.mark.parametrize("node", ["nftables"], indirect=True)
def test_a_difference_is_told(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """The kernel forgot what was loaded: what explain says does not happen, and the command says so with status 1."""
    with netns(node.lab.place("node1").netns):
        Nft().run("flush map ip hotplane services\n")
        try:
            assert main(["--state-dir", node.state, "explain", "--live", "--flow", "pod1-1 -> web:http"]) == 1
        finally:
            assert main(["--state-dir", node.state, "check", "--repair"]) in (0, 1)
    assert "DIFFERS: said" in capsys.readouterr().out


@pytest.mark.parametrize("node", ["nftables"], indirect=True)
def test_somebody_elses_connection_is_waited_for(node: Node, lab: Lab) -> None:
    place = lab.place("node1")
    words = command(node, "pod1-1 -> web:http")
    process = lab.spawn(place, words, in_cgroup=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not tables(place.netns) and process.poll() is None:
        time.sleep(0.02)
    code = "import socket; socket.create_connection(('10.96.0.80', 80), 60).close()"
    lab.run("pod1-1", [sys.executable, "-c", code])
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, err
    assert "waiting for a packet of 10.244.1.11 -> 10.96.0.80:80/tcp" in err
    assert "verdict: ANSWERED by 10.244.2.11:8080" in out
    assert "nftables ip hotplane prerouting: rule 2: goto lb-1-offpod" in out
    assert max(map(len, out.splitlines())) <= 100
    assert not tables(place.netns)


@pytest.mark.parametrize("node", ["nftables"], indirect=True)
def test_what_the_kernel_does_not_tell_is_said(node: Node, lab: Lab) -> None:
    """Here for want of rights: the sender tells what it knows, and a sentence each what nobody told."""
    words = command(node, "node1 -> web:http", "--send")
    without = ["setpriv", "--inh-caps=-net_admin", "--bounding-set=-net_admin"]
    done = lab.run("node1", [*without, *words], check=False)
    assert done.returncode == 0, done.stderr
    assert "verdict: ANSWERED, but no hook told of it" in done.stdout
    assert "not told: what chains do is not told" in done.stdout


def test_from_outside_of_the_lab(
    node: Node, namespace: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flow between places of the lab is followed on the sender's node. Several labs may be up: one is named here."""
    monkeypatch.setattr("ctl.flow_names.lab_here", lambda: node.lab)
    with netns(namespace):
        assert main(["--state-dir", node.state, "explain", "--flow", "pod1-1 -> web:http"]) == 0
    assert "by default/web:http, clusterIP 10.96.0.80:80/tcp" in capsys.readouterr().out


@pytest.mark.parametrize("node", ["nftables"], indirect=True)
def test_a_closed_stdout_is_told(node: Node, lab: Lab) -> None:
    words = command(node, "node1 -> web:http", "--send")
    done = lab.run("node1", ["sh", "-c", 'exec "$@" >&-', "sh", *words], check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "hotplane: standard output is closed; what would be printed is lost\n"


@pytest.mark.parametrize("node", ["nftables"], indirect=True)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_the_table_goes_however_the_trace_ends(node: Node, lab: Lab, how: signal.Signals) -> None:
    place = lab.place("node1")
    words = command(node, "pod1-1 -> web:http")
    process = lab.spawn(place, words, in_cgroup=False, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not tables(place.netns) and process.poll() is None:
        time.sleep(0.02)
    assert process.poll() is None
    process.send_signal(how)
    _, err = process.communicate(timeout=PATIENCE)
    assert "Traceback" not in err
    until(lambda: not tables(place.netns), "the table goes")


def test_a_kernel_whose_tables_have_no_owner(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses the flag, as this one does one that it does not know; then the table is an ordinary one."""
    monkeypatch.setattr("dataplane.kernel.nft.trace._OWNER", 0x8000)
    with netns(namespace), TraceTable(Wanted(Family.IPV6, Protocol.UDP, "::1", [("::2", 80)])) as mine:
        assert not mine.owned
        assert tables(namespace) == {("ip6", mine.name)}
    assert not tables(namespace)


def test_cleanup_finds_a_table_that_a_killed_trace_left(namespace: str) -> None:
    """On kernels that do not remove it by themselves; a table of a process that lives stays."""
    wanted = Wanted(Family.IPV4, Protocol.TCP, "10.0.0.1", [("10.0.0.2", 80)])
    with netns(namespace):
        ended = subprocess.Popen(["true"])
        ended.wait()
        Nft().run(f"add table ip {PREFIX}{ended.pid}\n")
        with TraceTable(wanted) as mine:
            assert mine.owned
            assert main(["--state-dir", f"/nonexistent-{ended.pid}", "cleanup"]) == 0
            assert tables(namespace) == {("ip", mine.name)}
        assert not tables(namespace)


def test_packets_of_other_flows_are_not_marked(namespace: str) -> None:
    """By the kernel's own count: nothing is told of a neighbour port, another client, another protocol."""
    wanted = Wanted(Family.IPV4, Protocol.UDP, "127.0.0.1", [("127.0.0.1", 4000)])
    with netns(namespace), TraceMessages() as messages, TraceTable(wanted):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"x", ("127.0.0.1", 4001))
            sock.sendto(b"x", ("127.0.0.2", 4000))
            assert list(messages.take()) == []
            sock.sendto(b"x", ("127.0.0.1", 4000))
            told = list(messages.take())
    assert told
    assert {each.ends.destination for each in told if each.ends and each.protocol == 17} == {("127.0.0.1", 4000)}
