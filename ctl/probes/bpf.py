"""What this kernel offers to eBPF programs: the system call, the JIT, program types, mounts, and bcc."""

import ctypes
import errno
import os
import platform
from collections.abc import Iterator
from pathlib import Path

from ctl.probes.finding import Finding, Status

_SYSCALL_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_BPF_PROG_LOAD = 5

# mov64 r0, N; exit: the smallest programs, each returning what its hook reads as "let it pass".
_RETURN = {0: b"\xb7\0\0\0\0\0\0\0\x95\0\0\0\0\0\0\0", 1: b"\xb7\0\0\0\x01\0\0\0\x95\0\0\0\0\0\0\0"}

# hook -> (BPF_PROG_TYPE_*, BPF_* expected_attach_type, value to return)
PROGRAM_TYPES = {
    "XDP programs": (6, 0, 1),
    "tc programs": (3, 0, 0),
    "connect-time programs (IPv4)": (18, 10, 1),
    "connect-time programs (IPv6)": (18, 11, 1),
}


class _ProgramLoad(ctypes.Structure):
    """The BPF_PROG_LOAD member of union bpf_attr (linux/bpf.h), up to expected_attach_type."""

    _fields_ = [
        ("prog_type", ctypes.c_uint32),
        ("insn_cnt", ctypes.c_uint32),
        ("insns", ctypes.c_uint64),
        ("license", ctypes.c_uint64),
        ("log_level", ctypes.c_uint32),
        ("log_size", ctypes.c_uint32),
        ("log_buf", ctypes.c_uint64),
        ("kern_version", ctypes.c_uint32),
        ("prog_flags", ctypes.c_uint32),
        ("prog_name", ctypes.c_char * 16),
        ("prog_ifindex", ctypes.c_uint32),
        ("expected_attach_type", ctypes.c_uint32),
    ]


def _load_error(prog_type: int, attach_type: int, value: int) -> int:
    """Load a two-instruction program and close it again; 0, or the errno."""
    number = _SYSCALL_NUMBERS.get(platform.machine())
    if number is None:
        return errno.ENOSYS
    code = ctypes.create_string_buffer(_RETURN[value], 16)
    license_text = ctypes.create_string_buffer(b"GPL")
    attributes = _ProgramLoad(
        prog_type=prog_type,
        insn_cnt=2,
        insns=ctypes.addressof(code),
        license=ctypes.addressof(license_text),
        expected_attach_type=attach_type,
    )
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(number, _BPF_PROG_LOAD, ctypes.byref(attributes), ctypes.sizeof(attributes))
    if fd < 0:
        return ctypes.get_errno()
    os.close(fd)
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
