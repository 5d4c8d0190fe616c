"""What cannot be measured where a run takes place, and is no failure of what is measured."""

from dataplane.lab.spec import LabError


class LeftOut(LabError):
    """A cell that is left out. The text says why; a run tells it once, with the cell's name, and has no cell for it."""
