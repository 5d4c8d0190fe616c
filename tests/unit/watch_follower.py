"""A follower of the lab's API server: an inbox fed by all reflectors."""

import asyncio
import io
from collections.abc import Awaitable, Callable

from ctl.daemon.log import Log
from ctl.daemon.sync.inbox import Inbox
from ctl.sources.api import Api
from ctl.sources.kubeconfig import Cluster
from ctl.sources.watch import Reflector, resources
from dataplane.backoff import Backoff
from dataplane.lab.apiserver.server import ApiServer
from dataplane.model.objects import EndpointSlice, ModelObject, ObjectRef

KINDS = ("Service", "EndpointSlice", "Node", "ServiceCIDR")
PATIENCE = 60.0
"""Seconds for what must come to pass; only a defect makes anyone wait so long."""


class Follower:
    """An inbox fed by all reflectors, and what a planner would know from it."""

    def __init__(self, url: str, silence: float = PATIENCE) -> None:
        self.inbox = Inbox(KINDS)
        self.api = Api(Cluster(url))
        self.out = io.StringIO()
        self.reflectors = {
            resource.kind: Reflector(
                self.api, resource, self.inbox, Log("debug", out=self.out), backoff=Backoff(0.05, 0.2),
                stream_silence=silence,
            )
            for resource in resources("node1")
        }  # fmt: skip
        self.known: dict[ObjectRef, ModelObject] = {}
        self.deleted: list[ObjectRef] = []

    def take(self) -> None:
        if not self.inbox.complete_once:
            return
        batch = self.inbox.take()
        for ref in batch.deletes:
            self.known.pop(ref, None)
            self.deleted.append(ref)
        self.known |= {item.ref: item for item in batch.upserts}

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE):
            while not condition():
                self.take()
                await asyncio.sleep(0.01)

    async def all_fail(self) -> None:
        """Wait until no kind can be followed."""
        await self.until(lambda: all(reflector.failing_since for reflector in self.reflectors.values()))

    def services(self) -> set[str]:
        return {ref.name for ref in self.known if ref.kind == "Service"}

    def addresses(self, name: str = "a") -> list[str]:
        item = self.known.get(ObjectRef("EndpointSlice", "default", f"{name}-abcde"))
        return [endpoint.address for endpoint in item.endpoints] if isinstance(item, EndpointSlice) else []


def follow(server: ApiServer, scenario: Callable[[Follower], Awaitable[None]], silence: float = PATIENCE) -> Follower:
    """Run a scenario while all kinds are followed."""

    async def run() -> Follower:
        follower = Follower(server.url, silence)
        tasks = [asyncio.create_task(reflector.run()) for reflector in follower.reflectors.values()]
        try:
            await scenario(follower)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await follower.api.close()
        return follower

    return asyncio.run(run())
