"""New maps and the programs over them, made in the background; none is pinned or attached, and it takes no plan."""

import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from dataplane.kernel.ebpf.bcc_loader import CompileError
from dataplane.planes.base import PlaneError
from dataplane.planes.ebpf.attach.programs import Hook
from dataplane.planes.ebpf.maps.layout import Sizes
from dataplane.planes.ebpf.maps.mapset import MapSet, create_maps


class Ahead:
    """Makes maps of these sizes and loads the programs of these hooks, in threads of the network namespace of the
    thread that makes the object. addresses: see programs.Hook.prepare.

    seconds: processor time that making the maps took.
    """

    def __init__(self, hooks: Sequence[Hook], sizes: Sizes, addresses: Collection[str] = ()) -> None:
        self.seconds = 0.0
        self._threads = ThreadPoolExecutor(1 + len(hooks), "ahead")
        self._maps = self._threads.submit(self._create, sizes)
        for hook in hooks:
            self._threads.submit(self._load, hook, addresses)

    def _create(self, sizes: Sizes) -> MapSet:
        started = time.thread_time()
        maps = create_maps(sizes)
        self.seconds = time.thread_time() - started
        return maps

    def _load(self, hook: Hook, addresses: Collection[str]) -> None:
        """Load a hook's programs. Those that are refused are loaded again when they are attached, which reports it."""
        with suppress(PlaneError, OSError, CompileError):
            hook.prepare(self._maps.result(), addresses)

    def maps(self) -> MapSet:
        """Return the maps, to whose `programs` more may still be added. Raises PlaneError if they cannot be made."""
        return self._maps.result()

    def wait(self) -> None:
        """Return when everything is done."""
        self._threads.shutdown()

    def close(self) -> None:
        """Wait, and close the maps and programs."""
        self.wait()
        if self._maps.exception() is None:
            self._maps.result().close()
