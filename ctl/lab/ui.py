"""`hotplane lab ui`: a page about a lab, with its paths drawn and real packets sent."""

import argparse
import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataplane.lab.lab import Lab

LISTEN = "127.0.0.1:8099"


def register(actions: Any) -> argparse.ArgumentParser:
    """Add the action's parser."""
    parser: argparse.ArgumentParser = actions.add_parser(
        "ui",
        help="a page in the browser: nodes, pods and Services, the path in each mode, real packets",
        description="Serve a page about a lab that is up, until interrupted: its nodes, pods and Services, the path of "
        "a packet in each mode with the reasons, real packets and whom the pods saw, counters, refusals and changes "
        "as they come. It loads nothing from elsewhere.",
    )
    parser.add_argument(
        "--listen", default=LISTEN, metavar="ADDRESS:PORT", help=f"where the page is served (default: {LISTEN})"
    )
    parser.add_argument(
        "--ui-remote",
        action="store_true",
        help="let others in: --listen may be an address that is no loopback one; whoever gets there may send packets",
    )
    return parser


def run(args: argparse.Namespace) -> int:
    """Serve the page until SIGINT or SIGTERM. Raises UsageError, HotplaneError."""
    from ctl.ui.server import listening_address
    from dataplane.lab.lab import Lab, need_root

    host, port = listening_address(args.listen, remote=args.ui_remote, option="--listen", allow="--ui-remote")
    with Lab.open(args.name) as lab:
        need_root()
        asyncio.run(_serve(lab, Path(args.state_dir), host, port, remote=args.ui_remote))
    return 0


async def _serve(lab: "Lab", state_dir: Path, host: str, port: int, *, remote: bool) -> None:
    from ctl.daemon.http.guard import SWEEP_SECONDS, Guard
    from ctl.daemon.http.web import Site
    from ctl.ui.lab import LabView
    from ctl.ui.server import Page, url
    from dataplane.errors import HotplaneError

    view, guard = LabView(lab, state_dir), Guard()
    site = Site(Page(view, remote=remote).answer, guard)
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        listener = site.open(host, port)
    except OSError as error:
        view.close()
        raise HotplaneError(
            f"{url(host, port)}: cannot be listened on: {error.strerror}; choose another --listen"
        ) from error
    print(f"{url(host, port)} shows lab {lab.spec.name}; Ctrl-C ends it", flush=True)
    while not stop.is_set():
        try:
            async with asyncio.timeout(SWEEP_SECONDS):
                await stop.wait()
        except TimeoutError:
            await guard.sweep()
    listener.close()
    await site.close()
    view.close()
