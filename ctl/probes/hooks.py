"""Which hooks the ebpf mode would use here, and why not the others: the programs themselves are tried, on maps of their
own, and attached to nothing."""

from collections.abc import Iterator

from ctl.ebpf import NO_CGROUP, EbpfOptions, connect_group
from ctl.probes.finding import Finding, Status


def probe_hooks(options: EbpfOptions) -> Iterator[Finding]:
    """One finding a hook. A hook that cannot work is left out alone; the slow path does its work."""
    from dataplane.planes.ebpf.optional import packet_problem

    yield _connect(options)
    uses = {
        "tc": "on pod devices, uplinks and overlays",
        "xdp": "on uplinks: in the driver where it can, else generic; show counters has what it did",
    }
    for hook, use in uses.items():
        if hook not in options.hooks:
            yield Finding("ebpf", f"hook {hook}", Status.LIMITED, "not asked for (--hooks)")
            continue
        problem = packet_problem(hook)
        yield _finding(hook, problem, use)


def _connect(options: EbpfOptions) -> Finding:
    from dataplane.kernel.cgroup import CgroupError
    from dataplane.planes.ebpf.programs import connect_problem

    if "connect" not in options.hooks or options.cgroup == NO_CGROUP:
        return Finding("ebpf", "hook connect", Status.LIMITED, "not asked for (--hooks, --cgroup)")
    try:
        group = connect_group(options.cgroup)
    except CgroupError as error:
        return _finding("connect", str(error), "")
    return _finding("connect", connect_problem(group), f"for the processes of {group}")


def _finding(hook: str, problem: str, use: str) -> Finding:
    if problem:
        return Finding(
            "ebpf", f"hook {hook}", Status.MISSING, f"will not be used: {problem}", "the other hooks do without"
        )
    return Finding("ebpf", f"hook {hook}", Status.OK, f"will be used {use}")
