"""A machine without the optional packages: what does not need them works, what does says what to install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FLOW = "10.244.1.7 -> 10.96.0.10:80/tcp"
ABSENT = """
import sys
sys.modules.update(dict.fromkeys(("numpy", "nftables", "bcc")))
from ctl.main import main
sys.exit(main())
"""


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """One command in a process where importing any of these modules fails as if it were not installed."""
    return subprocess.run([sys.executable, "-c", ABSENT, *arguments], cwd=ROOT, capture_output=True, text=True)


def test_help_and_explain_need_none_of_them(tmp_path: Path) -> None:
    assert _run("--help").returncode == 0
    manifest = tmp_path / "service.yaml"
    manifest.write_text(
        "{apiVersion: v1, kind: Service, metadata: {name: a, namespace: b},"
        " spec: {clusterIP: 10.96.0.10, ports: [{port: 80}]}}"
    )
    done = _run("--node-name", "n", "--node-ip", "10.0.0.1", "explain", "-f", str(manifest), "--flow", FLOW)
    assert (done.returncode, done.stderr) == (0, "")
    assert "b/a" in done.stdout


def test_doctor_says_what_to_install(tmp_path: Path) -> None:
    """libnftables is asked in a process of its own, where it is missing as well."""
    (tmp_path / "nftables.py").write_text("raise ModuleNotFoundError('no nftables', name='nftables')\n")
    done = subprocess.run(
        [sys.executable, "-m", "ctl.main", "doctor"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "apt-get install python3-nftables" in done.stdout


@pytest.mark.parametrize("action", [["run", "--profile", "quick"], ["report", "x.json"], ["compare", "x", "y"]])
def test_bench_names_its_extra_before_it_begins(action: list[str]) -> None:
    done = _run("bench", *action)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "hotplane: hotplane bench needs the Python module numpy: pip install 'hotplane[bench]'\n"


@pytest.mark.parametrize("arguments", [["--list"], ["run", "--list"]])
def test_what_bench_can_do_is_listed_without_them(arguments: list[str]) -> None:
    assert _run("bench", *arguments).returncode == 0


def test_a_missing_compiler_is_named(tmp_path: Path) -> None:
    """bcc runs in a process of its own, where it is missing as well."""
    (tmp_path / "bcc.py").write_text("raise ModuleNotFoundError('no bcc', name='bcc')\n")
    script = (
        "import sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "from dataplane.kernel.ebpf.bcc_loader import CompileError, compile_programs\n"
        "try:\n"
        "    compile_programs('connect.c', cache=None)\n"
        "except CompileError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.stderr == ""
    assert done.stdout.endswith("the Python module bcc is missing: apt-get install python3-bpfcc\n")
