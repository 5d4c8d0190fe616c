"""The command line frame: which words are understood where, and what becomes of errors."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

from ctl import VERSION, command_table, parser
from ctl import main as frame
from ctl.manual import page
from dataplane.errors import HotplaneError, UsageError
from dataplane.planes.ebpf.maps import layout

ROOT = Path(__file__).resolve().parents[2]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.main(["--help"]) == 0
    printed = capsys.readouterr().out
    assert [name for name in command_table.COMMANDS if f"    {name} " not in printed] == []


@pytest.mark.parametrize("name", list(command_table.COMMANDS))
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.main([name, "--help"]) == 0
    assert f"usage: hotplane {name}" in capsys.readouterr().out.replace(" [-h]", "")


@pytest.mark.parametrize(
    "argv",
    [
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
    before = parser.parse(["--mode", "iptables", "--node-ip", "192.0.2.1", "--zone=a", "check", "-o", "json"])
    after = parser.parse(["check", "-o", "json", "--mode", "iptables", "--node-ip", "192.0.2.1", "--zone=a"])
    assert vars(before) == vars(after)
    assert (before.mode, before.node_ip, before.zone, before.state_dir) == (
        "iptables", ("192.0.2.1",), "a", "/run/hotplane",
    )  # fmt: skip


def test_repeatable_options_add_up_across_the_command() -> None:
    args = parser.parse(["--node-ip", "192.0.2.1", "--node-ip", "192.0.2.2", "check", "--node-ip", "2001:db8::1"])
    assert args.node_ip == ("192.0.2.1", "192.0.2.2", "2001:db8::1")


def test_the_option_after_the_command_wins() -> None:
    assert parser.parse(["--zone", "a", "check", "--zone", "b"]).zone == "b"


def test_a_value_that_is_a_command_name_is_not_the_command() -> None:
    args = parser.parse(["--node-name", "apply", "check"])
    assert (args.command, args.node_name) == ("check", "apply")


def _with_command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def run(args: argparse.Namespace) -> int:
        raise error

    def register(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
        subparsers.add_parser("trial")

    monkeypatch.setitem(sys.modules, "trial_command", SimpleNamespace(register=register, run=run))
    monkeypatch.setitem(command_table.COMMANDS, "trial", command_table.Command("trial_command", "trial"))


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


def test_without_a_word_the_commands_are_listed_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.main([]) == 0
    printed = capsys.readouterr().out
    grouped = [name for group in command_table.GROUPS for name in group.commands]
    assert sorted(grouped) == sorted(command_table.COMMANDS)
    for group in command_table.GROUPS:
        lines = printed.split(f"{group.title}.", 1)[-1].split("\n\n", 1)[0]
        assert [name for name in group.commands if f"\n  {name} " not in lines] == []
    assert max(map(len, printed.splitlines())) <= 100


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["shwo"], "there is no command 'shwo'; did you mean show?; see hotplane --help"),
        (["show", "servces"], "show: WHAT: there is no 'servces'; did you mean services?; see hotplane show --help"),
        (["apply", "-f", "x", "--dryrun"], "apply: there is no option --dryrun; did you mean --dry-run?"),
        (["apply"], "apply: -f/--filename is missing; see hotplane apply --help"),
        (["doctor", "now"], "doctor: 'now' is one word too many; see hotplane doctor --help"),
        (["--mode", "ipvs", "doctor"], "--mode: there is no 'ipvs'"),
        (["lab", "up", "--mode", "ebpf"], "lab up: --mode means nothing to this command; see hotplane lab up --help"),
        (["lab", "up", "--pod-lnik", "x"], "lab up: there is no option --pod-lnik; did you mean --pod-link?"),
        (["-o", "json", "completion", "bash"], "completion: -o means nothing to this command"),
        (
            ["-o", "wide", "explain", "-f", "x", "--flow", "y"],
            "explain: -o: there is no 'wide'; choose of table, json, yaml",
        ),
        (["get", "services"], "there is no command 'get'; did you mean show?; see hotplane --help"),
        (["trace", "a -> b:1", "--timeout", "0"], "trace: --timeout: '0' is no number of seconds above 0, up to 86400"),
        (["--nod-name", "n1", "show", "services"], "there is no option --nod-name; did you mean --node-name?; see"),
        (
            ["bench", "--rounds", "3", "--scenarios", "x"],
            "bench: there is no option --scenarios; did you mean --scenario?",
        ),
        (["--answer-ping", "run"], "run: --answer-ping stands behind the command; see hotplane run --help"),
        (["lab", "--name", "x", "up"], "lab: --name stands behind the ACTION; see hotplane lab --help"),
        (["lab", "u", "--name", "x"], "lab: ACTION: there is no 'u'"),
        (["lab", "up", "--nodes", "3x"], "lab up: --nodes: '3x' is no whole number; see hotplane lab up --help"),
        (["lab", "up", "--pods", "x"], "lab up: --pods: 'x' is no whole number, nor one for each node"),
        (["bench", "--services", "x"], "bench: --services: 'x' is no list of whole numbers, such as 1,1k,30k; see"),
        (["top", "--interval", "x"], "top: --interval: 'x' is no number; see hotplane top --help"),
        (["trace"], "trace: FLOW or --flow is missing; see hotplane trace --help"),
        (["uninstall"], "there is no command 'uninstall'; did you mean cleanup?; see hotplane --help"),
        (["show", "services", "-A", "-n", "x"], "show: -n/--namespace: not allowed with argument -A/--all-namespaces"),
        (["top", "--count"], "top: --count: expected one argument; see hotplane top --help"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage_is_one_line_about_what_is_wrong(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert frame.main(argv) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"hotplane: error: {said}")
    assert told.err.count("\n") == 1


def test_the_output_format_may_stand_before_the_command() -> None:
    assert parser.parse(["-o", "json", "doctor"]).output == "json"
    assert parser.parse(["-o", "json", "doctor", "-o", "yaml"]).output == "yaml"
    assert parser.parse(["-o", "wide", "--mode", "ebpf", "show", "services"]).output == "wide"


@pytest.mark.parametrize(
    ("written", "what"), [("svc", "services"), ("service", "services"), ("ep", "endpoints"), ("drop", "drops")]
)
def test_views_have_kubectls_short_names_too(written: str, what: str) -> None:
    assert parser.parse(["show", written]).what == what


def test_a_flow_is_asked_for_alike_by_explain_and_trace() -> None:
    flow = "pod1-1 -> web:80"
    assert parser.parse(["explain", flow]).flow == parser.parse(["explain", "--flow", flow]).flow == [flow]
    assert parser.parse(["explain", "--flow", flow, "a -> b:1/tcp"]).flow == [flow, "a -> b:1/tcp"]
    assert parser.parse(["trace", flow]).flow == parser.parse(["trace", "--flow", flow]).flow == flow


@pytest.mark.parametrize("name", [name for name, entry in command_table.COMMANDS.items() if entry.examples])
def test_every_page_ends_with_examples_that_parse(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    examples = command_table.COMMANDS[name].examples
    for line, _ in examples:
        args = parser.parse(shlex.split(line.partition(" > ")[0]))
        assert args.command == name
    assert frame.main(["help", name]) == 0
    page = capsys.readouterr().out
    assert [line for line, _ in examples if f"  hotplane {line}\n" not in page] == []


def test_all_commands_but_version_have_examples() -> None:
    assert [name for name, entry in command_table.COMMANDS.items() if not entry.examples] == ["version"]


def test_help_of_an_action(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.main(["help", "lab", "up"]) == 0
    assert "usage: hotplane lab up" in capsys.readouterr().out
    assert frame.main(["help", "nothing"]) == 2
    assert "there is no command 'nothing'" in capsys.readouterr().err


def test_a_page_lists_only_the_global_options_that_mean_something(capsys: pytest.CaptureFixture[str]) -> None:
    frame.main(["lab", "up", "--help"])
    assert "--node-name" not in capsys.readouterr().out
    frame.main(["show", "--help"])
    page = capsys.readouterr().out
    assert "--mode" in page
    assert "--uplink" not in page


def test_versions_of_what_it_stands_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.main(["version", "-o", "json"]) == 0
    (versions,) = json.loads(capsys.readouterr().out)
    assert versions["hotplane"] == VERSION
    assert versions["kernel"] == os.uname().release
    assert "not installed" not in (versions["msgspec"], versions["pyroute2"])


def test_bash_completes_commands_and_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The script is sourced by a real bash, and its completion function is called as readline would."""
    assert frame.main(["completion", "bash"]) == 0
    script = tmp_path / "hotplane.bash"
    script.write_text(capsys.readouterr().out)

    def completed(*words: str) -> list[str]:
        line = " ".join(shlex.quote(word) for word in words)
        text = (
            f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; "
            '_shtab_hotplane hotplane "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"; printf \'%s\\n\' "${COMPREPLY[@]}"'
        )
        done = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True)
        return done.stdout.split()

    assert completed("hotplane", "exp") == ["explain"]
    assert completed("hotplane", "show", "serv") == ["services"]
    assert "--dry-run" in completed("hotplane", "apply", "--d")
    assert {"up", "down", "status", "exec"} <= {*completed("hotplane", "lab", "")}
    assert completed("hotplane", "apply", "-f", str(script)[:-3]) == [str(script)]
    assert completed("hotplane", "run", "--kubeconfig", str(script)[:-3]) == [str(script)]


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_have_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert frame.main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert [name for name in command_table.COMMANDS if name not in script] == []


def test_the_manual_page_is_that_of_the_parsers() -> None:
    assert (ROOT / "docs" / "hotplane.1").read_text() == page(), "python -m ctl.manual docs/hotplane.1"


def test_every_reason_of_the_programs_has_a_meaning() -> None:
    meanings = layout.reason_meanings()
    assert [name for name in layout.reason_names() if name != "none" and not meanings.get(name)] == []
    assert not [text for text in meanings.values() if "*/" in text or "\n" in text]


def test_the_mode_that_is_looked_at_by_default_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    for name, default in (("show", "the one that is loaded"), ("demo", "each in turn"), ("apply", "the config's mode")):
        frame.main([name, "--help"])
        assert f"iptables | nftables | ebpf (default: {default}" in " ".join(capsys.readouterr().out.split())
