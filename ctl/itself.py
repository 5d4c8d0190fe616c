"""This very hotplane as a command, wherever it is run from."""

import sys
from pathlib import Path

PROGRAM = ("env", f"PYTHONPATH={Path(__file__).parents[1]}", sys.executable, "-P", "-m", "ctl.main")
"""Its first words; options and a command follow."""
