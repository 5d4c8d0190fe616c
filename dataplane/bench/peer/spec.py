"""What a peer is: a name, and commands that a shell runs on a node of the lab; and what the commands are told."""

import re
from collections import Counter
from collections.abc import Sequence

import msgspec

from dataplane.errors import UsageError

NAME_PATTERN = r"[a-z0-9]([a-z0-9.-]{0,28}[a-z0-9])?"
ENVIRONMENT = {
    "KUBECONFIG": "a kubeconfig file of the API server, plain HTTP, without credentials",
    "API_SERVER": "the API server's URL",
    "NODE_NAME": "name of the node, which is also the host name",
    "NODE_IP": "the node's address, of the family that is measured",
    "CLUSTER_CIDR": "range of all pods, of that family",
    "POD_CIDR": "range of the node's own pods",
    "UPLINK": "the node's device towards other nodes; pod devices are veth1, veth2",
    "CGROUP": "control group (version 2) of the node's processes and its pods'",
    "IPTABLES_LEGACY": "a folder for PATH in which iptables and ip6tables are the legacy ones",
    "HOTPLANE": "the command of this very hotplane",
    "PEER_DIR": "an empty folder of its own, kept over restarts and removed at the end",
}
"""Variables that a peer's commands have in their environment, and what each is."""


class Peer(msgspec.Struct, frozen=True):
    """A peer. command: for /bin/sh; runs the proxy until it is ended by SIGTERM. cleanup: likewise, removes what the
    proxy has left on the node, and ends; "" if there is none."""

    name: str
    command: str
    cleanup: str = ""


def check(peers: Sequence[Peer], taken: Sequence[str]) -> None:
    """Raise UsageError for names that cannot be used. taken: those of modes."""
    for name, count in Counter(peer.name for peer in peers).items():
        if count > 1:
            raise UsageError(f"--peer {name}: there are {count} of that name")
        if not re.fullmatch(NAME_PATTERN, name) or name.endswith("-alone"):
            raise UsageError(f"--peer {name}: a name has up to 30 lower-case letters, digits, inner dots and dashes")
        if name in taken:
            raise UsageError(f"--peer {name}: a mode is named so; choose another name")
    for peer in peers:
        if not peer.command.strip():
            raise UsageError(f"--peer {peer.name}=COMMAND: the command is missing")
