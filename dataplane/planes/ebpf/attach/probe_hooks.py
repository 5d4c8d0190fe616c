"""Reports which hooks the ebpf mode can use on this node, and why not the others, by running the real programs on
packets and connections, with maps and a network namespace of their own."""

from collections.abc import Iterator

from dataplane.planes.finding import Finding, Status
from dataplane.planes.options import PlaneOptions


def probe_hooks(options: PlaneOptions) -> Iterator[Finding]:
    """Yield one finding for each hook, for each optional kernel feature, and for how programs are attached to devices.
    The slow path does the work of a hook that cannot be attached."""
    from dataplane.planes.ebpf.attach.optional import packet_problem
    from dataplane.planes.ebpf.attach.proof import packet_proof

    yield _connect(options)
    uses = {
        "tc": "on pod devices, uplinks and overlays",
        "xdp": "on uplinks: in the driver where it can, else generic; show decisions has what it did",
    }
    for hook, use in uses.items():
        if hook not in options.hooks:
            yield Finding("ebpf", f"hook {hook}", Status.LIMITED, "not asked for (--hooks)")
            continue
        yield _finding(hook, packet_problem(hook) or packet_proof(hook), f"{use} (proved by a packet)")
    if {"tc", "xdp"} & set(options.hooks):
        yield from _features()
        yield _attachment()


def _connect(options: PlaneOptions) -> Finding:
    from dataplane.kernel.namespaces.cgroup import CgroupError
    from dataplane.planes.ebpf.attach.programs import connect_problem
    from dataplane.planes.ebpf.attach.proof import connect_proof
    from dataplane.planes.ebpf.make import connect_group

    if not options.at_connect:
        return Finding("ebpf", "hook connect", Status.LIMITED, "not asked for (--hooks, --cgroup)")
    try:
        group = connect_group(options.cgroup)
    except CgroupError as error:
        return _finding("connect", str(error), "")
    problem = connect_problem(group)
    if problem:
        return _finding("connect", problem, "")
    tried, problem = connect_proof(group)
    if not tried:
        detail = f"the programs load and will be used for the processes of {group}; not proved, since {problem}"
        return Finding("ebpf", "hook connect", Status.OK, detail)
    return _finding("connect", problem, f"for the processes of {group} (proved by connections)")


def _finding(hook: str, problem: str, use: str) -> Finding:
    if problem:
        detail, advice = f"will not work: {_brief(problem)}", "leave it out of --hooks; the other hooks do without"
        return Finding("ebpf", f"hook {hook}", Status.MISSING, detail, advice)
    return Finding("ebpf", f"hook {hook}", Status.OK, f"will be used {use}")


def _brief(problem: str) -> str:
    """Return the error with the part of the verifier's log that says why."""
    first, *others = [line.strip() for line in problem.splitlines() if line.strip()]
    reasons = [line for line in others if not line.startswith(("processed ", "verification time", "stack depth"))]
    return f"{first} ({reasons[-1]})" if reasons else first


def _features() -> Iterator[Finding]:
    """Yield findings for missing kernel features, without which the programs are compiled."""
    from dataplane.kernel.ebpf.bpf import BpfError
    from dataplane.planes.ebpf.attach.kernel_features import FEATURES, missing

    try:
        lacking = missing()
    except BpfError as error:
        yield Finding("ebpf", "kernel features", Status.MISSING, f"cannot be tried: {error.strerror}", "run as root")
        return
    for feature in FEATURES:
        if feature in lacking:
            detail = f"not in this kernel: {feature.instead}"
            yield Finding("ebpf", feature.name, Status.LIMITED, detail, f"Linux {feature.since} has it")
        else:
            yield Finding("ebpf", feature.name, Status.OK)


def _attachment() -> Finding:
    from dataplane.planes.ebpf.attach.proof import tc_attachment

    way, problem = tc_attachment()
    if problem:
        detail, advice = f"programs cannot be put on devices: {_brief(problem)}", "modprobe sch_ingress cls_bpf"
        return Finding("ebpf", "tc attachment", Status.MISSING, detail, advice)
    if way == "clsact":
        return Finding("ebpf", "tc attachment", Status.OK, "by clsact filters: this kernel has no tcx (Linux 6.6)")
    return Finding("ebpf", "tc attachment", Status.OK, "by tcx links")
