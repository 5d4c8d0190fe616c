"""The global options: what they are, and which commands they mean something to."""

import argparse
import enum
import functools
from collections.abc import Collection
from typing import Any, NamedTuple

from dataplane.model.algorithm import ALGORITHM_ANNOTATION, ALGORITHMS
from dataplane.model.forwarding import (
    DEFAULT_PORT,
    DEFAULT_VNI,
    DISPATCHES,
    MOST_PORT,
    MOST_VNI,
    NODE_ANNOTATION,
    SERVICE_ANNOTATION,
)
from dataplane.model.forwarding import MODES as FORWARDING_MODES
from dataplane.planes.host_routes import CHOICES
from dataplane.planes.registry import DEFAULT_MODE, MODES
from dataplane.policy.algorithm import DEFAULT_SEED, DEFAULT_TABLE_SIZE, TABLE_SIZES

FORMATS = ("table", "wide", "name", "json", "yaml")
"""Of what commands print: a table that fits the terminal, one with all columns, names alone, or whole records."""

WHOLE_FORMATS = ("table", "json", "yaml")
"""Of commands that do not print a list of named things."""


class Scope(enum.Enum):
    """What an option is about. A command names the scopes that mean something to it (see COMMANDS)."""

    NODE = "this node"
    MODE = "the mode"
    STATE = "kept state"
    EBPF = "the ebpf mode"


ALL = frozenset(Scope)
LOADED = frozenset({Scope.MODE, Scope.STATE})
"""Of commands that ask what is loaded."""


class GlobalOption(NamedTuple):
    """An option that many commands take, before and after their name. number: of one that is a number from 1 on, the
    greatest; 0 for others."""

    flag: str
    default: object
    metavar: str
    help: str
    scope: Scope
    repeatable: bool = False
    choices: tuple[str, ...] | None = None
    number: int = 0

    @property
    def dest(self) -> str:
        """The attribute that has its value."""
        return self.flag.removeprefix("--").replace("-", "_")

    @property
    def after(self) -> str:
        """The attribute that has the values given after the command, of a repeatable option."""
        return f"_{self.dest}_after"


GLOBAL_OPTIONS = (
    GlobalOption("--config", None, "FILE", "a KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1)", Scope.NODE),
    GlobalOption(
        "--node-name",
        None,
        "NAME",
        "this node's name (default: the config's hostnameOverride or the host name)",
        Scope.NODE,
    ),
    GlobalOption(
        "--node-ip",
        (),
        "IP",
        "an address of this node; repeatable (default: those of this network namespace)",
        Scope.NODE,
        True,
    ),
    GlobalOption("--zone", None, "ZONE", "this node's zone (default: that of its Node object)", Scope.NODE),
    GlobalOption(
        "--mode",
        None,
        "MODE",
        f"{' | '.join(MODES)} (default: the config's mode or {DEFAULT_MODE})",
        Scope.MODE,
        choices=MODES,
    ),
    GlobalOption(
        "--state-dir",
        "/run/hotplane",
        "DIR",
        "where state is kept between calls (default: /run/hotplane)",
        Scope.STATE,
    ),
    GlobalOption(
        "--hooks", None, "LIST", "ebpf mode: of connect,tc,xdp (default: all that this kernel can do)", Scope.EBPF
    ),
    GlobalOption("--cgroup", None, "DIR|none", "ebpf mode: cgroup v2 directory for connect-time balancing", Scope.EBPF),
    GlobalOption(
        "--uplink", (), "GLOB", "ebpf mode: uplink devices; repeatable (default: found by themselves)", Scope.EBPF, True
    ),
    GlobalOption(
        "--pod-device",
        (),
        "GLOB",
        "ebpf mode: pod devices; repeatable (default: found by themselves)",
        Scope.EBPF,
        True,
    ),
    GlobalOption(
        "--masquerade",
        None,
        "client|kube-proxy",
        "ebpf mode: client keeps clients' addresses where the endpoint is local (default); kube-proxy: exact parity",
        Scope.EBPF,
        choices=("client", "kube-proxy"),
    ),
    GlobalOption(
        "--host-routing",
        None,
        "auto|on|off",
        "ebpf mode: take packets of pods past the node's stack; auto (default): where no NetworkPolicy and no other "
        "program's netfilter rules could look at them; on: whatever these say; off: never",
        Scope.EBPF,
        choices=CHOICES,
    ),
    GlobalOption(
        "--lb-mode",
        None,
        "|".join(FORWARDING_MODES),
        "ebpf mode: how external traffic gets to endpoints of other nodes (default: snat); tunnel, dsr: with the "
        "client's address kept, answered through this node or by the endpoint's; hybrid: TCP by dsr; "
        f"a Service's annotation {SERVICE_ANNOTATION} wins",
        Scope.EBPF,
        choices=FORWARDING_MODES,
    ),
    GlobalOption(
        "--lb-dispatch",
        None,
        "|".join(DISPATCHES),
        "ebpf mode: how forwarded packets are wrapped (default: vxlan), for nodes that say that they open it; the "
        "others get vxlan",
        Scope.EBPF,
        choices=DISPATCHES,
    ),
    GlobalOption(
        "--lb-peer",
        (),
        "NODE=ADDRESS[,ADDRESS][,FORMAT]",
        f"ebpf mode: a node that takes forwarded packets, where no Node object says so ({NODE_ANNOTATION}), and what "
        "it opens besides vxlan; repeatable",
        Scope.EBPF,
        True,
    ),
    GlobalOption(
        "--lb-port",
        None,
        "PORT",
        f"ebpf mode: UDP port of forwarded packets, alike on all nodes (default: {DEFAULT_PORT})",
        Scope.EBPF,
        number=MOST_PORT,
    ),
    GlobalOption(
        "--lb-vni",
        None,
        "NUMBER",
        "ebpf mode: network identifier (VXLAN, Geneve) of forwarded packets, alike on all nodes (default: "
        f"{DEFAULT_VNI})",
        Scope.EBPF,
        number=MOST_VNI,
    ),
    GlobalOption(
        "--lb-algorithm",
        None,
        "|".join(ALGORITHMS),
        "ebpf mode: how clients from outside get their endpoint (default: random); maglev: by a hash, alike on every "
        f"node; a Service's annotation {ALGORITHM_ANNOTATION} wins",
        Scope.EBPF,
        choices=ALGORITHMS,
    ),
    GlobalOption(
        "--maglev-table-size",
        None,
        "SLOTS",
        f"ebpf mode: slots of a maglev table, alike on all nodes: {', '.join(map(str, TABLE_SIZES))} "
        f"(default: {DEFAULT_TABLE_SIZE}); a hundred times a Service's endpoints, or more",
        Scope.EBPF,
        choices=tuple(map(str, TABLE_SIZES)),
    ),
    GlobalOption(
        "--hash-seed",
        None,
        "TEXT",
        f"ebpf mode: seed of maglev's hashes, alike on all nodes of the cluster (default: {DEFAULT_SEED})",
        Scope.EBPF,
    ),
    GlobalOption(
        "--connect-time-off-cgroup",
        (),
        "PATH",
        "ebpf mode: a control group whose connections are balanced by their packets; repeatable",
        Scope.EBPF,
        True,
    ),
    GlobalOption(
        "--connect-time-off-netns",
        (),
        "COOKIE|NAME|PATH",
        "ebpf mode: the same for a network namespace; repeatable",
        Scope.EBPF,
        True,
    ),
)
HARMLESS = frozenset({Scope.STATE})
"""Scopes whose options every command takes: scripts give them to all."""


class _Extend(argparse.Action):
    """Append to a tuple; values before and after the command are combined."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, (*getattr(namespace, self.dest, ()), values))


def _number(text: str, most: int) -> int:
    if text.isascii() and text.isdecimal() and len(text) <= 9 and 1 <= int(text) <= most:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text[:40]!r} is no number from 1 to {most}")


def _help(option: GlobalOption, scopes: Collection[Scope]) -> str:
    """What a command's page says about an option. --mode means what is loaded to who asks for that, and all modes to
    who asks for nothing else: neither reads the configuration that has the default."""
    if option.scope is not Scope.MODE or Scope.NODE in scopes:
        return option.help
    default = "the one that is loaded" if Scope.STATE in scopes else "each in turn"
    return f"{' | '.join(MODES)} (default: {default})"


def _settings(option: GlobalOption, scopes: Collection[Scope] = ALL) -> dict[str, Any]:
    settings: dict[str, Any] = {"metavar": option.metavar, "help": _help(option, scopes)}
    if option.choices:
        settings["choices"] = option.choices
    if option.number:
        settings["type"] = functools.partial(_number, most=option.number)
    if option.repeatable:
        settings["action"] = _Extend
    return settings


def add_before(parser: argparse.ArgumentParser) -> None:
    """Add all global options to the parser of what stands before the command."""
    group = parser.add_argument_group(
        "global options", "Before the command a script may give all of them; after it, those that mean something to it."
    )
    for option in GLOBAL_OPTIONS:
        group.add_argument(option.flag, default=option.default, **_settings(option))


def add_after(parser: argparse.ArgumentParser, scopes: Collection[Scope]) -> None:
    """Add to a command's parser the global options of some scopes. They have no default there, so as not to undo those
    before the command; an option of the command's own with the same name wins."""
    group = parser.add_argument_group("global options")
    for option in GLOBAL_OPTIONS:
        if option.scope not in scopes and option.scope not in HARMLESS:
            continue
        settings = _settings(option, scopes)
        if option.scope not in scopes:
            settings["help"] = argparse.SUPPRESS
        if option.repeatable:
            settings["dest"] = option.after
        group.add_argument(option.flag, default=argparse.SUPPRESS, **settings)


def combine(args: argparse.Namespace) -> None:
    """Join the values of repeatable options from before and after the command."""
    for option in GLOBAL_OPTIONS:
        if option.repeatable:
            after = vars(args).pop(option.after, ())
            setattr(args, option.dest, (*getattr(args, option.dest), *after))
