"""`hotplane run`: the daemon. Watches an API server or a directory and keeps this network namespace right."""

import argparse
from typing import Any


def register(subparsers: Any) -> None:
    """Add the command's parser."""
    add_parser(
        subparsers,
        "run",
        "the daemon: watch, reconcile, serve health and metrics",
        "Watch an API server (--kubeconfig, --master, or this pod's service account) or a directory (-f) and keep the "
        "rules of this network namespace right. SIGHUP reads --config again; SIGTERM ends the daemon and leaves the "
        "data plane working.",
    )


def add_parser(subparsers: Any, name: str, text: str, description: str) -> argparse.ArgumentParser:
    """Add the parser of a command that takes all of the daemon's options."""
    from ctl.context import add_manifest_option
    from ctl.daemon.log import FORMATS
    from ctl.daemon.options import add_flags
    from ctl.store.lock import add_takeover_option

    parser: argparse.ArgumentParser = subparsers.add_parser(name, help=text, description=description)
    source = parser.add_argument_group("where the objects come from")
    source.add_argument("--kubeconfig", metavar="FILE", help="kubeconfig of the API server")
    source.add_argument(
        "--master",
        metavar="URL",
        help="the API server's URL, https unless http:// is written; wins over the kubeconfig's",
    )
    source.add_argument(
        "--token-over-http", action="store_true", help="send credentials to an API server without TLS, too"
    )
    add_manifest_option(parser, required=False)
    parser.add_argument(
        "--init-only", action="store_true", help="set the conntrack sysctls (ebpf mode: and mount its bpffs) and end"
    )
    parser.add_argument("--once", action="store_true", help="end after the first load")
    parser.add_argument("--adopt", action="store_true", help="remove kube-proxy's rules once ours answer")
    parser.add_argument("--cleanup", action="store_true", help="remove the rules instead (all modes, or --proxy-mode)")
    add_takeover_option(parser)
    parser.add_argument(
        "--ui",
        default="",
        metavar="ADDRESS:PORT",
        help="serve a page about this node there, read only: Services, paths, counters, changes (default: none)",
    )
    parser.add_argument(
        "--ui-remote", action="store_true", help="let others in: --ui may be an address that is no loopback one"
    )
    parser.add_argument("--write-config-to", metavar="FILE", help="write the effective configuration and end")
    parser.add_argument("--logging-format", choices=FORMATS, default="text", metavar="text|json")
    parser.add_argument("-v", "--v", dest="verbosity", type=int, default=2, metavar="LEVEL", help="4: debug; 0: errors")
    add_flags(parser)
    return parser


def run(args: argparse.Namespace) -> int:
    """Run the command; 0 after an orderly end."""
    import asyncio
    import signal

    from ctl.config import NO_EXTERNAL_IPS, NO_PODS
    from ctl.daemon.daemon import Daemon
    from ctl.daemon.log import Log
    from ctl.daemon.node.sysctls import apply_sysctls
    from ctl.daemon.options import idle_flags
    from ctl.daemon.settings import settings_of
    from ctl.daemon.sync.planes import prepare
    from ctl.store.lock import hold
    from dataplane.errors import UsageError

    hangups: list[int] = []  # until the daemon takes them; by default they would end the process
    signal.signal(signal.SIGHUP, lambda number, _: hangups.append(number))
    settings = settings_of(args)
    log = Log(_level(args.verbosity), args.logging_format)
    if not settings.config.proxy_settings().external_ips:
        log.warning("externalIPs of Services make no frontends", reason=NO_EXTERNAL_IPS)
    for flag in idle_flags(args):
        log.warning("this flag of kube-proxy has no effect here, ignored", flag=flag)
    for field in settings.unknown:
        log.warning("unknown field in the configuration, ignored", file=args.config, field=field)
    if args.write_config_to:
        return _write_config(args.write_config_to, settings.config)
    if args.cleanup:
        return _clean_up(args, settings.mode, log)
    if args.init_only:
        apply_sysctls(settings.config.conntrack, log)
        prepare(settings)
        return 0
    if settings.paths and (settings.kubeconfig or settings.master):
        raise UsageError("-f names manifests and --kubeconfig or --master an API server; choose one of them")
    if "-" in settings.paths:
        raise UsageError("-f -: standard input cannot be watched; use apply, or give a directory")

    if not settings.config.knows_pods():
        log.warning("no source counts as a pod", reason=NO_PODS)
    _check(settings)
    with hold(args.command, settings.mode, daemon=True, takeover=args.takeover, warn=log.warning) as lock:

        async def live() -> int:
            return await Daemon(settings, log, lambda: settings_of(args), lock).run(hangups)

        return asyncio.run(live())


def _check(settings: Any) -> None:
    """Raise the errors that would end the daemon at once, before another one is asked to end for it."""
    from ctl.daemon.daemon import check_mode
    from ctl.sources.kubeconfig import find_cluster
    from dataplane.planes.registry import mode_of
    from dataplane.policy.node import NodeConfig

    check_mode(settings.mode)
    mode_of(settings.mode).check_kernel(NodeConfig(flowtable=settings.node.flowtable))
    if not settings.paths:
        find_cluster(settings.kubeconfig, settings.master, token_over_http=settings.token_over_http)


def _level(verbosity: int) -> str:
    return "debug" if verbosity >= 4 else "info" if verbosity >= 1 else "error"


def _write_config(path: str, config: Any) -> int:
    from pathlib import Path

    from ctl.daemon.options import to_document
    from ctl.output import to_yaml
    from dataplane.errors import HotplaneError

    try:
        Path(path).write_text(to_yaml(to_document(config)), encoding="utf-8")
    except OSError as error:
        raise HotplaneError(f"{path}: cannot be written: {error.strerror}; choose another file") from error
    return 0


def _clean_up(args: argparse.Namespace, mode: str, log: Any) -> int:
    """Remove the rules of one mode when one was named, else of all modes (also kube-proxy's, as kube-proxy would).

    The records of other modes stay, so that a later process can remove their rules.
    """
    from pathlib import Path

    from ctl.store import state, unfinished_loads
    from ctl.store.lock import hold
    from dataplane.planes.registry import MODES, mode_of

    folder = Path(args.state_dir)
    modes = (mode,) if args.mode or args.proxy_mode else tuple(reversed(MODES))
    with hold("run --cleanup", takeover=args.takeover, warn=log.warning):
        for each in modes:
            mode_of(each).make().cleanup()
        if not unfinished_loads.unfinished_modes(folder) - {*modes}:
            unfinished_loads.clear(folder)
        if len(modes) == len(MODES) or (saved := state.load(folder, current=False)) is None or saved.mode in modes:
            state.forget(folder)
    log.info("cleaned up", modes=",".join(modes))
    return 0
