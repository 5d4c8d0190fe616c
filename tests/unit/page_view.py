"""A view for tests of the page: one Service behind two modes, every name as it is told."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from fractions import Fraction

from ctl.daemon.http.guard import Guard
from ctl.daemon.http.web import Site
from ctl.picture.model import SOURCE, Leg, NodeBox, Picture, PodBox, SourceBox, Step
from ctl.picture.svg import drawing
from ctl.ui.server import Page
from ctl.ui.view import (
    Counters,
    Event,
    Explanation,
    FrontendShown,
    Look,
    NodeShown,
    Overview,
    PodShown,
    Sent,
    ServiceCount,
    ServiceShown,
    ServicesShown,
    SourceShown,
    View,
)

CLIENT, FRONTEND = "198.51.100.2", "10.96.0.80:80/tcp"


class ToldView(View):
    """Shows `name` wherever a name stands."""

    def __init__(self, name: str, *, sends: bool = True) -> None:
        self.name, self.sends = name, sends
        self.looks = self.rests = 0
        self.called: list[tuple[str, str, int]] = []
        self.answering = asyncio.Event()
        self.answering.set()

    async def overview(self) -> Overview:
        pod = PodShown(self.name, ("10.244.1.11",))
        nodes = (NodeShown(self.name, ("172.18.0.1",), (pod,), self.name),)
        sources = (SourceShown(self.name, "client", (CLIENT,)), SourceShown(self.name, "pod", ("10.244.1.11",)))
        return Overview(self.name, self.name, nodes, sources, sends=self.sends)

    async def services(self, search: str) -> ServicesShown:
        shown = ServiceShown(self.name, (FrontendShown(self.name, FRONTEND, self.name),), (self.name,))
        return ServicesShown((shown,), 7)

    async def explain(self, source: str, destination: str) -> Sequence[Explanation]:
        picture = Picture(
            self.name, self.name, False, SourceBox("client", self.name, CLIENT),
            (NodeBox(self.name, self.name, (Step(self.name, (self.name,)),), (PodBox(self.name, "a", Fraction(1)),)),),
            (Leg(SOURCE, 0, (self.name,)),),
        )  # fmt: skip
        return [
            Explanation(mode, mode == "two", self.name, "dnat", self.name, (self.name,), (self.name,), (self.name,),
                        drawing(picture._replace(title=f"{mode} {self.name}")))
            for mode in ("one", "two")
        ]  # fmt: skip

    async def look(self) -> Look:
        self.looks += 1
        counters = Counters(self.name, (ServiceCount(self.name, 3, 4, 5),), {self.name: 6}, note=self.name)
        kinds = ("refusal", "change", "mode") if self.looks == 2 else ()
        return Look((counters,), tuple(Event(kind, self.name, f"{kind} {self.name}") for kind in kinds))

    async def rest(self) -> None:
        self.rests += 1

    async def call(self, source: str, destination: str, count: int) -> Sequence[Sent]:
        self.called.append((source, destination, count))
        await self.answering.wait()
        return [Sent(self.name, count, 1.0, "answered", (self.name,))]


@asynccontextmanager
async def served(view: View, *, remote: bool = False) -> AsyncIterator[tuple[Page, int]]:
    """A page and the port of 127.0.0.1 on which it is."""
    page = Page(view, remote=remote)
    site = Site(page.answer, Guard())
    listener = site.open("127.0.0.1", 0)
    try:
        yield page, listener._socket.getsockname()[1]
    finally:
        listener.close()
        await site.close()
