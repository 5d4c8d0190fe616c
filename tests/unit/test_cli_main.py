"""The command line frame: which words are understood where, and what becomes of errors."""

import argparse
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from ctl import VERSION
from ctl import main as frame
from dataplane.errors import HotplaneError, UsageError

ROOT = Path(__file__).resolve().parents[2]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert [name for name in frame.COMMANDS if f"    {name} " not in printed] == []


@pytest.mark.parametrize("name", list(frame.COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.main([name, "--help"]) == 0
    assert f"usage: hotplane {name}" in capsys.readouterr().out.replace(" [-h]", "")


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["frobnicate"],
        ["doctor", "--frobnicate"],
        ["--mode", "ipvs", "doctor"],
        ["--node-nam", "x", "doctor"],
        ["doctor", "extra"],
        ["--zone"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_2(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.main(argv) == 2
    assert "error:" in capsys.readouterr().err


def test_global_options_before_and_after_the_command() -> None:
    before = frame.parse(["--mode", "iptables", "--node-ip", "192.0.2.1", "--zone=a", "doctor", "-o", "json"])
    after = frame.parse(["doctor", "-o", "json", "--mode", "iptables", "--node-ip", "192.0.2.1", "--zone=a"])
    assert vars(before) == vars(after)
    assert (before.mode, before.node_ip, before.zone, before.state_dir) == (
        "iptables", ("192.0.2.1",), "a", "/run/hotplane",
    )  # fmt: skip


def test_repeatable_options_add_up_across_the_command() -> None:
    args = frame.parse(["--node-ip", "192.0.2.1", "--node-ip", "192.0.2.2", "doctor", "--node-ip", "2001:db8::1"])
    assert args.node_ip == ("192.0.2.1", "192.0.2.2", "2001:db8::1")


def test_the_option_after_the_command_wins() -> None:
    assert frame.parse(["--zone", "a", "doctor", "--zone", "b"]).zone == "b"


def test_a_value_that_is_a_command_name_is_not_the_command() -> None:
    args = frame.parse(["--node-name", "apply", "doctor"])
    assert (args.command, args.node_name) == ("doctor", "apply")


def _with_command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(args: argparse.Namespace) -> int:
        raise error

    def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        subparsers.add_parser("trial")

    monkeypatch.setitem(sys.modules, "trial_command", SimpleNamespace(register=register, run=run))
    monkeypatch.setitem(frame.COMMANDS, "trial", frame.Command("trial_command", "trial"))


@pytest.mark.parametrize(("error", "status"), [(HotplaneError("no such plane"), 1), (UsageError("no such plane"), 2)])
def test_expected_errors_are_one_sentence(
    error: HotplaneError, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _with_command(monkeypatch, error)
    assert frame.main(["trial"]) == status
    assert capsys.readouterr().err == "hotplane: no such plane\n"


def test_unexpected_errors_keep_their_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    _with_command(monkeypatch, ZeroDivisionError("a defect"))
    with pytest.raises(ZeroDivisionError, match="a defect"):
        frame.main(["trial"])


def test_interrupt_is_quiet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _with_command(monkeypatch, KeyboardInterrupt())
    assert frame.main(["trial"]) == 130
    assert capsys.readouterr().err == ""


def test_a_reader_that_leaves_is_no_traceback() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "ctl.main", "--help"],
        cwd=ROOT,
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_help_imports_nothing_heavy() -> None:
    """Start-up stays fast because only argparse is loaded; modules, not milliseconds, are what a test can hold."""
    script = (
        "import sys, ctl.main; ctl.main.main(['--help']); "
        "heavy = {'msgspec', 'pyroute2', 'yaml', 'bcc', 'nftables'}; "
        "print(sorted(heavy & sys.modules.keys()), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr == "[]\n"


@pytest.mark.parametrize("argv", [["--version"], ["run", "--version"], ["--mode", "ebpf", "check", "--version"]])
def test_the_version_is_told_everywhere(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.main(argv) == 0
    assert capsys.readouterr().out == f"hotplane {VERSION}\n"
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION
