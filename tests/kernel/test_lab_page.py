"""`hotplane lab ui` and `run --ui` with a real lab: driven by keys in a browser, real packets, changes as they come."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ctl.ui.lab import LabView
from ctl.ui.view import Look
from dataplane.errors import HotplaneError
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from tests.browser import Tab, browser
from tests.kernel.daemon_lab import NodeDaemon, until
from tests.kernel.test_lab_command import EXAMPLES, hotplane
from tests.unit.ports import free_ports

ECHO = 8080
REMOVED = '  - {addresses: ["10.244.3.11"], nodeName: node3}\n'


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(f"page-{os.getpid()}", nodes=3, pods=2, ipv6=True)) as lab:
        lab.start_echo(lab.pods, [ECHO])
        yield lab


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("state"))


def apply(lab: Lab, state: str, file: Path, *more: str) -> None:
    words = ["-f", str(file), *more]
    hotplane("--state-dir", state, "lab", "apply", "--name", lab.spec.name, "--mode", "ebpf", *words)


@pytest.fixture(scope="module")
def page(lab: Lab, state: str) -> Iterator[str]:
    apply(lab, state, EXAMPLES, "--node", "node3")  # where all packets of these tests go in
    words = [sys.executable, "-m", "ctl.main", "--state-dir", state, "lab", "ui", "--name", lab.spec.name, "--listen"]
    with free_ports() as port:
        address = f"127.0.0.1:{port}"
        process = subprocess.Popen([*words, address], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline().startswith(f"http://{address}/ shows lab {lab.spec.name}")
        yield f"http://{address}/"
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")


_FOCUS = """(({dataset, id}) => ({place: dataset?.place, to: dataset?.frontend, id}))(document.activeElement)"""
_PATHS = """[...document.querySelectorAll("#paths .path")].map(each => ({
  modes: each.dataset.modes, head: each.querySelector("h3").textContent,
  texts: [...each.querySelectorAll("svg text")].map(text => text.textContent)}))"""
_SENT = "[...document.querySelectorAll('#sent tbody tr')].map(row => [...row.children].map(cell => cell.textContent))"
_REFUSED = "[...document.querySelectorAll('#events .refused')].map(each => each.lastChild.textContent)"
_WEB = """[...document.querySelectorAll("#events li")].map(each => each.lastChild.textContent)
  .filter(text => text.includes("default/web:http"))"""


async def tab_to(tab: Tab, key: str, value: str) -> None:
    """Press Tab until what has the focus is this."""
    for _ in range(120):
        if (await tab.value(_FOCUS)).get(key) == value:
            return
        await tab.press("Tab")
    raise AssertionError(f"no Tab leads to {key} {value}")


async def by_keys(page: str) -> dict[str, Any]:
    """Choose a source and a frontend, and send packets, by keys alone."""
    async with browser() as tab:
        await tab.open(page, 1440, "light")
        await tab.until("document.querySelectorAll('[data-place]').length == 10")
        await tab_to(tab, "place", "client")
        await tab.press("Enter")
        await tab_to(tab, "id", "search")
        await tab.write("np-")
        await tab.until("document.querySelectorAll('#services article').length == 2")
        await tab_to(tab, "to", "172.18.0.3:30080/tcp")
        await tab.press("Enter")
        await tab.until("document.querySelectorAll('#paths .path').length")
        paths = await tab.value(_PATHS)
        await tab_to(tab, "id", "send")
        await tab.press("Enter")
        await tab.until("document.querySelector('#sent tbody')")
        sent = await tab.value(_SENT)
        await tab.until("document.getElementById('counters').textContent.includes('np-cluster')")
        return {"paths": paths, "sent": sent, "said": list(tab.said)}


def test_a_person_with_keys_sees_the_path_and_where_real_packets_go(page: str) -> None:
    found = asyncio.run(by_keys(page))
    assert found["said"] == []
    assert " ".join(path["modes"] for path in found["paths"]).split() == ["iptables", "nftables", "ebpf"]
    for path in found["paths"]:
        assert path["head"].endswith(": dnat")
        assert {"node3  172.18.0.3", "172.18.0.3 → 10.244.2.11:8080", "pod2-1", "SNAT"} <= {*path["texts"]}
    assert {row[0] for row in found["sent"]} == {"pod1-1", "pod1-2", "pod2-1"}
    assert sum(int(row[1]) for row in found["sent"]) == 100
    assert {row[3] for row in found["sent"]} == {"172.18.0.3"}


async def changes(page: str, change: Any) -> tuple[list[str], list[str], list[str]]:
    """What the page says of refusals while packets are refused, and of a change while it is open."""
    async with browser() as tab:
        await tab.open(page, 390, "dark")
        await tab.until("document.querySelectorAll('[data-frontend]').length")
        await tab.value("document.querySelector('[data-frontend=\"172.18.0.3:30081/tcp\"]').click()")
        await tab.until("document.querySelector('#paths .refused')")
        await tab.until("document.getElementById('counters').textContent")
        await tab.value("document.getElementById('count').value = 3, document.getElementById('send').click()")
        await tab.until("document.querySelector('#sent tbody')")
        sent = await tab.value(_SENT)
        refused = await tab.until(f"({_REFUSED}).length && ({_REFUSED})")
        await asyncio.to_thread(change)
        events = await tab.until(f"({_WEB}).length && ({_WEB})")
        assert tab.said == []
        return [row[0] for row in sent], refused, events


def test_refusals_and_changes_come_as_they_happen(page: str, lab: Lab, state: str, tmp_path: Path) -> None:
    file = tmp_path / "web.yaml"
    text = (EXAMPLES / "cluster-ip.yaml").read_text()
    assert REMOVED in text
    file.write_text(text.replace(REMOVED, ""))
    sent, refused, events = asyncio.run(changes(page, lambda: apply(lab, state, file, "--node", "node3")))
    assert sent == ["timeout"]
    assert any(text.startswith("node3: 198.51.100.2 → 172.18.0.3:30081/tcp: ") for text in refused)
    assert events == ["node3: default/web:http: 10.244.3.11:8080 went"]


DAEMON = "127.0.0.1:8099"


def asked(lab: Lab, path: str, *words: str) -> Any:
    """What the daemon's page answers."""
    return json.loads(lab.run("node2", ["curl", "-sS", *words, f"http://{DAEMON}{path}"]).stdout)


def test_the_page_of_a_daemon(lab: Lab, tmp_path: Path) -> None:
    mode = "nftables"
    folder = tmp_path / "manifests"
    folder.mkdir()
    file = folder / "web.yaml"
    text = (EXAMPLES / "cluster-ip.yaml").read_text()
    file.write_text(text)
    daemon = NodeDaemon(lab, "node2", tmp_path, mode)
    daemon.start(
        *("-f", str(folder), "--ui", DAEMON, "--healthz-bind-address", "127.0.0.1:0", "--takeover", "--answer-ping")
    )
    try:
        overview = asked(lab, "/api/overview")
        shown = [overview[key] for key in ("title", "mode", "sends", "token")]
        assert shown == ["node node2", mode, False, ""]
        services = asked(lab, "/api/services?search=WEB")["services"]
        [found] = [each for each in services if each["name"] == "default/web:http"]
        assert "10.96.0.80:80/tcp" in [each["destination"] for each in found["frontends"]]
        explained = asked(lab, "/api/explain?source=10.244.2.12&destination=10.96.0.80:80/tcp")
        assert [each["mode"] for each in explained if each["loaded"]] == [mode]
        assert {each["verdict"] for each in explained} == {"dnat"}
        assert all("node3" in each["svg"] for each in explained)
        call = ("-XPOST", "-H", "Content-Type: application/json", "-d", "{}")
        assert "token" in asked(lab, "/api/call", *call)["error"]
        follow = ["curl", "-sSN", f"http://{DAEMON}/api/events"]
        watch = lab.spawn("node2", follow, stdout=subprocess.PIPE, text=True)
        assert watch.stdout is not None
        assert "counters" in next(line for line in watch.stdout if line.startswith("event"))
        lab.run("pod2-1", ["ping", "-c", "1", "-W", "60", "10.96.0.80"])
        lab.run("pod2-1", ["curl", "-sS", "http://10.96.0.80:99/"], check=False)
        line = next(line for line in watch.stdout if '"pings":1' in line and "unknown_port" in line)
        [counted] = json.loads(line.removeprefix("data: "))
        assert counted["note"].startswith("the nftables mode counts what it refuses, not connections; ")
        file.write_text(text.replace(REMOVED, ""))
        changed = next(line for line in watch.stdout if "10.244.3.11" in line)
        assert "default/web:http: 10.244.3.11:8080 went" in changed
        watch.terminate()
        watch.wait()
    finally:
        until(lambda: daemon.stop() == 0, "the daemon ends")
        daemon.run("cleanup")


def test_refusals_of_rules_are_counted(lab: Lab, tmp_path: Path) -> None:
    """In nftables mode no program reports packets; the rules count what they refuse, by reason."""
    words = ("lab", "apply", "--name", lab.spec.name, "-f", str(EXAMPLES / "node-port.yaml"), "--node", "node1")
    hotplane("--state-dir", str(tmp_path), *words, "--mode", "nftables")
    view = LabView(lab, tmp_path)

    async def looks() -> tuple[Look, Look]:
        before = await view.look()
        await view.call("10.244.1.11", "10.96.0.81:99/tcp", 3)
        return before, await view.look()

    before, after = asyncio.run(looks())
    view.close()
    assert before.events == ()
    [event] = after.events
    assert (event.kind, event.where) == ("refusal", "node1")
    assert event.text.endswith(": 3 more")
    assert [counters.note for counters in after.counters] == ["", "nothing is loaded", "nothing is loaded"]


def test_a_lab_that_goes_away_is_told(tmp_path: Path) -> None:
    with Lab.up(LabSpec(f"gone-{os.getpid()}", nodes=1, pods=0)) as lab:
        view = LabView(lab, tmp_path)
    with pytest.raises(HotplaneError, match=r"lab gone-\d+: .* is not there: is it down"):
        asyncio.run(view.overview())
    view.close()
