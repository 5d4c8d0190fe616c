"""Read YAML as JSON: scalars are resolved as in JSON, so that no name becomes a boolean, date or octal number.

YAML 1.1 makes `yes`, `on` and `y` booleans, `010` eight, `12:30` a number and `2024-01-01` a date. Here only
null/~/empty, true/false, decimal integers and decimal fractions are other than strings (the YAML 1.2 core schema
without hexadecimal and octal); keys are always strings; a key given twice is an error, as `kubectl apply` has it.

The values are built from libyaml's events with a stack of our own: its usual way of composing nodes recurses in C and
overflows the machine's stack on deeply nested input; this way is faster, too.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml
from yaml._yaml import CParser

_MAX_DEPTH = 200
MAX_ALIASED = 100_000
"""Limit of values that all aliases of one document expand to, since nested aliases multiply."""
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?")
_CONSTANTS = {
    "true": True,
    "True": True,
    "TRUE": True,
    "false": False,
    "False": False,
    "FALSE": False,
    "": None,
    "~": None,
    "null": None,
    "Null": None,
    "NULL": None,
}
_NUMBER_START = frozenset("+-0123456789")
_PREFIX = "tag:yaml.org,2002:"
_STRING_TAGS = ("!", _PREFIX + "str")
_CONTAINER_TAGS = (None, "!", _PREFIX + "map", _PREFIX + "seq")
# In YAML a line that starts with --- separates documents, inside block scalars too.
_SEPARATOR = re.compile(rb"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_NO_CONTENT = re.compile(rb"(?:[ \t\r\n]|^[#%][^\n]*$)*\Z", re.MULTILINE)


class Document(NamedTuple):
    """One YAML document: its value, or in `error` why it cannot be read. `line` is where it starts, from 1."""

    line: int
    value: Any
    error: str = ""


def documents(data: bytes) -> Iterator[Document]:
    """Read a YAML stream document by document; one that cannot be read does not affect the others.

    in: UTF-8 bytes. Empty documents are left out.
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
        for value in _values(chunk):
            if value is not None:
                yield Document(line, value)
    except (yaml.YAMLError, UnicodeError, ValueError) as error:
        # ValueError: Python refuses to convert integers of thousands of digits
        yield Document(line, None, _reason(error, line) + _hint(error, chunk))


def _hint(error: Exception, chunk: bytes) -> str:
    """What to do about the two faults that people make most: a tab that indents, and a template that was not rendered.
    "" if the line is none of these."""
    mark = (error.problem_mark or error.context_mark) if isinstance(error, yaml.MarkedYAMLError) else None
    lines = chunk.splitlines()
    line = lines[mark.line] if mark and mark.line < len(lines) else b""
    if b"\t" in line[: len(line) - len(line.lstrip())]:
        return "; indent with spaces, not with tabs"
    return "; it looks like a template: render it first, as `helm template` does" if b"{{" in line else ""


def _reason(error: Exception, first_line: int) -> str:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        where = f"line {first_line + mark.line}, column {mark.column + 1}: " if mark else ""
        return f"{where}{error.problem or error.context or 'malformed'}"
    return str(error).replace("\n", " ")


def _fail(event: Any, reason: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=reason, problem_mark=event.start_mark)


def _scalar(event: Any) -> Any:
    """Return the value of a scalar: by its tag, or if it is plain, by its form."""
    text: str = event.value
    if event.tag is None:
        if not event.implicit[0] or (text not in _CONSTANTS and text[0] not in _NUMBER_START):
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        return _number(text) if _FLOAT.fullmatch(text) else text
    name = event.tag.removeprefix(_PREFIX)
    if event.tag in _STRING_TAGS:
        return text
    if name in ("int", "float") and _FLOAT.fullmatch(text):
        return _number(text)
    if name in ("bool", "null") and text in _CONSTANTS and (_CONSTANTS[text] is None) == (name == "null"):
        return _CONSTANTS[text]
    raise _fail(event, f"{text!r} with the tag {event.tag!r} has no meaning in a Kubernetes object; remove the tag")


def _number(text: str) -> int | float:
    return int(text) if _INT.fullmatch(text) else float(text)


class _Anchored(NamedTuple):
    """The target of an alias: its value, the number of values in it, and their depth of nesting."""

    value: Any
    size: int
    depth: int


class _Open:
    """A list or mapping being read. In a mapping, `key` is the key whose value comes next."""

    __slots__ = ("anchor", "depth", "key", "merged", "size", "target")

    def __init__(self, target: dict[str, Any] | list[Any], anchor: str | None) -> None:
        self.target = target
        self.anchor = anchor
        self.key: str | None = None
        self.merged: list[Any] = []
        self.size, self.depth = 1, 1

    def hold(self, size: int, depth: int) -> None:
        """Count an added value: the number of values in it, and their depth of nesting."""
        self.size += size
        self.depth = max(self.depth, depth + 1)

    def add(self, value: Any, event: Any) -> None:
        """Add a value to the list or mapping."""
        if isinstance(self.target, list):
            self.target.append(value)
        elif self.key is None:
            raise _fail(event, "a key must be a plain scalar")
        else:
            if self.key == "<<":
                self.merged += value if isinstance(value, list) else [value]
            else:
                self.target[self.key] = value
            self.key = None

    def set_key(self, event: Any) -> None:
        """Take a scalar as the next key of this mapping."""
        key: str = event.value
        if key in self.target:
            raise _fail(event, f"the key {key!r} is given twice; remove one of them")
        self.key = key

    def close(self, event: Any) -> None:
        """Merge the sources of `<<`; the mapping's own entries and earlier sources win."""
        for source in self.merged:
            if not (isinstance(source, dict) and isinstance(self.target, dict)):
                raise _fail(event, "<< must name a mapping or a list of mappings")
            for key, value in source.items():
                self.target.setdefault(key, value)


def _events(chunk: bytes) -> Iterator[Any]:
    """libyaml's events. yaml.parse() would ask twice for each, and make a constructor for each document."""
    get_event = CParser(chunk).get_event
    while (event := get_event()) is not None:
        yield event


def _values(chunk: bytes) -> Iterator[Any]:
    """Return the value of each document in the chunk. Raises YAMLError at the first fault."""
    stack: list[_Open] = []
    anchors: dict[str, _Anchored] = {}
    aliased = 0
    root: Any = None
    for event in _events(chunk):
        kind = type(event)
        if kind is yaml.ScalarEvent:
            top = stack[-1] if stack else None
            if top and top.key is None and isinstance(top.target, dict):
                top.set_key(event)
                continue
            value, size, depth = _scalar(event), 1, 0
            if event.anchor:
                anchors[event.anchor] = _Anchored(value, size, depth)
        elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
            if event.tag not in _CONTAINER_TAGS or len(stack) >= _MAX_DEPTH:
                raise _fail(event, "it is nested too deeply" if len(stack) >= _MAX_DEPTH else f"tag {event.tag!r}")
            stack.append(_Open({} if kind is yaml.MappingStartEvent else [], event.anchor))
            continue
        elif kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
            ended = stack.pop()
            ended.close(event)
            value, size, depth = ended.target, ended.size, ended.depth
            if ended.anchor:
                anchors[ended.anchor] = _Anchored(value, size, depth)
        elif kind is yaml.AliasEvent:
            if event.anchor not in anchors:
                raise _fail(event, f"*{event.anchor} names nothing that is complete here")
            value, size, depth = anchors[event.anchor]
            aliased += size
            if aliased > MAX_ALIASED:
                raise _fail(event, f"its aliases stand for more than {MAX_ALIASED} values; write them out")
            if len(stack) + depth > _MAX_DEPTH:
                raise _fail(event, "it is nested too deeply")
        else:
            if kind is yaml.DocumentEndEvent:
                yield root
                root = None
                anchors, aliased = {}, 0
            continue
        if stack:
            stack[-1].add(value, event)
            stack[-1].hold(size, depth)
        else:
            root = value


def without_nulls(value: Any) -> Any:
    """Remove keys whose value is null, which means "not given", at any depth."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    if isinstance(value, list):
        return [without_nulls(item) for item in value]
    return value
