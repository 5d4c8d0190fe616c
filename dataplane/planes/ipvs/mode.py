"""The ipvs baseline, as the registry has it."""

from dataplane.plan.types import Frontend
from dataplane.planes.base import Plane
from dataplane.planes.ipvs.render import says
from dataplane.planes.mode import PLAIN, Making, Mode
from dataplane.planes.rights import NET_ADMIN
from dataplane.policy.settings import Promises


class IpvsMode(Mode):
    """What kube-proxy's ipvs mode does."""

    name = "ipvs"
    promises = Promises.NFTABLES
    needs = (NET_ADMIN,)

    def make(self, making: Making = PLAIN) -> Plane:
        """See Mode.make."""
        from dataplane.planes.ipvs.plane import IpvsPlane

        return IpvsPlane()

    def can_serve(self, frontend: Frontend) -> bool:
        """See Mode.can_serve and planes.ipvs.render.says."""
        return says(frontend)


MODE: Mode = IpvsMode()
