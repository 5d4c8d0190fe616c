"""The DaemonSet of docs/deploy, with the ebpf mode's patch where that is asked for."""

from pathlib import Path
from typing import Any

import yaml

from tests.container.build import ROOT

_DEPLOY = ROOT / "docs/deploy"
_MERGE_KEYS = ("name", "mountPath")
"""What a strategic merge patch recognises an item of a list by, for the lists that the patch touches."""


def _merge(base: Any, patch: Any) -> Any:
    """A strategic merge patch as kubectl applies it, as far as ebpf-patch.yaml needs it."""
    if isinstance(base, dict) and isinstance(patch, dict):
        return base | {key: _merge(base[key], value) if key in base else value for key, value in patch.items()}
    if isinstance(base, list) and isinstance(patch, list) and patch and isinstance(patch[0], dict):
        key = next(key for key in reversed(_MERGE_KEYS) if key in patch[0])
        merged = {item[key]: item for item in base}
        for item in patch:
            merged[item[key]] = _merge(merged[item[key]], item) if item[key] in merged else item
        return list(merged.values())
    return patch


class Manifest:
    """What docs/deploy asks the kubelet for in one mode.

    config: text of the ConfigMap's config.yaml. init, main: the containers. host_pid: whether they see the node's
    processes. host_paths: volumes by name, with the node's folder ("" for memory).
    """

    def __init__(self, mode: str) -> None:
        documents = list(yaml.safe_load_all((_DEPLOY / "hotplane.yaml").read_text()))
        by_kind = {document["kind"]: document for document in documents}
        text = by_kind["ConfigMap"]["data"]["config.yaml"]
        assert "mode: nftables" in text
        self.config: str = text.replace("mode: nftables", f"mode: {mode}")
        pod = by_kind["DaemonSet"]["spec"]["template"]["spec"]
        if mode == "ebpf":
            patch = yaml.safe_load((_DEPLOY / "ebpf-patch.yaml").read_text())
            pod = _merge(pod, patch["spec"]["template"]["spec"])
        [self.init] = pod["initContainers"]
        [self.main] = pod["containers"]
        if mode == "iptables":  # the comment beside the capabilities says so
            self.main["securityContext"]["capabilities"]["add"] = ["NET_ADMIN", "NET_RAW"]
        assert pod["hostNetwork"]
        self.host_pid = bool(pod.get("hostPID"))
        self.host_paths: dict[str, str] = {
            volume["name"]: volume.get("hostPath", {}).get("path", "") for volume in pod["volumes"]
        }


def build_arguments(mode: str) -> list[str]:
    """ARGs of the Containerfile for a mode."""
    return ["EBPF=yes"] if mode == "ebpf" else []


def image_name(mode: str) -> str:
    """The image's tag: nftables and iptables mode share one."""
    return "ebpf" if mode == "ebpf" else "plain"


def write_config(folder: Path, manifest: Manifest) -> Path:
    """The ConfigMap's folder, as the kubelet mounts it."""
    config = folder / "config"
    config.mkdir(exist_ok=True)
    (config / "config.yaml").write_text(manifest.config)
    return config
