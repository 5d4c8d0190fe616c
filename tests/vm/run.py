"""tests/kernels: the ebpf mode on kernels that are not this machine's own. See that script's first lines."""

import argparse
import datetime
import json
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from tests.vm.compiled import compile_for_all
from tests.vm.debian import OFFERS, fetch
from tests.vm.image import CACHE, ROOT, VENV
from tests.vm.machine import NO_END, MachineError, run_job
from tests.vm.results import Report, Step, kernel_troubles, notes_of, page, read_report

_FILES = "tests/kernel/test_"
_PACKETS = ("tc_packets", "tc_extensions", "xdp_established", "xdp_veth", "tc_frames")
STEPS = (
    Step("features", (f"{_FILES}kernel_features.py", f"{_FILES}hook_proof.py")),
    Step(
        "packets",
        (
            *(f"{_FILES}{name}.py" for name in _PACKETS),
            "-k",
            "not random_packets and not flood and not choices and not out_of_the_ordinary and not goes",
        ),
    ),
    Step("connect", (f"{_FILES}ebpf_connect_sockets.py", f"{_FILES}connect_off.py")),
    Step("traffic", (f"{_FILES}tc_traffic.py", "-k", "remote and (bulk or 1400)")),
    *(
        Step(
            name,
            (f"{_FILES}scenarios.py::test_scenario_table[{variant}]", "--slowness", "8"),
            3600,
        )
        for name, variant in (("scenarios", "direct-veth-ebpf"), ("scenarios-xdp", "vxlan-bridge-ebpf-xdp-parity"))
    ),
)
"""What every kernel is asked. The tests left out, with -k or by name, take most of the time on an emulated processor
and ask kernels nothing that the others do not."""
BY_NAME = (
    Step("flowtable", ("tests/flowtable", "-rA")),
    Step("vlan", ("tests/vlan", "-rA")),
    Step("dispatch", ("tests/dispatch", "tests/kernel/test_forwarding_formats.py", "-rA")),
    Step("host-routing", (f"{_FILES}host_routing.py", "-rA", "-k", "DIRECT")),
    Step(
        "forwarding",
        (*(f"{_FILES}{name}.py" for name in ("forwarding_packets", "forwarding_traffic", "extension_headers")), "-rA"),
    ),
)
"""What is asked only where --steps names it, and is no column of the page: kernels may lack flowtables and VLANs, as
this machine's own may."""
_WITHOUT_PROGRAMS = ("flowtable",)
LEFT_OUT = {
    "5.10": {
        "features": "not (address_is_taken and xdp) and not xdp_holds",
        "packets": "not xdp and not local_backend_keeps",
        "traffic": "not vxlan",
        "forwarding": "not xdp",
        "vlan": "not (devices_with_programs and parent)",
        "dispatch": "devices or without_df or sees_the_client or short_name or not_understood or not_here or passes",
    }
}
"""What a kernel is not asked, as words for -k."""
_LESS = (
    "not the test runs of XDP, since kernels before 5.15 take no context for them; the doctor's packet, traffic and "
    "scenarios go through XDP there too."
)
RUNNING = "running"
_START_SECONDS = 300
_FIRST_ROW = ("features", "packets")


def _needs_programs(steps: Sequence[Step]) -> bool:
    """True if something is asked of eBPF programs, the doctor included, who is always asked with them."""
    return not steps or any(step.name not in _WITHOUT_PROGRAMS for step in steps)


def _job(steps: Sequence[Step], python: str, results: str) -> str:
    """Lines of bash: the doctor and the steps, in two rows that run at once, each step with its own time limit."""
    doctor = [f"{python} -m ctl.main --mode ebpf doctor -o json >{results}/doctor.json"]
    rows: tuple[list[str], list[str]] = (doctor if _needs_programs(steps) else [], [])
    for step in steps:
        log = f"{results}/{step.name}.log"
        pytest = (
            f"{python} -m pytest -p no:cacheprovider --color=no -q --tb=short --junit-xml={results}/{step.name}.xml"
        )
        row = rows[step.name not in _FIRST_ROW]
        row += [
            f"echo == {step.name}: $(uname -r), up for $(cut -d. -f1 /proc/uptime) s",
            f"timeout {step.seconds} {pytest} {shlex.join(step.arguments)} >{log}",
            f"grep -E '^(FAILED|ERROR)|%]' {log}",
            f"sync -f {results}",
        ]
    first, second = ("; ".join([*row, "true"]) for row in rows)
    return f"( {first} ) & ( {second} ) & wait\n"


def asked(name: str, steps: Sequence[Step]) -> list[Step]:
    """The steps as this kernel gets them."""
    found = []
    for step in steps:
        words = LEFT_OUT.get(name, {}).get(step.name)
        arguments = list(step.arguments)
        if words and "-k" in arguments:
            arguments[-1] = f"{arguments[-1]} and {words}"
        elif words:
            arguments += ["-k", words]
        found.append(step._replace(arguments=tuple(arguments)))
    return found


def _natively(steps: Sequence[Step], scratch: Path) -> Path:
    """The same job on the running kernel."""
    results = scratch / "results"
    results.mkdir(parents=True)
    (results / "release").write_text(platform.release())
    job = _job(steps, sys.executable, str(results))
    with (results / "console").open("wb") as console:
        subprocess.run(["bash", "-c", job], cwd=ROOT, stdout=console, stderr=subprocess.STDOUT, check=True)
    return results


def examine(name: str, steps: Sequence[Step], scratch: Path, logs: Path) -> Report:
    """These steps on one kernel; what came out is kept in `logs` too. Raises MachineError."""
    begun = time.monotonic()
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    compiled = CACHE / "compiled"
    if name == RUNNING:
        package, results = "", _natively(steps, scratch)
    else:
        kernel = fetch(name)
        package = kernel.package
        limit = _START_SECONDS + sum(step.seconds for step in steps)
        results = run_job(kernel, _job(steps, f"{VENV}/bin/python", "results"), compiled, scratch, limit)
    about = {"package": package, "seconds": time.monotonic() - begun, "commit": commit.stdout.strip(), "date": _today()}
    troubles = _troubles(results) if name != RUNNING else ()
    for step in (Step("about", ()), *steps):
        (results / f"{step.name}.json").write_text(json.dumps(about | {"troubles": troubles}))
        if troubles:
            shutil.copy(results / "console", results / f"{step.name}.console")
    _keep(results, steps, logs / name)
    return read_report(name, results, steps)


def _troubles(results: Path) -> tuple[str, ...]:
    """What went wrong with the machine itself."""
    found = kernel_troubles((results / "console").read_text(errors="replace"))
    return (*found, (results / NO_END).read_text()) if (results / NO_END).exists() else found


def _keep(results: Path, steps: Sequence[Step], folder: Path) -> None:
    """Put results with those of other steps, in place of what these steps left there before."""
    for step in steps:
        for kind in ("xml", "log", "console"):
            (folder / f"{step.name}.{kind}").unlink(missing_ok=True)
    (folder / NO_END).unlink(missing_ok=True)
    shutil.copytree(results, folder, dirs_exist_ok=True)


def _today() -> str:
    return datetime.date.today().isoformat()


def _say(report: Report) -> None:
    print(f"kernels: {report.name} ({report.release})", flush=True)
    for step, outcome in report.outcomes.items():
        print(f"    {step}: {outcome.text}")
    for problem in report.problems:
        print(f"    {problem}")


def _told(report: Report, steps: Sequence[Step], folder: Path) -> list[str]:
    """A kernel's part of the log: how each test of the steps ended."""
    lines = ["", f"{report.release}, {report.package}, {report.made}"]
    lines += [f"  {name}: {outcome.text}" for name, outcome in report.outcomes.items()]
    for step in steps:
        log = folder / f"{step.name}.log"
        said = log.read_text(errors="replace").splitlines() if log.exists() else []
        lines += [f"  {line}" for line in said if line.startswith(("PASSED", "FAILED", "ERROR"))]
    return [*lines, *(f"  {problem}" for problem in report.problems)]


def main() -> int:
    """0 if every test passed on every kernel."""
    parser = argparse.ArgumentParser(prog="tests/kernels", description="The ebpf mode on several kernels.")
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"{', '.join(OFFERS)} or {RUNNING}; default: all")
    parser.add_argument(
        "--steps",
        default="",
        help=f"only these: {','.join(step.name for step in (*STEPS, *BY_NAME))}; doctor: none",
    )
    parser.add_argument("--page", type=Path, help="write the table of all that is in the logs here (docs/kernels.md)")
    parser.add_argument("--logs", type=Path, help="keep consoles and results here", default=CACHE / "logs")
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep what each test said here (docs/kernels.log)")
    args = parser.parse_args()
    names = args.kernels or [*OFFERS, RUNNING]
    wrong = [name for name in names if name not in (*OFFERS, RUNNING)]
    if wrong:
        parser.error(f"there is no kernel {wrong[0]!r}; choose of {', '.join((*OFFERS, RUNNING))}")
    wanted = set(filter(None, args.steps.split(",")))
    steps = [step for step in STEPS if not wanted or step.name in wanted]
    steps += [step for step in BY_NAME if step.name in wanted]
    failed, told = False, list[str]()
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hotplane-kernels-")))
        (CACHE / "compiled").mkdir(parents=True, exist_ok=True)
        if _needs_programs(steps):
            compile_for_all(CACHE / "compiled")
        for name in names:
            try:
                report = examine(name, asked(name, steps), scratch / name, args.logs)
            except MachineError as error:
                print(f"kernels: {error}", flush=True)
                failed = True
                continue
            _say(report)
            told += _told(report, steps, args.logs / name)
            failed = failed or bool(report.problems)
    if args.log:
        args.log.write_text("\n".join([f"tests/kernels --steps {args.steps} {' '.join(names)}", *told, ""]))
    if args.page:
        known = [name for name in (*OFFERS, RUNNING) if (args.logs / name / "release").exists()]
        reports = [read_report(name, args.logs / name, STEPS) for name in known]
        notes = notes_of(args.page.read_text()) if args.page.exists() else ""
        args.page.write_text(page(reports, STEPS, {name: _LESS for name in LEFT_OUT if name in known}, notes))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
