"""`--flowtable` on the running kernel: taken where it has flowtables, else refused by name with nothing changed."""

import subprocess
from pathlib import Path

import pytest

from dataplane.kernel.namespaces.netns import in_netns
from dataplane.kernel.netlink.ethernet import ROUTE, ethernet_devices
from dataplane.kernel.netlink.netlink import Netlink
from dataplane.planes.finding import try_command
from tests.kernel.foreign_tables import hotplane, manifests
from tests.kernel.nftables_listing import nft
from tests.kernel.nftables_net import ip

_TRIAL = """table ip trial {
    flowtable f { hook ingress priority 0; devices = { lo }; }
    chain c { type filter hook forward priority 0; meta l4proto tcp flow add @f
    }
}
"""


@pytest.mark.parametrize("mode", ["nftables", "ebpf"])
def test_it_is_refused_by_name_where_the_kernel_lacks_it(namespace: str, tmp_path: Path, mode: str) -> None:
    able = try_command(["nft", "-f", "-"], _TRIAL).worked
    file, release = manifests(tmp_path, 3), subprocess.check_output(["uname", "-r"], text=True).strip()
    options = ("--mode", mode, "--hooks", "tc", "--state-dir", str(tmp_path / "state"), "--node-name", "n1")
    for command in (("apply",), ("run", "--once")):
        ran = hotplane(namespace, tmp_path / "cache", *options, *command, "--flowtable", "20", "-f", str(file))
        held = nft(namespace, "list", "ruleset")
        assert ("flow add @fast" in held) == able
        assert ran.status == (0 if able else 1), ran.text
        if not able:
            assert f"--flowtable: the kernel of this node ({release}) has no flowtables" in ran.text
            assert "leave the option out, or run a kernel with CONFIG_NF_FLOW_TABLE_INET" in ran.text
            assert "Traceback" not in ran.text
            assert held == ""
    hotplane(namespace, tmp_path / "cache", *options, "cleanup")
    assert nft(namespace, "list", "ruleset") == ""


def test_devices_are_told_with_their_masters(namespace: str) -> None:
    netlink = in_netns(namespace, Netlink, ROUTE)
    ip(namespace, "link", "add", "br0", "type", "bridge")
    ip(namespace, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    ip(namespace, "link", "set", "v0", "master", "br0")
    found = {device.name: device for device in ethernet_devices(netlink)}
    assert found.keys() == {"br0", "v0", "v1"}
    assert found["v0"].master == found["br0"].number
    assert found["v1"].master == found["br0"].master == 0
    netlink.close()
