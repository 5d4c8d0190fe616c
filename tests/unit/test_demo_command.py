"""What the demo says at its end."""

from ctl.commands.demo import _summary
from dataplane.lab.scenarios.showcase import Result

OK, CANNOT, FAILED = Result(True, ""), Result(True, "", able=False), Result(False, "")


def test_runs_that_show_what_a_mode_lacks_are_told_apart() -> None:
    assert _summary([OK, OK, FAILED]) == "2 of 3 scenario runs passed"
    assert _summary([OK, CANNOT, CANNOT]).startswith("3 of 3 scenario runs passed; 2 of them, marked cannot, ")
