"""The daemon's part of forwarding with the client's address kept: it follows other nodes once that matters, and
announces on its own Node object what this node speaks."""

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from ctl.daemon.jobs import Jobs
from ctl.daemon.log import Log
from ctl.daemon.settings import Settings
from ctl.daemon.sync.inbox import Inbox
from ctl.daemon.sync.kernel import Kernel
from ctl.sources.api import Api, ApiStatus
from ctl.sources.watch import Reflector, Resource, other_nodes
from ctl.store.forwarding import OtherNode, SavedForwarding, save
from dataplane.errors import HotplaneError
from dataplane.model.forwarding import NODE_ANNOTATION
from dataplane.model.net import Family
from dataplane.model.objects import ModelObject, Node, Service
from dataplane.plan.planner import Planner
from dataplane.planes.registry import mode_of
from dataplane.policy.forwarding import LbMode
from dataplane.policy.node import NodeConfig

LIST_SECONDS = 30.0
"""How long the first load waits for the other nodes: without them it would forward to nobody, and to flows that nodes
forwarded before, a moment of that is loss."""

REFUSED_SECONDS = 300.0
"""How often an announcement that the API server refused is tried again: rights may be given later."""

RETRACT_SECONDS = 5.0
HEARD_SECONDS = 1.0
"""How long other nodes have, once an announcement is taken back, to stop sending to programs that go."""

_RIGHTS = "apply docs/deploy/forwarding-role.yaml, which lets hotplane change Node objects"


class ForwardingKeeper:
    """For use in one event loop. kernel: asked whether the programs are attached. own: this node's Node object as it is
    known.

    The announcement is made once the plan is loaded and programs are attached, and stays when the daemon ends: the
    programs do, too. It is taken back when nothing asks for forwarding any more, before a mode that cannot do it takes
    over, and where no uplink has programs.
    """

    def __init__(
        self, settings: Settings, kernel: Kernel, inbox: Inbox, own: Callable[[], Node | None], jobs: Jobs, log: Log
    ) -> None:
        self._name, self._kernel, self._inbox, self._own = settings.node.name, kernel, inbox, own
        self._jobs, self._log = jobs, log
        self._settings = settings
        self._api: Api | None = None
        self._watch: Callable[[Api, Resource], Reflector] | None = None
        self._others: Reflector | None = None
        self._wake = asyncio.Event()
        self._planner: Planner | None = None
        self._told = ""

    @property
    def announced(self) -> bool:
        """True if this node's Node object says that it speaks something."""
        own = self._own()
        return own is not None and bool(own.announced)

    def connect(self, api: Api, watch: Callable[[Api, Resource], Reflector]) -> None:
        """Use an API server. watch: follows a kind of object into the inbox."""
        self._api, self._watch = api, watch
        if self._settings.lb.mode is not LbMode.SNAT:
            self._follow()

    def use(self, settings: Settings) -> None:
        """Use the settings of a reload."""
        self._settings = settings
        if self._can and settings.lb.mode is not LbMode.SNAT:
            self._follow()
        self._wake.set()

    async def before_load(self) -> None:
        """Wait, where anybody asks for forwarding or this node announced before, until the other nodes are known."""
        if self._can and self._asked(self._inbox.waiting()):
            self._follow()
        if self._others is None:
            return
        try:
            async with asyncio.timeout(LIST_SECONDS):
                while not self._others.lists:
                    await asyncio.sleep(0.01)
        except TimeoutError:
            self._log.warning("goes on without knowing the other nodes, and forwards to none", waited_s=LIST_SECONDS)

    def begin(self, planner: Planner) -> None:
        """The plan is loaded: announce from now on what this node speaks."""
        first, self._planner = self._planner is None, planner
        if first and self._api is not None:
            self._jobs.start("announcement", self._run)
        self.look()

    def look(self) -> None:
        """Something may have changed: plan, Node object or attached programs."""
        if self._planner is not None and self._planner.forwards:
            self._follow()
        self._wake.set()

    def save(self, state_dir: Path) -> None:
        """Write down what is announced and who takes what this node forwards, for other commands. Raises StateError."""
        own, planner = self._own(), self._planner
        saved = SavedForwarding(self._settings.lb.mode.value, own.announced if own is not None else "", self._told)
        if planner is not None:
            tunnels = planner.tunnels
            nodes = tuple(
                OtherNode(name, addresses, why, tunnels.format_to(name).title if not why else "")
                for name, addresses, why in tunnels.others()
            )
            saved = msgspec.structs.replace(saved, asked=planner.forwards, nodes=nodes)
        save(state_dir, saved)

    async def retract(self) -> None:
        """Take the announcement back and give the others time to hear of it, before this node ceases to speak. It is
        not waited for an API server that does not answer."""
        if self._api is None or not self.announced:
            return
        try:
            async with asyncio.timeout(RETRACT_SECONDS):
                await self._write(self._api, "")
        except (TimeoutError, HotplaneError) as error:
            reason = str(error) or f"no answer within {RETRACT_SECONDS:.0f} s"
            self._log.warning("what this node announced cannot be taken back yet", reason=reason)
            return
        await asyncio.sleep(HEARD_SECONDS)

    @property
    def _can(self) -> bool:
        return not mode_of(self._settings.mode).why_only_snat(self._settings.options)

    def _asked(self, waiting: Iterable[ModelObject]) -> bool:
        """True if one of these objects makes it matter what the other nodes speak."""
        asks = ("", LbMode.SNAT.value)
        return any(
            (isinstance(item, Service) and item.forwarding_mode not in asks)
            or (isinstance(item, Node) and item.name == self._name and item.announced)
            for item in waiting
        )

    def _follow(self) -> None:
        """Follow the other nodes from now on."""
        if self._others is None and self._api is not None and self._watch is not None:
            self._others = self._watch(self._api, other_nodes(self._name))

    async def _run(self) -> None:
        """Keep the announcement true, for ever. Raises HotplaneError for a request that failed; call it again then."""
        assert self._api is not None, "an announcement is made by way of it"
        while True:
            self._wake.clear()
            try:
                await self._keep(self._api)
            except ApiStatus as refusal:
                if refusal.code not in (401, 403, 404):
                    raise
                self._refuse(f"{refusal}; {_RIGHTS}" if refusal.code == 403 else str(refusal))
                await asyncio.sleep(REFUSED_SECONDS)
            else:
                await self._wake.wait()

    async def _keep(self, api: Api) -> None:
        """Write the announcement if it is not as it should be."""
        planner, own = self._planner, self._own()
        if planner is None:
            return
        why = await self._why_not(planner, own) if planner.forwards else "nothing asks for it"
        if planner.forwards and why:
            self._refuse(why)
        wanted = "" if why else str(planner.plan.node.offer)
        if own is not None and own.announced != wanted:
            await self._write(api, wanted)
        if wanted or not planner.forwards:
            self._refuse("")

    async def _why_not(self, planner: Planner, own: Node | None) -> str:
        """Return why this node takes no forwarded packets; "" if it does."""
        if own is None:
            return f"there is no Node object {self._name} that could say so"
        wrong = unknown_source(planner.plan.node, own)
        return wrong or await self._kernel.call(self._kernel.plane.why_not_forwarding)

    async def _write(self, api: Api, text: str) -> None:
        """Raises ApiError."""
        body = msgspec.json.encode({"metadata": {"annotations": {NODE_ANNOTATION: text or None}}})
        await api.patch(f"/api/v1/nodes/{self._name}", body)
        if text:
            self._log.info("announces that other nodes may forward to this one", node=self._name, speaks=text)
        else:
            self._log.info("no longer announces that other nodes may forward to this one", node=self._name)

    def _refuse(self, why: str) -> None:
        """Say once why other nodes do not forward to this one, "" if they do."""
        if why and why != self._told:
            self._log.warning("other nodes get no announcement, and use SNAT towards this one", reason=why)
        self._told = why


def unknown_source(node: NodeConfig, own: Node) -> str:
    """Return why other nodes would not take what this node sends: its primary address is none of its Node object's, in
    any family; "" if one is."""
    primaries = [address for family in Family if (address := node.primary(family))]
    if any(address in own.addresses for address in primaries):
        return ""
    return (
        f"{' and '.join(primaries) or 'no address'}, from which this node sends, is none of its Node object's addresses"
    )
