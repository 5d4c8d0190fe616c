"""Loads the programs of a hook with a set of maps, and attaches the connect-time ones."""

import errno
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

from dataplane.kernel.ebpf import bpf
from dataplane.kernel.ebpf.bcc_loader import CompileError, compile_programs
from dataplane.kernel.ebpf.bpf import AttachType, BpfError, ProgramType
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.attach.kernel_features import packet_flags
from dataplane.planes.ebpf.attach.loaded import Loaded, program_name
from dataplane.planes.ebpf.maps.layout import MapSpec, Sizes
from dataplane.planes.ebpf.maps.mapset import MapSet, create_maps
from dataplane.planes.ebpf.maps.pins import PinDirectory, instance_names

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
    "sock_release": AttachType.CGROUP_INET_SOCK_RELEASE,
}


PROBE_SIZES = Sizes(**dict.fromkeys(Sizes.__struct_fields__, 1) | {"events": 4096})


class Program(NamedTuple):
    """A loaded program. fd: its descriptor, closed by the holder. instructions: after verification. known: see
    attach.loaded.program_name."""

    name: str
    fd: int
    instructions: int
    jited_bytes: int
    known: str

    def close(self) -> None:
        os.close(self.fd)


def load_programs(
    source: str,
    kind: ProgramType,
    attach: Mapping[str, AttachType],
    maps: Mapping[str, int],
    specs: Mapping[str, MapSpec],
    flags: Sequence[str] = (),
    loaded: Loaded | None = None,
) -> dict[str, Program]:
    """Compile a file of `bpf/` (or take it from the cache) and load the programs named in `attach`, several at once:
    the verifier keeps a processor busy for each. Packet programs are compiled for what this kernel can do.

    in: program type; for each program its attach type (NONE for tc); descriptors of the maps by name; their specs;
    programs that are loaded for these maps already. out: programs by name. Raises CompileError, or BpfError with the
    verifier's log.
    """
    references = {spec.reference: maps[name] for name, spec in specs.items()}
    if kind is not ProgramType.CGROUP_SOCK_ADDR:
        flags = (*flags, *(flag for flag in packet_flags() if flag not in flags))
    code = compile_programs(source, flags)

    def load(name: str) -> Program:
        return _load(name, code[name], _type(kind, attach[name]), attach[name], references, loaded)

    with ThreadPoolExecutor(min(len(attach), os.cpu_count() or 1)) as threads:
        found = {name: threads.submit(load, name) for name in attach}
    refused = [error for each in found.values() if (error := each.exception()) is not None]
    if refused:
        for each in found.values():
            if each.exception() is None:
                each.result().close()
        raise refused[0]
    return {name: each.result() for name, each in found.items()}


def _load(
    name: str,
    code: bytes,
    kind: ProgramType,
    attach: AttachType,
    references: Mapping[int, int],
    loaded: Loaded | None,
) -> Program:
    """Load one program, unless it is loaded already. Raises BpfError."""
    known = program_name(name, code, kind, attach)
    fd = loaded.take(known) if loaded is not None else None
    if fd is None:
        fd = bpf.program_load(bpf.relocate(code, references), kind, attach, name)
        if loaded is not None:
            loaded.keep(known, fd)
    info = bpf.program_info(fd)
    return Program(name, fd, info.instructions, info.jited_bytes, known)


def _type(kind: ProgramType, attach: AttachType) -> ProgramType:
    """Return the type of a program in a file for programs of type `kind`."""
    return ProgramType.CGROUP_SOCK if attach is AttachType.CGROUP_INET_SOCK_RELEASE else kind


class Hook(Protocol):
    """A kind of attachment point: loads its programs with a set of maps and attaches or detaches them."""

    name: str

    def prepare(self, maps: MapSet, addresses: Collection[str]) -> None:
        """Load the programs that `attach` with these maps will need, so that it finds them: while something else is
        done, in a thread of the same network namespace. addresses: the node's primary ones. Raises PlaneError,
        BpfError, CompileError, as `attach` would."""

    def attach(self, maps: MapSet, pins: PinDirectory) -> None:
        """Load the programs and attach them, replacing those of an earlier run atomically. Raises PlaneError."""

    def forward(self) -> None:
        """Load the programs for packets that are forwarded between nodes, if it is attached and has any. Raises
        PlaneError."""

    def mend(self) -> list[str]:
        """Attach programs again that somebody detached, or whose links he unpinned, where what they are attached to is
        still there. Returns a clause for each. Raises PlaneError."""

    def detach(self, pins: PinDirectory) -> None:
        """Detach everything that this hook ever attached for this instance."""

    def close(self) -> None:
        """Stop threads and release resources of this process; attached programs stay and work."""


class ConnectHook:
    """Connect-time balancing for the processes of one control group and those below it.

    cgroup: directory in a cgroup v2 hierarchy. The links are pinned, so the programs stay when the daemon ends;
    BPF_LINK_UPDATE replaces a program atomically, so no connect is missed.
    """

    name = "connect"

    def __init__(self, cgroup: Path) -> None:
        self.cgroup = cgroup
        self.instructions: dict[str, int] = {}
        self._attached: tuple[MapSet, PinDirectory] | None = None

    def _load(self, maps: MapSet, loaded: Loaded) -> dict[str, Program]:
        return load_programs(
            CONNECT_SOURCE, ProgramType.CGROUP_SOCK_ADDR, CONNECT_PROGRAMS, maps.fds, maps.specs, loaded=loaded
        )

    def prepare(self, maps: MapSet, addresses: Collection[str]) -> None:
        """See Hook.prepare."""
        loaded = Loaded(maps)
        for program in self._load(maps, loaded).values():
            loaded.ahead(program.known, program.fd)

    def attach(self, maps: MapSet, pins: PinDirectory) -> None:
        """See Hook.attach."""
        try:
            programs = self._load(maps, Loaded(maps, pins))
        except BpfError as error:
            raise PlaneError(f"connect-time programs: {error.strerror}") from error
        self.instructions = {program.name: program.instructions for program in programs.values()}
        group = os.open(self.cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name, program in programs.items():
                _attach_cgroup(program, group, self.cgroup, CONNECT_PROGRAMS[name], pins.link(name))
            self._attached = (maps, pins)
        except BpfError as error:
            raise PlaneError(f"connect-time programs on {self.cgroup}: {error.strerror}; is it cgroup v2?") from error
        finally:
            os.close(group)
            for program in programs.values():
                program.close()

    def forward(self) -> None:
        """See Hook.forward; sockets are pointed at endpoints wherever these are."""

    def mend(self) -> list[str]:
        """See Hook.mend. A control group that was made anew is another one, and gets the programs, too."""
        if self._attached is None:
            return []
        try:
            group = self.cgroup.stat().st_ino
        except OSError:  # it has gone, and nobody is in it
            return []
        lost = lost_links(self._attached[1], dict.fromkeys(CONNECT_PROGRAMS, group))
        if lost:
            try:
                self.attach(*self._attached)
            except OSError as error:
                raise PlaneError(f"connect-time programs on {self.cgroup}: {error.strerror}") from error
        return [f"program {name} of {self.cgroup}" for name in lost]

    def detach(self, pins: PinDirectory) -> None:
        """See Hook.detach."""
        self._attached = None
        for name, path in pins.links().items():
            if name in CONNECT_PROGRAMS:
                remove_link(path)

    def close(self) -> None:
        """See Hook.close."""
        self._attached = None


def connect_problem(cgroup: Path) -> str:
    """Return why connect-time balancing cannot work on a control group, or "". Loads the programs with their own maps
    and attaches nothing, so the answer is the kernel's, not a guess from its version."""
    if not (cgroup / "cgroup.procs").exists() or (not (cgroup / "cgroup.type").exists() and not _is_root(cgroup)):
        return f"{cgroup} is not a cgroup v2 directory"
    try:
        with create_maps(PROBE_SIZES) as maps:
            for program in load_programs(
                CONNECT_SOURCE, ProgramType.CGROUP_SOCK_ADDR, CONNECT_PROGRAMS, maps.fds, maps.specs
            ).values():
                program.close()
    except (PlaneError, BpfError, CompileError) as error:
        return str(error)
    return ""


def _is_root(cgroup: Path) -> bool:
    """True for the root of a cgroup v2 hierarchy, which has no cgroup.type but a list of controllers."""
    return (cgroup / "cgroup.controllers").exists()


def lost_links(pins: PinDirectory, wanted: Mapping[str, int], mask: int = -1) -> list[str]:
    """Return the names of links that are not pinned, or attached to something else or nothing.

    wanted: names of pins, with what each is to be attached to: the number of a control group, or an ifindex, of which a
    link tells in the bits of `mask` alone.
    """
    found, lost = pins.links(), []
    for name, target in wanted.items():
        try:
            link = bpf.obj_get(str(found[name]))
        except (KeyError, BpfError):
            lost.append(name)
            continue
        try:
            if bpf.link_info(link).target & mask != target:
                lost.append(name)
        finally:
            os.close(link)
    return lost


def remove_link(path: Path) -> None:
    """Detach a pinned link and unpin it; nothing where another thread, or its owner, has done so."""
    try:
        link = bpf.obj_get(str(path))
    except BpfError as error:
        if error.errno != errno.ENOENT:
            raise
        return
    try:
        bpf.link_detach(link)
    finally:
        os.close(link)
    path.unlink(missing_ok=True)


def remove_links(pins: PinDirectory) -> None:
    """Detach and unpin every link of an instance."""
    for path in pins.links().values():
        remove_link(path)


def remove_instances(prefix: str) -> list[str]:
    """Detach and unpin all instances whose names start with `prefix`, in use or not; returns the names.

    For the program that named them, to clean up after a predecessor whose network namespaces are gone.
    """
    mine = [name for name in instance_names() if name.startswith(prefix)]
    for name in mine:
        pins = PinDirectory(name)
        remove_links(pins)
        pins.remove()
    return mine


def _attach_cgroup(program: Program, group: int, cgroup: Path, attach: AttachType, path: Path) -> None:
    """Attach by a pinned link: update an existing one on this control group, else replace it by a new one."""
    if path.exists():
        link = bpf.obj_get(str(path))
        try:
            if bpf.link_info(link).target == cgroup.stat().st_ino:
                bpf.link_update(link, program.fd)
                return
        finally:
            os.close(link)
    link = bpf.link_create(program.fd, group, attach)
    try:
        if path.exists():
            remove_link(path)
        bpf.obj_pin(link, str(path))
    finally:
        os.close(link)
