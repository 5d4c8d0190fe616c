"""The iptables plane: the plan in the chains of kube-proxy's iptables mode, the baseline to compare with."""

from dataplane.planes.iptables.plane import IptablesPlane

__all__ = ["IptablesPlane"]
