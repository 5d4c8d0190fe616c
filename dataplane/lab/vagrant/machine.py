"""Shape this machine into one of the Vagrant lab: `python -m dataplane.lab.vagrant.machine node1 --nodes 2 --ipv6`.

A node is the machine itself: its own network namespace gets the name that the node has in a lab of namespaces, so
both labs are built by the same code. Its pods are namespaces behind it, each with an echo server. The client's machine
is the router between the nodes' network and the client, who is a namespace behind it. Addresses are those of
dataplane.lab.spec. What an earlier run built is removed first. Needs root; for machines of the lab only: their default
routes are replaced.
"""

import argparse
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from msgspec.structs import replace
from pyroute2 import IPRoute

from dataplane.errors import HotplaneError
from dataplane.kernel import sysctl
from dataplane.kernel.namespaces import netns
from dataplane.kernel.namespaces.cgroup import end_processes
from dataplane.kernel.netlink.links import Links
from dataplane.lab import build
from dataplane.lab.spec import LabError, LabSpec, Node, Place, PodLink, Routing, Topology, owns_namespace, topology
from dataplane.lab.traffic.agents import need_pipe, read_line
from dataplane.model.net import Family

ECHO_PORT = 8080
_ECHO_SECONDS = 240.0
_MAIN_TABLE = 254


def uplink() -> str:
    """The device on the nodes' network: the second of the machine's own, the first being Vagrant's way in.

    Raises LabError when there is no second.
    """
    devices = [path for path in Path("/sys/class/net").iterdir() if (path / "device").exists()]
    found = sorted(devices, key=lambda path: int((path / "ifindex").read_text()))
    if len(found) < 2:
        raise LabError("this machine has no second network device: is it one of the Vagrant lab?")
    return found[1].name


def on_uplink(plan: Topology, device: str) -> Topology:
    """The same lab with another name for the nodes' uplinks."""
    return replace(plan, nodes=tuple(replace(node, uplink=device) for node in plan.nodes))


def shape(spec: LabSpec, machine: str) -> None:
    """Build this machine's part of the lab. Raises HotplaneError, OSError."""
    device = uplink()
    plan = on_uplink(topology(spec), device)
    node = next((node for node in plan.nodes if node.name == machine), None)
    if node is None and machine != plan.client.name:
        raise LabError(f"{machine}: no machine of this lab; it has {', '.join(n.name for n in plan.nodes)}, client")
    here: Place = node or plan.underlay
    inside: tuple[Place, ...] = node.pods if node else (plan.client,)
    _remove(spec, device)
    with ExitStack() as stack:
        subprocess.run(["ip", "netns", "attach", here.netns, "1"], check=True)
        _own_settings(spec)
        links_of = {here.name: stack.enter_context(Links(here.netns))}
        links_of[here.name].up(device)
        for place in inside:
            netns.create(place.netns)
            with netns.netns(place.netns):
                build.settings(spec, forwarding=False)
            links_of[place.name] = stack.enter_context(Links(place.netns))
            links_of[place.name].up("lo")
        if node:
            build.make_node(spec, plan, node, links_of)
        else:
            links_of[here.name].add_veth("client", links_of["client"], "eth0", build.UNDERLAY_MTU)
            build.router(spec, plan, links_of, device)
    if node:
        _echo(node)


def _remove(spec: LabSpec, device: str) -> None:
    """Remove what an earlier run built, and the ways out that the lab's own replace."""
    own = Path("/proc/1/ns/net").stat().st_ino
    owned = [name for name in netns.names() if owns_namespace(spec.name, name)]
    pods = [name for name in owned if (netns.NETNS_DIR / name).stat().st_ino != own]
    end_processes(list(netns.pids(pods)))
    for name in owned:
        netns.remove(name)
    with IPRoute() as ipr:
        for name in ("flannel.1", "cni0", "client"):
            for index in ipr.link_lookup(ifname=name):
                ipr.link("del", index=index)
        index = ipr.link_lookup(ifname=device)[0]
        ipr.flush_addr(index=index)
        ipr.link("set", index=index, state="down")
        for family in Family:
            number = int(family.socket_family)
            ipr.flush_rules(family=number, priority=lambda value: 0 < value < build.LAST_RULE + 1)
            ipr.flush_routes(family=number, table=build.UNREACHABLE_TABLE)
            for route in ipr.get_default_routes(family=number, table=_MAIN_TABLE):
                ipr.route("del", family=number, dst="default", oif=route.get_attr("RTA_OIF"))


def _own_settings(spec: LabSpec) -> None:
    """The sysctls of a node or router, for the devices too that are there already."""
    build.settings(spec, forwarding=True)
    for family, names in (("ipv4", ("rp_filter", "send_redirects")), ("ipv6", ("accept_ra", "accept_dad"))):
        for device in Path(f"/proc/sys/net/{family}/conf").iterdir():
            for name in names:
                sysctl.write(f"net/{family}/conf/{device.name}/{name}", 0)


def _echo(node: Node) -> None:
    """Start an echo server in each pod; returns when all listen. They live until the machine or the shape goes."""
    started, null = [], subprocess.DEVNULL
    for pod in node.pods:
        argv = [sys.executable, "-P", "-m", "dataplane.lab.traffic.echo", "--name", pod.name, "--port", str(ECHO_PORT)]
        with netns.netns(pod.netns):
            process = subprocess.Popen(argv, stdin=null, stdout=subprocess.PIPE, stderr=null, start_new_session=True)
        started.append((pod.name, process))
    deadline = time.monotonic() + _ECHO_SECONDS
    for name, process in started:
        if read_line(process, deadline) != b"ready\n":
            raise LabError(f"{name}: the echo server on port {ECHO_PORT} does not start")
        need_pipe(process.stdout).close()


def main() -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(prog="machine", description="Shape this machine into one of the Vagrant lab.")
    parser.add_argument("machine", help="node1, node2, ... or client")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--pods", type=int, required=True)
    parser.add_argument("--routing", choices=[*Routing], default=Routing.DIRECT)
    parser.add_argument("--pod-link", choices=[*PodLink], default=PodLink.VETH)
    parser.add_argument("--ipv6", action="store_true")
    args = parser.parse_args()
    spec = LabSpec(
        nodes=args.nodes, pods=args.pods, routing=Routing(args.routing), pod_link=PodLink(args.pod_link), ipv6=args.ipv6
    )
    try:
        shape(spec, args.machine)
    except (HotplaneError, OSError) as error:
        print(f"{args.machine}: {error}", file=sys.stderr)
        return 1
    print(f"{args.machine}: ready")
    return 0


if __name__ == "__main__":
    sys.exit(main())
