"""What `explain --picture` writes: the paths of its flows, as one SVG."""

import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ctl.commands.explain import Answer
from ctl.explain_loaded import Scene
from ctl.picture.fill import Asked, picture
from ctl.picture.model import Picture
from ctl.picture.names import Names, names_in
from ctl.picture.svg import document
from dataplane.errors import HotplaneError, UsageError
from dataplane.oracle.keeps import Keeping, pointed_at_connect
from dataplane.oracle.types import Decision
from dataplane.policy.node import NodeConfig


def write_picture(target: str, answers: Sequence[Answer], scene: Scene) -> None:
    """Draw what was decided. target: a file, which is replaced, or `-` for standard output. Raises UsageError for a
    name that is no SVG's, HotplaneError if the file cannot be written."""
    if target != "-" and not target.endswith(".svg"):
        raise UsageError(f"--picture {target}: pictures are SVG; name a file that ends in .svg, or - for stdout")
    names = names_in(scene.objects, scene.places.topology if scene.places is not None else None)
    told = [msgspec.structs.replace(each.decision, reasons=each.explained.reasons) for each in answers]
    drawn = document([drawn_of(decision, scene.node, names, scene.keeping) for decision in told])
    if target == "-":
        sys.stdout.write(drawn)
        return
    try:
        Path(target).write_text(drawn, encoding="utf-8")
    except OSError as error:
        raise HotplaneError(f"--picture {target}: cannot be written: {error.strerror}; name another file") from error


def drawn_of(decision: Decision, node: NodeConfig, names: Names, keeping: Keeping) -> Picture:
    """The picture of a decision with all its reasons. node: the deciding one."""
    at_connect = pointed_at_connect(decision, keeping, node.addresses, masquerade_all=node.masquerade_all)
    return picture(Asked(decision, node, names, at_connect, decision.reasons))
