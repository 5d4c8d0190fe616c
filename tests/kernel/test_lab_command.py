"""`hotplane lab` as people call it."""

import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ctl.lab import call
from ctl.main import main
from dataplane.lab.lab import Lab
from dataplane.planes.registry import MODES
from tests.json_views import check_output

PATIENCE = 240.0
QUICK = 0.5
"""Seconds after which silence is believed; an answer may take a busy machine long."""
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def name() -> Iterator[str]:
    name = f"cmd-{os.getpid()}"
    yield name
    Lab.remove(name)


def hotplane(*arguments: str, status: int = 0) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, "-m", "ctl.main", *arguments], check=False, capture_output=True, text=True, timeout=PATIENCE
    )
    assert done.returncode == status, done.stderr
    return done


class Said(NamedTuple):
    """What a command wrote."""

    stdout: str
    stderr: str


def here(*arguments: str, status: int = 0) -> Said:
    """The same in this process, without half a second for the start of another one: for commands that end with the
    work they do, of which a test needs many."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        ended = main(arguments)
    assert ended == status, err.getvalue()
    return Said(out.getvalue(), err.getvalue())


def records(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = check_output(arguments, here(*arguments, "-o", "json").stdout)
    return found


def test_up_status_exec_down(name: str) -> None:
    up = records(
        "lab",
        "up",
        "--name",
        name,
        "--nodes",
        "2",
        "--pods",
        "1,2",
        "--ipv6",
        "--routing",
        "vxlan",
        "--pod-link",
        "bridge",
    )
    assert [place["place"] for place in up] == ["node1", "pod1-1", "node2", "pod2-1", "pod2-2", "client", "net"]
    assert {place["state"] for place in up} == {"up"}
    assert [len(place["pids"]) for place in up] == [0, 1, 0, 1, 1, 0, 0]  # an echo server in each pod
    assert up[1]["addresses"] == ["10.244.1.11", "fd00:10:244:1::11"]
    assert records("lab", "status", "--name", name) == up
    assert [place for place in records("lab", "status") if place["lab"] == name] == up
    inside = hotplane("lab", "exec", "--name", name, "pod1-1", "--", "ip", "-br", "address", "show", "eth0")
    assert "10.244.1.11/24" in inside.stdout
    connect = "import socket; s = socket.create_connection(('fd00:10:244:2::12', 8080), 60)"
    script = connect + "; s.send(b'x\\n'); print(s.recv(999))"
    assert "pod2-2" in hotplane("lab", "exec", "--name", name, "client", sys.executable, "-c", script).stdout
    hotplane("lab", "exec", "--name", name, "node1", "--", "sh", "-c", "exit 7", status=7)
    assert hotplane("lab", "exec", "--name", name, "node1", "--", "uname", "-n").stdout == "node1\n"
    hotplane("lab", "down", "--name", name)
    hotplane("lab", "down", "--name", name)
    assert f"there is no lab {name}" in hotplane("lab", "status", "--name", name, status=1).stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("up", "--nodes", "0"), "0 nodes; use 1 to 50"),
        (("up", "--pods", "1,2", "--nodes", "3"), "2 pod counts for 3 nodes"),
        (("up", "--echo-port", "70000"), "70000 is not a port"),
        (("up", "--routing", "pigeon"), "pigeon"),
        (("exec", "node1"), "the command is missing"),
        ((), "ACTION"),
    ],
)
def test_wrong_usage_is_exit_2_and_says_what(name: str, arguments: tuple[str, ...], says: str) -> None:
    named = (arguments[0], "--name", name, *arguments[1:]) if arguments else ()
    assert says in here("lab", *named, status=2).stderr


def test_exec_says_what_is_not_there(name: str) -> None:
    assert f"there is no lab {name}" in hotplane("lab", "exec", "--name", name, "node1", "true", status=1).stderr
    hotplane("lab", "up", "--name", name, "--nodes", "1", "--pods", "0")
    assert "has no pod1-1; it has node1, client, net" in hotplane(
        "lab", "exec", "--name", name, "pod1-1", "true", status=2
    ).stderr  # fmt: skip
    assert "no-such-program cannot be run" in hotplane(
        "lab", "exec", "--name", name, "node1", "no-such-program", status=1
    ).stderr  # fmt: skip


def calls(name: str, *words: str, status: int = 0, seconds: float = PATIENCE) -> dict[str, dict[str, Any]]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(call, "SECONDS", seconds)
        done = here("lab", "call", "--name", name, *words, "-o", "json", status=status)
    return {record["answer"]: record for record in check_output(("lab", "call"), done.stdout)}


def _named(name: str, servers: set[str]) -> None:
    """Places and Services by their names, in a node, a pod and outside; the programs that ask for them are there."""
    for place, target in (("node1", "web"), ("pod2-2", "web.default.svc.cluster.local"), ("client", "node3:30080")):
        got = hotplane("lab", "exec", "--name", name, place, "--", "curl", "-sS", "-m", "60", f"http://{target}/")
        assert json.loads(got.stdout)["server"] in servers
    for words in (("ping", "-c1", "-W60", "pod3-1"), ("dig", "-v"), ("getent", "ahosts", "kube-dns.kube-system.svc")):
        hotplane("lab", "exec", "--name", name, "pod1-1", "--", *words)


def _forwards(name: str) -> None:
    """Nodes of a lab know each other, whatever announces them elsewhere."""
    records("lab", "apply", "--name", name, "-f", str(EXAMPLES), "--mode", "ebpf", "--lb-mode", "dsr")
    inside = ("lab", "exec", "--name", name, "node3", "--", sys.executable, "-m", "ctl.main")
    frontends = json.loads(hotplane(*inside, "show", "services", "-o", "json").stdout)
    ways = {record["frontend"]: record["forwarding"] for record in frontends}
    assert (ways["*:30080/tcp"], ways["*:30081/tcp"], ways["10.96.0.80:80/tcp"]) == ("dsr", "", "")
    endpoints = json.loads(hotplane(*inside, "show", "endpoints", "-o", "json").stdout)
    assert {"", "dsr by 172.18.0.1 in VXLAN", "dsr by 172.18.0.2 in VXLAN"} <= {
        record["forwarding"] for record in endpoints
    }
    [told] = json.loads(
        hotplane(*inside, "explain", "--flow", "198.51.100.2 -> 172.18.0.3:30080/tcp", "-o", "json").stdout
    )
    assert not told["masquerade"]
    assert set(told["forwarding"].values()) == {"dsr by 172.18.0.1 in VXLAN", "dsr by 172.18.0.2 in VXLAN"}
    refused = here(
        "lab", "apply", "--name", name, "-f", str(EXAMPLES), "--mode", "nftables", "--lb-mode", "dsr", status=1
    )
    assert "--lb-mode dsr: the nftables mode can only do SNAT towards other nodes" in refused.stderr


def test_the_examples_on_every_node_called_in_every_mode(name: str) -> None:
    """examples/README.md as it stands, and what its table says of each Service."""
    hotplane("lab", "up", "--name", name, "--nodes", "3", "--pods", "2", "--ipv6")
    web = {"pod1-1", "pod2-1", "pod3-1"}
    for mode in MODES:
        loaded = records("lab", "apply", "--name", name, "-f", str(EXAMPLES), "--mode", mode)
        assert [(node["node"], node["mode"], node["problems"]) for node in loaded] == [
            (node, mode, 0) for node in ("node1", "node2", "node3")
        ]
        found = calls(name, "pod1-2", "default/web", "60")
        assert found.keys() == web
        assert {tuple(record["seenAs"]) for record in found.values()} == {("10.244.1.12",)}
        assert calls(name, "pod1-2", "[fd00:10:96::80]:80", "60").keys() == web
        assert calls(name, "client", "node3:30080", "60").keys() == {"pod1-1", "pod1-2", "pod2-1"}
        local = calls(name, "client", "node2:30081", "10")
        assert {answer: record["seenAs"] for answer, record in local.items()} == {"pod2-1": ["198.51.100.2"]}
        assert calls(name, "client", "node3:30081", "2", status=1, seconds=QUICK).keys() == {"timeout"}
        assert len(calls(name, "pod2-2", "default/sticky:http", "10")) == 1
        assert calls(name, "client", "203.0.113.10:80")
        assert calls(name, "node1", "kube-system/kube-dns:dns", "40").keys() == {"pod1-1", "pod2-1"}
    for asked in ("web", "web:80", "web:http/tcp", "kube-dns:53/udp"):  # names as explain and trace take them
        assert calls(name, "pod1-2", asked)
    curl = "import urllib.request as r; print(r.urlopen('http://10.96.0.80/', timeout=60).read().decode())"
    answer = json.loads(hotplane("lab", "exec", "--name", name, "pod1-2", sys.executable, "-c", curl).stdout)
    assert answer["server"] in web
    _named(name, {*web, "pod1-2"})
    _forwards(name)
    assert "no node of lab" in here("lab", "call", "--name", name, "pod1-1", "default/none", status=1).stderr
    assert "the port is missing" in here("lab", "call", "--name", name, "pod1-1", "node1", status=2).stderr
    assert "has no such node" in here(
        "lab", "apply", "--name", name, "-f", str(EXAMPLES), "--node", "node9", status=2
    ).stderr  # fmt: skip
