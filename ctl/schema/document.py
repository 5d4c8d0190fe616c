"""JSON Schemas (draft 2020-12) of the views, and the page that shows them to people."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_type_hints, is_typeddict

import msgspec

from ctl.output import API_VERSION
from ctl.schema.kernel import NotCountedRecord
from ctl.schema.views import VIEWS, Form, View

FOLDER = Path(__file__).parent
_PAGE = """# What `-o json` prints

Every command that prints takes `-o json` (and `-o yaml`, with the same fields). This page is made of the JSON Schemas
in [ctl/schema](../ctl/schema), one for each view, which the package has too, so that a script can check what it gets:

    python3 -c 'import importlib.resources as r; print((r.files("ctl.schema") / "show-services.json").read_text())'

## The promise

- Each object has `apiVersion`, now `{version}`. A list is a list of such objects; a command that goes on (`monitor`,
  `top`, `show … --watch`) prints one object a line, at once.
- Within one version a field keeps its name, its type and its meaning, and is not taken away, nor does a value of an
  enumeration. New fields, new views and new values of texts that are not enumerated may come: read what you know, and
  pass over what you do not. What cannot be kept so gets a new version.
- Texts for people (`difference`, `details`, `meaning`, `what` of drops, `reasons`, `why`, `detail`, `advice`) may be
  put otherwise at any time; beside them are fields for scripts.
- Where a mode does not count or report what was asked for, there is an object with `"counted": false` in place of the
  list, since an empty list would say that there was nothing.
- Errors are a sentence on standard error, and the exit status: 0 done, 1 failed (or, of `check` and `diff`, there is a
  difference), 2 wrong usage.

"""


def schema(view: View) -> dict[str, Any]:
    """The schema of what a view's command prints; of a stream, of one line."""
    types: list[type] = [view.kind, *([NotCountedRecord] if view.may_not_count else []), *filter(None, (view.last,))]
    references, definitions = msgspec.json.schema_components(types, ref_template="#/$defs/{name}")
    for reference, kind in zip(references, types, strict=True):
        definition = definitions[reference["$ref"].rpartition("/")[2]]
        order = [*get_type_hints(kind)] if is_typeddict(kind) else [*definition["properties"]]
        definition["properties"] = {name: definition["properties"][name] for name in order}
        _add_version(definition)
    items, *instead = references
    whole: Any = {"type": "array", "items": items} if view.form is Form.LIST else items
    document: dict[str, Any] = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:hotplane:{API_VERSION.rpartition('/')[2]}:{view.name}",
        "title": f"hotplane {view.command} -o json",
        "description": f"{view.form.value[0].upper()}{view.form.value[1:]}.",
        **({"anyOf": [whole, *instead]} if instead else whole),
        "$defs": dict(sorted(definitions.items())),
    }
    flowing: dict[str, Any] = _flowing(_finite(document) if view.name.startswith("bench") else document)
    return flowing


def _flowing(value: Any) -> Any:
    """Descriptions without the line breaks and indentation of docstrings, of which releases of msgspec keep more or
    less."""
    if isinstance(value, dict):
        return {
            name: _words(part) if name == "description" and isinstance(part, str) else _flowing(part)
            for name, part in value.items()
        }
    return [_flowing(part) for part in value] if isinstance(value, list) else value


def _words(text: str) -> str:
    return " ".join(text.split())


def _add_version(definition: dict[str, Any]) -> None:
    """Add the version to an object whose type does not say it."""
    if "apiVersion" not in definition["properties"]:
        version = {"description": "version of the object's fields", "enum": [API_VERSION]}
        definition["properties"] = {"apiVersion": version, **definition["properties"]}
        definition["required"] = ["apiVersion", *definition["required"]]


def _finite(value: Any) -> Any:
    """Let figures be null: JSON has no infinity, nor what is not a number."""
    if isinstance(value, dict):
        kept = {name: _finite(item) for name, item in value.items()}
        return kept | {"type": ["number", "null"]} if value.get("type") == "number" else kept
    return [_finite(item) for item in value] if isinstance(value, list) else value


def text(view: View) -> str:
    """The schema as the file has it."""
    return msgspec.json.format(msgspec.json.encode(schema(view)), indent=2).decode() + "\n"


def _type(part: Any, view: str) -> str:
    """A field's type in few words."""
    if not isinstance(part, dict):
        return "any"
    if "$ref" in part:
        name = str(part["$ref"]).rpartition("/")[2]
        return f"[{name}](#{name.lower()}-of-{view})"
    if "anyOf" in part:
        return " or ".join(_type(each, view) for each in part["anyOf"])
    if "enum" in part:
        return " or ".join("null" if value is None else f"`{value}`" for value in part["enum"])
    if "prefixItems" in part:
        return f"list of {', '.join(_type(each, view) for each in part['prefixItems'])}"
    kind = part.get("type", "any")
    kinds = " or ".join(kind) if isinstance(kind, list) else str(kind)
    if kind == "object" and "additionalProperties" in part:
        return f"object of {_type(part['additionalProperties'], view)}"
    return f"list of {_type(part['items'], view)}" if kind == "array" and "items" in part else kinds


def _fields(definition: Mapping[str, Any], view: str) -> Iterator[str]:
    required = definition.get("required", ())
    yield "| field | type | meaning |"
    yield "| --- | --- | --- |"
    for name, part in definition["properties"].items():
        optional = "" if name in required else " (may be absent)"
        yield f"| `{name}` | {_type(part, view)} | {part.get('description', '')}{optional} |"


def page() -> str:
    """The page for people, in Markdown."""
    lines = [_PAGE.format(version=API_VERSION)]
    for view in VIEWS:
        document = schema(view)
        (first, *_) = msgspec.json.schema_components([view.kind], ref_template="{name}")[0]
        parts = dict(document["$defs"])
        definition = parts.pop(first["$ref"])
        lines += [f"## `{view.command}`", "", f"{document['description']} {_sentence(definition)}", ""]
        lines += [f"Schema: [{view.name}.json](../ctl/schema/{view.name}.json)", ""]
        lines += [*_fields(definition, view.name), ""]
        for name, part in parts.items():
            lines += [f"### {name} of {view.name}", ""]
            if "properties" in part:
                lines += [_sentence(part), "", *_fields(part, view.name), ""]
            else:
                lines += [_type(part, view.name), ""]
    return "\n".join(lines).rstrip() + "\n"


def _sentence(definition: Mapping[str, Any]) -> str:
    return _words(str(definition.get("description", "")))


def write(folder: Path, page_file: Path) -> None:
    """Write all schemas and the page."""
    for view in VIEWS:
        (folder / f"{view.name}.json").write_text(text(view), encoding="utf-8")
    page_file.write_text(page(), encoding="utf-8")
