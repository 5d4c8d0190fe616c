"""tests/kernels: the ebpf mode on kernels that are not this machine's own. See that script's first lines."""

import argparse
import datetime
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
from tests.vm.machine import MachineError, run_job
from tests.vm.results import Report, Step, page, read_report

_FILES = "tests/kernel/test_"
STEPS = (
    Step("features", (f"{_FILES}kernel_features.py", f"{_FILES}hook_proof.py")),
    Step(
        "packets",
        (
            *(f"{_FILES}{name}.py" for name in ("tc_packets", "xdp_established", "xdp_veth", "tc_frames")),
            "-k",
            "not random_packets and not flood and not choices and not out_of_the_ordinary and not goes",
        ),
    ),
    Step("connect", (f"{_FILES}ebpf_connect_sockets.py",)),
    Step("traffic", (f"{_FILES}tc_traffic.py", "-k", "remote and (bulk or 1400)")),
    Step(
        "scenarios",
        tuple(
            f"{_FILES}scenarios.py::test_scenario_table[{name}]"
            for name in ("direct-veth-ebpf", "vxlan-bridge-ebpf-xdp-parity")
        ),
    ),
)
"""What every kernel is asked. The tests left out, with -k or by name, take most of the time on an emulated processor
and ask kernels nothing that the others do not."""
LEFT_OUT = {"5.10": {"features": "not (address_is_taken and xdp)", "packets": "not xdp"}}
"""What a kernel is not asked, as words for -k."""
_LESS = (
    "not the test runs of XDP, since kernels before 5.15 take no context for them; the doctor's packet, traffic and "
    "scenarios go through XDP there too."
)
RUNNING = "running"
_STEP_SECONDS = 900


def _job(steps: Sequence[Step], python: str, results: str) -> str:
    """Lines of bash: the doctor, then each step, with its own time limit."""
    lines = [f"{python} -m ctl.main --mode ebpf doctor -o json >{results}/doctor.json"]
    for step in steps:
        arguments = shlex.join(step.arguments)
        lines.append(f"echo == {step.name}: $(uname -r), up for $(cut -d. -f1 /proc/uptime) s")
        lines.append(
            f"timeout {_STEP_SECONDS} {python} -m pytest -p no:cacheprovider --color=no -q --tb=short "
            f"--junit-xml={results}/{step.name}.xml {arguments}"
        )
    return "\n".join([*lines, "true", ""])


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
        found.append(Step(step.name, tuple(arguments)))
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


def examine(name: str, steps: Sequence[Step], scratch: Path, logs: Path | None) -> Report:
    """Everything on one kernel. Raises MachineError."""
    begun = time.monotonic()
    compiled = CACHE / "compiled"
    if name == RUNNING:
        package, results = "", _natively(steps, scratch)
    else:
        kernel = fetch(name)
        package = kernel.package
        limit = _STEP_SECONDS * (len(steps) + 1)
        results = run_job(kernel, _job(steps, f"{VENV}/bin/python", "results"), compiled, scratch, limit)
    report = read_report(name, package, results, steps, time.monotonic() - begun)
    if logs is not None:
        shutil.copytree(results, logs / name, dirs_exist_ok=True)
    return report


def _say(report: Report) -> None:
    print(f"kernels: {report.name} ({report.release}): {report.seconds:.0f} s", flush=True)
    for step, outcome in report.outcomes.items():
        print(f"    {step}: {outcome.text}")
    for problem in report.problems:
        print(f"    {problem}")


def main() -> int:
    """0 if every test passed on every kernel."""
    parser = argparse.ArgumentParser(prog="tests/kernels", description="The ebpf mode on several kernels.")
    parser.add_argument("kernels", nargs="*", metavar="KERNEL", help=f"{', '.join(OFFERS)} or {RUNNING}; default: all")
    parser.add_argument("--steps", default="", help=f"only these: {','.join(step.name for step in STEPS)}")
    parser.add_argument("--page", type=Path, help="write the table here (docs/kernels.md)")
    parser.add_argument("--logs", type=Path, help="keep consoles and results here")
    args = parser.parse_args()
    names = args.kernels or [*OFFERS, RUNNING]
    wrong = [name for name in names if name not in (*OFFERS, RUNNING)]
    if wrong:
        parser.error(f"there is no kernel {wrong[0]!r}; choose of {', '.join((*OFFERS, RUNNING))}")
    wanted = set(filter(None, args.steps.split(",")))
    steps = [step for step in STEPS if not wanted or step.name in wanted]
    reports, failed = [], False
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="hotplane-kernels-")))
        compile_for_all(CACHE / "compiled")
        for name in names:
            try:
                report = examine(name, asked(name, steps), scratch / name, args.logs)
            except MachineError as error:
                print(f"kernels: {error}", flush=True)
                failed = True
                continue
            _say(report)
            reports.append(report)
            failed = failed or bool(report.problems)
            if args.page:
                command = shlex.join(["tests/kernels", *sys.argv[1:]])
                date = datetime.date.today().isoformat()
                less = {name: _LESS for name in LEFT_OUT if name in names}
                args.page.write_text(page(reports, steps, command, date, less))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
