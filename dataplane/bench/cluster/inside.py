"""What runs inside the benchmark's pods, by `python3 -c`: this file, which needs Python 3.8 and nothing else.

hold            wait until the pod is deleted
write PATH      standard input becomes an executable file
start LOG ARGV...   start a server that outlives this call, its output in LOG; ends once it has said "ready", else with
                status 1 and what it said
facts           the machine below the pod, as JSON: cpu_model, load_average, python
tracked         answer each line of standard input with the node's connection table: JSON of `count` and `most`
ask URL         print what an HTTP server of this machine says
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from typing import Any

START_SECONDS = 10.0
ASK_SECONDS = 3.0
_TABLE = "/proc/sys/net/netfilter/nf_conntrack_"


def hold() -> None:
    """Until SIGTERM, which the first process of a pod would ignore by default."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    while True:
        signal.pause()


def write(path: str) -> None:
    """Whole or not at all."""
    half = path + ".part"
    with open(half, "wb") as file:
        file.write(sys.stdin.buffer.read())
    os.chmod(half, 0o755)
    os.replace(half, path)


def start(log: str, *argv: str) -> None:
    """Does not wait for it longer than START_SECONDS."""
    with open(log, "wb") as out:
        server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True)
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        over = server.poll() is not None
        with open(log) as said:
            text = said.read()
        if "ready\n" in text:
            return
        if over:
            break
        time.sleep(0.05)
    server.kill()
    sys.exit(text.strip() or "the server does not say that it is ready")


def facts() -> None:
    """The processor's name stands in the first such line."""
    model = ""
    with open("/proc/cpuinfo") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name.strip() in ("model name", "Model", "cpu model"):
                model = value.strip()
                break
    found = {"cpu_model": model, "load_average": os.getloadavg(), "python": sys.version.split()[0]}
    print(json.dumps(found))


def tracked() -> None:
    """Zeros where the kernel does not track connections or does not say."""
    for _ in sys.stdin:
        found = {}
        for name, file in (("count", "count"), ("most", "max")):
            try:
                with open(_TABLE + file) as value:
                    found[name] = int(value.read())
            except OSError:
                found[name] = 0
        print(json.dumps(found), flush=True)


def ask(url: str) -> None:
    """Without any proxy of the environment."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=ASK_SECONDS) as answer:
        print(answer.read(1 << 20).decode(errors="replace"))


COMMANDS = {"hold": hold, "write": write, "start": start, "facts": facts, "tracked": tracked, "ask": ask}


def main(argv: "list[str]") -> None:
    """One of the above."""
    command: Any = COMMANDS[argv[0]]
    command(*argv[1:])


if __name__ == "__main__":
    main(sys.argv[1:])
