"""Pictures of `explain --picture`: those of the documentation come from the command, one from a model by hand.

HOTPLANE_GOLDEN=write writes them anew.
"""

import os
import xml.etree.ElementTree as ET
from fractions import Fraction
from pathlib import Path

import pytest

from ctl.main import main
from ctl.picture.model import SOURCE, Leg, NodeBox, Picture, PodBox, SourceBox, Step
from ctl.picture.svg import document

ROOT = Path(__file__).resolve().parents[2]
SHOWN = ROOT / "docs" / "pictures"
MODELS = Path(__file__).parent / "pictures"
CLIENT, POD = "198.51.100.2", "10.244.1.11"
SCENES = {
    "node-port-cluster": ("node1", "nftables", f"{CLIENT} -> 172.18.0.1:30080/tcp"),
    "node-port-local": ("node1", "nftables", f"{CLIENT} -> 172.18.0.1:30081/tcp"),
    "node-port-local-nobody": ("node3", "nftables", f"{CLIENT} -> 172.18.0.3:30081/tcp"),
    "cluster-ip": ("node1", "nftables", f"{POD} -> 10.96.0.80:80/tcp"),
    "connect-time": ("node1", "ebpf", f"{POD} -> 10.96.0.80:80/tcp"),
    "no-endpoint": ("node1", "nftables", f"{CLIENT} -> 172.18.0.1:30083/tcp"),
    "source-ranges": ("node1", "nftables", f"{CLIENT} -> 203.0.113.10:80/tcp"),
    "tunnel": ("node1", "ebpf", f"{CLIENT} -> 172.18.0.1:30080/tcp"),
    "dsr": ("node1", "ebpf", f"{CLIENT} -> 172.18.0.1:30080/tcp"),
    "ipv6": ("node2", "nftables", "[fd00:198:51:100::2] -> [fd00:172:18::2]:30080/tcp"),
}
"""Pictures of the documentation: the node that decides, the mode, the packet."""


def words_for(name: str, file: str) -> list[str]:
    node, mode, flow = SCENES[name]
    number = node.removeprefix("node")
    own = ["--node-name", node, "--node-ip", f"172.18.0.{number}", "--node-ip", f"fd00:172:18::{number}"]
    forwarded = ["--lb-mode", name, "--lb-peer", "node2=172.18.0.2"] if name in ("tunnel", "dsr") else []
    at = ["--config", str(SHOWN / "config.yaml"), "--mode", mode, *own]
    return [*at, "explain", "-f", str(SHOWN / "cluster.yaml"), "--flow", flow, *forwarded, "--picture", file]


def compare(file: Path, drawn: str) -> None:
    ET.fromstring(drawn)
    if os.environ.get("HOTPLANE_GOLDEN") == "write":
        file.write_text(drawn)
    assert drawn == file.read_text()


@pytest.mark.parametrize("name", SCENES)
def test_pictures_of_the_documentation(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words_for(name, "-")) == 0
    compare(SHOWN / f"{name}.svg", capsys.readouterr().out)


HOSTILE = '<img src=x onerror="alert(1)">&\x00\x1b]0;'


def hostile() -> Picture:
    """Names that nobody should have, in every place."""
    return Picture(
        HOSTILE,
        HOSTILE,
        True,
        SourceBox("pod", HOSTILE, HOSTILE),
        (NodeBox(HOSTILE, HOSTILE, (Step(HOSTILE, (HOSTILE,)),), (PodBox(HOSTILE, HOSTILE, Fraction(1), HOSTILE),)),),
        (Leg(SOURCE, 0, (HOSTILE,)),),
        (HOSTILE,),
    )


def test_a_picture_of_a_model() -> None:
    compare(MODELS / "hostile.svg", document([hostile()]))


def test_hostile_names_are_text_and_nothing_else() -> None:
    drawn = ET.fromstring(document([hostile()]))
    kinds = {element.tag.rpartition("}")[2] for element in drawn.iter()}
    assert kinds <= {"svg", "title", "style", "rect", "g", "text", "path"}
    assert not [name for element in drawn.iter() for name in element.attrib if name.startswith("on") or "href" in name]
    shown = HOSTILE.replace("\x00", "�").replace("\x1b", "�")
    assert sum(element.text == shown for element in drawn.iter()) >= 8


def test_nothing_outside_is_referred_to() -> None:
    for file in (*SHOWN.glob("*.svg"), *MODELS.glob("*.svg")):
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        for word in ("http:", "https:", "url(", "@import", "<script", "href"):
            assert word not in text, file
