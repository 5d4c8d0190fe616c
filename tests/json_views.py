"""Compare what a command printed with the schema of its view. Stricter than the schema: a field that it does not name
is a fault, since nobody could know of it."""

import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator

LISTS = ("show", "lab", "bench")
"""Commands whose second word is part of the view's name."""


@cache
def validator(view: str) -> Draft202012Validator:
    """What checks a view's output, by the schema that is in the package."""
    document = json.loads(files("ctl.schema").joinpath(f"{view}.json").read_text(encoding="utf-8"))
    Draft202012Validator.check_schema(document)
    for definition in document["$defs"].values():
        if "properties" in definition and view != "bench-history":  # it has a field for each run
            definition["additionalProperties"] = False
    return Draft202012Validator(document)


def view_of(words: Sequence[str]) -> str:
    """The view that a command line prints."""
    command = next(word for word in words if not word.startswith("-"))
    rest = words[list(words).index(command) + 1 :]
    if command == "show" and ("--watch" in rest or "-w" in rest):
        return "show-watch"
    if command == "bench" and "--list" in rest:
        return "bench-list"
    if command == "apply" and "--dry-run" in rest:
        return "diff"
    if command in LISTS:
        second = next((word for word in rest if not word.startswith("-")), "")
        return {"lab-up": "lab-status", "bench-run": "bench", "bench-": "bench"}.get(
            f"{command}-{second}", f"{command}-{second}"
        )
    for option in ("--reasons", "--stale"):
        if option in rest:
            return f"{command}{option[1:]}"
    return command


def check_view(view: str, value: Any) -> None:
    """Fail with the first fault of what a view's command printed."""
    faults = sorted(validator(view).iter_errors(value), key=lambda error: len(error.path))
    assert not faults, f"{view}: {faults[0].json_path}: {faults[0].message}"


def check_output(words: Sequence[str], text: str) -> Any:
    """Return what a command printed, after it was compared with its schema."""
    value = json.loads(text)
    check_view(view_of(words), value)
    return value
