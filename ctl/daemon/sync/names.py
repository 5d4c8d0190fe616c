"""Compact collections of object names. One tuple per object, freed after a load, would leave the heap fragmented; so
names are kept by namespace, in dicts, which take less memory than sets."""

from collections.abc import Iterator

from dataplane.model.objects import ModelObject, ObjectRef


class Names:
    """Namespaces and names of the objects of one kind."""

    def __init__(self) -> None:
        self._names: dict[str, dict[str, None]] = {}

    def add(self, namespace: str, name: str) -> None:
        self._names.setdefault(namespace, {})[name] = None

    def discard(self, namespace: str, name: str) -> bool:
        """Remove a name; true if it was there."""
        names = self._names.get(namespace, {})
        if name not in names:
            return False
        del names[name]
        if not names:
            del self._names[namespace]
        return True

    def __contains__(self, name: object) -> bool:
        """name: namespace and name."""
        return isinstance(name, tuple) and name[1] in self._names.get(name[0], {})

    def __len__(self) -> int:
        return sum(map(len, self._names.values()))

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((namespace, name) for namespace, names in self._names.items() for name in names)


class Waiting:
    """Objects by their identity, each kind in order of arrival."""

    def __init__(self) -> None:
        self._items: dict[tuple[str, str], dict[str, ModelObject]] = {}  # by kind and namespace, then by name

    def put(self, ref: ObjectRef, item: ModelObject) -> None:
        """Add or replace an object."""
        self._items.setdefault(ref[:2], {})[ref.name] = item

    def discard(self, ref: ObjectRef) -> None:
        """Remove an object, if it is there."""
        self._items.get(ref[:2], {}).pop(ref.name, None)

    def __contains__(self, ref: ObjectRef) -> bool:
        return ref.name in self._items.get(ref[:2], {})

    def __bool__(self) -> bool:
        return any(self._items.values())

    def __iter__(self) -> Iterator[ModelObject]:
        return (item for items in self._items.values() for item in items.values())
