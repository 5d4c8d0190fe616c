"""One job on one kernel in a QEMU machine, emulated, so that it needs no hardware virtualization."""

import shutil
import subprocess
from pathlib import Path
from typing import IO

from tests.vm.debian import Kernel
from tests.vm.image import ROOT, base_image, make_disk

CPUS, MEMORY_MB = 2, 2048
NO_END = "no-end"
_WORK_SIZE = "512M"
_PROCESSOR = "max,la57=off"
"""Not plain max: some kernels do not boot on it."""
_ACCELERATOR = "tcg,thread=single"
"""One host thread for all emulated processors. With one each (the default), a processor may run code as it was before
another one changed it: kernels put a breakpoint over a jump, and later take it away again, when they switch a feature
on (netfilter's hooks, say). That ended 6.12 by `Oops: int3` in NF_HOOK, and stopped both processors of 6.1 once."""
# The console has warnings and the traces of lockups, of all processors: where a machine ends early, it is all there is.
# no_timer_check: a busy host may keep an emulated timer still for the ten ticks in which a kernel wants to see it work.
_COMMAND_LINE = (
    "console=ttyS0 loglevel=5 mitigations=off panic=-1 panic_on_oops=1 softlockup_all_cpu_backtrace=1 "
    "systemd.unified_cgroup_hierarchy=1 systemd.show_status=0 net.ifnames=0 no_timer_check"
)


class MachineError(Exception):
    """A machine did not come up; the text has the end of its console."""


def run_job(
    kernel: Kernel, job: str, compiled: Path, scratch: Path, timeout_seconds: float, *, systemd: bool = False
) -> Path:
    """Boot a kernel with this checkout, run a job there, power off.

    in: kernel; lines of bash, run in the checkout with /opt/venv; folder of compiled programs (the machine's cache, to
    which it adds); folder for disks and results; systemd: the machine is as the Vagrant lab has it, with systemd, two
    network devices, one processor and nothing compiled beforehand. out: folder with what the job wrote to results/
    (what it had written to the disk, where the machine had to be ended: NO_END says so), and the console.
    Raises MachineError when the machine does not come up.
    """
    shutil.rmtree(scratch, ignore_errors=True)
    work = scratch / "work"
    _checkout(work)
    (work / "results/compiled").mkdir(parents=True)
    (work / "results/job").write_text(job)
    if systemd:
        (work / "results/systemd").touch()
    else:
        shutil.copytree(compiled, work / "cache/bpf")
    disk = scratch / "work.ext4"
    make_disk(work, disk, _WORK_SIZE)
    shutil.rmtree(work)
    console = scratch / "console"
    with console.open("wb") as out:
        ended = _run(_qemu(kernel, disk, systemd=systemd), out, timeout_seconds)
    results = scratch / "results"
    subprocess.run(["debugfs", "-R", f"rdump /results {scratch}", str(disk)], check=True, capture_output=True)
    results.mkdir(exist_ok=True)
    shutil.copy(console, results / "console")
    if not ended:
        (results / NO_END).write_text(f"no end after {timeout_seconds:.0f} s")
    if not (results / "release").exists():
        raise MachineError(f"{kernel.release} did not come up:\n{console.read_text(errors='replace')[-2000:]}")
    for path in (results / "compiled").iterdir():
        if ended and not (compiled / path.name).exists():
            shutil.copy(path, compiled / path.name)
    disk.unlink()
    return results


def _run(command: list[str], out: IO[bytes], timeout_seconds: float) -> bool:
    """Run a machine; False: it had to be ended."""
    try:
        subprocess.run(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=timeout_seconds, check=False)
    except subprocess.TimeoutExpired:
        return False
    return True


def _checkout(folder: Path) -> None:
    """The files that git knows or does not ignore, as they are."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    for name in filter(None, listed.stdout.split("\0")):
        if name.startswith("docs/bench") or not (ROOT / name).exists():
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name, follow_symlinks=False)


def _qemu(kernel: Kernel, disk: Path, *, systemd: bool) -> list[str]:
    drives = [(base_image(), "on"), (kernel.modules, "on"), (disk, "off")]
    arguments = [
        *("nice", "-n", "10", "qemu-system-x86_64", "-accel", _ACCELERATOR, "-cpu", _PROCESSOR),
        *("-smp", str(1 if systemd else CPUS), "-m", str(MEMORY_MB), "-nodefaults", "-no-reboot", "-display", "none"),
        *("-serial", "stdio", "-kernel", str(kernel.image), "-initrd", str(kernel.initrd), "-append", _COMMAND_LINE),
    ]
    for number, (path, snapshot) in enumerate(drives):
        arguments += ["-drive", f"file={path},format=raw,if=none,id=d{number},snapshot={snapshot},cache=unsafe"]
        arguments += ["-device", f"virtio-blk-pci,drive=d{number}"]
    for number in range(2 if systemd else 0):  # the second is the lab's; nobody is on them
        arguments += ["-netdev", f"hubport,id=n{number},hubid={number}"]
        arguments += ["-device", f"virtio-net-pci,netdev=n{number},romfile="]
    return arguments
