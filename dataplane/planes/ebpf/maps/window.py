"""Memory-mapped array maps: mapped as a whole during a load, later only around the elements that change.

Mapped pages count as this process's memory, used or not, although the kernel holds them anyway: 22 MB with the default
sizes.
"""

import mmap
from array import array
from collections.abc import Iterator, Mapping
from typing import overload

_SPAN = mmap.PAGESIZE
"""Bytes to map from the page of an element on: mapping more takes longer, and the next change is seldom nearby."""


def _pages(length: int) -> int:
    return -(-length // mmap.PAGESIZE) * mmap.PAGESIZE


def _mapped(fd: int, length: int) -> memoryview:
    return memoryview(mmap.mmap(fd, _pages(length)))[:length]


class Memory(Mapping[str, memoryview]):
    """Memory of the MMAPABLE array maps, by name: programs see a store at once, without a system call. files:
    descriptor and length in bytes of each map."""

    def __init__(self, files: Mapping[str, tuple[int, int]]) -> None:
        self._files = dict(files)
        self._kept: dict[str, memoryview] = {}
        self._keeps = True

    def __getitem__(self, name: str) -> memoryview:
        view = self._kept.get(name)
        if view is None:
            view = _mapped(*self._files[name])
            if self._keeps:
                self._kept[name] = view
        return view

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def let_go(self) -> None:
        """Release the mappings; from now on a mapping exists only while a caller holds its view."""
        self._kept, self._keeps = {}, False

    def window(self, name: str, item: int) -> "Window":
        """Return a window of a map, with items of 1 or 8 bytes."""
        return Window(*self._files[name], item)


class Window:
    """Memory of a map, mapped around the last element used. Items are integers, of 8 bytes in the machine's
    order; slices are without steps. Not for use by two threads at once."""

    def __init__(self, fd: int, length: int, item: int) -> None:
        self._fd, self._length, self._item = fd, length, item
        self._first, self._end = 0, 0
        self._items = memoryview(b"")

    def _at(self, start: int, stop: int) -> int:
        """Map the items `start` to `stop` if needed and return the index of the first in `_items`."""
        start, stop = start * self._item, stop * self._item
        if not self._first <= start <= stop <= self._end:
            first = start // mmap.PAGESIZE * mmap.PAGESIZE
            end = min(_pages(max(stop, first + _SPAN)), _pages(self._length))
            window = memoryview(mmap.mmap(self._fd, end - first, offset=first))
            self._items = window.cast("Q") if self._item == 8 else window
            self._first, self._end = first, end
        return (start - self._first) // self._item

    @overload
    def __getitem__(self, key: int) -> int: ...
    @overload
    def __getitem__(self, key: slice) -> "array[int]": ...
    def __getitem__(self, key: int | slice) -> "int | array[int]":
        """Return one item, or a copy of several."""
        if isinstance(key, int):
            at = self._at(key, key + 1)  # first, for it may map another place
            return int(self._items[at])
        if key.start == key.stop:
            return array("B")
        at = self._at(key.start, key.stop)
        return array("Q" if self._item == 8 else "B", self._items[at : at + key.stop - key.start].tobytes())

    @overload
    def __setitem__(self, key: int, value: int) -> None: ...
    @overload
    def __setitem__(self, key: slice, value: "bytes | bytearray | array[int]") -> None: ...
    def __setitem__(self, key: int | slice, value: "int | bytes | bytearray | array[int]") -> None:
        if isinstance(key, int):
            at = self._at(key, key + 1)
            self._items[at] = value  # type: ignore[assignment]
            return
        if key.start == key.stop:
            return
        at = self._at(key.start, key.stop)
        self._items[at : at + key.stop - key.start] = value  # type: ignore[assignment]
