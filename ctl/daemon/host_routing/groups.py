"""Kinds of policies that are not watched: it is enough to know whether the API server has any of them."""

import asyncio
from collections.abc import Callable

import msgspec

from ctl.sources.api import Api
from dataplane.errors import HotplaneError
from dataplane.malformed import MALFORMED

PERIOD_SECONDS = 30.0
GROUPS = {
    "policy.networking.k8s.io": "AdminNetworkPolicy or ClusterNetworkPolicy",
    "projectcalico.org": "Calico's own policies",
    "crd.projectcalico.org": "Calico's own policies",
    "cilium.io": "Cilium's own policies",
    "crd.antrea.io": "Antrea's own policies",
    "k8s.ovn.org": "OVN-Kubernetes' own policies",
}
"""API groups of policies that may select any pod, and what they hold."""


class _Group(msgspec.Struct):
    name: str = ""


class _GroupList(msgspec.Struct):
    """meta/v1 APIGroupList, the answer to GET /apis."""

    groups: list[_Group] = []


class PolicyGroups:
    """Asks the API server now and then which groups it serves. found: called with why everything must stay on the
    stack, or None.

    A failure changes nothing that was known. A kind that comes up between two looks is not missed by much: what its
    policies do is done by netfilter rules or programs, which are noticed by themselves.
    """

    def __init__(self, api: Api, found: Callable[[str | None], None]) -> None:
        self._api, self._found = api, found
        self._known = False

    async def run(self) -> None:
        """Look for ever. Raises HotplaneError; call it again then."""
        while True:
            await self.look()
            await asyncio.sleep(PERIOD_SECONDS)

    async def look(self) -> None:
        """Ask once. Raises HotplaneError for a request that failed."""
        try:
            served = msgspec.json.decode(await self._api.get("/apis", {}), type=_GroupList).groups
        except HotplaneError as error:
            if not self._known:
                self._found(f"the API server does not say which kinds of policies it has ({error})")
            raise
        except MALFORMED as error:
            raise HotplaneError(f"/apis: the list of API groups cannot be read: {error}") from error
        self._known = True
        names = [group.name for group in served if group.name in GROUPS]
        why = f"the API server has {GROUPS[names[0]]} ({names[0]}), which are not watched" if names else None
        self._found(why)
