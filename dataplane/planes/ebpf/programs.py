"""Loading the programs of one hook onto a set of maps, and attaching the connect-time ones."""

import os
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from dataplane.kernel import bpf
from dataplane.kernel.bcc_loader import compile_programs
from dataplane.kernel.bpf import AttachType, ProgramType
from dataplane.planes.ebpf.layout import MapSpec

CONNECT_SOURCE = "connect.c"
CONNECT_PROGRAMS: dict[str, AttachType] = {
    "connect4": AttachType.CGROUP_INET4_CONNECT,
    "connect6": AttachType.CGROUP_INET6_CONNECT,
    "sendmsg4": AttachType.CGROUP_UDP4_SENDMSG,
    "sendmsg6": AttachType.CGROUP_UDP6_SENDMSG,
    "recvmsg4": AttachType.CGROUP_UDP4_RECVMSG,
    "recvmsg6": AttachType.CGROUP_UDP6_RECVMSG,
    "getpeername4": AttachType.CGROUP_INET4_GETPEERNAME,
    "getpeername6": AttachType.CGROUP_INET6_GETPEERNAME,
}


class Program(NamedTuple):
    """A loaded program. fd: its descriptor, closed by the holder. instructions: after verification."""

    name: str
    fd: int
    instructions: int
    jited_bytes: int

    def close(self) -> None:
        os.close(self.fd)


def load_programs(
    source: str,
    kind: ProgramType,
    attach: Mapping[str, AttachType],
    maps: Mapping[str, int],
    specs: Mapping[str, MapSpec],
    flags: Sequence[str] = (),
) -> dict[str, Program]:
    """Compile a file of `bpf/` (or take it from the cache) and load the programs named in `attach`.

    in: program type; for each program its attach type (NONE for tc); descriptors of the maps by name; their specs.
    out: programs by name. Raises CompileError, or BpfError with the verifier's words.
    """
    references = {spec.reference: maps[name] for name, spec in specs.items()}
    code = compile_programs(source, flags)
    programs: dict[str, Program] = {}
    try:
        for name, attach_type in attach.items():
            fd = bpf.program_load(bpf.relocate(code[name], references), kind, attach_type, name)
            info = bpf.program_info(fd)
            programs[name] = Program(name, fd, info.instructions, info.jited_bytes)
    except OSError:
        for program in programs.values():
            program.close()
        raise
    return programs
