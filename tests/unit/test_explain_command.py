"""`hotplane explain` from the command line: output forms, flows from files, exit status."""

import json
from pathlib import Path

import pytest
import yaml

from ctl.main import main

MANIFESTS = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  type: NodePort
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, "fd00:96::10"]
  sessionAffinity: ClientIP
  ports: [{port: 80, targetPort: 8080, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: broken, namespace: shop}
spec: {clusterIP: 10.96.0.11, ports: [{port: 99999}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: "", port: 8080}]
endpoints: [{addresses: [10.244.0.5]}, {addresses: [10.244.1.5]}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-6, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv6
ports: [{name: "", port: 8080}]
endpoints: [{addresses: ["fd00:244::5"]}]
"""
CONFIG = """
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clusterCIDR: 10.244.0.0/16
"""
NODE = ["--node-name", "n1", "--node-ip", "192.168.0.2", "--node-ip", "fd00:168::2"]


@pytest.fixture
def manifests(tmp_path: Path) -> str:
    path = tmp_path / "objects.yaml"
    path.write_text(MANIFESTS)
    return str(path)


def explain(manifests: str, *arguments: str, mode: str = "nftables") -> int:
    return main(["--mode", mode, *NODE, "explain", "-f", manifests, *arguments])


def test_json_holds_every_flow_in_order(manifests: str, capsys: pytest.CaptureFixture[str]) -> None:
    flows = ["10.244.0.9 -> 10.96.0.10:80/tcp", "fd00::1 -> [fd00:168::2]:30080/TCP", "10.244.0.9 -> 10.96.0.10:81/tcp"]
    assert explain(manifests, *(word for flow in flows for word in ("--flow", flow)), "-o", "json") == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert {flow.pop("apiVersion") for flow in found} == {"hotplane/v1"}
    keys = ["flow", "verdict", "endpoints", "masquerade", "service", "frontend", "affinity", "forwarding", "reasons"]
    assert [list(flow) for flow in found] == [[*keys, "path", "asked", "live"]] * 3
    for flow in found:
        assert flow.pop("reasons")
        assert flow.pop("forwarding") == {}
        assert flow.pop("path")
        assert flow.pop("asked") is None
        assert flow.pop("live") is None
    assert found == [
        {
            "flow": flows[0],
            "verdict": "dnat",
            "endpoints": ["10.244.0.5:8080", "10.244.1.5:8080"],
            "masquerade": False,
            "service": "shop/web",
            "frontend": "clusterIP 10.96.0.10:80/tcp",
            "affinity": 10800,
        },
        {
            "flow": flows[1],
            "verdict": "dnat",
            "endpoints": ["[fd00:244::5]:8080"],
            "masquerade": True,
            "service": "shop/web",
            "frontend": "nodePort *:30080/tcp",
            "affinity": 10800,
        },
        {
            "flow": flows[2],
            "verdict": "reject",
            "endpoints": [],
            "masquerade": False,
            "service": None,
            "frontend": None,
            "affinity": 0,
        },
    ]
    assert "Service shop/broken: spec.ports[0].port" in printed.err


def test_the_mode_decides(manifests: str, capsys: pytest.CaptureFixture[str]) -> None:
    flow = ("--flow", "10.244.0.9 -> 10.96.0.10:81/tcp", "-o", "json")
    assert explain(manifests, *flow, mode="iptables") == 0
    assert json.loads(capsys.readouterr().out)[0]["verdict"] == "accept"


def test_a_node_port_of_another_range_is_explained_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A cluster may have another range of node ports; explain takes no port, so it need not be told which."""
    file = tmp_path / "objects.yaml"
    file.write_text(MANIFESTS.replace("30080", "3080"))
    flow = ("--flow", "203.0.113.9 -> 192.168.0.2:3080/tcp", "-o", "json")
    assert explain(str(file), *flow) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)[0]["verdict"] == "dnat"
    assert "shop/web: apply: spec.ports[0].nodePort: 3080 is outside of 30000-32767 and left out" in printed.err
    assert explain(str(file), *flow, "--service-node-port-range", "30000-32767") == 0
    assert json.loads(capsys.readouterr().out)[0]["verdict"] == "accept"


def test_flows_from_a_file_and_yaml(manifests: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = tmp_path / "flows.json"
    listed.write_text(json.dumps(["10.0.0.1 -> 10.96.0.10:80/tcp", "10.0.0.1 -> 10.0.0.2:1/udp"]))
    assert explain(manifests, "--flow", f"@{listed}", "--flow", "::1 -> [::2]:1/sctp", "-o", "yaml") == 0
    found = yaml.safe_load(capsys.readouterr().out)
    assert [flow["verdict"] for flow in found] == ["dnat", "accept", "accept"]


def test_the_configuration_tells_pods(manifests: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    flows = ("--flow", "10.244.0.9 -> 10.96.0.10:80/tcp", "--flow", "10.9.0.9 -> 10.96.0.10:80/tcp", "-o", "json")
    assert main(["--config", str(config), *NODE, "explain", "-f", manifests, *flows]) == 0
    assert [flow["masquerade"] for flow in json.loads(capsys.readouterr().out)] == [False, True]


def test_blocks_for_people(manifests: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(manifests, "--flow", "10.0.0.1 -> 10.0.0.2:1/udp", "--flow", "10.0.0.1 -> 10.0.0.3:1/udp") == 0
    assert capsys.readouterr().out == (
        "10.0.0.1 -> 10.0.0.2:1/udp\n"
        "  ACCEPT\n"
        "    - no Service has 10.0.0.2 with udp port 1\n"
        "    - left alone: the packet goes on unchanged\n"
        "\n"
        "10.0.0.1 -> 10.0.0.3:1/udp\n"
        "  ACCEPT\n"
        "    - no Service has 10.0.0.3 with udp port 1\n"
        "    - left alone: the packet goes on unchanged\n"
    )


@pytest.mark.parametrize(
    ("content", "told"),
    [(None, "cannot be read: No such file"), ('{"flow": 1}', "not a JSON list"), ('["x"]', "the arrow")],
)
def test_wrong_flow_files(
    manifests: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None, told: str
) -> None:
    listed = tmp_path / "flows.json"
    if content is not None:
        listed.write_text(content)
    assert explain(manifests, "--flow", f"@{listed}", "-o", "json") == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert not printed.out


def test_wrong_usage_and_failure(manifests: str, capsys: pytest.CaptureFixture[str]) -> None:
    """2 for what was asked wrongly, before anything else is complained of; 1 for what cannot be read."""
    assert explain(manifests, "--flow", "10.0.0.1 -> 10.0.0.2") == 2
    assert capsys.readouterr().err.startswith("hotplane: flow '10.0.0.1 -> 10.0.0.2'")
    assert explain(manifests) == 2
    assert explain(f"{manifests}.gone", "--flow", "10.0.0.1 -> 10.0.0.2:1/udp") == 1
    assert "cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(("gate", "verdict"), [("true", "dnat"), ("false", "accept")])
def test_the_gate_of_external_ips(tmp_path: Path, capsys: pytest.CaptureFixture[str], gate: str, verdict: str) -> None:
    manifests, config = tmp_path / "objects.yaml", tmp_path / "config.yaml"
    manifests.write_text(EBPF.replace("clusterIP: 10.96.0.10", "clusterIP: 10.96.0.10, externalIPs: [198.51.100.7]"))
    config.write_text(f"{CONFIG}featureGates: {{AllowServiceExternalIPs: {gate}}}")
    flow = ("--flow", "203.0.113.9 -> 198.51.100.7:80/tcp", "-o", "json")
    assert main(["--config", str(config), *NODE, "explain", "-f", str(manifests), *flow]) == 0
    printed = capsys.readouterr()
    [found] = json.loads(printed.out)
    assert found["verdict"] == verdict
    told = "AllowServiceExternalIPs is false"
    assert (told in printed.err) == (gate == "false")
    assert any(f"externalIP of Service shop/web, but {told}" in reason for reason in found["reasons"]) == (
        gate == "false"
    )


EBPF = """
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {type: NodePort, clusterIP: 10.96.0.10, ports: [{port: 80, nodePort: 30080}]}
---
apiVersion: v1
kind: Node
metadata: {name: n2}
spec: {podCIDR: 10.244.2.0/24}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-4, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: "", port: 8080}]
endpoints:
- {addresses: [10.244.0.5], nodeName: n1}
- {addresses: [10.244.1.5], nodeName: n3}
"""
OUTSIDE, OWN_POD, REMOTE_POD, ENDPOINT_ELSEWHERE, NODE_ITSELF = (
    "203.0.113.9", "10.244.0.9", "10.244.2.9", "10.244.1.5", "192.168.0.2",
)  # fmt: skip


@pytest.mark.parametrize(
    ("options", "source", "told"),
    [
        ((), OUTSIDE, "only if the choice is 10.244.1.5:8080; other backends see 203.0.113.9"),
        (("--masquerade", "client"), OUTSIDE, "only if the choice is 10.244.1.5:8080"),
        (("--masquerade", "kube-proxy"), OUTSIDE, "masqueraded as this node: external traffic"),
        (("--hooks", "tc"), OUTSIDE, "only if the choice is 10.244.1.5:8080"),
        (("--hooks", "connect"), OUTSIDE, "masqueraded as this node: external traffic"),
        ((), OWN_POD, "not masqueraded: the backend sees 10.244.0.9, as a pod is pointed at its backend"),
        (("--hooks", "tc"), OWN_POD, "only if the choice is 10.244.1.5:8080"),
        (("--cgroup", "none"), OWN_POD, "only if the choice is 10.244.1.5:8080"),
        (("--masquerade", "kube-proxy"), OWN_POD, "masqueraded as this node: external traffic"),
        ((), REMOTE_POD, "masqueraded as this node: external traffic"),
        ((), ENDPOINT_ELSEWHERE, "masqueraded as this node: external traffic"),
        ((), NODE_ITSELF, "masqueraded as this node: external traffic"),
    ],
)
def test_the_ebpf_mode_keeps_addresses_as_it_was_asked_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], source: str, told: str
) -> None:
    manifests, config = tmp_path / "objects.yaml", tmp_path / "config.yaml"
    manifests.write_text(EBPF)
    config.write_text(CONFIG)
    flow = ("--flow", f"{source} -> 192.168.0.2:30080/tcp", "-o", "json")
    arguments = ["--mode", "ebpf", "--config", str(config), *options, *NODE, "explain", "-f", str(manifests), *flow]
    assert main(arguments) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert told in found["reasons"][-1]
    assert found["masquerade"] == ("masqueraded as this node" in told)


def test_session_affinity_is_not_for_connect_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """So a pod is masqueraded towards a backend elsewhere, as by the packet programs."""
    manifests, config = tmp_path / "objects.yaml", tmp_path / "config.yaml"
    manifests.write_text(EBPF.replace("clusterIP: 10.96.0.10,", "clusterIP: 10.96.0.10, sessionAffinity: ClientIP,"))
    config.write_text(CONFIG)
    flow = ("--flow", f"{OWN_POD} -> 192.168.0.2:30080/tcp", "-o", "json")
    assert main(["--mode", "ebpf", "--config", str(config), *NODE, "explain", "-f", str(manifests), *flow]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert "only if the choice is 10.244.1.5:8080" in found["reasons"][-1]


PODS = """---
apiVersion: v1
kind: Namespace
metadata: {name: mesh, labels: {service.hotplane.io/connect-time: "off"}}
---
apiVersion: v1
kind: Pod
metadata: {name: sidecar, namespace: mesh, uid: u-1}
spec: {nodeName: n1, containers: [{ports: [{containerPort: 80, hostPort: 8080}]}]}
status: {podIP: 10.244.0.9}
"""


def test_a_pods_host_port(manifests: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(manifests).write_text(PODS)
    flow = ["--flow", "203.0.113.9 -> 192.168.0.2:8080/tcp"]
    assert explain(manifests, *flow, "--host-ports") == 0
    said = capsys.readouterr().out
    assert "DNAT to 10.244.0.9:80  by mesh/sidecar:8080, hostPort 192.168.0.2:8080/tcp" in said
    assert "192.168.0.2:8080/tcp is a hostPort of Pod mesh/sidecar" in said
    assert "EndpointSlice" not in said
    assert explain(manifests, *flow) == 0
    assert "ACCEPT" in capsys.readouterr().out


def test_a_pod_whose_connections_are_left_alone(
    manifests: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path(manifests).write_text(MANIFESTS.replace("  sessionAffinity: ClientIP\n", "") + PODS)
    (tmp_path / "config.yaml").write_text(CONFIG)
    words = ["--config", str(tmp_path / "config.yaml"), "--flow", "10.244.0.9 -> 192.168.0.2:30080/tcp", "-o", "json"]
    told = "connect time is off for Pod mesh/sidecar (label of Namespace mesh): its packets carry 192.168.0.2 and are"
    for mode, options, is_off in (("ebpf", [], True), ("ebpf", ["--hooks", "tc"], False), ("nftables", [], False)):
        assert explain(manifests, *words, *options, mode=mode) == 0
        [flow] = json.loads(capsys.readouterr().out)
        assert any(reason.startswith(told) for reason in flow["reasons"]) == is_off, (mode, options)
    explain(manifests, *[word.replace("0.9", "0.8") for word in words], mode="ebpf")
    [other] = json.loads(capsys.readouterr().out)
    explain(manifests, *words, mode="ebpf")
    [off] = json.loads(capsys.readouterr().out)
    pointed = "a pod is pointed at its backend when it connects"
    assert pointed in " ".join(other["reasons"])
    assert pointed not in " ".join(off["reasons"])


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("198.51.100.7", "not masqueraded: the backend sees 10.244.0.9, as a pod is pointed at its backend"),
        (
            "192.168.0.2",
            "masqueraded only if the choice is 10.244.1.5:8080; other backends see 10.244.0.9, as this mode",
        ),
    ],
)
def test_nobody_is_pointed_away_from_an_address_of_the_node_at_connect_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], address: str, told: str
) -> None:
    """Somebody may listen at such an address, whatever Service has it; only packets show whether anybody does."""
    manifests, config = tmp_path / "objects.yaml", tmp_path / "config.yaml"
    manifests.write_text(EBPF.replace("clusterIP: 10.96.0.10", f"clusterIP: 10.96.0.10, externalIPs: [{address}]"))
    config.write_text(CONFIG)
    flow = ("--flow", f"{OWN_POD} -> {address}:80/tcp", "-o", "json")
    assert main(["--mode", "ebpf", "--config", str(config), *NODE, "explain", "-f", str(manifests), *flow]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert told in found["reasons"][-1]


@pytest.mark.parametrize(
    ("options", "address", "verdict"),
    [
        (("--mode", "nftables"), "127.0.0.1", "dnat"),
        (("--mode", "nftables"), "[::1]", "accept"),
        (("--mode", "ebpf"), "127.0.0.1", "dnat"),
        (("--mode", "ebpf"), "[::1]", "dnat"),
        (("--mode", "ebpf", "--hooks", "tc"), "127.0.0.1", "dnat"),
        (("--mode", "ebpf", "--hooks", "tc"), "[::1]", "accept"),
    ],
)
def test_node_ports_on_loopback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], address: str, verdict: str
) -> None:
    manifests, config = tmp_path / "objects.yaml", tmp_path / "config.yaml"
    ports = "ports: [{port: 80, nodePort: 30080}]"
    both = EBPF.replace("clusterIP: 10.96.0.10", "clusterIP: 10.96.0.10, clusterIPs: [10.96.0.10, 'fd00:96::a']")
    slices = both + both[both.rindex("---") :].replace("name: web-4", "name: web-6").replace("IPv4", "IPv6").replace(
        "10.244.0.5", "'fd00:244::5'"
    ).replace("10.244.1.5", "'fd00:244::15'")
    assert ports in both
    manifests.write_text(slices)
    config.write_text(f"{CONFIG}nodePortAddresses: [primary, localhost]\n")
    flow = ("--flow", f"{address} -> {address}:30080/tcp", "-o", "json")
    assert main(["--config", str(config), *options, *NODE, "explain", "-f", str(manifests), *flow]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert found["verdict"] == verdict


def _asked(capsys: pytest.CaptureFixture[str]) -> dict[str, tuple[str, bool]]:
    return {flow["flow"]: (flow["verdict"], flow["masquerade"]) for flow in json.loads(capsys.readouterr().out)}


def test_a_service_by_its_name_is_asked_from_each_class_of_sources(
    manifests: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG)
    assert explain(manifests, "--config", str(config), "--service", "shop/web", "-o", "json") == 0
    assert _asked(capsys) == {
        "10.244.0.9 -> 10.96.0.10:80/tcp": ("dnat", False),
        "192.168.0.2 -> 10.96.0.10:80/tcp": ("dnat", True),
        "192.0.2.1 -> 10.96.0.10:80/tcp": ("dnat", True),
        "[fd00:168::2] -> [fd00:96::10]:80/tcp": ("dnat", False),
        "[2001:db8::1] -> [fd00:96::10]:80/tcp": ("dnat", False),
        "10.244.0.9 -> 192.168.0.2:30080/tcp": ("dnat", True),
        "192.168.0.2 -> 192.168.0.2:30080/tcp": ("dnat", True),
        "192.0.2.1 -> 192.168.0.2:30080/tcp": ("dnat", True),
        "[fd00:168::2] -> [fd00:168::2]:30080/tcp": ("dnat", True),
        "[2001:db8::1] -> [fd00:168::2]:30080/tcp": ("dnat", True),
    }


def test_a_service_from_a_source_that_was_named(manifests: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(manifests, "--service", "shop/web", "--from", "10.9.9.9", "-o", "json") == 0
    assert _asked(capsys).keys() == {"10.9.9.9 -> 10.96.0.10:80/tcp", "10.9.9.9 -> 192.168.0.2:30080/tcp"}
    assert explain(manifests, "--service", "shop/wbe") == 1
    assert "--service shop/wbe: there is no such Service here; did you mean shop/web?" in capsys.readouterr().err
    assert main(["explain"]) == 2
    assert "nothing is asked" in capsys.readouterr().err


PODS_HERE = """
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: web, labels: {app: web}}
spec: {nodeName: n1}
status: {podIP: 10.244.0.5}
---
apiVersion: v1
kind: Pod
metadata: {namespace: shop, name: client}
spec: {nodeName: n1}
status: {podIP: 10.244.0.9}
"""
POLICY = """
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {namespace: shop, name: p}
spec: {podSelector: SELECTOR}
"""
ROUTED = ("--host-routing", "auto")


@pytest.mark.parametrize(
    ("selector", "options", "told"),
    [
        (
            "",
            ROUTED,
            "to 10.244.0.5 go past the node's stack, straight to the pod, unless a device or another program's",
        ),
        ("", ROUTED, "to 10.244.1.5 go past the node's stack, by the uplink, unless a device or another program's"),
        ("", (), "to 10.244.0.5 go past the node's stack, straight to the pod, unless a device or another program's"),
        ("", ("--host-routing", "off"), "--host-routing is off: its packets go by the node's stack"),
        (
            "{matchLabels: {app: web}}",
            ROUTED,
            "to 10.244.0.5 go by the node's stack: NetworkPolicy shop/p selects Pod shop/web",
        ),
        ("{matchLabels: {app: web}}", ROUTED, "to 10.244.1.5 go past the node's stack, by the uplink"),
        ("{matchLabels: {app: web}}", ("--host-routing", "on"), "to 10.244.0.5 go past the node's stack"),
        ("{}", ROUTED, "to 10.244.1.5 go by the node's stack: NetworkPolicy shop/p selects Pod shop/client"),
        ("[wrong]", ROUTED, "to 10.244.0.5, 10.244.1.5 go by the node's stack: NetworkPolicy shop/p cannot be read"),
    ],
)
def test_which_way_packets_go_past_the_stack(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], selector: str, options: tuple[str, ...], told: str
) -> None:
    manifests = tmp_path / "objects.yaml"
    manifests.write_text(EBPF + PODS_HERE + (POLICY.replace("SELECTOR", selector) if selector else ""))
    words = ["--mode", "ebpf", *NODE, *options, "explain", "-f", str(manifests), "-o", "json"]
    assert main([*words, "--flow", "10.244.0.9 -> 10.96.0.10:80/tcp"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    assert any(told in reason for reason in found["reasons"]), found["reasons"]
    (way,) = [step["name"] for step in found["path"] if told in step["note"]]
    assert way == ("host routing" if "past the node's stack" in told else "stack")


@pytest.mark.parametrize(
    ("field", "options", "past"), [("off", (), False), ("on", (), True), ("off", ("--host-routing", "on"), True)]
)
def test_the_file_says_which_way_packets_go_unless_an_option_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], field: str, options: tuple[str, ...], past: bool
) -> None:
    manifests, config = tmp_path / "objects.yaml", tmp_path / "config.yaml"
    manifests.write_text(EBPF + PODS_HERE)
    config.write_text(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n"
        f"clusterCIDR: 10.244.0.0/16\nhostRouting: {field}\n"
    )
    words = ["--mode", "ebpf", *NODE, "--config", str(config), *options, "explain", "-f", str(manifests), "-o", "json"]
    assert main([*words, "--flow", "10.244.0.9 -> 10.96.0.10:80/tcp"]) == 0
    [found] = json.loads(capsys.readouterr().out)
    ways = {step["name"] for step in found["path"]} & {"host routing", "stack"}
    assert ways == {"host routing" if past else "stack"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("web", "--service web: there is no such Service here; did you mean shop/web?"),
        (
            "shop/web:https",
            "--service shop/web:https: there is no such Service here: Service shop/web has no port 'https'",
        ),
    ],
)
def test_a_service_with_an_address_is_not_said_to_have_none(
    manifests: str, capsys: pytest.CaptureFixture[str], asked: str, said: str
) -> None:
    assert explain(manifests, "--service", asked) == 1
    assert said in capsys.readouterr().err
