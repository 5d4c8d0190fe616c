"""`explain --picture`: where it writes, what it says of a wrong target, and what a picture is made of."""

import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

import pytest

from ctl.commands.explain import answers, read_flows
from ctl.explain_picture import drawn_of
from ctl.main import main
from ctl.picture.model import SOURCE, Picture, Tone
from ctl.picture.names import names_in
from ctl.picture.svg import document, percent
from dataplane.model.decode import decode
from dataplane.oracle.keeps import NOTHING
from dataplane.plan.planner import Planner
from dataplane.policy.node import LocalDetector, NodeConfig, NodePortAddresses

CLUSTER = Path(__file__).resolve().parents[2] / "docs" / "pictures" / "cluster.yaml"
FLOW = "198.51.100.2 -> 172.18.0.1:30080/tcp"
NODE = ["--node-name", "node1", "--node-ip", "172.18.0.1"]


def explain(*words: str, file: Path = CLUSTER) -> int:
    return main([*NODE, "explain", "-f", str(file), *words])


def texts(drawn: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(drawn).iter() if element.tag.endswith("}text")]


def test_a_file_is_written_beside_the_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "path.svg"
    assert explain("--flow", FLOW, "--picture", str(target)) == 0
    assert "DNAT to 10.244.1.11:8080" in capsys.readouterr().out
    assert {"33.3\N{NO-BREAK SPACE}%", "172.18.0.1 → 10.244.2.11:8080", "SNAT"} <= {*texts(target.read_text())}


def test_on_standard_output_there_is_the_picture_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("--flow", FLOW, "--picture", "-") == 0
    assert capsys.readouterr().out.startswith("<svg ")


def test_several_flows_are_one_below_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain("--flow", FLOW, "--flow", FLOW.replace("30080", "30083"), "--picture", "-") == 0
    found = texts(capsys.readouterr().out)
    assert found.index(FLOW) < found.index(FLOW.replace("30080", "30083"))


@pytest.mark.parametrize(
    ("words", "status", "told"),
    [
        (("--picture", "path.png"), 2, "--picture path.png: pictures are SVG"),
        (
            ("--picture", "/no/such/folder/path.svg"),
            1,
            "--picture /no/such/folder/path.svg: cannot be written: No such",
        ),
        (("--picture", "-", "-o", "json"), 2, "--picture - and -o json both want standard output"),
    ],
)
def test_a_wrong_target_is_told(
    capsys: pytest.CaptureFixture[str], words: Sequence[str], status: int, told: str
) -> None:
    assert explain("--flow", FLOW, *words) == status
    printed = capsys.readouterr()
    assert told in printed.err
    assert printed.out == ""


def pictured(flow: str, text: str, node: NodeConfig | None = None) -> Picture:
    decoded = decode(text.encode(), "test")
    node = node or NodeConfig(
        name="node1",
        addresses=("172.18.0.1",),
        detector=LocalDetector(cidrs=("10.244.0.0/16",)),
        nodeports=NodePortAddresses(any_local=True),
    )
    planner = Planner(node, vouched=False)
    planner.update(decoded.objects)
    [found] = answers(planner, read_flows([flow]), "nftables")
    return drawn_of(found.decision, node, names_in(decoded.objects), NOTHING)


def test_shares_add_up_and_many_endpoints_are_drawn_as_one() -> None:
    text = CLUSTER.read_text()
    more = "".join(
        f"  - {{addresses: [10.244.{n}.{100 + k}], nodeName: node{n}}}\n" for n in range(2, 12) for k in range(9)
    )
    last = "  - {addresses: [10.244.2.11], nodeName: node2}\n"
    found = pictured(FLOW, text.replace(last, last + more, 1))
    assert sum(pod.share or 0 for node in found.nodes for pod in node.pods) == 1
    assert sum(pod.number for node in found.nodes for pod in node.pods) == 93
    assert max(len(node.pods) for node in found.nodes) == 6
    assert [node.name for node in found.nodes] == ["node1", "node10", "node11", "node2", "node3", "6 more nodes"]
    assert percent(found.nodes[0].pods[0]) == "1.08\N{NO-BREAK SPACE}%"
    ET.fromstring(document([found]))


def test_shares_go_by_weights() -> None:
    slices = "metadata: {name: web-ipv4, namespace: default, "
    weights = 'annotations: {service.hotplane.io/weights: "10.244.2.11=2"}, '
    text = CLUSTER.read_text()
    assert slices in text
    found = pictured(FLOW, text.replace(slices, slices + weights))
    assert [percent(pod) for node in found.nodes for pod in node.pods] == [
        f"{share}\N{NO-BREAK SPACE}%" for share in (25, 25, 50)
    ]


def test_under_policy_local_the_others_get_nothing() -> None:
    found = pictured(FLOW.replace("30080", "30081"), CLUSTER.read_text())
    assert [(pod.address, percent(pod), pod.sees) for pod in found.nodes[0].pods] == [
        ("10.244.1.11:8080", "50\N{NO-BREAK SPACE}%", "198.51.100.2"),
        ("10.244.1.12:8080", "50\N{NO-BREAK SPACE}%", "198.51.100.2"),
    ]
    assert [(pod.address, pod.share) for pod in found.nodes[1].pods] == [("10.244.2.11:8080", None)]
    assert {(leg.start, leg.end) for leg in found.legs} == {(SOURCE, 0), (0, SOURCE)}
    assert [step.title for step in found.nodes[0].steps] == ["DNAT"]


@pytest.mark.parametrize(
    ("flow", "title", "answers"),
    [
        ("198.51.100.2 -> 172.18.0.1:30083/tcp", "REJECT", "ICMP port unreachable"),
        ("198.51.100.2 -> 203.0.113.10:80/tcp", "DROP", "no answer: the client waits"),
        ("198.51.100.2 -> 10.96.0.80:81/tcp", "REJECT", "ICMP port unreachable"),
    ],
)
def test_a_refusal_is_a_step_and_has_no_way_on(flow: str, title: str, answers: str) -> None:
    found = pictured(flow, CLUSTER.read_text())
    [step] = found.nodes[0].steps
    assert (step.title, step.tone) == (title, Tone.REFUSED)
    assert [leg.texts for leg in found.legs] == [(flow.replace(" -> ", " → ").removesuffix("/tcp"),), (answers,)]
    assert {leg.tone for leg in found.legs} == {Tone.REFUSED}
    assert not any(pod.share for node in found.nodes for pod in node.pods)
    assert found.refused


def test_what_no_service_has_is_left_alone() -> None:
    found = pictured("198.51.100.2 -> 172.18.0.1:22/tcp", CLUSTER.read_text())
    assert found.headline == "no Service has this address and port"
    assert [step.title for step in found.nodes[0].steps] == ["left alone"]
    assert not found.refused


def test_a_pod_that_may_meet_itself() -> None:
    found = pictured("10.244.1.11 -> 10.96.0.80:80/tcp", CLUSTER.read_text())
    assert (found.source.name, found.source.inside) == ("pod1-1", True)
    assert [(pod.name, pod.sees) for node in found.nodes for pod in node.pods] == [
        ("pod1-1", "172.18.0.1"),
        ("pod1-2", "10.244.1.11"),
        ("pod2-1", "10.244.1.11"),
    ]
    assert found.nodes[0].steps[1].lines == ("10.244.1.11", "→ 172.18.0.1", "if it meets itself")
    assert ("10.244.1.11 → 10.244.2.11:8080",) in [leg.texts for leg in found.legs]
