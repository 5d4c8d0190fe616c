"""The image: built from the checkout's Containerfile on a base made here, and unpacked."""

import json
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BASE = "docker.io/library/debian:12-slim"
"""What the Containerfile's FROM means; made here under that name, so that no registry is asked."""
IMAGE = "localhost/hotplane"
AUTHORITIES = Path("/usr/local/share/ca-certificates")
"""Certificate authorities of this machine's administrator: a proxy's may be needed to fetch packages."""


def _run(*command: str | Path) -> str:
    """A command's output. Raises CalledProcessError; what it says goes to standard error."""
    return subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def make_base(folder: Path) -> None:
    """Make the base image with mmdebstrap, unless an earlier call left it."""
    if _run("buildah", "images", "--quiet", "--filter", f"reference={BASE}"):
        return
    system = folder / "base.tar"
    _run("mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "bookworm", system)
    container = _run("buildah", "from", "scratch")
    try:
        _run("buildah", "add", "--quiet", container, system, "/")
        if AUTHORITIES.is_dir() and any(AUTHORITIES.iterdir()):
            _run("buildah", "copy", "--quiet", container, AUTHORITIES, AUTHORITIES)
        _run("buildah", "commit", "--quiet", container, BASE)
    finally:
        _run("buildah", "rm", container)
    system.unlink()


def sources(folder: Path) -> Path:
    """The files that git knows, as a build context: what lies about in a checkout must not be needed."""
    context = folder / "context"
    names = _run("git", "-C", ROOT, "ls-files", "--cached", "--others", "--exclude-standard").splitlines()
    for name in filter(lambda name: (ROOT / name).is_file(), names):
        (context / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, context / name)
    return context


def build(folder: Path, name: str, arguments: Sequence[str] = ()) -> tuple[Path, list[str]]:
    """Build the image and unpack it.

    arguments: NAME=VALUE for the Containerfile's ARGs. out: the root file system, the entry point.
    """
    context = sources(folder)
    flags = [part for argument in arguments for part in ("--build-arg", argument)]
    how = ("--quiet", "--layers", "--isolation=chroot", "--pull-never")
    file = context / "docs/deploy/Containerfile"
    _run("buildah", "build", *how, "--tag", f"{IMAGE}:{name}", *flags, "--file", file, context)
    shutil.rmtree(context)
    container = _run("buildah", "from", "--pull-never", f"{IMAGE}:{name}")
    root = folder / name
    try:
        mounted = _run("buildah", "mount", container)
        _run("cp", "--archive", mounted, root)  # device nodes stay device nodes
        config = json.loads(_run("buildah", "inspect", "--type", "container", container))["OCIv1"]["config"]
    finally:
        _run("buildah", "rm", container)
    (root / ".environment").write_text("\n".join(config["Env"]))
    return root, config["Entrypoint"]


def remove(names: Sequence[str]) -> None:
    """Remove the images made here, and the base."""
    for name in (*(f"{IMAGE}:{name}" for name in names), BASE):
        subprocess.run(["buildah", "rmi", "--force", name], check=False, capture_output=True)
