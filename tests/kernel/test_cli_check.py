"""check beside a daemon, whose changes come between its looks at the plan and at the kernel."""

import json
from typing import Any

import pytest

from ctl.commands import check
from ctl.parser import parse
from ctl.store import state
from ctl.store.drift import Difference
from dataplane.kernel.namespaces.netns import netns
from tests.kernel.test_cli_apply import ECHO, MODES, Cli, _damage, cli

__all__ = ["cli"]


def checked(cli: Cli, mode: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    """Exit status and records of `check` in this process."""
    common = ["--state-dir", str(cli.state), "--node-name", "n1", "--cgroup", str(cli.group), "--mode", mode]
    with netns(cli.namespace):
        status = check.run(parse([*common, "check", "-o", "json"]))
    return status, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("changes", [1, 2], ids=["at the first look", "at both looks"])
@pytest.mark.parametrize("mode", MODES)
def test_a_change_that_comes_meanwhile_is_no_difference(
    cli: Cli, mode: str, changes: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.apply(mode)
    compare, addresses = check._differences, [f"10.244.0.{7 + number}" for number in range(changes)]

    def differences(*arguments: Any) -> list[Difference]:
        if addresses:
            cli.manifest.write_text(ECHO.replace("10.244.0.6", addresses.pop()))
            cli.apply(mode)
        return compare(*arguments)

    monkeypatch.setattr(check, "_differences", differences)
    monkeypatch.setattr(state, "ask_daemon", lambda folder: True)
    assert checked(cli, mode, capsys) == (0, [])
    assert addresses == []


@pytest.mark.parametrize("mode", MODES)
def test_damage_is_told_beside_a_daemon(
    cli: Cli, mode: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cli.apply(mode)
    _damage(cli, mode)
    found = cli.json("check", status=1)
    monkeypatch.setattr(state, "ask_daemon", lambda folder: True)
    status, records = checked(cli, mode, capsys)
    assert status == 1
    assert records == found
