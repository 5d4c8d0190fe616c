"""What this kernel offers to eBPF programs: the system call, the JIT, program types, mounts, and bcc."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from dataplane.kernel.ebpf.bpf import AttachType, BpfError, ProgramType, program_load
from dataplane.planes.ebpf.maps.layout import Sizes
from dataplane.planes.ebpf.maps.need import MORE_MEMORY, memory_problem
from dataplane.planes.finding import Finding, Status

# mov64 r0, N; exit: the smallest programs, each returning what its hook reads as "let it pass".
_RETURN = {0: b"\xb7\0\0\0\0\0\0\0\x95\0\0\0\0\0\0\0", 1: b"\xb7\0\0\0\x01\0\0\0\x95\0\0\0\0\0\0\0"}

# hook -> (type, expected attach type, value to return)
PROGRAM_TYPES = {
    "XDP programs": (ProgramType.XDP, AttachType.NONE, 1),
    "tc programs": (ProgramType.SCHED_CLS, AttachType.NONE, 0),
    "connect-time programs (IPv4)": (ProgramType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET4_CONNECT, 1),
    "connect-time programs (IPv6)": (ProgramType.CGROUP_SOCK_ADDR, AttachType.CGROUP_INET6_CONNECT, 1),
}


def _load_error(prog_type: ProgramType, attach_type: AttachType, value: int) -> int:
    """Load a two-instruction program and close it again; 0, or the errno."""
    try:
        os.close(program_load(_RETURN[value], prog_type, attach_type))
    except BpfError as error:
        return error.errno or errno.EINVAL
    return 0


def _mounts(kind: str) -> list[str]:
    """Mount points of a file system type, in mount order."""
    fields = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return [field[1] for field in fields if field[2] == kind]


def probe_bpf() -> Iterator[Finding]:
    """Everything that an eBPF data path needs from this kernel; none of it is needed by the other modes."""
    for name, (prog_type, attach_type, value) in PROGRAM_TYPES.items():
        error = _load_error(prog_type, attach_type, value)
        if error == 0:
            yield Finding("ebpf", name, Status.OK)
        else:
            detail = f"{os.strerror(error)}: this hook cannot be used"
            advice = (
                "run hotplane as root"
                if error == errno.EPERM
                else "use a kernel with CONFIG_BPF_SYSCALL and CONFIG_CGROUP_BPF"
            )
            yield Finding("ebpf", name, Status.MISSING, detail, advice)
    yield _jit()
    yield _memory()
    yield _mount("cgroup v2", "cgroup2", "no connect-time balancing", "mount -t cgroup2 none /sys/fs/cgroup/unified")
    yield _bpffs()
    yield _bcc()


def _jit() -> Finding:
    path = Path("/proc/sys/net/core/bpf_jit_enable")
    if not path.exists():  # only the first network namespace shows it
        return Finding("ebpf", "JIT", Status.LIMITED, "not visible in this network namespace")
    if path.read_text().strip() == "0":
        detail = "off: programs are interpreted, several times slower"
        return Finding("ebpf", "JIT", Status.LIMITED, detail, "sysctl -w net.core.bpf_jit_enable=1")
    return Finding("ebpf", "JIT", Status.OK)


def _memory() -> Finding:
    short = memory_problem(Sizes())
    if not short:
        return Finding("ebpf", "memory for maps", Status.OK)
    detail = f"{short}: together with the daemon that is too little, and the kernel may end it at its start"
    return Finding("ebpf", "memory for maps", Status.LIMITED, detail, MORE_MEMORY)


def _mount(check: str, kind: str, consequence: str, advice: str) -> Finding:
    mounts = _mounts(kind)
    if mounts:
        return Finding("ebpf", check, Status.OK, f"at {mounts[0]}")
    return Finding("ebpf", check, Status.MISSING, f"not mounted: {consequence}", advice)


def _bpffs() -> Finding:
    if "\tbpf\n" in Path("/proc/filesystems").read_text():
        return Finding("ebpf", "bpffs", Status.OK, "mounted for hotplane alone when it is needed")
    return Finding("ebpf", "bpffs", Status.MISSING, "not in this kernel", "use a kernel with CONFIG_BPF_SYSCALL")


def _bcc() -> Finding:
    try:
        import bcc
    except (ImportError, OSError) as error:
        detail = f"cannot be imported ({error}): no eBPF program can be compiled"
        return Finding("ebpf", "bcc", Status.MISSING, detail, "apt-get install python3-bpfcc")
    return Finding("ebpf", "bcc", Status.OK, str(getattr(bcc, "__version__", "")))
