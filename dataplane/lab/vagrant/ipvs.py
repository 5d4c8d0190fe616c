"""The ipvs baseline on a machine of the lab: `python -m dataplane.lab.vagrant.ipvs load node1 --nodes 2 < manifest`.

`clean` in place of `load` removes it. Runs on the machine itself, as root.
"""

import argparse
import sys

from dataplane.errors import HotplaneError
from dataplane.lab.proxy import node_config
from dataplane.lab.spec import LabSpec, topology
from dataplane.model.decode import decode
from dataplane.plan.planner import Planner
from dataplane.planes.registry import mode_of

MODE = "ipvs"


def main() -> int:
    """Command line; the exit status."""
    parser = argparse.ArgumentParser(prog="ipvs", description="The ipvs baseline on a machine of the lab.")
    parser.add_argument("action", choices=("load", "clean"))
    parser.add_argument("node")
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--ipv6", action="store_true")
    args = parser.parse_args()
    try:
        if args.action == "clean":
            mode_of(MODE).make().cleanup()
            return 0
        spec = LabSpec(nodes=args.nodes, pods=0, ipv6=args.ipv6)
        node = next(node for node in topology(spec).nodes if node.name == args.node)
        planner = Planner(node_config(spec, node, MODE))
        planner.update(decode(sys.stdin.buffer.read(), "standard input").objects)
        mode_of(MODE).make().load(planner.plan)
    except HotplaneError as error:
        print(f"{args.node}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
