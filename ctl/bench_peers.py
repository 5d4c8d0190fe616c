"""`--peer` of `hotplane bench`: Service proxies that are run as programs of their own, hotplane's daemon among them."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dataplane.errors import UsageError

if TYPE_CHECKING:
    from dataplane.bench.peer.spec import Peer
    from dataplane.bench.profiles import Settings

_OWN = "hotplane-"
_RUN = (
    'exec "$HOTPLANE" run --mode {mode} --kubeconfig "$KUBECONFIG" --node-name "$NODE_NAME" '
    '--cluster-cidr "$CLUSTER_CIDR" --state-dir "$PEER_DIR/state"'
)
_MORE = {"ebpf": ' --cgroup "$CGROUP"'}
_CLEANUP = 'exec "$HOTPLANE" cleanup --state-dir "$PEER_DIR/state"'
BUILT_IN = tuple(_OWN + mode for mode in ("nftables", "ebpf", "iptables"))
BESIDE = BUILT_IN[:2]
"""Those that are measured beside others' proxies without being asked for."""
_SWITCH = "during-switch"
_IPVS = Path("/proc/net/ip_vs")


def add_options(parser: argparse.ArgumentParser, *, defaults: bool) -> None:
    """Add the options; of `bench run`, which come after those of `bench`, without defaults."""
    add = parser.add_argument_group("peers", told()).add_argument
    default = None if defaults else argparse.SUPPRESS
    add(
        "--peer",
        default=default,
        action="append",
        metavar="NAME=COMMAND",
        help="measure a Service proxy of any make as a mode, too: a shell runs COMMAND on a node of its own; or one of "
        f"{', '.join(BUILT_IN)}: this hotplane's daemon. Repeatable. Of the other modes only the references are "
        f"measured then, unless --modes names them, and {' and '.join(BESIDE)} (docs/bench/peers.md)",
    )
    add(
        "--peer-cleanup",
        default=default,
        action="append",
        metavar="NAME=COMMAND",
        help="what removes that peer's rules before it is started anew; repeatable",
    )


def told() -> str:
    """What peers' commands are told, for the help."""
    from dataplane.bench.peer.spec import ENVIRONMENT

    variables = "; ".join(f"{name}: {what}" for name, what in ENVIRONMENT.items())
    return f"Service proxies as programs of their own. Their commands have in the environment {variables}."


def peers_of(args: argparse.Namespace) -> "tuple[Peer, ...]":
    """The peers that the options name, and those that are measured beside them. Raises UsageError."""
    if not args.peer:
        if args.peer_cleanup:
            raise UsageError("--peer-cleanup: there is no --peer")
        return ()
    cleanups = dict(_pair("--peer-cleanup", text) for text in args.peer_cleanup or ())
    found = [_peer(text, cleanups) for text in args.peer]
    if cleanups:
        raise UsageError(f"--peer-cleanup {', '.join(cleanups)}: there is no --peer of that name")
    if not args.modes and not any(peer.name in BUILT_IN for peer in found):
        found += [_built_in(name) for name in BESIDE]
    return tuple(found)


def _peer(text: str, cleanups: dict[str, str]) -> "Peer":
    from dataplane.bench.peer.spec import Peer

    if text in BUILT_IN:
        return _built_in(text)
    name, command = _pair("--peer", text)
    if name in BUILT_IN:
        raise UsageError(f"--peer {name}: is hotplane's own, it has no COMMAND; choose another name")
    return Peer(name, command, cleanups.pop(name, ""))


def _built_in(name: str) -> "Peer":
    from dataplane.bench.peer.spec import Peer

    mode = name.removeprefix(_OWN)
    return Peer(name, _RUN.format(mode=mode) + _MORE.get(mode, ""), _CLEANUP)


def _pair(option: str, text: str) -> tuple[str, str]:
    name, equals, command = text.partition("=")
    if not equals:
        raise UsageError(f"{option} {text}: write NAME=COMMAND, or one of {', '.join(BUILT_IN)}")
    return name, command


def command_of(args: argparse.Namespace) -> list[str]:
    """The options as they were given."""
    given = (("--peer", args.peer), ("--peer-cleanup", args.peer_cleanup))
    return [word for option, texts in given for text in texts or () for word in (option, text)]


def records() -> list[dict[str, Any]]:
    """The peers that have no COMMAND, for a list."""
    modes = {name: name.removeprefix(_OWN) for name in BUILT_IN}
    return [{"kind": "peer", "name": name, "what": f"hotplane run, {mode} mode"} for name, mode in modes.items()]


def without_impossible(settings: "Settings") -> "tuple[Settings, list[str]]":
    """The settings without what peers cannot have here, and sentences about it."""
    settings, said = _without_ipvs(settings)
    settings, more = _without_switch(settings)
    return settings, said + more


def _without_ipvs(settings: "Settings") -> "tuple[Settings, list[str]]":
    """Without peers that this kernel cannot have: a kube-proxy in ipvs mode without IPVS programs iptables instead, and
    would be measured under a wrong name."""
    import msgspec

    left_out = [peer.name for peer in settings.peers if _wants_ipvs(peer.command) and not _has_ipvs()]
    if not left_out:
        return settings, []
    kept = tuple(peer for peer in settings.peers if peer.name not in left_out)
    modes = tuple(mode for mode in settings.modes if mode not in left_out)
    said = [f"left out: peer {name}: this kernel has no IPVS (module ip_vs)" for name in left_out]
    return msgspec.structs.replace(settings, peers=kept, modes=modes), said


def _without_switch(settings: "Settings") -> "tuple[Settings, list[str]]":
    """Without a change of modes where nobody has one. Peers have none (run.event_keys); that is told here."""
    import msgspec

    from dataplane.bench.modes import MODES

    if not settings.peers or _SWITCH not in settings.scenarios:
        return settings, []
    said = [f"left out: {_SWITCH} of {', '.join(peer.name for peer in settings.peers)}: a peer has no other mode"]
    if all(MODES[mode].reference or MODES[mode].is_peer for mode in settings.modes):
        kept = tuple(name for name in settings.scenarios if name != _SWITCH)
        settings = msgspec.structs.replace(settings, scenarios=kept)
    return settings, said


def _wants_ipvs(command: str) -> bool:
    return re.search(r"mode[=: ]+ipvs\b", command) is not None


def _has_ipvs() -> bool:
    import subprocess

    if not _IPVS.exists():
        subprocess.run(["modprobe", "-q", "ip_vs"], check=False, capture_output=True)
    return _IPVS.exists()
