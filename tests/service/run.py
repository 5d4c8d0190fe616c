"""tests/systemd: boot a machine of the Vagrant lab and prove the systemd unit there. See that script's first lines."""

import argparse
import datetime
import sys
import tempfile
from pathlib import Path

from tests.vm.debian import OFFERS, fetch
from tests.vm.image import VENV
from tests.vm.machine import NO_END, run_job
from tests.vm.results import kernel_troubles

_SECONDS = 3600.0
_JOB = f"""\
ln -sfn {VENV} .venv
key=$(cat pyproject.toml constraints.txt system-packages.txt <(printf /opt/hotplane) | sha256sum)
echo "${{key%% *}}" >.venv/.stamp-run
{VENV}/bin/python -m compileall -q ctl dataplane tests
systemctl is-system-running --wait
MACHINE=node1 NODES=1 PODS=3 ROUTING=direct POD_LINK=veth IPV6=yes vagrant/provision
{VENV}/bin/python -m tests.service.inside results """
MODES = ("nftables", "iptables", "ebpf")


def main() -> int:
    """0 when every step was seen in every mode."""
    parser = argparse.ArgumentParser(prog="tests/systemd", description="hotplane.service on a machine of its own.")
    parser.add_argument("modes", nargs="*", metavar="MODE", help=f"of {', '.join(MODES)} (default: all)")
    parser.add_argument("--kernel", choices=OFFERS, default="6.1", help="of the machine (default: Debian 12's, 6.1)")
    parser.add_argument("--log", type=Path, metavar="FILE", help="keep what was seen")
    parser.add_argument("--journal", type=Path, metavar="FILE", help="keep what the unit said")
    options = parser.parse_args()
    modes = options.modes or list(MODES)
    if unknown := set(modes) - set(MODES):
        parser.error(f"no such mode: {', '.join(sorted(unknown))}")
    kernel = fetch(options.kernel)
    with tempfile.TemporaryDirectory(prefix="hotplane-systemd-") as folder:
        results = run_job(
            kernel, _JOB + " ".join(modes), Path(folder), Path(folder) / "machine", _SECONDS, systemd=True
        )
        texts = {path.name: path.read_text(errors="replace") for path in results.iterdir() if path.is_file()}
    troubles = [texts[NO_END]] if NO_END in texts else []
    troubles += kernel_troubles(texts["console"])
    if "log" not in texts:
        troubles.append(f"the machine's log is missing; its console ends with:\n{texts['console'][-3000:]}")
    head = (
        f"tests/systemd {' '.join(modes)}, {datetime.date.today().isoformat()}, {kernel.package}, emulated, 1 processor"
    )
    text = "\n".join([head, "", *texts.get("log", "").splitlines(), *troubles, ""])
    print(text)
    if options.log:
        options.log.write_text(text)
    if options.journal:
        options.journal.write_text(texts.get("journal", ""))
    return int(bool(troubles) or texts.get("status") != "0")


if __name__ == "__main__":
    sys.exit(main())
