"""The table of kernels says what tests said, and where they said nothing."""

import json
from pathlib import Path

import pytest

from tests.vm.results import Outcome, Report, Step, kernel_troubles, notes_of, page, read_outcome, read_report
from tests.vm.run import BY_NAME, LEFT_OUT, STEPS, asked

JUNIT = """<testsuites><testsuite>
<testcase name="one"/><testcase name="two[4]"><failure message="assert 1 == 2&#10;more">long</failure></testcase>
<testcase name="three"><error message="no device"/></testcase><testcase name="four"><skipped/></testcase>
</testsuite></testsuites>"""
STEP = Step("packets", ("tests/kernel/test_tc_packets.py",))


def _report(folder: Path) -> Report:
    (folder / "release").write_text("6.1.0\n")
    found = [
        {"area": "ebpf", "check": "hook tc", "status": "ok", "detail": ""},
        {"area": "ebpf", "check": "hook xdp", "status": "missing", "detail": "will not work: because"},
        {"area": "ebpf", "check": "source-address lookup", "status": "limited", "detail": "not in this kernel"},
        {"area": "ebpf", "check": "tc attachment", "status": "ok", "detail": "by clsact filters: no tcx"},
        {"area": "lab", "check": "hook connect", "status": "ok", "detail": ""},
    ]
    (folder / "doctor.json").write_text(json.dumps(found))
    about = {"package": "linux-image 6.1-1", "commit": "abc", "date": "2026-01-01"}
    for name in ("about", "packets"):
        (folder / f"{name}.json").write_text(json.dumps(about))
    return read_report("6.1", folder, [STEP])


def test_outcomes_are_counted(tmp_path: Path) -> None:
    (tmp_path / "packets.xml").write_text(JUNIT)
    outcome = read_outcome(tmp_path / "packets.xml")
    assert outcome == Outcome(1, 2, ("two[4]: assert 1 == 2", "three: no device"))
    assert outcome.text == "**2 of 3 failed**"
    assert Outcome(3, 0).text == "3 ok"


def test_a_step_that_never_ran_is_no_success(tmp_path: Path) -> None:
    report = _report(tmp_path)
    assert report.problems == ["packets: no result"]
    assert "**no result**" in page([report], [STEP])


def test_a_step_that_was_not_asked_is_told(tmp_path: Path) -> None:
    other = Step("traffic", ())
    (tmp_path / "packets.xml").write_text(JUNIT)
    _report(tmp_path)
    report = read_report("6.1", tmp_path, [STEP, other])
    assert "| not run |" in page([report], [STEP, other])
    assert len(report.problems) == 2


def test_the_page_tells_hooks_and_what_is_off(tmp_path: Path) -> None:
    (tmp_path / "packets.xml").write_text(JUNIT)
    text = page([_report(tmp_path)], [STEP])
    [row] = [line for line in text.splitlines() if line.startswith("| 6.1.0")]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "6.1.0", "linux-image 6.1-1", "2026-01-01 (abc)", "**not told**", "ok", "**off**", "stand-in", "**not told**",
        "**not told**", "clsact", "**2 of 3 failed**",
    ]  # fmt: skip
    assert "- hook xdp: will not work: because" in text
    assert "- failed: packets: three: no device" in text


def test_what_was_written_by_hand_stays(tmp_path: Path) -> None:
    report = _report(tmp_path)
    first = page([report], [STEP], notes="## Notes\n\nIt is so.\n")
    assert page([report], [STEP], notes=notes_of(first)) == first
    assert first.endswith("## Notes\n\nIt is so.\n")
    assert notes_of(page([report], [STEP])) == ""


def test_a_kernel_that_is_asked_less_has_the_same_time() -> None:
    """Its own words come to those of -k, or make an -k."""
    plain, chosen = Step("features", ("a.py",), 60), Step("packets", ("b.py", "-k", "not slow"), 70)
    assert asked("6.1", [plain, chosen]) == [plain, chosen]
    less = LEFT_OUT["5.10"]
    assert asked("5.10", [plain, chosen]) == [
        Step("features", ("a.py", "-k", less["features"]), 60),
        Step("packets", ("b.py", "-k", f"not slow and {less['packets']}"), 70),
    ]


@pytest.mark.parametrize("step", [*STEPS, *BY_NAME], ids=lambda step: step.name)
def test_steps_name_files_that_are_there(step: Step) -> None:
    root = Path(__file__).parents[2]
    files = [word.partition("::")[0] for word in step.arguments if word.startswith("tests/")]
    assert files
    assert [name for name in files if not (root / name).exists()] == []


LOCKUP = """\
== packets: 6.1.0, up for 4 s
[    1.913959] Unstable clock detected, switching default tracing clock to "global"
BUG: said by a test
[   28.100000] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [python:123]
[   28.100100] Call Trace:
[   31.000000] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:
"""


def test_what_a_kernel_says_of_itself_is_found_on_its_console() -> None:
    stuck = "BUG: soft lockup - CPU#0 stuck for 22s! [python:123]"
    assert kernel_troubles(LOCKUP) == (stuck, "rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:")
    assert kernel_troubles(LOCKUP.replace("[   ", "")) == ()


def test_a_step_that_a_lockup_ended_names_it(tmp_path: Path) -> None:
    _report(tmp_path)
    about = json.loads((tmp_path / "packets.json").read_text())
    (tmp_path / "packets.json").write_text(json.dumps(about | {"troubles": kernel_troubles(LOCKUP)}))
    report = read_report("6.1", tmp_path, [STEP])
    text = page([report], [STEP])
    assert "**no result: BUG: soft lockup - CPU#0 stuck for 22s! [python:123]**" in text
    assert "- failed: the kernel said: rcu: INFO: rcu_preempt detected stalls" in text


def test_a_step_whose_time_was_over_tells_how_far_it_came(tmp_path: Path) -> None:
    (tmp_path / "packets.log").write_text("...F..   [ 63%]\n..")
    report = _report(tmp_path)
    assert "| **no result: 7 passed and 1 failed when its time was over** |" in page([report], [STEP])
    assert report.problems == ["packets: no result"]


def test_a_lockup_that_tests_survived_is_told_too(tmp_path: Path) -> None:
    (tmp_path / "packets.xml").write_text(JUNIT.replace("<failure", "<skipped").replace("</failure", "</skipped"))
    _report(tmp_path)
    about = json.loads((tmp_path / "packets.json").read_text())
    (tmp_path / "packets.json").write_text(json.dumps(about | {"troubles": ["BUG: soft lockup"]}))
    report = read_report("6.1", tmp_path, [STEP])
    assert "the kernel said: BUG: soft lockup" in report.problems
