"""What a machine brought back, and the page that shows it: docs/kernels.md."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree


class Step(NamedTuple):
    """Tests of one kind. name: for people; arguments: to pytest; seconds: how long they may take."""

    name: str
    arguments: Sequence[str]
    seconds: int = 1800


class Outcome(NamedTuple):
    """How a step went. passed, failed: counts; failures: names of tests with the first line of what they said.
    trouble: why there is no result, if the kernel said so."""

    passed: int
    failed: int
    failures: tuple[str, ...] = ()
    trouble: str = ""

    @property
    def text(self) -> str:
        """A cell of the table."""
        if not self.passed + self.failed:
            return f"**no result: {self.trouble}**" if self.trouble else "**no result**"
        return f"**{self.failed} of {self.passed + self.failed} failed**" if self.failed else f"{self.passed} ok"


class Report(NamedTuple):
    """One kernel. name: as it was asked for; findings: the doctor's, on ebpf; outcomes: by step; made: when, and of
    which commits; troubles: what the kernel said of itself on the console (kernel_troubles), or that it did not end."""

    name: str
    release: str
    package: str
    findings: Mapping[str, Mapping[str, str]]
    outcomes: Mapping[str, Outcome]
    made: str
    troubles: tuple[str, ...] = ()

    @property
    def problems(self) -> list[str]:
        """What kept this kernel from passing."""
        found = [f"{step}: {line}" for step, outcome in self.outcomes.items() for line in outcome.failures]
        found += [f"{step}: no result" for step, o in self.outcomes.items() if not o.passed + o.failed]
        return [*found, *(f"the kernel said: {line}" for line in self.troubles)]


HOOK_CHECKS = (
    *("hook connect", "hook tc", "hook xdp", "source-address lookup", "coarse clock", "route MTU", "tc attachment"),
)
_TROUBLE = re.compile(
    r"^\[ *\d+\.\d+\] .*?("
    r"BUG: .*|Oops: .*|Kernel panic .*|general protection fault.*|WARNING: CPU.*|rcu: INFO: .*stall.*|"
    r"INFO: task .* blocked for more than.*|I/O error.*)"
)
_PROGRESS = re.compile(r"([.FE]+) *(?:\[ *\d+%\])?$")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f]|\x1b\[[0-9;]*m")


def read_outcome(junit: Path) -> Outcome:
    """From pytest's XML; nothing when there is none (the machine ended before)."""
    if not junit.exists():
        return Outcome(0, 0)
    passed, failures = 0, []
    for case in ElementTree.fromstring(junit.read_text()).iter("testcase"):
        said = [*case.findall("failure"), *case.findall("error")]
        if said:
            message = _CONTROL.sub("", said[0].get("message") or "").splitlines() or [""]
            failures.append(f"{case.get('name')}: {message[0][:200]}")
        elif case.find("skipped") is None:
            passed += 1
    return Outcome(passed, len(failures), tuple(failures))


def how_far(log: Path) -> str:
    """How many tests had passed and failed when pytest was ended, from the dots and letters that it prints; empty when
    there are none."""
    lines = log.read_text().splitlines() if log.exists() else []
    said = "".join(match[1] for match in map(_PROGRESS.match, lines) if match)
    return f"{said.count('.')} passed and {len(said) - said.count('.')} failed when its time was over" if said else ""


def kernel_troubles(console: str) -> tuple[str, ...]:
    """What a kernel said of itself that it should not have to, each once, from a console's text: lockups, stalls,
    oopses, warnings, disk errors. Lines of a kernel begin with its time in brackets; what tests print does not."""
    found = (_TROUBLE.search(_CONTROL.sub("", line)) for line in console.splitlines())
    return tuple(dict.fromkeys(match[1].strip()[:120] for match in found if match))


def read_report(name: str, folder: Path, steps: Iterable[Step]) -> Report:
    """From the results that jobs left in a folder."""
    findings: dict[str, Any] = {}
    doctor = folder / "doctor.json"
    if doctor.exists() and doctor.stat().st_size:
        findings = {record["check"]: record for record in json.loads(doctor.read_text()) if record["area"] == "ebpf"}
    asked = [step.name for step in steps if (folder / f"{step.name}.json").exists()]
    about = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("about", *asked)}
    outcomes = {}
    for step in asked:
        outcome = read_outcome(folder / f"{step}.xml")
        trouble = next(iter(about[step].get("troubles", ())), "") or how_far(folder / f"{step}.log")
        outcomes[step] = outcome._replace(trouble=trouble)
    package = about["about"]["package"]
    made = ", ".join(dict.fromkeys(f"{a['date']} ({a['commit']})" for a in about.values()))
    troubles = tuple(dict.fromkeys(line for step in asked for line in about[step].get("troubles", ())))
    return Report(name, (folder / "release").read_text().strip(), package, findings, outcomes, made, troubles)


def _finding(report: Report, check: str) -> str:
    found = report.findings.get(check)
    if found is None:
        return "**not told**"
    if check == "tc attachment" and found["status"] == "ok":
        return "tcx" if "tcx links" in found["detail"] else "clsact"
    return {"ok": "ok", "limited": "stand-in", "missing": "**off**"}[found["status"]]


NOTES = "## Notes"
"""Where the page's hand-written end begins."""


def notes_of(text: str) -> str:
    """The hand-written end of an earlier page; empty when it has none."""
    return text[text.index(NOTES) :] if NOTES in text else ""


def page(
    reports: Sequence[Report], steps: Sequence[Step], left_out: Mapping[str, str] | None = None, notes: str = ""
) -> str:
    """docs/kernels.md, as text. left_out: what kernels were not asked, and why, by their names; notes: its end."""
    head = ["kernel", "Debian package", "made", *HOOK_CHECKS, *(step.name for step in steps)]
    lines = [
        "# Kernels",
        "",
        "Made by `tests/kernels --page docs/kernels.md`: each kernel of a Debian package booted in QEMU (emulated, "
        "2 processors, 2 GB) with Debian 12 and the checkout inside; one without is that of the machine itself.",
        "",
        "| " + " | ".join(head) + " |",
        "|" + "---|" * len(head),
    ]
    for report in reports:
        cells = [report.release, report.package, report.made, *(_finding(report, check) for check in HOOK_CHECKS)]
        cells += [report.outcomes[step.name].text if step.name in report.outcomes else "not run" for step in steps]
        lines.append("| " + " | ".join(cells) + " |")
    lines += [
        "",
        "Hooks and features are what `hotplane --mode ebpf doctor` says: it sends a packet through the programs and "
        "uses a Service from a process in a control group. `stand-in`: the kernel lacks the feature, and programs are "
        "compiled without it. The other columns are tests that passed there:",
        "",
        *(f"- **{step.name}**: `pytest {' '.join(step.arguments)}`" for step in steps),
        "",
    ]
    for name, words in (left_out or {}).items():
        lines += [f"{name} is asked less: {words}", ""]
    for report in reports:
        told = [f"{check}: {f['detail']}" for check, f in report.findings.items() if f["status"] != "ok"]
        if told or report.problems:
            lines += [f"## {report.release}", "", *(f"- {line}" for line in told)]
            lines += [*(f"- failed: {problem}" for problem in report.problems), ""]
    return "\n".join([*lines, notes]).rstrip() + "\n"
