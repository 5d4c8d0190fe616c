"""The compiler's own process: `python -m dataplane.kernel.ebpf.bcc_compile SOURCE KERNEL_TREE [FLAG...]`.

bcc ends the process that it runs in, without an exception, when its code generator gives up, and prints its messages to
descriptor 2 as it likes. Prints the bytecode of each program as JSON, base64 by name.
"""

import base64
import json
import os
import sys
from pathlib import Path


def main() -> int:
    """0: compiled; 1: not, and standard error says why."""
    try:
        import bcc
    except ModuleNotFoundError:
        print("the Python module bcc is missing: apt-get install python3-bpfcc", file=sys.stderr)
        return 1
    source, tree, *flags = sys.argv[1:]
    os.environ["BCC_KERNEL_SOURCE"] = tree
    include = Path(source).parent
    try:
        module = bcc.BPF(
            text=f'#include "{source}"\n'.encode(), cflags=[f"-I{include}", "-Wno-unused-function", *flags]
        )
    except Exception as error:  # noqa: BLE001 bcc raises nothing more exact
        print(error, file=sys.stderr)
        return 1
    count = bcc.lib.bpf_num_functions(module.module)
    names = [bcc.lib.bpf_function_name(module.module, index) for index in range(count)]
    code = {name.decode(): base64.b64encode(module.dump_func(name)).decode() for name in names}
    sys.stdout.write(json.dumps(code))
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
