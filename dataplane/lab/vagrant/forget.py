"""Forget every flow that conntrack knows here: `python -m dataplane.lab.vagrant.forget`, on a machine, as root.

Between two modes: the kernel asks no nat rule about a flow that it knows.
"""

from dataplane.kernel.netlink.conntrack import forget_all

if __name__ == "__main__":
    forget_all()
