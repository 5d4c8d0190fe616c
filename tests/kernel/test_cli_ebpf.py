"""What the command line shows of the ebpf mode: events, rates, flows, affinity, counters; and which hooks it uses."""

import json
import subprocess
import time

import pytest

from dataplane.kernel.namespaces.netns import netns
from dataplane.planes.ebpf.maps.pins import PinDirectory, default_instance
from tests.json_views import check_view
from tests.kernel.test_cli_apply import ECHO, ROOT, Cli, cli

__all__ = ["cli"]

SERVER = """
import socket, time
listeners = [socket.create_server((address, 8080)) for address in ("10.244.0.5", "10.244.0.6")]
print("ready", flush=True)
time.sleep(600)
"""
CLIENTS = """
import socket, sys, time
clients = [socket.create_connection(("10.96.0.10", 80), 60) for _ in range(5)]
print(clients[0].getpeername()[0], flush=True)
sys.stdin.read()
"""


def inside(cli: Cli, code: str) -> "subprocess.Popen[str]":
    """Python in the namespace, in the control group that gets connect-time balancing; returns once it has printed."""
    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{cli.namespace}", "sh", "-c",
         f'echo $$ > {cli.group}/cgroup.procs; exec /usr/bin/python3 -c "$0"', code],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().strip() in ("ready", "10.96.0.10")
    return process


def used_service(cli: Cli) -> None:
    """A Service without session affinity, which would leave clients to the packets' way."""
    cli.manifest.write_text(ECHO.replace("  sessionAffinity: ClientIP\n", ""))
    for address in ("10.244.0.5/32", "10.244.0.6/32"):
        cli.inside("ip", "address", "add", address, "dev", "lo")
    cli.apply("ebpf")
    inside(cli, SERVER)


def test_monitor_streams_what_happens(cli: Cli) -> None:
    used_service(cli)
    arguments = [
        "--state-dir",
        str(cli.state),
        "monitor",
        "-o",
        "json",
        "--count",
        "5",
        "--seconds",
        "120",
        "--hook",
        "connect",
    ]
    monitor = subprocess.Popen(
        ["ip", "netns", "exec", cli.namespace, str(ROOT / "hotplane"), *arguments, "--service", "default/echo"],
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    events: list[dict[str, object]] = []
    deadline = time.monotonic() + 120
    while monitor.poll() is None and time.monotonic() < deadline:  # until it watches, and then for its five events
        inside(cli, CLIENTS).kill()
    assert monitor.stdout is not None
    events = [json.loads(line) for line in monitor.stdout]
    assert len(events) == 5
    for event in events:
        check_view("monitor", event)
        assert (event["hook"], event["protocol"]) in (("connect", "tcp"), ("getpeername", "tcp"))
        assert event["service"] == "default/echo:http"
    connected = [event for event in events if event["reason"] == "connected"]
    assert connected
    assert all(event["destination"] == "10.96.0.10:80" for event in connected)
    assert all(event["endpoint"] in ("10.244.0.5:8080", "10.244.0.6:8080") for event in connected)
    assert all(str(event["source"]).startswith("netns:") for event in connected)


def test_show_and_top(cli: Cli) -> None:
    used_service(cli)
    inside(cli, CLIENTS)
    connections = cli.json("show", "connections")
    assert [(c["frontend"], c["state"], c["by"]) for c in connections] == [
        ("10.96.0.10:80/tcp", "connected", "connect")
    ] * 5
    assert cli.json("show", "affinity") == []
    (echo,) = cli.json("show", "counters")
    assert (echo["service"], echo["connections"]) == ("default/echo:http", 5)
    ways = {(way["hook"], way["reason"]): way["count"] for way in cli.json("show", "decisions")}
    assert ways["connect", "connected"] == 5
    (row,) = cli.json("top", "--count", "1", "--interval", "0.2")["records"]
    assert {"connected", "no_endpoint"} <= {each["reason"] for each in cli.json("monitor", "--reasons")}
    assert (row["service"], row["connections"], row["connections/s"]) == ("default/echo:http", 5, 0.0)


def test_session_affinity_is_the_packets_business(cli: Cli) -> None:
    used_service(cli)
    cli.manifest.write_text(ECHO)
    cli.apply("ebpf")
    cli.inside("ip", "route", "add", "10.96.0.0/16", "dev", "lo", "src", "192.0.2.10")
    inside(cli, CLIENTS)
    (client,) = cli.json("show", "affinity")
    assert (client["service"], client["client"]) == ("default/echo:http", "192.0.2.10")
    assert {c["endpoint"] for c in cli.json("show", "connections")} == {client["endpoint"]}
    (counted,) = [c for c in cli.json("show", "decisions") if c["reason"] == "affinity"]
    assert (counted["hook"], counted["count"]) == ("connect", 5)


def test_drops_say_why(cli: Cli) -> None:
    cli.manifest.write_text(ECHO.partition("---")[0])  # no endpoints
    cli.apply("ebpf")
    cli.inside("ip", "route", "add", "10.96.0.0/16", "dev", "lo", "src", "192.0.2.10")
    refused = inside(
        cli, "import socket\nprint('ready', flush=True)\nsocket.create_connection(('10.96.0.10', 80), 0.5)"
    )
    assert refused.wait(60) != 0
    by_program, by_rules = cli.json("show", "drops")
    assert (by_program["hook"], by_program["reason"], by_program["count"]) == ("connect", "no_endpoint", 1)
    assert by_program["what"] == "left to the slow path to refuse"
    assert (by_rules["hook"], by_rules["reason"], by_rules["count"]) == ("nftables", "no_endpoint", 1)


@pytest.mark.parametrize("command", ["monitor", "top"])
def test_other_modes_say_what_they_can_show(cli: Cli, command: str) -> None:
    cli.apply("nftables")
    done = cli(command)
    assert done.returncode == 1
    said = cli.json(command, status=1)
    assert (said["counted"], "nftables mode has none" in said["why"]) == (False, True)
    assert "nftables mode has none" in done.stderr
    assert "show connections" in done.stderr


@pytest.mark.parametrize(
    ("hooks", "links"),
    [
        ("connect", {"connect4", "recvmsg6"}),
        ("tc", {"tc_ingress", "tc_egress"}),
        ("tc,xdp", {"tc_ingress", "tc_egress", "xdp_native"}),
    ],
)
def test_only_the_hooks_that_were_asked_for(cli: Cli, hooks: str, links: set[str]) -> None:
    subprocess.run(["ip", "-n", cli.namespace, "link", "add", "up0", "type", "veth", "peer", "name", "up1"], check=True)
    for command in (
        ["addr", "add", "192.0.2.20/24", "dev", "up0"],
        ["link", "set", "up0", "up"],
        ["link", "set", "up1", "up"],
    ):
        subprocess.run(["ip", "-n", cli.namespace, *command], check=True)
    done = cli("apply", "--mode", "ebpf", "--hooks", hooks, "--node-ip", "192.0.2.20", "-f", str(cli.manifest))
    assert done.returncode == 0, done.stderr
    with netns(cli.namespace):
        names = {name.partition("-")[0] for name in PinDirectory(default_instance()).links()}
    assert links <= names
    assert names <= links | ({n for n in names if not n.startswith(("tc_", "xdp_"))} if hooks == "connect" else set())
    assert cli.json("check") == []  # with the hooks that were applied, not with all


def test_a_hook_that_cannot_work_is_off_alone_and_said_once(cli: Cli) -> None:
    done = cli("--cgroup", "/proc", "apply", "--mode", "ebpf", "-f", str(cli.manifest))
    assert done.returncode == 0
    assert done.stderr.count("the connect hook is off") == 1
    assert cli.json("check") == []
    flow = "192.0.2.10 -> 10.96.0.10:80/tcp"
    assert "connect4" not in cli("explain", flow).stdout  # which a look at the manifests alone would have it meet
    assert "connect4" in cli("explain", "--mode", "ebpf", "-f", str(cli.manifest), flow).stdout


def test_there_is_no_such_hook(cli: Cli) -> None:
    done = cli("apply", "--mode", "ebpf", "--hooks", "connect,netkit", "-f", str(cli.manifest))
    assert done.returncode == 2
    assert "netkit" in done.stderr
