"""The commands, in groups: which module has each, what it is for, which global options it takes, examples."""

from typing import NamedTuple

from ctl.global_options import ALL, LOADED, Scope


class Command(NamedTuple):
    """A command: the module that has its `register` and `run`, its line in the overview, and its examples.

    scopes: the global options that mean something to it. examples: command lines without the program's name, each with
    what it does.
    """

    module: str
    help: str
    scopes: frozenset[Scope] = frozenset()
    examples: tuple[tuple[str, str], ...] = ()


class Group(NamedTuple):
    """Commands for one purpose, and a sentence about it."""

    title: str
    sentence: str
    commands: tuple[str, ...]


COMMANDS = {
    "demo": Command(
        "ctl.commands.demo",
        "build the lab, prove the example Services with real traffic, print the table",
        frozenset({Scope.MODE}),
        (
            ("demo", "every example in every mode, and a short comparison"),
            ("demo --mode ebpf --services 0", "the examples in one mode, no comparison"),
        ),
    ),
    "apply": Command(
        "ctl.commands.apply",
        "program this network namespace once from manifests",
        ALL,
        (
            ("apply -f services.yaml", "load what the file says, in nftables mode"),
            ("apply -f manifests/ --mode ebpf --node-name node1", "a directory, in ebpf mode, as this node"),
            ("apply -f services.yaml --dry-run", "only say what would change"),
        ),
    ),
    "diff": Command(
        "ctl.commands.diff",
        "which Services an apply would add, change and remove",
        ALL,
        (
            ("diff -f services.yaml", "one line a Service that would change; exit status 1 if there is one"),
            ("diff -f services.yaml -o json", "the same for a script"),
        ),
    ),
    "run": Command(
        "ctl.commands.run",
        "the daemon: watch, reconcile, serve health and metrics",
        ALL,
        (
            ("run --kubeconfig /etc/hotplane/kubeconfig", "watch an API server"),
            ("run -f manifests/ --mode ebpf", "watch a directory, in ebpf mode"),
            ("run -f manifests/ --ui 127.0.0.1:8099", "with a page to look at"),
            (
                "run --config kube-proxy.yaml --logging-format json",
                "with kube-proxy's configuration, logs for machines",
            ),
        ),
    ),
    "adopt": Command(
        "ctl.commands.adopt",
        "take this node over from kube-proxy: load our rules, then remove its own",
        ALL,
        (("adopt --kubeconfig /etc/hotplane/kubeconfig", "once, while kube-proxy is stopped"),),
    ),
    "cleanup": Command(
        "ctl.commands.cleanup",
        "remove every trace from this network namespace",
        examples=(
            ("cleanup", "remove the rules of every mode, and forget what was applied"),
            ("cleanup --stale", "remove what network namespaces that are gone left on this machine"),
        ),
    ),
    "explain": Command(
        "ctl.commands.explain",
        "what happens to a packet, and why",
        frozenset({Scope.NODE, Scope.MODE, Scope.STATE, Scope.EBPF}),
        (
            ("explain --service default/web", "every frontend of a loaded Service, from a pod, the node and outside"),
            ('explain --flow "10.244.1.5 -> 10.96.0.10:53/udp"', "one packet under what is loaded here"),
            ('explain --flow "pod1-1 -> web:80"', "names of the lab's places, Pods, Nodes and Services for addresses"),
            ("explain --service default/web --picture web.svg", "and draw the paths"),
            ('explain -f services.yaml --mode ebpf --flow "10.0.0.9 -> 10.96.0.10:80/tcp" -o json', "under manifests"),
        ),
    ),
    "trace": Command(
        "ctl.commands.trace",
        "follow one real connection through the kernel, hook by hook",
        LOADED,
        (
            ('trace "10.244.1.5 -> 10.96.0.10:53/udp"', "the next such connection, whoever makes it"),
            ('trace "pod1-1 -> web:80" --send', "make it: from a pod of the lab to a Service"),
            ('trace "10.244.1.5 -> default/web" --send --from-pid 4711 -o json', "from a process's pod, for a script"),
        ),
    ),
    "show": Command(
        "ctl.commands.show",
        "what the kernel holds now",
        LOADED,
        (
            ("show services", "each frontend, and what becomes of its packets"),
            ("show services -n kube-system -o wide", "one namespace, all columns"),
            ("show connections --service default/web --watch", "connections of one Service, again every two seconds"),
            ("show endpoints -o name", "names alone, for scripts"),
            ("show drops", "what was refused, and why"),
            ("show decisions", "ebpf mode: every way out of each hook"),
        ),
    ),
    "top": Command(
        "ctl.commands.top",
        "live view per Service: connections, packets, bytes per second",
        LOADED,
        (("top", "the busiest Services, each second"), ("top --service default/web --count 10", "one, ten times")),
    ),
    "monitor": Command(
        "ctl.commands.monitor",
        "event stream: who asked for what, which endpoint, or why not",
        LOADED,
        (
            ("monitor --service default/web", "what becomes of packets to one Service"),
            ("monitor --hook xdp --count 20 -o json", "twenty decisions of one hook, one object a line"),
            ("monitor --pcap drops.pcapng", "write what is refused to a file for Wireshark, in every mode"),
        ),
    ),
    "check": Command(
        "ctl.commands.check",
        "compare the kernel with the plan; --repair",
        ALL,
        (
            ("check", "what differs from the last apply; exit status 1 if something does"),
            ("check -f services.yaml --repair", "bring the kernel back to what the file says"),
        ),
    ),
    "doctor": Command(
        "ctl.commands.doctor",
        "what this kernel can and cannot do, and what to install",
        frozenset({Scope.EBPF}),
        (("doctor", "all checks"), ("doctor -o json", "for a script")),
    ),
    "lab": Command(
        "ctl.commands.lab",
        "a small cluster of network namespaces: up, apply, call, ui, status, exec, down",
        examples=(
            ("lab up --nodes 3 --pods 2 --ipv6", "three nodes with two pods each"),
            ("lab apply -f examples/ --mode ebpf", "load the example Services on every node"),
            ("lab call pod1-1 default/web 300", "connect 300 times: which pods answered, and whom they saw"),
            ("lab ui", "a page: the path in each mode, real packets, counters"),
            ("lab exec pod1-1 -- ip address", "a command in a pod"),
            ("lab down", "remove it"),
        ),
    ),
    "bench": Command(
        "ctl.commands.bench",
        "compare Service data planes side by side: run, report, compare",
        examples=(
            ("bench", "all modes, about four minutes"),
            ("bench --scenario connect,TCP_RR --services 1,10k --rounds 31", "two scenarios, more rounds"),
            ("bench report hotplane-bench.json -o report/", "charts and a page of what was measured"),
            ("bench compare before.json after.json", "what differs between two runs, with its probability"),
        ),
    ),
    "sysdump": Command(
        "ctl.commands.sysdump",
        "pack versions, plan, tables, views, counters and logs into one archive",
        frozenset({Scope.NODE, Scope.MODE, Scope.STATE}),
        (("sysdump --file /tmp/node1.tar.gz", "for a report of a fault; credentials are removed"),),
    ),
    "help": Command(
        "ctl.commands.help", "the page of a command: help COMMAND [ACTION]", examples=(("help apply", ""),)
    ),
    "version": Command("ctl.commands.version", "the version of hotplane, of the kernel and of the tools it uses"),
    "completion": Command(
        "ctl.commands.completion",
        "print a script that completes command lines in bash, zsh or fish",
        examples=(
            ("completion bash > /etc/bash_completion.d/hotplane", "for all users of bash"),
            ("completion fish > ~/.config/fish/completions/hotplane.fish", "for you, in fish"),
        ),
    ),
}
GROUPS = (
    Group("Try it", "Needs root, and nothing of a cluster.", ("demo", "lab", "bench", "doctor")),
    Group(
        "Program a node",
        "They change the rules of the network namespace that they run in.",
        ("apply", "diff", "run", "adopt", "check", "cleanup"),
    ),
    Group("See why", "They change nothing.", ("explain", "trace", "show", "top", "monitor", "sysdump")),
    Group("About", "", ("help", "version", "completion")),
)


def overview() -> str:
    """What `hotplane` alone prints: the commands in groups, a line each."""
    width = max(map(len, COMMANDS))
    blocks = ["hotplane is a Service data plane for Kubernetes nodes: kube-proxy's job by eBPF and nftables maps.\n"]
    for group in GROUPS:
        head = f"{group.title}. {group.sentence}" if group.sentence else f"{group.title}."
        lines = "\n".join(f"  {name.ljust(width)}  {COMMANDS[name].help}" for name in group.commands)
        blocks.append(f"{head}\n{lines}\n")
    blocks.append("`hotplane help COMMAND` has a command's options and examples; man hotplane has all of them.")
    return "\n".join(blocks)
