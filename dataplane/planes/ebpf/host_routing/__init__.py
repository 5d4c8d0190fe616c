"""Packets of this node's pods past the node's stack: straight to the pod, or out by the uplink."""
