"""Connect time off from the command line: Pods and Namespaces in manifests, options, and what show and doctor tell."""

import subprocess
from pathlib import Path

import pytest

from ctl.probes.off import probe_off
from dataplane.kernel.namespaces import cgroup
from dataplane.kernel.namespaces.netns import netns
from dataplane.planes.ebpf.maps.pins import default_instance
from dataplane.planes.ebpf.views.records import counters, open_instance
from dataplane.planes.finding import Status
from dataplane.planes.registry import mode_of
from tests.kernel.test_cli_apply import ECHO, Cli, cli

__all__ = ["cli"]

PODS = """---
apiVersion: v1
kind: Namespace
metadata: {name: mesh, labels: {service.hotplane.io/connect-time: "off"}}
---
apiVersion: v1
kind: Pod
metadata: {name: sidecar, namespace: mesh, uid: %s}
spec: {nodeName: n1}
---
apiVersion: v1
kind: Pod
metadata: {name: other, namespace: mesh, uid: elsewhere, labels: {service.hotplane.io/connect-time: "on"}}
spec: {nodeName: n1}
---
apiVersion: v1
kind: Pod
metadata: {name: wrong, namespace: default, uid: wrong, annotations: {service.hotplane.io/connect-time: "no"}}
spec: {nodeName: n1}
"""
PLAIN = ECHO.replace("  sessionAffinity: ClientIP\n", "")
ASK = """
import socket
try:
    socket.create_connection(("10.96.0.10", 80), 0.2)
except OSError:
    pass
"""


def connect(cli: Cli, group: Path) -> None:
    """A process of this group asks for a Service whose endpoints nobody is."""
    subprocess.run(
        ["nsenter", f"--net=/run/netns/{cli.namespace}", "sh", "-c",
         f'echo $$ > {group}/cgroup.procs; exec /usr/bin/python3 -c "$0"', ASK],
        check=True,
    )  # fmt: skip


def counted(cli: Cli) -> dict[str, int]:
    """Ways out of the connect programs so far."""
    with netns(cli.namespace):
        maps = open_instance(default_instance())
    assert maps is not None
    with maps:
        return counters(maps).get("connect", {})


def test_pods_of_manifests_and_groups_of_options(cli: Cli) -> None:
    uid = f"{cli.namespace}".encode().hex()
    pod, unit = cli.group / "kubepods" / f"pod{uid}", cli.group / "unit"
    for group in (pod, unit):
        group.mkdir(parents=True)
    cli.manifest.write_text(PLAIN + PODS % uid)
    path = f"/{unit.relative_to(cgroup.root())}"
    arguments = ("apply", "--mode", "ebpf", "-f", str(cli.manifest), "--connect-time-off-cgroup", path)
    done = cli(*arguments, "--connect-time-off-netns", "nobody")
    assert done.returncode == 1, "one Pod has a fault"
    assert (
        f"{cli.manifest}: Pod default/wrong: metadata.annotations[service.hotplane.io/connect-time]: is 'no'"
        in done.stderr
    )
    assert (
        "connect time is not off for --connect-time-off-netns nobody (command line): /run/netns/nobody" in done.stderr
    )
    shown = {record["what"]: record for record in cli.json("show", "connect-time")}
    assert {what: (record["why"], record["inEffect"]) for what, record in shown.items()} == {
        f"--connect-time-off-cgroup {path}": ("command line", True),
        "--connect-time-off-netns nobody": ("command line", False),
        "Pod mesh/sidecar": ("label of Namespace mesh", True),
    }
    assert shown["Pod mesh/sidecar"]["where"] == f"control group /{pod.relative_to(cgroup.root())}"
    for group, off in ((pod, True), (unit, True), (cli.group, False)):
        before = counted(cli)
        connect(cli, group)
        after = counted(cli)
        reason = "switched_off" if off else "connected"
        assert after.get(reason, 0) == before.get(reason, 0) + 1, group
    with netns(cli.namespace):
        found = list(probe_off(mode_of("ebpf"), cli.state))
    assert [finding.status for finding in found].count(Status.OK) == 2
    [missing] = [finding.detail for finding in found if finding.status is Status.LIMITED]
    assert missing.startswith("not in effect for --connect-time-off-netns nobody")
    cli.manifest.write_text(PLAIN)
    assert cli.apply("ebpf")["problems"] == 0
    assert cli.json("show", "connect-time") == []
    before = counted(cli)
    connect(cli, pod)
    assert counted(cli)["connected"] == before["connected"] + 1


def test_nobody_and_everybody_are_told_apart(cli: Cli) -> None:
    """An empty list may mean that connect time is on for all, or that there is none."""
    cli.manifest.write_text(PLAIN)

    def shown() -> str:
        return cli("show", "connect-time").stderr

    assert "nothing was applied" in shown()
    cli.apply("nftables")
    assert shown() == "the nftables mode never balances at connect time\n"
    cli.apply("ebpf")
    assert shown() == "connect time is off for nobody in this network namespace\n"
    assert cli("apply", "--mode", "ebpf", "--hooks", "tc", "-f", str(cli.manifest)).returncode == 0
    assert "off for everybody" in shown()


@pytest.mark.parametrize("what", ["services", "drops", "decisions"])
def test_views_of_nothing_say_that_nothing_was_applied(cli: Cli, what: str) -> None:
    assert f"nothing was applied in this network namespace (no state in {cli.state})" in cli("show", what).stderr
    assert "nothing was applied" not in cli("show", what, "--mode", "iptables").stderr, "it is what was asked for"


@pytest.mark.parametrize("command", ["top", "monitor"])
def test_so_do_streams(cli: Cli, command: str) -> None:
    assert "nothing was applied in this network namespace" in cli(command).stderr
