"""A container of the DaemonSet as a kubelet's runtime would start it: an OCI runtime configuration, run by runc."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

Object = dict[str, Any]
SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
# What containerd and CRI-O hide from a container that is not privileged.
_MASKED = ("/proc/acpi", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list", "/proc/sched_debug",
           "/proc/scsi", "/sys/firmware")  # fmt: skip
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def _all_capabilities() -> list[str]:
    """Every capability that can be had here, by name, as a privileged container has them."""
    status = dict(line.split(":\t") for line in Path("/proc/self/status").read_text().splitlines())
    bound = int(status["CapBnd"], 16)
    header = Path("/usr/include/linux/capability.h").read_text().splitlines()
    defined = (line.split() for line in header if line.startswith("#define CAP_"))
    numbers = {words[1]: int(words[2]) for words in defined if len(words) == 3 and words[2].isdecimal()}
    return [name for name, number in numbers.items() if bound >> number & 1]


def _capabilities(context: Object) -> list[str]:
    if context.get("privileged"):
        return _all_capabilities()
    named = context.get("capabilities", {})
    assert named.get("drop") == ["ALL"], "the manifest drops what it does not add"
    return [f"CAP_{name}" for name in named["add"]]


def _mounts(container: Object, volumes: Mapping[str, Path | None], privileged: bool) -> list[Object]:
    """Kernel file systems, then the container's own mounts. volumes: the host's folder; None: a fresh tmpfs."""
    mounts: list[Object] = [
        {"destination": "/proc", "type": "proc", "source": "proc"},
        {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755"]},
        {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev"]},
        {"destination": "/sys", "type": "sysfs", "source": "sysfs",
         "options": ["nosuid", "noexec", "nodev", "rw" if privileged else "ro"]},
    ]  # fmt: skip
    propagation = {"Bidirectional": "rshared", "HostToContainer": "rslave"}
    for mount in container["volumeMounts"]:
        source = volumes[mount["name"]]
        if source is None:
            mounts.append({"destination": mount["mountPath"], "type": "tmpfs", "source": "tmpfs"})
            continue
        shared = propagation.get(mount.get("mountPropagation", ""), "rprivate")
        options = ["rbind", shared, "ro" if mount.get("readOnly") else "rw"]
        mounts.append({"destination": mount["mountPath"], "type": "bind", "source": str(source), "options": options})
    return mounts


class Container:
    """One container of a pod on a node of the lab; `hostNetwork`, so in the node's network namespace."""

    def __init__(
        self, name: str, folder: Path, root: Path, entry: Sequence[str], container: Object, namespace: str,
        volumes: Mapping[str, Path | None], environment: Mapping[str, str], *, host_pid: bool = False,
    ) -> None:  # fmt: skip
        self.name, self.bundle = name, folder / name
        self.bundle.mkdir()
        self.log = self.bundle / "log"
        context = container.get("securityContext", {})
        privileged = bool(context.get("privileged"))
        rights = _capabilities(context)
        given = {item["name"]: item.get("value", "") for item in container.get("env", ())} | dict(environment)
        arguments = [_expand(word, given) for word in container["args"]]
        image = (root / ".environment").read_text().splitlines()
        spaces = ["mount", "ipc", "uts", *(() if host_pid else ("pid",))]
        config: Object = {
            "ociVersion": "1.0.2",
            "root": {"path": str(root), "readonly": bool(context.get("readOnlyRootFilesystem"))},
            "process": {
                "user": {"uid": 0, "gid": 0},
                "args": [*entry, *arguments],
                "env": [*image, *(f"{key}={value}" for key, value in given.items())],
                "cwd": "/",
                "noNewPrivileges": context.get("allowPrivilegeEscalation") is False,
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), rights),
            },
            "mounts": _mounts(container, volumes, privileged),
            "linux": {
                "namespaces": [*({"type": kind} for kind in spaces),
                               {"type": "network", "path": f"/run/netns/{namespace}"}],
                "maskedPaths": [] if privileged else list(_MASKED),
                "readonlyPaths": [] if privileged else list(_READ_ONLY),
                "rootfsPropagation": "rslave" if not privileged else "rshared",
            },
        }  # fmt: skip
        (self.bundle / "config.json").write_text(json.dumps(config, indent=1))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; what it says goes to `log`."""
        command = ["runc", "run", "--bundle", str(self.bundle), self.name]
        with self.log.open("wb") as out:
            self._process = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    @property
    def text(self) -> str:
        """What it has said since its last start."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def wait(self, seconds: float) -> int:
        """Its exit status, when it has ended; 128 and the signal's number when one ended it."""
        assert self._process is not None
        return self._process.wait(seconds)

    def signal(self, number: signal.Signals) -> None:
        """Send its first process a signal, as the runtime does."""
        subprocess.run(["runc", "kill", self.name, str(int(number))], check=True)

    def remove_remains(self) -> None:
        """Forget its last run, so that it can be started again; ends it if it is alive."""
        subprocess.run(["runc", "delete", "--force", self.name], check=False, capture_output=True)

    def remove(self) -> None:
        """End it if it is alive, and forget it."""
        self.remove_remains()
        if self._process is not None:
            self._process.wait(30)
        shutil.rmtree(self.bundle)

    def until(self, words: str, seconds: float = 60.0) -> None:
        """Wait until it has said something; an AssertionError with its log when it ends or takes too long."""
        end = time.monotonic() + seconds
        while words not in self.text:
            assert self.alive, f"{self.name} has ended:\n{self.text}"
            assert time.monotonic() < end, f"{self.name} does not say {words!r}:\n{self.text}"
            time.sleep(0.05)


def _expand(word: str, environment: Mapping[str, str]) -> str:
    """$(NAME) of a container's arguments, as the kubelet replaces it."""
    for key, value in environment.items():
        word = word.replace(f"$({key})", value)
    return word


def run_folder() -> Path:
    """A stand-in for the node's /run/hotplane: a mount of its own, so that mounts made there are seen outside."""
    folder = Path("/run") / f"hotplane-image-{os.getpid()}"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True)
    subprocess.run(["mount", "--make-shared", str(folder)], check=True)
    return folder
