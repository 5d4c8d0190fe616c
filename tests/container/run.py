"""tests/image: build the image, start the DaemonSet's containers on the nodes of a lab, prove them by connections."""

import argparse
import contextlib
import datetime
import os
import platform
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from dataplane.kernel.namespaces.netns import netns
from dataplane.lab.apiserver.server import ApiServer
from dataplane.lab.lab import Lab
from dataplane.lab.spec import LabSpec, Place
from dataplane.model.net import Family
from dataplane.planes.mode import Making
from dataplane.planes.options import PlaneOptions
from dataplane.planes.registry import mode_of
from tests.apiserver.objects import endpoint, endpoint_slice, node, service
from tests.container.build import build, make_base, remove
from tests.container.manifest import Manifest, build_arguments, image_name, write_config
from tests.container.pod import SERVICE_ACCOUNT, Container, run_folder
from tests.kernel.daemon_lab import http
from tests.kernel.traffic import Traffic, lost
from tests.steplog import Log

MODES = ("nftables", "iptables", "ebpf")
VIP, PORT, NODE_PORT = "10.96.0.10", 8080, 30080
TOKEN = "token-of-the-service-account"


def _certificate(folder: Path, address: str) -> ssl.SSLContext:
    """A certificate for the API server's address, in `folder` as kubelets mount it; what the server presents."""
    key, certificate = folder / "key", folder / "ca.crt"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=api", "-addext", f"subjectAltName=IP:{address}", "-keyout", key, "-out", certificate],
        check=True, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    key.unlink()
    (folder / "token").write_text(TOKEN)
    (folder / "namespace").write_text("kube-system")
    return context


@contextlib.contextmanager
def _api(lab: Lab, account: Path) -> Iterator[ApiServer]:
    """An API server with TLS that wants the account's token; one Service with every pod behind it."""
    address = lab.topology.underlay.addresses[Family.IPV4]
    context = _certificate(account, address)
    with netns(lab.topology.underlay.netns):
        server = ApiServer(address, tls=context)
    with server:
        server.behave(token=TOKEN, bookmark_seconds=0.2)
        server.apply(*[node(each.name, each.addresses[Family.IPV4]) for each in lab.nodes])
        port = {"port": 80, "protocol": "TCP", "nodePort": NODE_PORT}
        server.apply(service("echo", VIP, type="NodePort", ports=[port]))
        server.apply(endpoint_slice("echo", [endpoint(pod.addresses[Family.IPV4], pod.node) for pod in lab.pods[:2]]))
        yield server


class Node:
    """The DaemonSet's pod on one node: its init container, then the daemon's."""

    def __init__(self, lab: Lab, place: Place, folder: Path, root: Path, entry: list[str], mode: str) -> None:
        self._lab, self._place, self._root, self._entry = lab, place, root, entry
        self.folder = folder / place.name
        self.folder.mkdir()
        self.manifest = Manifest(mode)
        self.run_folder = run_folder()
        cache = self.folder / "cache"
        cache.mkdir()
        lock = self.folder / "xtables.lock"
        lock.touch()
        stand_ins = {
            "/run/hotplane": self.run_folder, "/var/cache/hotplane": cache, "/run/xtables.lock": lock,
            "/sys/fs/cgroup": lab.cgroup(place.name),
        }  # fmt: skip
        config = write_config(self.folder, self.manifest)
        self._volumes: dict[str, Path | None] = {
            name: stand_ins[path] if path else None for name, path in self.manifest.host_paths.items()
        } | {"config": config}

    def container(self, which: str, account: Path, server: ApiServer) -> Container:
        """Make the container `init` or `main`."""
        wanted = dict(self.manifest.init if which == "init" else self.manifest.main)
        wanted["volumeMounts"] = [
            *wanted["volumeMounts"], {"name": "account", "mountPath": SERVICE_ACCOUNT, "readOnly": True},
        ]  # fmt: skip
        host, port = server.url.removeprefix("https://").rsplit(":", 1)
        environment = {
            "NODE_NAME": self._place.name, "KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port,
        }  # fmt: skip
        return Container(
            f"hotplane-{os.getpid()}-{self._place.name}-{which}", self.folder, self._root, self._entry, wanted,
            self._place.netns, self._volumes | {"account": account}, environment, host_pid=self.manifest.host_pid,
        )  # fmt: skip

    def clean(self, mode: str) -> None:
        """Remove rules and the stand-in of /run/hotplane."""
        with netns(self._place.netns):
            mode_of(mode).make(Making(PlaneOptions(hooks=()))).cleanup()
        subprocess.run(["umount", "--recursive", str(self.run_folder)], check=True)
        self.run_folder.rmdir()


def _serve(lab: Lab, mode: str, root: Path, entry: list[str], folder: Path, log: Log) -> None:
    """One mode: start, serve, die, start again, follow a change, stop in order."""
    account = folder / "account"
    account.mkdir()
    one = lab.nodes[0]
    place = Node(lab, one, folder, root, entry, mode)
    with contextlib.ExitStack() as stack:
        stack.callback(place.clean, mode)
        server = stack.enter_context(_api(lab, account))
        init = place.container("init", account, server)
        stack.callback(init.remove)
        init.start()
        assert init.wait(60) == 0, init.text
        log.say(f"{mode}: the init container (privileged, run --init-only) ended with 0")
        main = place.container("main", account, server)
        stack.callback(main.remove)
        begun = time.monotonic()
        main.start()
        main.until(" loaded ", 120)
        rights = ", ".join(place.manifest.main["securityContext"]["capabilities"]["add"])
        log.say(f"{mode}: the daemon ({rights}; read-only root) loaded after {time.monotonic() - begun:.1f} s")
        address = one.addresses[Family.IPV4]
        for path in ("/livez", "/healthz"):
            status, _, _ = http(one.netns, "127.0.0.1", 10256, path)
            assert status == 200, (path, status)
        client = lab.pods[2]
        ways = {"pod": (client.name, VIP, 80), "node": (one.name, VIP, 80), "outside": ("client", address, NODE_PORT)}
        traffic = Traffic(lab, ways, "--tcp-only")
        main.signal(signal.SIGKILL)
        main.wait(30)
        time.sleep(1)
        main.remove_remains()
        main.start()
        main.until(" loaded ", 120)
        server.apply(endpoint_slice("echo", [endpoint(lab.pods[1].addresses[Family.IPV4], lab.pods[1].node)]))
        time.sleep(2)
        main.signal(signal.SIGTERM)
        status = main.wait(30)
        assert status == 0, (status, main.text)
        reports = traffic.end()
        assert not lost(reports), lost(reports)
        opened = {name: report.opened for name, report in reports.items()}
        assert all(count > 10 for count in opened.values()), opened
        counts = ", ".join(f"{count} from {name}" for name, count in opened.items())
        log.say(f"{mode}: killed, started again, an endpoint less, SIGTERM (exit 0): {counts}; 0 failed or broken")


def main() -> int:
    """0 when every step was seen in every mode."""
    parser = argparse.ArgumentParser(prog="tests/image", description="The container image, run as the DaemonSet says.")
    parser.add_argument("modes", nargs="*", metavar="MODE", help=f"of {', '.join(MODES)} (default: all)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep what was seen")
    parser.add_argument("--keep", action="store_true", help="keep the images, for a next call")
    options = parser.parse_args()
    modes = options.modes or list(MODES)
    if unknown := set(modes) - set(MODES):
        parser.error(f"no such mode: {', '.join(sorted(unknown))}")
    log, folder = Log(), Path(tempfile.mkdtemp(prefix="hotplane-image-"))
    names = dict.fromkeys(map(image_name, modes))
    try:
        make_base(folder)
        log.say("the base image is made")
        built = {}
        for name in names:
            mode = next(mode for mode in modes if image_name(mode) == name)
            built[name] = build(folder, name, build_arguments(mode))
            size = sum(f.stat().st_size for f in built[name][0].rglob("*") if f.is_file() and not f.is_symlink())
            log.say(f"image {name}: {size / 1e6:.0f} MB unpacked")
        with Lab.up(LabSpec(f"image-{os.getpid()}", nodes=1, pods=3)) as lab:
            lab.start_echo(lab.pods[:2], [PORT])
            for mode in modes:
                place = folder / f"run-{mode}"
                place.mkdir()
                _serve(lab, mode, *built[image_name(mode)], place, log)
    finally:
        if not options.keep:
            remove(list(names))
        shutil.rmtree(folder)
    if options.log:
        today = datetime.date.today().isoformat()
        head = f"tests/image {' '.join(modes)}, {today}, Linux {platform.release()}"
        options.log.write_text("\n".join([head, "", *log.lines, ""]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
