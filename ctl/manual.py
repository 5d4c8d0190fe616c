"""The manual page, made of the texts of the parsers: `python -m ctl.manual docs/hotplane.1`."""

import sys
from pathlib import Path

from ctl import VERSION
from ctl.command_table import COMMANDS
from ctl.parser import build_parser


def page() -> str:
    """The page in roff. Needs argparse-manpage, of the test extra."""
    from argparse_manpage.manpage import Manpage

    parser = build_parser(COMMANDS)
    data = {
        "date": VERSION,  # else the day on which the page was made, which would make each one another
        "project_name": "hotplane",
        "version": VERSION,
        "description": "a Service data plane for Kubernetes nodes",
        "manual_title": "hotplane manual",
    }
    return str(Manpage(parser, _data=data, format="single-commands-section"))


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
