"""The packages of the wheel. The C of `bpf/` stands at the top of a checkout, in `dataplane/bpf` of a wheel."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["dataplane*", "ctl*"]), "dataplane.bpf"],
    package_dir={"dataplane.bpf": "bpf"},
)
