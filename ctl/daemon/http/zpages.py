"""/configz, and /statusz and /flagz, pages for people: version and start time of the daemon, and its settings.

Layout: Kubernetes' component-base/zpages of 1.36, as plain text. It promises no format, so neither does this.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from ctl import VERSION
from ctl.config import SECTIONS
from ctl.daemon.http.metrics import KUBERNETES
from ctl.daemon.http.web import Reply
from ctl.daemon.options import FLAGS, to_document
from ctl.daemon.settings import Settings

PATHS = ("/configz", "/flagz", "/healthz", "/metrics", "/proxyMode", "/statusz")
_WARNING = (
    "Warning: This endpoint is not meant to be machine parseable, has no formatting compatibility guarantees and is "
    "for debugging purposes only."
)


class Statusz:
    """Made when the process starts."""

    def __init__(self) -> None:
        self._started, self._clock = datetime.now(UTC), time.monotonic()

    def text(self) -> str:
        """Return the page."""
        up = int(time.monotonic() - self._clock)
        version = ".".join(map(str, KUBERNETES))
        return _page(
            "statusz",
            (
                f"Started: {self._started:%a %b %e %H:%M:%S UTC %Y}",
                f"Up: {up // 3600} hr {up // 60 % 60:02d} min {up % 60:02d} sec",
                f"Binary version: {version}.0 (hotplane {VERSION})",
                f"Emulation version: {version}",
                f"Paths: {' '.join(PATHS)}",
            ),
        )


def pages(settings: Callable[[], Settings]) -> Mapping[str, Callable[[], Reply]]:
    """Return the pages by path. settings: those of now. Made when the process starts."""
    statusz = Statusz()
    return {
        "/configz": lambda: Reply(body=_configz(settings()), content_type="application/json"),
        "/statusz": lambda: Reply(text=statusz.text()),
        "/flagz": lambda: Reply(text=flagz(settings())),
    }


def _configz(settings: Settings) -> bytes:
    return msgspec.json.encode({"kubeproxy.config.k8s.io": to_document(settings.config)})


def flagz(settings: Settings) -> str:
    """Return the page of flags: each with the value in effect, from flags and file together."""
    document = to_document(settings.config)
    values = {flag.name.removeprefix("--"): _value(document, flag.path) for flag in FLAGS if flag.path}
    values |= {"kubeconfig": settings.kubeconfig, "master": settings.master, "proxy-mode": settings.mode}
    return _page("flagz", (f"{name}={_text(value)}" for name, value in sorted(values.items())))


def _page(name: str, lines: Iterable[str]) -> str:
    return "\n".join(("", f"kube-proxy {name}", _WARNING, "", *lines, ""))


def _value(document: dict[str, Any], path: str) -> Any:
    """Return the configuration's value at a path of the file; `*` stands for the section of every mode, which agree."""
    value: Any = document
    for name in path.replace("*", SECTIONS[-1]).split("."):
        value = value[name]
    return value


def _text(value: Any) -> str:
    match value:
        case bool():
            return str(value).lower()
        case list():
            return f"[{','.join(map(str, value))}]"
        case dict():
            return ",".join(f"{name}={_text(item)}" for name, item in value.items())
    return str(value)
