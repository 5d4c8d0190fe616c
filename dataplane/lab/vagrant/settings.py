"""The Vagrant lab's settings: the environment's, else the defaults of vagrant/settings.env, which Vagrant reads too."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from dataplane.lab.spec import LabError, LabSpec, PodLink, Routing

FOLDER = Path(__file__).resolve().parents[3] / "vagrant"
_PREFIX = "HOTPLANE_VM_"


class Settings(msgspec.Struct, frozen=True):
    """Settings of the machines that the host needs. slowness: factor for the time limits of probes."""

    spec: LabSpec
    slowness: float
    box: str
    driver: str


def defaults() -> dict[str, str]:
    """The settings file, by name without prefix."""
    lines = (line.strip() for line in (FOLDER / "settings.env").read_text().splitlines())
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name.removeprefix(_PREFIX): value for name, _, value in pairs}


def settings(environment: Mapping[str, str]) -> Settings:
    """The settings in force. Raises LabError naming the variable that is wrong."""
    found = {name: environment.get(_PREFIX + name, value) for name, value in defaults().items()}

    def number(name: str) -> int:
        if not found[name].isdigit():
            raise LabError(f"{_PREFIX}{name}={found[name]}: must be a whole number")
        return int(found[name])

    def choice(name: str, *choices: str) -> str:
        if found[name] not in choices:
            raise LabError(f"{_PREFIX}{name}={found[name]}: must be {' or '.join(choices)}")
        return found[name]

    spec = LabSpec(
        nodes=number("NODES"),
        pods=number("PODS"),
        routing=Routing(choice("ROUTING", *Routing)),
        pod_link=PodLink(choice("POD_LINK", *PodLink)),
        ipv6=choice("IPV6", "yes", "no") == "yes",
    )
    spec.validate()
    return Settings(spec, float(number("SLOWNESS")), found["BOX"], found["DRIVER"])
