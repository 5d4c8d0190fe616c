"""`hotplane lab` as people call it."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from dataplane.lab.lab import Lab

PATIENCE = 60.0


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


def records(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(hotplane(*arguments, "-o", "json").stdout)
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
    connect = "import socket; s = socket.create_connection(('fd00:10:244:2::12', 8080), 10)"
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
    assert says in hotplane("lab", *named, status=2).stderr


def test_exec_says_what_is_not_there(name: str) -> None:
    assert f"there is no lab {name}" in hotplane("lab", "exec", "--name", name, "node1", "true", status=1).stderr
    hotplane("lab", "up", "--name", name, "--nodes", "1", "--pods", "0")
    assert "has no pod1-1; it has node1, client, net" in hotplane(
        "lab", "exec", "--name", name, "pod1-1", "true", status=2
    ).stderr  # fmt: skip
    assert "no-such-program cannot be run" in hotplane(
        "lab", "exec", "--name", name, "node1", "no-such-program", status=1
    ).stderr  # fmt: skip
