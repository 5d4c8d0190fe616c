"""The ipvs baseline's entry in the registry."""

from dataplane.plan.types import Frontend
from dataplane.planes.base import Plane
from dataplane.planes.ipvs.render import can_render
from dataplane.planes.mode import PLAIN, Making, Mode
from dataplane.planes.rights import NET_ADMIN
from dataplane.policy.settings import Promises


class IpvsMode(Mode):
    """The baseline that follows kube-proxy's ipvs mode."""

    name = "ipvs"
    promises = Promises.NFTABLES
    needs = (NET_ADMIN,)

    def make(self, making: Making = PLAIN) -> Plane:
        """See Mode.make."""
        from dataplane.planes.ipvs.plane import IpvsPlane

        return IpvsPlane()

    def can_serve(self, frontend: Frontend) -> bool:
        """See Mode.can_serve and planes.ipvs.render.can_render."""
        return can_render(frontend)


MODE: Mode = IpvsMode()
