"""What the daemon looks at besides its rules, all the time: limits and settings of the node that others change."""

from collections.abc import Callable

from ctl.config import Conntrack
from ctl.daemon.jobs import Jobs
from ctl.daemon.log import Log
from ctl.daemon.node.connection_table import ConnectionTableWatch
from ctl.daemon.node.descriptors import DescriptorWatch
from ctl.daemon.node.sysctls import SysctlWatch

SECONDS = 10.0


def watch_node(jobs: Jobs, conntrack: Callable[[], Conntrack], log: Log) -> None:
    """Begin to watch descriptors, sysctls and the connection table. conntrack: of the configuration."""
    jobs.every("descriptors", SECONDS, DescriptorWatch(log).look)
    jobs.every("sysctls", SECONDS, SysctlWatch(conntrack, log).look)
    jobs.every("connection table", SECONDS, ConnectionTableWatch(log).look)
