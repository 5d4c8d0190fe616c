"""The daemon on one node: what it serves, refuses, reloads, takes over and leaves behind."""

import json
import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from dataplane.kernel.namespaces.netns import in_netns, netns
from dataplane.kernel.netlink.conntrack_list import translated_connections
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec
from dataplane.model.net import Family, Protocol
from dataplane.planes.registry import mode_of
from tests.apiserver.objects import endpoint, endpoint_slice, node, service
from tests.kernel.daemon_lab import PORT, ROOT, VIP, DaemonLab, Traffic, daemon_lab, http, until


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab.up(LabSpec(f"daemonone-{os.getpid()}", nodes=1, pods=2)) as lab:
        lab.start_echo(lab.pods, [PORT])
        yield lab


@pytest.fixture
def cluster(lab: Lab, tmp_path: Path) -> Iterator[DaemonLab]:
    with daemon_lab(lab, tmp_path) as cluster:
        cluster.server.apply(service("echo", VIP))
        cluster.serve(*[(pod, "ready") for pod in lab.pods])
        yield cluster


def _gauge(cluster: DaemonLab, name: str) -> float:
    _, _, body = http(cluster.daemons[0].netns, "127.0.0.1", 10249, "/metrics")
    return next(float(line.split()[-1]) for line in body.decode().splitlines() if line.startswith(f"{name} "))


def _balanced(name: str, ip: str, port: int) -> dict[str, object]:
    return service(
        name, ip, type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=port,
        ports=[{"port": 80, "protocol": "TCP", "nodePort": 30080}],
    )  # fmt: skip


def test_what_it_serves(cluster: DaemonLab, lab: Lab) -> None:
    cluster.start()
    daemon = cluster.daemons[0]
    status, headers, body = http(lab.client.netns, lab.nodes[0].addresses[Family.IPV4], 10256, "/healthz")
    assert (status, headers["content-type"], headers["x-content-type-options"]) == (200, "application/json", "nosniff")
    assert json.loads(body)["nodeEligible"] is True
    (first, *_) = daemon.text.splitlines()
    for field in ("starting version=0.1.0", "mode=nftables", f"node={lab.nodes[0].name}", "healthz=", "metrics="):
        assert field in first
    assert http(daemon.netns, "127.0.0.1", 10256, "/livez")[0] == 200
    assert http(daemon.netns, "127.0.0.1", 10256, "/other")[0] == 404
    assert http(daemon.netns, "127.0.0.1", 10249, "/proxyMode")[2] == b"nftables"
    status, headers, body = http(daemon.netns, "127.0.0.1", 10249, "/statusz")
    assert (status, headers["content-type"]) == (200, "text/plain; charset=utf-8")
    assert body.startswith(b"\nkube-proxy statusz\nWarning: This endpoint is not meant to be machine parseable")
    assert re.search(rb"\nStarted: .+\nUp: 0 hr \d\d min \d\d sec\n(.+\n)*Binary version: 1\.36", body)
    status, _, body = http(daemon.netns, "127.0.0.1", 10249, "/flagz")
    assert status == 200
    assert b"\nmaster=http" in body
    assert b"\nconntrack-min=131072\n" in body
    for port, path in ((10249, "/metrics"), (10249, "/none"), (10256, "/healthz"), (10256, "/none")):
        assert "server" not in http(daemon.netns, "127.0.0.1", port, path)[1]
    assert _gauge(cluster, "hotplane_frontends") == 1
    assert _gauge(cluster, 'kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family="IPv4"}') >= 1
    assert _gauge(cluster, 'kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family="IPv6"}') > 1.7e9
    with pytest.raises(ConnectionRefusedError):
        http(lab.client.netns, lab.nodes[0].addresses[Family.IPV4], 10249, "/metrics")
    cluster.server.apply(node("node1", "172.18.0.1", taints=["ToBeDeletedByClusterAutoscaler"]))
    until(lambda: http(daemon.netns, "127.0.0.1", 10256, "/healthz")[0] == 503, "the node is about to go")
    assert http(daemon.netns, "127.0.0.1", 10256, "/livez")[0] == 200
    assert daemon.stop() == 0


def test_cleaning_of_connection_tracking_is_measured(cluster: DaemonLab, lab: Lab) -> None:
    """Two UDP flows to an endpoint that goes, and one of another Service, which stays."""
    daemon, server = cluster.daemons[0], cluster.server
    for name, ip in (("dns", "10.96.0.53"), ("ntp", "10.96.0.54")):
        server.apply(service(name, ip, protocol="UDP"), endpoint_slice(name, ["10.244.1.11"], protocol="UDP"))
    daemon.start("--master", server.url)
    began = _gauge(cluster, 'kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family="IPv4"}')
    with in_netns(daemon.netns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as first:
        with in_netns(daemon.netns, socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as second:
            for sock, address in ((first, "10.96.0.53"), (second, "10.96.0.53"), (first, "10.96.0.54")):
                sock.sendto(b"?", (address, 80))
            server.apply(endpoint_slice("dns", ["10.244.1.12"], protocol="UDP"))
            deleted = 'kubeproxy_conntrack_reconciler_deleted_entries_total{ip_family="%s"}'
            until(lambda: _gauge(cluster, deleted % "IPv4") == 2, "both are counted")
    assert _gauge(cluster, deleted % "IPv6") == 0
    seconds = "kubeproxy_conntrack_reconciler_sync_duration_seconds_%s"
    assert _gauge(cluster, f'{seconds % "count"}{{ip_family="IPv4"}}') > began
    assert 0 < _gauge(cluster, f'{seconds % "sum"}{{ip_family="IPv4"}}') < 60
    with netns(daemon.netns):
        left = {each.frontend for each in translated_connections() if each.protocol is Protocol.UDP}
    assert left == {("10.96.0.54", 80)}


def test_a_health_port_that_is_taken_is_said_and_fatal_only_on_request(cluster: DaemonLab) -> None:
    daemon = cluster.daemons[0]
    with in_netns(daemon.netns, socket.create_server, ("127.0.0.1", 10256)):
        daemon.start("--master", cluster.server.url)
        assert "10256: cannot be listened on: Address already in use" in daemon.text
        assert cluster.holds(daemon, "default/echo")
        daemon.kill()
        daemon.start("--master", cluster.server.url, "--bind-address-hard-fail", wait=False)
        until(lambda: not daemon.alive, "it ends")
        assert "free the port or choose another address" in daemon.text


def _status(lab: Lab, address: str, port: int) -> int | None:
    """What a health check port says to the client; None while it is closed."""
    try:
        return http(lab.client.netns, address, port)[0]
    except ConnectionRefusedError:
        return None


def test_health_check_node_ports(cluster: DaemonLab, lab: Lab) -> None:
    address = lab.nodes[0].addresses[Family.IPV4]
    cluster.server.apply(_balanced("echo", VIP, 31000))
    cluster.start()
    until(lambda: _status(lab, address, 31000) == 200, "the port opens once the rules are there")
    _, headers, body = http(lab.client.netns, address, 31000)
    assert headers["content-type"] == "application/json"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-load-balancing-endpoint-weight"] == "2"
    assert body.decode().splitlines() == [
        "{",
        '"service": {',
        '\t"namespace": "default",',
        '\t"name": "echo"',
        "},",
        '"localEndpoints": 2,',
        '"serviceProxyHealthy": true',
        "}",
    ]
    assert not body.endswith(b"\n")
    portless = endpoint_slice("echo", [pod.addresses[Family.IPV4] for pod in lab.pods])
    cluster.server.apply({**portless, "ports": []})
    until(lambda: _status(lab, address, 31000) == 503, "no port leads to an endpoint")
    assert http(lab.client.netns, address, 31000)[1]["x-load-balancing-endpoint-weight"] == "0"
    cluster.serve(*[(pod, "ready") for pod in lab.pods])
    until(lambda: _status(lab, address, 31000) == 200, "the ports are back")
    cluster.serve((lab.pods[0], "terminating"))
    until(lambda: http(lab.client.netns, address, 31000)[0] == 503, "no ready endpoint here")
    assert http(lab.client.netns, address, 31000)[1]["x-load-balancing-endpoint-weight"] == "0"
    cluster.server.apply(service("echo", VIP))

    def closed() -> bool:
        try:
            return _status(lab, address, 31000) is None
        except ConnectionResetError:
            return False  # it was in the queue of the port that is being closed

    until(closed, "the port closes when the Service no longer has it")


def test_many_health_check_node_ports(cluster: DaemonLab, lab: Lab) -> None:
    count = 2000
    cluster.start()
    many: list[dict[str, object]] = []
    for number in range(count):
        item = _balanced(f"lb{number}", f"10.96.{10 + number // 250}.{number % 250 + 1}", 25000 + number)
        spec = item["spec"]
        assert isinstance(spec, dict)
        spec["ports"] = [{"port": 80, "protocol": "TCP", "nodePort": 20000 + number}]
        many.append(item)
    cluster.server.apply(*many)
    address = lab.nodes[0].addresses[Family.IPV4]
    for number in range(0, count, 100):
        until(lambda n=number: _status(lab, address, 25000 + n) == 503, f"port {number} opens")  # type: ignore[misc]
    assert b'"name": "lb200"' in http(lab.client.netns, address, 25000 + 200)[2]


def test_refused_objects_are_told_and_harm_nobody(cluster: DaemonLab) -> None:
    broken = service("broken", "10.96.0.40")
    broken["spec"]["ports"] = "none"
    cluster.server.apply(broken, service("z-thief", VIP), service("good", "10.96.0.41"))
    cluster.server.apply(endpoint_slice("good", ["10.244.1.11"]))
    cluster.start()
    assert cluster.holds(cluster.daemons[0], "default/good")
    assert cluster.holds(cluster.daemons[0], "default/echo")
    until(lambda: len(cluster.server.written()) >= 2, "Events are written")
    written = {event["regarding"]["name"]: event for event in cluster.server.written()}
    assert written["broken"]["reason"] == "InvalidObject"
    assert "spec.ports" in written["broken"]["note"]
    assert written["z-thief"]["reason"] == "FrontendConflict"
    assert "default/echo" in written["z-thief"]["note"]
    assert _gauge(cluster, "hotplane_objects_refused") == 2
    cluster.server.delete("Service", "default", "echo")
    until(lambda: cluster.holds(cluster.daemons[0], "default/z-thief"), "the younger one gets the address")


def test_addresses_of_old_objects_are_served_with_a_warning(cluster: DaemonLab, lab: Lab) -> None:
    first, second = (pod.addresses[Family.IPV4] for pod in lab.pods)
    zeros = ".".join(f"0{octet}" for octet in first.split("."))
    cluster.server.apply(
        service("old", "10.096.001.017", externalIPs=["::ffff:203.0.113.014"]),
        endpoint_slice("old", [zeros, f"::ffff:{second}"]),
    )
    cluster.start()
    for address in ("10.96.1.17", "203.0.113.14"):
        with Traffic(lab.pods[0].netns, address, lasting=0) as traffic:
            until(lambda t=traffic: t.made > 40, "connections")  # type: ignore[misc]
        assert not traffic.failures
        assert len(traffic.servers) == 2
    text = cluster.daemons[0].text
    assert text.count("object noted") == 4
    assert "is written '10.096.001.017' and read as 10.96.1.17" in text
    assert _gauge(cluster, "hotplane_objects_refused") == 0


def test_sighup_reads_the_configuration_again(cluster: DaemonLab, lab: Lab, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"

    def write(**fields: object) -> None:
        document = {"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration", **fields}
        config.write_text(yaml.safe_dump(document))

    write(mode="nftables", metricsBindAddress="127.0.0.1:10249")
    daemon = cluster.daemons[0]
    daemon.mode = ""
    cluster.start("--config", str(config))
    with Traffic(lab.pods[0].netns) as traffic:
        write(mode="nftables", metricsBindAddress="127.0.0.1:10349", nftables={"masqueradeAll": True})
        daemon.hangup()
        until(lambda: "configuration reloaded" in daemon.text, "reload")
        assert http(daemon.netns, "127.0.0.1", 10349, "/proxyMode")[2] == b"nftables"
        write(
            mode="nftables",
            metricsBindAddress="127.0.0.1:10349",
            hostnameOverride="other",
            clientConnection={"kubeconfig": "/nowhere"},
        )
        daemon.hangup()
        until(lambda: "wait for a restart" in daemon.text, "what cannot change is named")
        assert "fields=clientConnection.kubeconfig" in daemon.text, "the flags win over the file's name"
        write(mode="what")
        daemon.hangup()
        until(lambda: "the old one stays" in daemon.text, "a wrong configuration is refused")
        assert daemon.alive
        write(mode="iptables", metricsBindAddress="127.0.0.1:10349")
        daemon.hangup()
        until(lambda: "mode=iptables" in daemon.text.split("configuration reloaded")[-1], "the mode changes")
        liberal = {"tcpBeLiberal": True}
        write(mode="iptables", metricsBindAddress="127.0.0.1:10349", conntrack=liberal)
        assert "--ctstate INVALID" in _iptables(daemon.netns)
        daemon.hangup()
        until(lambda: "conntrack.tcpBeLiberal changed" in daemon.text, "the rules change")
        assert "--ctstate INVALID" not in _iptables(daemon.netns)
    assert traffic.failures == []
    tables = in_netns(daemon.netns, subprocess.run, ["nft", "list", "tables"], capture_output=True, text=True).stdout
    assert "hotplane" not in tables


def test_adopt_takes_over_from_kube_proxys_rules_and_back(cluster: DaemonLab, lab: Lab) -> None:
    """The iptables plane's rules are kube-proxy's: they stand, they carry traffic, ours replace them, and back."""
    daemon = cluster.daemons[0]
    daemon.mode = "iptables"
    daemon.run("run", "--once", "--master", cluster.server.url)
    assert "KUBE-SVC-" in _iptables(daemon.netns)
    daemon.mode = "nftables"
    for place in (lab.pods[0].netns, lab.client.netns):
        assert in_netns(place, subprocess.run, ["ip", "route"], capture_output=True).returncode == 0
    with Traffic(lab.pods[0].netns) as pod, Traffic(lab.nodes[0].netns) as host:
        output = daemon.run("adopt", "--master", cluster.server.url)
        assert "removed kube-proxy's iptables rules" in output
        assert "KUBE-" not in _iptables(daemon.netns)
        assert cluster.holds(daemon, "default/echo")
        daemon.start("--master", cluster.server.url)
        assert "changed=0" in daemon.text, "the daemon finds the rules as they should be"
        assert daemon.stop() == 0
        daemon.mode = "iptables"
        daemon.run("run", "--once", "--master", cluster.server.url)
        daemon.mode = "nftables"
        daemon.run("run", "--cleanup")
    assert pod.failures == []
    assert host.failures == []
    assert "KUBE-SVC-" in _iptables(daemon.netns)


def _iptables(namespace: str) -> str:
    found = ""
    for tool in ("iptables-legacy-save", "iptables-nft-save"):
        found += in_netns(namespace, subprocess.run, [tool], capture_output=True, text=True).stdout
    return found


def test_an_end_leaves_the_data_plane_and_cleanup_removes_it(cluster: DaemonLab, lab: Lab) -> None:
    cluster.start()
    daemon = cluster.daemons[0]
    with Traffic(lab.pods[0].netns) as traffic:
        assert daemon.stop() == 0
    assert traffic.failures == []
    assert "the data plane stays" in daemon.text
    daemon.run("run", "--cleanup", "--mode", "nftables")
    assert not cluster.holds(daemon, "default/echo")


def test_a_directory_is_followed(cluster: DaemonLab, lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "manifests"
    folder.mkdir()
    pods = [pod.addresses[Family.IPV4] for pod in lab.pods]

    def write(name: str, text: str) -> None:
        """Put a whole file in the place of another: one that was just emptied would have nothing in it."""
        whole = tmp_path / name
        whole.write_text(text)
        whole.rename(folder / name)

    write("echo.json", json.dumps(service("echo", VIP)))
    write("slice.json", json.dumps(endpoint_slice("echo", pods)))
    daemon = cluster.daemons[0]
    daemon.start("-f", str(folder))
    with Traffic(lab.pods[0].netns) as traffic:
        write("slice.json", '{"kind": "EndpointSlice", "broken')
        until(lambda: "nothing changes until" in daemon.text, "the broken file is told of")
        assert cluster.holds(daemon, "default/echo")
        write("slice.json", json.dumps(endpoint_slice("echo", pods[1:])))
        until(lambda: daemon.text.count(" synced ") == 1, "the change is taken in")
    assert traffic.failures == []
    (folder / "echo.json").unlink()
    until(lambda: not cluster.holds(daemon, "default/echo"), "the Service goes with its file")


def test_cap_net_admin_is_enough(cluster: DaemonLab, lab: Lab) -> None:
    """The one capability that docs/deploy gives it, nothing else that root has."""
    daemon = cluster.daemons[0]
    daemon.wrapper = ("setpriv", "--bounding-set=-all,+net_admin", "--inh-caps=-all,+net_admin", "--no-new-privs")
    cluster.server.apply(_balanced("echo", VIP, 31000))
    cluster.server.apply(service("dns", "10.96.0.53", protocol="UDP", port=53))
    cluster.serve((lab.pods[0], "ready"), name="dns", protocol="UDP")
    cluster.start()
    held = Path(f"/proc/{daemon.pid}/status").read_text()
    assert "CapEff:\t0000000000001000" in held, "CAP_NET_ADMIN is bit 12"
    cluster.serve(name="dns", protocol="UDP")
    cluster.synced()
    assert http(lab.client.netns, lab.nodes[0].addresses[Family.IPV4], 31000)[0] == 200
    in_netns(daemon.netns, subprocess.run, ["nft", "delete", "table", "ip", "hotplane"], check=True)
    until(lambda: "loaded again" in daemon.text, "drift is repaired")
    with Traffic(lab.pods[0].netns) as traffic:
        cluster.synced()
    assert traffic.failures == []
    assert "ERROR" not in daemon.text


def test_the_ebpf_mode_tells_of_its_traffic(lab: Lab, tmp_path: Path) -> None:
    with daemon_lab(lab, tmp_path, "ebpf") as cluster:
        cluster.server.apply(service("echo", VIP))
        cluster.serve(*[(pod, "ready") for pod in lab.pods])
        cluster.start()
        with Traffic(lab.pods[0].netns, lasting=0) as traffic:
            until(lambda: traffic.made > 20, "connections")
        assert traffic.failures == []
        _, _, body = http(cluster.daemons[0].netns, "127.0.0.1", 10249, "/metrics")
        lines = dict(line.rsplit(" ", 1) for line in body.decode().splitlines() if line[:1] != "#")
        assert float(lines['hotplane_service_connections_total{service="default/echo"}']) >= 20
        assert any(name.startswith("hotplane_decisions_total{") for name in lines)
        assert float(lines['hotplane_map_bytes{map="services"}']) > 0


def test_the_longest_legal_name_holds_nothing_up(lab: Lab, tmp_path: Path) -> None:
    ports = [{"name": "p" * 63, "port": 80, "protocol": "TCP"}]
    with daemon_lab(lab, tmp_path, "ebpf") as cluster:
        cluster.server.apply(service("s" * 63, "10.96.7.7", namespace="n" * 63, ports=ports))
        cluster.start()
        cluster.server.apply(service("echo", VIP))
        cluster.serve(*[(pod, "ready") for pod in lab.pods])
        cluster.synced()
        with Traffic(lab.pods[0].netns, lasting=0) as traffic:
            until(lambda: traffic.made > 20, "connections")
        assert traffic.failures == []
        daemon = cluster.daemons[0]
        assert http(daemon.netns, "127.0.0.1", 10249, "/metrics")[0] == 200
        assert "ERROR" not in daemon.text
        daemon.stop()
        daemon.start("--master", cluster.server.url)
        cluster.synced()
        assert "ERROR" not in daemon.text
        assert "changed=0" in daemon.text.rpartition(" loaded ")[2], "what is held is adopted"


def test_a_changed_node_object_plans_everything_anew(cluster: DaemonLab, lab: Lab) -> None:
    own = lab.nodes[0].addresses[Family.IPV4]
    near, far = (pod.addresses[Family.IPV4] for pod in lab.pods)
    endpoints = [endpoint(near), endpoint(far)]
    for item, zone in zip(endpoints, ("za", "zb"), strict=True):
        item["hints"] = {"forZones": [{"name": zone}]}
    cluster.server.apply(node("node1", own, zone="za"), endpoint_slice("echo", endpoints))
    cluster.start()

    def chosen() -> set[str]:
        daemon = cluster.daemons[0]
        with netns(daemon.netns):
            rows = mode_of(daemon.mode).make().read_back().values()
        return {address for row in rows if row.service == "default/echo" for address, _ in row.cluster}

    assert chosen() == {near}
    cluster.server.apply(node("node1", own, zone="zb"))
    until(lambda: chosen() == {far}, "the node moved to another zone")
    cluster.server.delete("Node", "", "node1")
    until(lambda: "Node object is gone" in cluster.daemons[0].text, "the log says so")
    cluster.synced()
    assert chosen() == {far}, "the last known zone stays"
    cluster.server.apply(node("node1", own, zone="za"))
    until(lambda: chosen() == {near}, "the node is back, in another zone")
    assert not [line for line in cluster.daemons[0].text.splitlines() if "ERROR" in line]


def test_check_after_a_kill_knows_the_last_change(cluster: DaemonLab) -> None:
    cluster.start()
    daemon = cluster.daemons[0]
    until(
        lambda: bool(list((daemon.folder / "state").glob("*.msgpack"))), "the plan is written down for the first time"
    )
    cluster.server.apply(service("later", "10.96.0.77"), endpoint_slice("later", ["10.244.1.11"]))
    until(lambda: cluster.holds(daemon, "default/later"), "the change is taken in")
    cluster.server.delete("Service", "default", "echo")
    until(lambda: not cluster.holds(daemon, "default/echo"), "another one")
    daemon.kill()
    assert "no difference" in daemon.run("check")
    daemon.start("--master", cluster.server.url)
    assert "changed=0" in daemon.text


def test_an_address_that_comes_or_goes_is_noticed_at_once(cluster: DaemonLab) -> None:
    """Long before the daemon would look by itself, every 30 s."""
    cluster.start()
    daemon = cluster.daemons[0]
    for count, verb in enumerate(("add", "del"), 1):
        command = ["ip", "address", verb, "198.51.100.7/32", "dev", "lo"]
        in_netns(daemon.netns, subprocess.run, command, check=True)
        until(lambda n=count: daemon.text.count("this node changed") == n, f"address {verb}", 25)  # type: ignore[misc]
    changes = [line for line in daemon.text.splitlines() if "this node changed" in line]
    assert ["198.51.100.7" in line for line in changes] == [True, False]


def test_check_compares_with_what_the_daemon_holds_now(cluster: DaemonLab, lab: Lab) -> None:
    cluster.start()
    daemon = cluster.daemons[0]
    cluster.server.apply(service("later", "10.96.0.77"), endpoint_slice("later", ["10.244.1.11"]))
    until(lambda: cluster.holds(daemon, "default/later"), "the change is taken in")
    assert "no difference" in daemon.run("check")
    second = in_netns(daemon.netns, subprocess.run, daemon.command("run", "--once", "--master", cluster.server.url),
                      capture_output=True, text=True, cwd=ROOT)  # fmt: skip
    assert second.returncode == 1
    assert f"hotplane run (pid {daemon.pid}, nftables mode, since" in second.stderr
    assert daemon.alive
