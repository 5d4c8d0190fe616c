"""Pictures of `explain --picture`: those of the documentation come from the command, others from models by hand.

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
    "ipv6": ("node2", "nftables", "[fd00:198:51:100::2] -> [fd00:172:18::2]:30080/tcp"),
}
"""Pictures of the documentation: the node that decides, the mode, the packet."""


def words_for(name: str, file: str) -> list[str]:
    node, mode, flow = SCENES[name]
    number = node.removeprefix("node")
    own = ["--node-name", node, "--node-ip", f"172.18.0.{number}", "--node-ip", f"fd00:172:18::{number}"]
    at = ["--config", str(SHOWN / "config.yaml"), "--mode", mode, *own]
    return [*at, "explain", "-f", str(SHOWN / "cluster.yaml"), "--flow", flow, "--picture", file]


def compare(file: Path, drawn: str) -> None:
    ET.fromstring(drawn)
    if os.environ.get("HOTPLANE_GOLDEN") == "write":
        file.write_text(drawn)
    assert drawn == file.read_text()


@pytest.mark.parametrize("name", SCENES)
def test_pictures_of_the_documentation(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words_for(name, "-")) == 0
    compare(SHOWN / f"{name}.svg", capsys.readouterr().out)


def forwarded(*, direct: bool) -> Picture:
    """A node port under policy Cluster whose packets keep the client's address on their way to another node."""
    frontend, client = "172.18.0.1:30080", "198.51.100.2"
    out, back = f"{client} → {frontend}", f"{frontend} → {client}"
    share = Fraction(1, 3)
    unpacked = Step("unpacked, DNAT", (frontend, "→ 10.244.2.11:8080"))
    second = (unpacked, Step("answers itself", ("as", frontend))) if direct else (unpacked,)
    answer = (
        Leg(1, SOURCE, (back,), answer=True)
        if direct
        else Leg(1, 0, ("VXLAN 172.18.0.2 → 172.18.0.1", f"[{back}]"), answer=True, tunnelled=True)
    )
    return Picture(
        title=f"{client} -> {frontend}/tcp",
        headline="nodePort *:30080/tcp of default/web:http goes to one of 3 endpoints",
        refused=False,
        source=SourceBox("client", "client", client),
        nodes=(
            NodeBox(
                "node1",
                "172.18.0.1",
                (
                    Step("DNAT", (frontend, "→ one of 2 endpoints")),
                    Step("put into VXLAN", ("for other nodes,", "client address kept")),
                ),
                (
                    PodBox("pod1-1", "10.244.1.11:8080", share, client),
                    PodBox("pod1-2", "10.244.1.12:8080", share, client),
                ),
            ),
            NodeBox("node2", "172.18.0.2", second, (PodBox("pod2-1", "10.244.2.11:8080", share, client),)),
        ),
        legs=(
            Leg(SOURCE, 0, (out,)),
            Leg(0, SOURCE, (back,), answer=True),
            Leg(0, 1, ("VXLAN 172.18.0.1 → 172.18.0.2", f"[{out}]"), tunnelled=True),
            answer,
        ),
        reasons=("not masqueraded: the backend sees 198.51.100.2",),
    )


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


PICTURES = {"tunnel": forwarded(direct=False), "dsr": forwarded(direct=True), "hostile": hostile()}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_of_models(name: str) -> None:
    compare(MODELS / f"{name}.svg", document([PICTURES[name]]))


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
