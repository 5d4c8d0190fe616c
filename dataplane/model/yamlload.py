"""YAML as JSON: scalars resolve the way JSON would read them, so no name turns into a boolean, date or octal number.

YAML 1.1 makes `yes`, `on` and `y` booleans, `010` eight, `12:30` a number and `2024-01-01` a date. Here only
null/~/empty, true/false, decimal integers and decimal fractions are other than strings (the YAML 1.2 core schema
without hexadecimal and octal); keys are always strings; a key given twice is an error, as `kubectl apply` has it.
"""

import re
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, NamedTuple

import yaml

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
_FLOAT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?\Z")
_BOOL = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_NULL = {"", "~", "null", "Null", "NULL"}
_PREFIX = "tag:yaml.org,2002:"
# In YAML a line that starts with --- separates documents, inside block scalars too.
_SEPARATOR = re.compile(rb"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_NO_CONTENT = re.compile(rb"(?:[ \t\r\n]|^[#%][^\n]*$)*\Z", re.MULTILINE)


class Document(NamedTuple):
    """One YAML document: its value, or in `error` why it cannot be read. `line` is where it starts, from 1."""

    line: int
    value: Any
    error: str = ""


class _Loader(yaml.CSafeLoader):
    """A safe loader with JSON's scalars, string keys and neither recursion nor repeated keys."""

    yaml_implicit_resolvers: dict[str, list[Any]] = {}
    yaml_constructors: ClassVar[dict[str | None, Callable[[Any, Any], Any]]] = {}


def _fail(node: yaml.Node, reason: str) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(None, None, reason, node.start_mark)


def _number(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    if _INT.match(node.value):
        return int(node.value)
    if _FLOAT.match(node.value):
        return float(node.value)
    raise _fail(node, f"{node.value!r} is not a number")


def _boolean(loader: _Loader, node: yaml.ScalarNode) -> bool:
    if node.value not in _BOOL:
        raise _fail(node, f"{node.value!r} is neither true nor false")
    return _BOOL[node.value]


def _null(loader: _Loader, node: yaml.ScalarNode) -> None:
    if node.value not in _NULL:
        raise _fail(node, f"{node.value!r} is not null")


def _string(loader: _Loader, node: yaml.ScalarNode) -> str:
    return str(node.value)


def _sequence(loader: _Loader, node: yaml.SequenceNode) -> list[Any]:
    return [loader.construct_object(child, deep=True) for child in node.value]


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    merged = {key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)}
    has_merge = any(key.tag == _PREFIX + "merge" for key, _ in node.value)
    if not has_merge and len(merged) != len(node.value):
        raise _fail(node, "a key is given twice or is not a plain scalar; every key of a mapping stands once")
    if has_merge:  # merged entries come first, so that the mapping's own override them
        loader.flatten_mapping(node)
    result: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise _fail(key, "a key must be a plain scalar")
        result[key.value] = loader.construct_object(value, deep=True)
    return result


def _unknown(loader: _Loader, node: yaml.Node) -> None:
    raise _fail(node, f"the tag {node.tag!r} has no meaning in a Kubernetes object; remove it")


def _configure() -> None:
    """Register resolvers (by first character) and constructors on the loader."""
    signed_digits = list("-+0123456789")
    _Loader.add_implicit_resolver(_PREFIX + "null", re.compile(r"(?:~|null|Null|NULL|)\Z"), ["~", "n", "N", ""])
    _Loader.add_implicit_resolver(_PREFIX + "bool", re.compile("(?:" + "|".join(_BOOL) + r")\Z"), list("tTfF"))
    _Loader.add_implicit_resolver(_PREFIX + "int", _INT, signed_digits)
    _Loader.add_implicit_resolver(_PREFIX + "float", _FLOAT, signed_digits)
    _Loader.add_implicit_resolver(_PREFIX + "merge", re.compile(r"<<\Z"), ["<"])
    makers: dict[str, Callable[[Any, Any], Any]] = {
        "null": _null,
        "bool": _boolean,
        "int": _number,
        "float": _number,
        "str": _string,
    }
    makers |= {"seq": _sequence, "map": _mapping}
    for name, maker in makers.items():
        _Loader.yaml_constructors[_PREFIX + name] = maker
    _Loader.yaml_constructors[None] = _unknown


_configure()


def _reason(error: Exception, first_line: int) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"line {first_line + mark.line}, column {mark.column + 1}: " if mark else ""
        return f"{where}{error.problem or error.context or 'malformed'}"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(error).replace("\n", " ")


def documents(data: bytes) -> Iterator[Document]:
    """Read a YAML stream document by document; one that cannot be read does not harm the others.

    in: UTF-8 bytes (or UTF-16 with a byte order mark and a single document). Empty documents are left out.
    """
    starts = [0, *(match.start() for match in _SEPARATOR.finditer(data))]
    line = 1
    for start, end in zip(starts, [*starts[1:], len(data)], strict=True):
        chunk = data[start:end]
        if not _NO_CONTENT.match(chunk.removeprefix(b"---")):
            yield from _load(chunk, line)
        line += chunk.count(b"\n")


def _load(chunk: bytes, line: int) -> Iterator[Document]:
    try:
        for value in yaml.load_all(chunk, Loader=_Loader):
            if value is not None:
                yield Document(line, value)
    except (yaml.YAMLError, RecursionError, UnicodeError, ValueError) as error:
        # ValueError: Python refuses to convert integers of thousands of digits
        yield Document(line, None, _reason(error, line))
