"""apply, show, check and cleanup in a namespace of their own, through the launcher, in every mode."""

import itertools
import json
import os
import signal
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dataplane.kernel.namespaces import cgroup
from dataplane.kernel.namespaces.netns import netns
from tests.json_views import check_output, check_view
from tests.kernel.daemon_lab import until

ROOT = Path(__file__).resolve().parents[2]
MODES = ("nftables", "iptables", "ebpf")

ECHO = """
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: default}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10]
  sessionAffinity: ClientIP
  loadBalancerSourceRanges: [192.0.2.0/24]
  ports: [{name: http, port: 80, protocol: TCP, nodePort: 30080}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.1}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: echo-1, namespace: default, labels: {kubernetes.io/service-name: echo}}
addressType: IPv4
ports: [{name: http, port: 8080, protocol: TCP}]
endpoints: [{addresses: [10.244.0.5], nodeName: n1}, {addresses: [10.244.0.6], nodeName: n2}]
"""
BAD = """
---
apiVersion: v1
kind: Service
metadata: {name: bad, namespace: default}
spec: {clusterIP: 10.96.0.12, clusterIPs: [10.96.0.12], ports: [{port: 99999, protocol: TCP}]}
"""


class Cli:
    """`hotplane` inside one namespace, with a state directory and a manifest of its own."""

    def __init__(self, namespace: str, folder: Path, group: Path) -> None:
        self.namespace, self.group = namespace, group
        self.state = folder / "state"
        self.manifest = folder / "objects.yaml"
        self.manifest.write_text(ECHO)

    def inside(self, *command: str) -> str:
        done = subprocess.run(
            ["ip", "netns", "exec", self.namespace, *command], capture_output=True, text=True, check=True
        )
        return done.stdout

    def __call__(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            ["ip", "netns", "exec", self.namespace, str(ROOT / "hotplane"), "--state-dir", str(self.state),
             "--node-name", "n1", "--cgroup", str(self.group), *arguments],
            capture_output=True, text=True, check=False, cwd="/",
        )  # fmt: skip

    def json(self, *arguments: str, status: int = 0) -> Any:
        done = self(*arguments, "-o", "json")
        assert done.returncode == status, done.stderr
        return check_output(arguments, done.stdout)

    def apply(self, mode: str) -> dict[str, Any]:
        (record,) = self.json("apply", "--mode", mode, "-f", str(self.manifest))
        assert isinstance(record, dict)
        return record


@pytest.fixture
def cli(make_namespace: Callable[[str], str], tmp_path: Path) -> Iterator[Cli]:
    namespace = make_namespace("cli")
    subprocess.run(["ip", "-n", namespace, "address", "add", "192.0.2.10/24", "dev", "lo"], check=True)
    group = cgroup.ensure_root() / f"hotplane-test-{namespace}"
    group.mkdir()
    cli = Cli(namespace, tmp_path, group)
    try:
        yield cli
    finally:
        cli("cleanup")
        cgroup.remove(group)


@pytest.mark.parametrize("mode", MODES)
def test_apply_show_check_cleanup(cli: Cli, mode: str) -> None:
    applied = cli.apply(mode)
    assert {k: applied[k] for k in ("mode", "frontends", "endpoints", "added", "problems")} == {
        "mode": mode, "frontends": 3, "endpoints": 2, "added": 1, "problems": 0,
    }  # fmt: skip

    services = {record["frontend"]: record for record in cli.json("show", "services")}
    assert set(services) == {"10.96.0.10:80/tcp", "203.0.113.1:80/tcp", "*:30080/tcp"}
    assert {record["service"] for record in services.values()} == {"default/echo:http"}
    assert "192.0.2.0/24" in services["203.0.113.1:80/tcp"]["sources"]
    assert services["10.96.0.10:80/tcp"]["sources"] is None
    assert services["10.96.0.10:80/tcp"]["pods"] == {"action": "forward", "set": "cluster", "masquerade": False}
    assert services["203.0.113.1:80/tcp"]["outside"] == {"action": "forward", "set": "cluster", "masquerade": True}
    assert services["10.96.0.10:80/tcp"]["affinitySeconds"] == 10800
    endpoints = {record["endpoint"]: record["frontends"] for record in cli.json("show", "endpoints")}
    assert set(endpoints) == {"10.244.0.5:8080", "10.244.0.6:8080"}
    counted = [r["connections"] for r in cli.json("show", "counters")]
    assert counted == ([] if mode == "ebpf" else [0, 0, 0])  # programs count Services that were used
    _drops(cli, mode)
    assert cli.json("show", "affinity") == cli.json("show", "connections") == []
    _only_some(cli)

    assert cli.json("check") == []
    assert cli.json("cleanup")[0]["state"] is True
    assert not cli.state.exists()
    assert cli.inside("nft", "list", "ruleset").strip() == ""
    assert "KUBE" not in cli.inside("iptables-legacy-save") + cli.inside("ip6tables-legacy-save")
    assert cli.json("show", "services") == []
    assert cli.json("cleanup")[0]["state"] is False
    assert "nothing was applied here" in cli("cleanup").stdout


def _drops(cli: Cli, mode: str) -> None:
    """What is refused, before and after; by Service only where it is counted so."""
    assert cli.json("show", "drops") == []
    cli.inside("ip", "address", "add", "198.51.100.9/32", "dev", "lo")
    cli.inside("ip", "route", "add", "203.0.113.0/24", "dev", "lo")
    cli.inside("/usr/bin/python3", "-c", KEPT_OUT)

    def dropped() -> set[tuple[str, int]]:
        return {(record["reason"], record["count"]) for record in cli.json("show", "drops")}

    until(lambda: ("source_range", 1) in dropped(), "what is not let in is dropped")
    of_service = cli.json("show", "drops", "--service", "default/echo")
    if mode == "iptables":
        assert [(r["frontend"], r["count"]) for r in of_service] == [("203.0.113.1:80/tcp", 1)]
    else:
        assert (of_service["counted"], "by reason, not by Service" in of_service["why"]) == (False, True)


KEPT_OUT = """
import socket
sock = socket.socket()
sock.bind(("198.51.100.9", 0))
sock.setblocking(False)
sock.connect_ex(("203.0.113.1", 80))
sock.close()  # it has sent one SYN, and is gone before another is due
"""


def _only_some(cli: Cli) -> None:
    """One Service, one port of it, one namespace; what there is not is said."""
    for words in (("--service", "default/echo"), ("--service", "default/echo:http"), ("-n", "default")):
        assert len(cli.json("show", "services", *words)) == 3
    assert cli.json("show", "services", "-n", "kube-system") == []
    missing = cli("show", "services", "--service", "default/other")
    assert missing.returncode == 1
    assert "--service default/other: there is no such Service here; show services lists them" in missing.stderr
    assert "did you mean default/echo?" in cli("show", "services", "--service", "echo").stderr
    wrong_port = cli("show", "services", "--service", "default/echo:https").stderr
    assert "Service default/echo has no port 'https', only 'http'" in wrong_port
    frontends = [record["frontend"] for record in cli.json("show", "services", "--sort-by", "FRONTEND")]
    assert frontends == sorted(frontends)
    assert cli("show", "services", "--sort-by", "colour").returncode == 2
    assert cli("show", "services", "-o", "name").stdout == "default/echo:http\n"


@pytest.mark.parametrize("mode", MODES)
def test_a_dry_run_and_diff_say_what_would_change_and_change_nothing(cli: Cli, mode: str) -> None:
    files = ("--mode", mode, "-f", str(cli.manifest))
    (added,) = cli.json("diff", *files, status=1)
    assert added == {
        "apiVersion": "hotplane/v1",
        "service": "default/echo",
        "change": "added",
        "frontends": 3,
        "details": [],
        "fields": [],
    }
    dry = cli("apply", "--dry-run", *files)
    assert (dry.returncode, "default/echo" in dry.stdout) == (0, True)
    assert "nothing was changed (--dry-run)" in dry.stderr
    assert cli.inside("nft", "list", "ruleset").strip() == ""
    assert not cli.state.exists()

    cli.apply(mode)
    same = cli("diff", *files)
    assert (same.returncode, same.stdout) == (0, "")
    assert "no Service differs" in same.stderr
    cli.manifest.write_text(ECHO.replace("10.244.0.6", "10.244.0.7") + "---" + OTHER)
    found = {record["service"]: record for record in cli.json("diff", *files, status=1)}
    assert {name: record["change"] for name, record in found.items()} == {
        "default/echo": "changed", "default/other": "added",
    }  # fmt: skip
    assert (
        "10.96.0.10:80/tcp: cluster endpoints + 10.244.0.7:8080, - 10.244.0.6:8080" in found["default/echo"]["details"]
    )
    assert {
        "frontend": "10.96.0.10:80/tcp", "field": "cluster", "before": ["10.244.0.5:8080", "10.244.0.6:8080"],
        "after": ["10.244.0.5:8080", "10.244.0.7:8080"],
    } in found["default/echo"]["fields"]  # fmt: skip
    assert cli("diff", *files).stdout.endswith("1 added, 1 changed, 0 removed\n")
    assert {r["endpoint"] for r in cli.json("show", "endpoints")} == {"10.244.0.5:8080", "10.244.0.6:8080"}
    other = "iptables" if mode == "nftables" else "nftables"
    assert f"mode: {mode} -> {other}\n" in cli("diff", "--mode", other, "-f", str(cli.manifest)).stdout
    assert "unlike at the last apply, --node-name: n1 -> n2\n" in cli("diff", *files, "--node-name", "n2").stdout


@pytest.mark.parametrize("mode", MODES)
def test_explain_of_what_is_loaded(cli: Cli, mode: str) -> None:
    assert "nothing was applied in this network namespace" in cli("explain", "--service", "default/echo").stderr
    cli.apply(mode)
    inside, outside = cli.json(
        "explain", "--flow", "10.0.0.9 -> 10.96.0.10:80/tcp", "--flow", "10.0.0.9 -> 203.0.113.1:80/tcp"
    )
    assert (inside["verdict"], inside["service"]) == ("dnat", "default/echo:http")
    assert set(inside["endpoints"]) == {"10.244.0.5:8080", "10.244.0.6:8080"}
    assert outside["verdict"] == "drop"
    assert {flow["service"] for flow in cli.json("explain", "--service", "default/echo:http")} == {"default/echo:http"}
    other = "iptables" if mode == "nftables" else "nftables"
    refused = cli("explain", "--mode", other, "--service", "default/echo")
    assert (refused.returncode, f"nothing was applied in {other} mode" in refused.stderr) == (1, True)


def test_a_sysdump_has_what_a_report_needs(cli: Cli, tmp_path: Path) -> None:
    cli.apply("nftables")
    path = tmp_path / "dump.tar.gz"
    records = cli.json("sysdump", "--file", str(path))
    written = {record["part"]: record["bytes"] for record in records}
    assert {r["part"] for r in records if r["problem"]} == {"daemon/healthz.txt", "daemon/metrics.txt"}
    with tarfile.open(path) as archive:
        files = {member.name.partition("/")[2]: archive.extractfile(member) for member in archive.getmembers()}
        texts = {name: file.read().decode() for name, file in files.items() if file is not None}
    assert {name: len(text.encode()) for name, text in texts.items()} == written
    assert json.loads(texts["versions.json"])[0]["kernel"] == os.uname().release
    assert {record["service"] for record in json.loads(texts["show/services.json"])} == {"default/echo:http"}
    assert "map services" in texts["nftables.txt"]
    assert "192.0.2.10" in texts["network/address.txt"]
    assert json.loads(texts["show/drops.json"]) == []
    assert "not to be had" in texts["daemon/healthz.txt"]
    assert path.stat().st_mode & 0o777 == 0o600
    for output in ("table", "json"):
        done = cli("sysdump", "--file", str(path), "-o", output)
        assert f"written to {path}" in (done.stdout if output == "table" else done.stderr), (
            "scripts ask where it is, too"
        )


def test_apply_says_which_node_and_how_long(cli: Cli) -> None:
    applied = cli.apply("nftables")
    assert (applied["node"], applied["services"]) == ("n1", 1)
    assert "192.0.2.10" in applied["addresses"]
    assert applied["waitedSeconds"] * 1000 >= applied["milliseconds"]


def test_watch_prints_again_until_interrupted(cli: Cli) -> None:
    cli.apply("nftables")
    watch = subprocess.Popen(
        ["ip", "netns", "exec", cli.namespace, str(ROOT / "hotplane"), "--state-dir", str(cli.state),
         "show", "services", "--watch", "0.2", "-o", "json"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert watch.stdout is not None
    lines = [json.loads(watch.stdout.readline()) for _ in range(3)]
    watch.send_signal(signal.SIGINT)
    assert watch.wait(60) == 130
    check_view("show-watch", lines[0])
    check_view("show-services", [{"apiVersion": lines[0]["apiVersion"], **record} for record in lines[0]["records"]])
    assert [len(line["records"]) for line in lines] == [3, 3, 3]
    assert lines[0]["time"] < lines[1]["time"] < lines[2]["time"]


@pytest.mark.parametrize("mode", MODES)
def test_apply_again_changes_nothing_and_then_only_what_changed(cli: Cli, mode: str) -> None:
    cli.apply(mode)
    again = cli.apply(mode)
    assert (again["added"], again["changed"], again["removed"]) == (0, 0, 0)
    cli.manifest.write_text(ECHO.replace("10.244.0.6", "10.244.0.7"))
    changed = cli.apply(mode)
    assert (changed["added"], changed["changed"], changed["removed"]) == (0, 1, 0)
    assert {r["endpoint"] for r in cli.json("show", "endpoints")} == {"10.244.0.5:8080", "10.244.0.7:8080"}


@pytest.mark.parametrize(("mode", "other"), list(itertools.permutations(MODES, 2)))
def test_another_mode_replaces_the_first(cli: Cli, mode: str, other: str) -> None:
    cli.apply(other)
    assert cli.apply(mode)["replacedMode"] == other
    assert cli.json("check") == []
    if (mode, other) != ("ebpf", "nftables"):  # the ebpf mode stands on the nftables mode's rules
        assert cli.json("show", "services", "--mode", other) == []
    assert len(cli.json("show", "services")) == 3
    for name, before in ((other, mode), (mode, other)):
        said = cli("apply", "--mode", name, "-f", str(cli.manifest)).stderr
        assert f"the {name} mode has taken over from the {before} mode" in said
    assert "taken over" not in cli("apply", "--mode", mode, "-f", str(cli.manifest)).stderr


CONNECT = """
import socket
listeners = [socket.create_server((address, 8080)) for address in ("10.244.0.5", "10.244.0.6")]
clients = [socket.create_connection(("10.96.0.10", 80), 60) for _ in range(3)]
"""


@pytest.mark.parametrize("mode", MODES)
def test_answer_ping_is_applied_shown_and_removed_or_refused(cli: Cli, mode: str) -> None:
    cli.manifest.write_text(ECHO)
    done = cli("apply", "--mode", mode, "--node-ip", "192.0.2.10", "--answer-ping", "-f", str(cli.manifest))
    if mode == "iptables":
        assert done.returncode == 2
        assert "--answer-ping: the iptables mode has kube-proxy's rules to the letter" in done.stderr
        return
    assert done.returncode == 0, done.stderr
    cli.inside("ip", "route", "add", "10.96.0.0/16", "dev", "lo", "src", "192.0.2.10")
    assert cli.inside("/usr/bin/python3", "-c", PING) == "answered\n"
    assert [c["count"] for c in cli.json("show", "decisions") if c["reason"] == "answered_ping"] == [1]
    assert cli.json("check") == []
    assert cli("cleanup").returncode == 0
    assert cli.inside("nft", "list", "tables") == ""


PING = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
sock.settimeout(60)
sock.sendto(bytes.fromhex("0800 f7ff 0000 0000"), ("10.96.0.10", 0))
while (answer := sock.recvfrom(100))[0][20] != 0 or answer[1][0] != "10.96.0.10":
    pass
print("answered")
"""
LOOPBACK = """
import socket
listeners = [socket.create_server((address, 8080)) for address in ("10.244.0.5", "10.244.0.6")]
client = socket.create_connection(("127.0.0.1", 30080), 60)
assert client.getpeername() == ("127.0.0.1", 30080)
"""


@pytest.mark.parametrize("mode", MODES)
def test_show_remembers_the_client_and_its_connections(cli: Cli, mode: str) -> None:
    for address in ("10.244.0.5/32", "10.244.0.6/32"):
        cli.inside("ip", "address", "add", address, "dev", "lo")
    cli.inside("ip", "route", "add", "10.96.0.0/16", "dev", "lo", "src", "192.0.2.10")
    cli.apply(mode)
    cli.inside("sysctl", "-qw", "net.netfilter.nf_conntrack_tcp_timeout_close=600")  # however long looking takes
    cli.inside("/usr/bin/python3", "-c", CONNECT)  # in no control group of the test's: the slow path serves it

    (client,) = cli.json("show", "affinity")
    assert (client["service"], client["client"]) == ("default/echo:http", "192.0.2.10")
    assert client["endpoint"] in ("10.244.0.5:8080", "10.244.0.6:8080")
    connections = cli.json("show", "connections")
    assert len(connections) == 3
    assert {(c["frontend"], c["endpoint"]) for c in connections} == {("10.96.0.10:80/tcp", client["endpoint"])}
    assert {c["client"].rpartition(":")[0] for c in connections} == {"192.0.2.10"}
    if mode == "ebpf":
        assert {c["by"] for c in connections} == {"slow path"}
        return
    counters = {record["frontend"]: record for record in cli.json("show", "counters")}
    assert counters["10.96.0.10:80/tcp"]["connections"] == 3
    assert counters["10.96.0.10:80/tcp"]["opened"] == (3 if mode == "iptables" else None)


def _damage(cli: Cli, mode: str) -> None:
    if mode in ("nftables", "ebpf"):
        cli.inside("nft", "delete element ip hotplane services { 10.96.0.10 . tcp . 80 }")
    else:
        rule = next(r for r in cli.inside("iptables-legacy", "-t", "nat", "-S").splitlines() if "-d 10.96.0.10" in r)
        chain, position = rule.split()[1], "1"
        cli.inside("iptables-legacy", "-t", "nat", "-D", chain, position)


@pytest.mark.parametrize("mode", MODES)
def test_check_names_the_damage_and_repairs_it(cli: Cli, mode: str) -> None:
    cli.apply(mode)
    _damage(cli, mode)
    found = cli.json("check", status=1)
    assert "10.96.0.10:80/tcp" in {record["frontend"] for record in found}
    assert cli.json("check", "--repair") == found
    assert cli.json("check") == []


def test_check_against_other_manifests(cli: Cli) -> None:
    cli.apply("nftables")
    cli.manifest.write_text(ECHO.replace("10.244.0.6", "10.244.0.7"))
    found = cli.json("check", "-f", str(cli.manifest), status=1)
    assert "endpoint 10.244.0.7:8080 is missing from the cluster set" in {r["difference"] for r in found}
    fields = {(r["where"], r["what"], r["field"], r["wanted"], r["held"]) for r in found}
    assert ("plane", "missing", "cluster", "10.244.0.7:8080", None) in fields
    assert ("plane", "unexpected", "cluster", None, "10.244.0.6:8080") in fields


def test_a_bad_object_is_reported_and_the_rest_applied(cli: Cli) -> None:
    cli.manifest.write_text(ECHO + BAD)
    done = cli("apply", "-f", str(cli.manifest))
    assert done.returncode == 1
    assert "Service default/bad" in done.stderr
    assert len(cli.json("show", "services")) == 3


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("check",), 1, "nothing was applied"),
        (("apply", "-f", "/nonexistent.yaml"), 1, "/nonexistent.yaml: cannot be read"),
        (("apply",), 2, "-f"),
        (("apply", "-f", "/dev/null"), 1, "nothing to use in /dev/null"),
        (("apply", "-f", "/dev/null", "--node-ip", "node"), 2, "'node' is not an IP address"),
        (("apply", "-f", "/dev/null", "--config", "/nonexistent.yaml"), 1, "--config"),
        (("show", "weather"), 2, "weather"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_failures_are_sentences(cli: Cli, arguments: tuple[str, ...], status: int, says: str) -> None:
    done = cli(*arguments)
    assert done.returncode == status
    assert says in done.stderr
    assert "Traceback" not in done.stderr


UNRENDERED = """
apiVersion: v1
kind: Service
metadata: {name: echo, namespace: default}
spec: {ports: [{name: http, port: 80}]}
"""
OTHER = (
    ECHO.replace("echo", "other")
    .replace("10.96.0.10", "10.96.0.11")
    .replace("203.0.113.1", "203.0.113.2")
    .replace(", nodePort: 30080", "")
)


def _loaded(cli: Cli) -> set[str]:
    return {record["service"] for record in cli.json("show", "services")}


def test_services_that_nothing_can_reach_do_not_empty_the_node(cli: Cli) -> None:
    cli.apply("nftables")
    cli.manifest.write_text(UNRENDERED)
    done = cli("apply", "-f", str(cli.manifest))
    assert done.returncode == 1
    assert f"{cli.manifest}: Service default/echo: spec.clusterIP: is not set" in done.stderr
    assert "nothing was changed: default/echo would be removed, for nothing that is loaded would be left" in done.stderr
    assert _loaded(cli) == {"default/echo:http"}
    cli.manifest.write_text(UNRENDERED + "---" + OTHER)
    done = cli("apply", "-f", str(cli.manifest))
    assert done.returncode == 1
    assert "default/echo would be removed, for they are in the manifests, and as they are written" in done.stderr
    assert _loaded(cli) == {"default/echo:http"}
    done = cli("apply", "--prune", "-f", str(cli.manifest))
    assert done.returncode == 1, "an object of no use was named"
    assert _loaded(cli) == {"default/other:http"}
    cli.manifest.write_text(ECHO)
    assert cli("apply", "-f", str(cli.manifest)).returncode == 0, "what is named no more goes unasked"
    assert _loaded(cli) == {"default/echo:http"}


def test_a_manifest_that_cannot_be_read_changes_nothing_unless_asked(cli: Cli) -> None:
    second = cli.manifest.with_name("other.yaml")
    second.write_text(OTHER)
    files = ("-f", str(cli.manifest), "-f", str(second))
    assert cli("apply", *files).returncode == 0
    second.write_text(OTHER.replace("spec:", "spec:\n\t", 1))
    done = cli("apply", *files)
    assert done.returncode == 1
    assert f"{second}: is not valid YAML" in done.stderr
    assert "nothing was changed: 1 of the manifests or objects cannot be read" in done.stderr
    done = cli("apply", "--keep-going", *files)
    assert done.returncode == 1
    assert "default/other would be removed, for they are in none of the manifests that could be read" in done.stderr
    assert _loaded(cli) == {"default/echo:http", "default/other:http"}
    done = cli("apply", "--keep-going", "--prune", *files)
    assert done.returncode == 1
    assert _loaded(cli) == {"default/echo:http"}


@pytest.mark.parametrize("mode", MODES)
def test_the_longest_legal_name(cli: Cli, mode: str) -> None:
    names = {
        "name: echo,": f"name: {'s' * 63},",
        "namespace: default": f"namespace: {'n' * 63}",
        "name: http": f"name: {'p' * 63}",
    }
    long = ECHO.replace("10.96.0.10", "10.96.0.20").replace("203.0.113.1", "203.0.113.2").replace("30080", "30081")
    long = long.replace("service-name: echo", f"service-name: {'s' * 63}").replace("name: echo-1", "name: long-1")
    for old, new in names.items():
        long = long.replace(old, new)
    cli.manifest.write_text(ECHO + "---" + long)
    assert cli.apply(mode)["frontends"] == 6
    assert cli.json("check") == []
    assert cli.apply(mode)["changed"] == 0
    services = {record["service"] for record in cli.json("show", "services")}
    assert len(services) == 2
    assert "default/echo:http" in services


def test_a_node_name_of_nobodys_and_endpoints_without_one_are_told(cli: Cli) -> None:
    def warnings(manifest: str) -> str:
        cli.manifest.write_text(manifest)
        done = cli("apply", "-f", str(cli.manifest))
        assert done.returncode == 0, done.stderr
        return "\n".join(line for line in done.stderr.splitlines() if "node name" in line or "nodeName" in line)

    assert warnings(ECHO) == ""
    nobody = ECHO.replace("nodeName: n1", "nodeName: n3")
    assert "Node n1: metadata.name: node name 'n1': no Node object and no endpoint has this name" in warnings(nobody)
    assert warnings(nobody + "---\napiVersion: v1\nkind: Node\nmetadata: {name: n1}\n") == ""
    local = ECHO.replace("type: LoadBalancer", "type: LoadBalancer\n  externalTrafficPolicy: Local")
    assert warnings(local) == ""
    assert "Service default/echo: endpoints: some have no nodeName" in warnings(local.replace(", nodeName: n2", ""))


def test_node_ports_on_loopback_survive_a_switch_of_modes(cli: Cli, tmp_path: Path) -> None:
    """Each mode has what it needs when the one before has taken its own away; at the end nothing is left."""
    for address in ("10.244.0.5/32", "10.244.0.6/32"):
        cli.inside("ip", "address", "add", address, "dev", "lo")
    config = tmp_path / "config.yaml"
    config.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
        "nodePortAddresses: [primary, localhost]\n"
    )
    routed = Path("/proc/sys/net/ipv4/conf/all/route_localnet")
    for mode, value in (("nftables", "1"), ("iptables", "1"), ("nftables", "1"), ("ebpf", "0"), ("iptables", "1")):
        done = cli("--config", str(config), "apply", "--mode", mode, "--node-ip", "192.0.2.10", "-f", str(cli.manifest))
        assert done.returncode == 0, done.stderr
        asked = subprocess.run(
            ["nsenter", f"--net=/run/netns/{cli.namespace}", "sh", "-c",
             f'echo $$ > {cli.group}/cgroup.procs; exec /usr/bin/python3 -c "$0"', LOOPBACK],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert (mode, asked.stderr) == (mode, "")
        with netns(cli.namespace):
            assert (mode, routed.read_text().strip()) == (mode, value)
    assert cli("cleanup").returncode == 0
    with netns(cli.namespace):
        assert routed.read_text() == "0\n"
