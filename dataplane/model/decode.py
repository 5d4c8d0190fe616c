"""Decode Kubernetes objects from JSON or YAML bytes to validated model values; a bad item never affects another.

The fast path decodes every item of a List by itself, straight from JSON to typed structs. Only an item that fails
there is looked at again, slowly: values of a wrong type that stand in a list of independent things (ports,
endpoints, addresses) are taken out and reported, and the rest of the object is kept.
"""

import re
import sys
from collections import Counter
from typing import Any, NamedTuple

import msgspec

from dataplane.malformed import MALFORMED
from dataplane.model import pods, policies, slices, strict, validate, wire
from dataplane.model.objects import SOURCE, EndpointSlice, ModelObject, ObjectRef, Problem
from dataplane.model.report import Report, valid_name

_MAX_LIST_DEPTH = 8
_MAX_FAULTS = 200
_MAX_YAML_RETRY = 1 << 20
MAX_NAMELESS = 1000
"""After this many documents and items without kind and name, the rest of a source is not read."""

_CLUSTER_SCOPED = ("Node", "ServiceCIDR", "Namespace")
_BESIDE = ("Pod", "Namespace")  # not needed for Services: one without a name is skipped and not reported
_NO_NAME = "(no name)"
_BLANK = b" \t\r\n"

_any_object = msgspec.json.Decoder(wire.WireObject)
_typed = {kind: msgspec.json.Decoder(struct) for kind, struct in wire.TYPES.items()}
_head = msgspec.json.Decoder(wire.Head)
_raw_list = msgspec.json.Decoder(list[msgspec.Raw])
_raw_lines = msgspec.json.Decoder(msgspec.Raw)

# Where an item of a wrong type can be taken out and the rest keeps its meaning.
_ISOLATED = re.compile(
    r"\$\.(endpoints|ports|spec\.ports|spec\.externalIPs|spec\.clusterIPs|spec\.podCIDRs|spec\.cidrs"
    r"|spec\.loadBalancerSourceRanges|status\.addresses|status\.loadBalancer\.ingress)\[(\d+)\]"
)
_TYPE_NAMES = {
    "int": "a whole number",
    "float": "a fraction",
    "str": "a string",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}


class Decoded(msgspec.Struct):
    """Result of decoding manifests.

    objects: valid objects in the order of the input (duplicates are kept: the later one should win).
    problems: faults; a Problem of an object that is in `objects` names a value that was left out of it.
    notes: no faults, but shown on request (such as a Service without any clusterIP).
    ignored: how many objects of each kind were passed over because no Service proxy needs them.
    slices: of v1 Endpoints (see DecodedObject); the caller decides which of them count once all sources are read.
    strict: fields that do not exist are noted. nameless: how many documents and items were no object with a kind and a
    name; from MAX_NAMELESS on the rest of the source is not read.
    """

    objects: list[ModelObject] = msgspec.field(default_factory=list)
    problems: list[Problem] = msgspec.field(default_factory=list)
    notes: list[Problem] = msgspec.field(default_factory=list)
    ignored: Counter[str] = msgspec.field(default_factory=Counter)
    slices: list[EndpointSlice] = msgspec.field(default_factory=list)
    strict: bool = False
    nameless: int = 0

    @property
    def full(self) -> bool:
        """True if the limit of items that are no objects is reached, so that the rest is not read."""
        return self.nameless >= MAX_NAMELESS

    def extend(self, other: "Decoded") -> None:
        """Append the result of another source."""
        self.objects += other.objects
        self.problems += other.problems
        self.notes += other.notes
        self.ignored += other.ignored
        self.slices += other.slices


class DecodedObject(NamedTuple):
    """Result of decoding one object, as of a watch event.

    value: None when the object is not valid (then `problems` says why) or of no interest (`ignored` names its kind).
    slices: converted from v1 Endpoints; they count if the Service has no EndpointSlices of its own.
    ref: its identity, None if unknown; also set for invalid objects.
    """

    value: ModelObject | None
    ref: ObjectRef | None = None
    problems: tuple[Problem, ...] = ()
    notes: tuple[Problem, ...] = ()
    ignored: str = ""
    slices: tuple[EndpointSlice, ...] = ()


def decode_strictly(data: bytes, source: str) -> Decoded:
    """`decode` for what a person wrote: JSON in which a key stands twice is refused, as such YAML is, and fields that
    do not exist are noted."""
    result = Decoded(strict=True)
    data = data.removeprefix(b"\xef\xbb\xbf")
    fault = strict.json_fault(data) if data.lstrip(_BLANK)[:1] in (b"{", b"[") else ""
    if fault:
        result.problems.append(_source_problem(source, "", f"is not valid JSON: {fault}"))
        return result
    return _decode(data, source, result)


def decode(data: bytes, source: str) -> Decoded:
    """Decode a manifest: JSON or YAML, one object or several documents, `List` and typed lists (`ServiceList`).

    in: the bytes, and a name for them ("services.yaml", "stdin") that problems without an object refer to.
    Never raises for the content of the bytes; what cannot be read becomes a Problem.
    """
    return _decode(data.removeprefix(b"\xef\xbb\xbf"), source, Decoded())


def _decode(data: bytes, source: str, result: Decoded) -> Decoded:
    if data.lstrip(_BLANK)[:1] in (b"{", b"["):
        _decode_json(data, source, result)
    else:
        _decode_yaml(data, source, result)
    return result


def decode_object(raw: bytes | msgspec.Raw, kind: str = "") -> DecodedObject:
    """Decode one JSON object (of a watch event, or of a list of `kind`, whose items carry no kind of their own)."""
    try:
        item = _typed[kind].decode(raw) if kind in _typed else _any_object.decode(raw)
    except MALFORMED:
        return _decode_slowly(raw, kind)
    return _validated(item, frozenset(), ())


def _decode_json(data: bytes, source: str, result: Decoded) -> None:
    try:
        raw = msgspec.json.decode(data, type=msgspec.Raw)
    except MALFORMED as error:
        _decode_not_json(data, source, str(error), result)
        return
    _collect(raw, "", source, 0, result)


def _decode_not_json(data: bytes, source: str, reason: str, result: Decoded) -> None:
    """Decode bytes that look like JSON but are not one value: one object per line, or YAML in flow style."""
    try:
        lines = _raw_lines.decode_lines(data)
    except MALFORMED:
        lines = []
    if len(lines) > 1:
        for number, line in enumerate(lines, start=1):
            if result.full:
                break
            _collect(line, "", f"{source} object {number}", 0, result)
    elif len(data) <= _MAX_YAML_RETRY:
        _decode_yaml(data, source, result)
    else:
        result.problems.append(_source_problem(source, "", f"is not valid JSON: {reason}"))


def _source_problem(source: str, field: str, reason: str) -> Problem:
    return Problem(ObjectRef(SOURCE, "", source), field, reason)


def _collect(raw: msgspec.Raw, kind: str, where: str, depth: int, result: Decoded) -> None:
    """Decode one JSON value into `result`: an object, or every item of a list."""
    found = decode_object(raw, kind)
    if found.value is None and not found.problems:
        if found.ignored.endswith("List") and _collect_items(raw, found.ignored, where, depth, result):
            return
        _ignore(found.ignored, where, result)
    _add(found, where, result)
    if result.strict:
        _note_unknown_raw(raw, found, result)


def _collect_items(raw: msgspec.Raw, list_kind: str, where: str, depth: int, result: Decoded) -> bool:
    """Decode the items of a list kind; return False if it has none, so that it is an object of another kind."""
    try:
        items = _head.decode(raw).items
    except MALFORMED:  # it has a duplicate key, with values of different types
        return False
    if bytes(items) in (b"", b"null"):
        return list_kind == "List" or list_kind[:-4] in wire.TYPES
    try:
        raws = _raw_list.decode(items)
    except MALFORMED:
        result.problems.append(_source_problem(where, "items", "must be a list of objects"))
        return True
    if depth >= _MAX_LIST_DEPTH:
        result.problems.append(_source_problem(where, "items", "lists are nested too deeply; write a flat List"))
        return True
    kind = list_kind[:-4]
    for index, item in enumerate(raws):
        if result.full:
            break
        found = decode_object(item, kind if kind in wire.TYPES else "")
        if result.strict:
            _note_unknown_raw(item, found, result)
        if found.value is not None:
            result.objects.append(found.value)
            if found.problems or found.notes:
                result.problems += found.problems
                result.notes += found.notes
        elif found.ignored.endswith("List"):
            _collect(item, "", f"{where} items[{index}]", depth + 1, result)
        else:
            _add(found, f"{where} items[{index}]", result)
            if found.ignored:
                _ignore(found.ignored, f"{where} items[{index}]", result)
    return True


def _ignore(kind: str, where: str, result: Decoded) -> None:
    """Count an object of a kind that is not read; one that a person meant to be of a kind that is, is a fault."""
    result.ignored[kind] += 1
    meant = strict.meant_kind(kind, wire.TYPES) if result.strict and kind not in wire.TYPES else ""
    if meant:
        result.problems.append(_source_problem(where, "kind", f"there is no kind {kind}; write {meant}"))


def _add(found: DecodedObject, where: str, result: Decoded) -> None:
    """Add one decoded object to the result; problems of an object without identity refer to the source."""
    if found.value is not None:
        result.objects.append(found.value)
    for problem in found.problems:
        result.problems.append(problem if found.ref else _source_problem(where, problem.field, problem.reason))
    if found.problems and found.value is None and (found.ref is None or found.ref.name == _NO_NAME):
        _count_nameless(where, result)
    result.notes += found.notes
    result.slices += found.slices


def _count_nameless(where: str, result: Decoded) -> None:
    result.nameless += 1
    if result.full:
        reason = (
            f"is the {MAX_NAMELESS}th that is no object with a kind and a name; mend them, nothing behind it is read"
        )
        result.problems.append(_source_problem(where, "", reason))


def _decode_yaml(data: bytes, source: str, result: Decoded) -> None:
    from dataplane.model.yamlload import documents  # an API server's JSON does without, and without 2 MB

    for document in documents(data):
        if result.full:
            break
        where = f"{source} line {document.line}"
        if document.error:
            result.problems.append(_source_problem(source, "", f"is not valid YAML: {document.error}"))
            _count_nameless(where, result)
        else:
            _collect_value(document.value, "", where, 0, result)


def _collect_value(value: Any, kind: str, where: str, depth: int, result: Decoded) -> None:
    """`_collect` for a value that is already parsed (YAML)."""
    own_kind = value.get("kind") if isinstance(value, dict) else None
    if isinstance(own_kind, str) and own_kind.endswith("List") and isinstance(value.get("items"), list | None):
        if depth >= _MAX_LIST_DEPTH:
            result.problems.append(_source_problem(where, "items", "lists are nested too deeply; write a flat List"))
            return
        for index, item in enumerate(value.get("items") or ()):
            if result.full:
                break
            _collect_value(item, own_kind[:-4], f"{where} items[{index}]", depth + 1, result)
        return
    found = _decode_value(value, kind)
    if found.ignored:
        _ignore(found.ignored, where, result)
    _add(found, where, result)
    if result.strict:
        _note_unknown(value, found, result)


def _note_unknown_raw(raw: msgspec.Raw, found: DecodedObject, result: Decoded) -> None:
    """`_note_unknown` for JSON, which is decoded again only where fields or annotations of ours are known."""
    if found.ref is not None and (found.ref.kind in strict.KINDS or b"hotplane.io/" in bytes(raw)):
        _note_unknown(_lenient(raw), found, result)


def _note_unknown(value: Any, found: DecodedObject, result: Decoded) -> None:
    """Add notes on fields of one parsed object that its kind does not have."""
    if isinstance(value, dict) and found.ref is not None:
        kind = found.ref.kind
        for field, reason in strict.unknown_fields(kind, value) + strict.unknown_annotations(kind, value):
            result.notes.append(Problem(found.ref, field, reason))


def _decode_slowly(raw: bytes | msgspec.Raw, kind: str) -> DecodedObject:
    """Decode what the fast path rejected: another kind (detected quickly), or an object with a fault."""
    try:
        head = _head.decode(raw)
        name = head.kind or kind
        if name not in wire.TYPES and name:
            return DecodedObject(None, ignored=name)
        value = msgspec.json.decode(raw)
    except msgspec.ValidationError:
        value = _lenient(raw)
    except MALFORMED as error:
        return _unreadable(f"is not valid JSON: {error}")
    return _decode_value(value, kind)


def _lenient(raw: bytes | msgspec.Raw) -> Any:
    """Return the untyped JSON value, None if it is not JSON or nested too deeply."""
    try:
        return msgspec.json.decode(raw)
    except MALFORMED:
        return None


def _unreadable(reason: str) -> DecodedObject:
    return DecodedObject(None, None, (Problem(ObjectRef("", "", ""), "", reason),))


def _decode_value(value: Any, kind: str) -> DecodedObject:
    """Decode one parsed object of any shape. `kind` is that of the typed list it is in."""
    if not isinstance(value, dict):
        return _unreadable("is not a Kubernetes object; it must be a mapping with apiVersion, kind and metadata")
    own_kind = value.get("kind") or kind
    if not isinstance(own_kind, str) or not own_kind:
        return _unreadable("has no kind; write `kind: Service`, EndpointSlice, Node or ServiceCIDR")
    if own_kind not in wire.TYPES:
        return DecodedObject(None, ignored=own_kind)
    version = value.get("apiVersion")
    if isinstance(version, str) and (skipped := _other_version(own_kind, version)):
        return skipped if skipped.ignored else _identified(skipped, _value_ref(value, own_kind))
    faults: list[Problem] = []
    muted: set[str] = set()
    ref = _value_ref(value, own_kind)
    while True:
        try:
            item = msgspec.convert(value, wire.TYPES[own_kind])
        except msgspec.ValidationError as error:
            path, reason = explain_type(str(error))
            if own_kind in _BESIDE and ref.name == _NO_NAME:
                return DecodedObject(None, ignored=own_kind)
            isolated = _ISOLATED.match(f"$.{path}")
            if isolated is None:
                return DecodedObject(None, ref, (*faults, Problem(ref, path, reason)))
            value, found = _without_wrong(value, isolated[1], wire.TYPES[own_kind])
            faults += [Problem(ref, path, reason) for path, reason in found.values()]
            muted.update(found)
            if len(faults) >= _MAX_FAULTS:
                return DecodedObject(None, ref, tuple(faults[:_MAX_FAULTS]))
        else:
            return _validated(item, frozenset(muted), tuple(faults))


def _without_wrong(
    value: dict[str, Any], path: str, kind: type[wire.WireObject]
) -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
    """Return a copy of the value with null for wrongly typed items of the list at `a.b`; and by path (`a.b[3]`) of each
    item, the field at fault and why, _MAX_FAULTS at most. Each item is processed once, even if many are wrong."""
    *outer, name = path.split(".")
    copy = dict(value)
    holder = copy
    for step in outer:
        holder[step] = dict(holder[step])
        holder = holder[step]
    items = holder[name] = list(holder[name])
    found: dict[str, tuple[str, str]] = {}
    at = 0
    while len(found) < _MAX_FAULTS:
        alone: Any = items[at:]
        for step in (name, *reversed(outer)):
            alone = {step: alone}
        try:
            msgspec.convert(alone, kind)
        except msgspec.ValidationError as error:
            field, reason = explain_type(str(error))
            match = _ISOLATED.match(f"$.{field}")
            assert match is not None, "nothing but the list is there"
            index = at + int(match[2])
            item = f"{path}[{index}]"
            found[item] = (f"{item}{f'$.{field}'[match.end() :]}", reason)
            items[index] = None
            at = index + 1
        else:
            break
    return copy, found


def explain_type(message: str) -> tuple[str, str]:
    """(field path, reason) from msgspec's message, such as "Expected `int`, got `str` - at `$.spec.ports[0].port`"."""
    text, _, path = message.partition(" - at `$")
    field = path.rstrip("`").removeprefix(".")
    missing = re.fullmatch(r"Object missing required field `(.*)`", text)
    if missing:
        return field, f"has no {missing[1]}"
    wanted, got = [*re.findall(r"`([^`]*)`", text), "", ""][:2]
    expected = " or ".join(_TYPE_NAMES.get(word, word) for word in wanted.split(" | ") if word != "null")
    hint = ""
    if got == "str" and "int" in wanted:
        hint = "; write it without quotes, as decimal digits"
    elif "str" in wanted and got in ("int", "float", "bool"):
        hint = "; put it in quotes"
    found = f", not {_TYPE_NAMES.get(got, got)}" if got else ""
    return field, f"must be {expected}{found}{hint}" if expected else text


def _value_ref(value: dict[str, Any], kind: str) -> ObjectRef:
    """Return the identity of a parsed object that may be malformed anywhere."""
    metadata = value.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    name, namespace = metadata.get("name"), metadata.get("namespace")
    scope = "" if kind in _CLUSTER_SCOPED else namespace if isinstance(namespace, str) and namespace else "default"
    return ObjectRef(kind, scope, name if isinstance(name, str) and name else _NO_NAME)


def _other_version(kind: str, version: str) -> DecodedObject | None:
    """Check an apiVersion: the same kind of another group is ignored, an incompatible version is a fault.

    None means that it can be read. For example, Knative has a `Service` of its own.
    """
    group, versions = wire.GROUPS[kind]
    prefix, _, name = version.rpartition("/")
    if not version or (prefix == group and name in versions):
        return None
    if prefix != group:
        return DecodedObject(None, ignored=f"{kind}.{prefix}" if prefix else f"{kind}.{name}")
    wanted = f"{group}/{versions[0]}" if group else versions[0]
    reason = f"is {version}, whose fields are not read; convert the object to {wanted}"
    return DecodedObject(None, None, (Problem(ObjectRef(kind, "", ""), "apiVersion", reason),))


def _identified(found: DecodedObject, ref: ObjectRef) -> DecodedObject:
    return found._replace(ref=ref, problems=tuple(problem._replace(ref=ref) for problem in found.problems))


def _validated(item: wire.WireObject, muted: frozenset[str], faults: tuple[Problem, ...]) -> DecodedObject:
    """Validate a typed object: its identity first, then the rules of its kind."""
    kind = _KINDS[type(item)]
    metadata = item.metadata
    name = (metadata.name if metadata else None) or ""
    namespace = "" if kind in _CLUSTER_SCOPED else sys.intern((metadata.namespace if metadata else None) or "default")
    version = item.api_version
    if version is not None and version != _EXPECTED[kind] and (skipped := _other_version(kind, version)):
        if skipped.ignored:
            return skipped
        return _identified(skipped, ObjectRef(kind, namespace, name or _NO_NAME))
    if kind in _BESIDE and not name:
        return DecodedObject(None, ignored=kind)
    report = Report(kind, namespace, name or _NO_NAME, muted)
    if not (valid_name(name) and (not namespace or valid_name(namespace))):
        _report_identity(report, name, namespace)
        return DecodedObject(None, report.ref, (*faults, *report.problems))
    value: ModelObject | None
    if isinstance(item, wire.WireSlice):
        value = slices.endpoint_slice(item, report)
        if value is None and not report.problems:
            return DecodedObject(None, report.ref, faults, ignored="" if faults else "EndpointSlice (FQDN)")
    elif isinstance(item, wire.WireEndpoints):
        made = slices.of_endpoints(item, report)
        problems = (*faults, *report.problems)
        return DecodedObject(None, report.ref, problems, tuple(report.notes), "Endpoints", made)
    elif isinstance(item, wire.WireService):
        value = validate.service(item, report)
    elif isinstance(item, wire.WireNode):
        value = validate.node(item, report)
    elif isinstance(item, wire.WirePod):
        value = pods.pod(item, report)
    elif isinstance(item, wire.WireNamespace):
        value = pods.namespace(item, report)
    elif isinstance(item, wire.WireNetworkPolicy):
        value = policies.network_policy(item, report)
    else:
        value = validate.service_cidr(item, report)
    return DecodedObject(value, report.ref, (*faults, *report.problems), tuple(report.notes))


def _report_identity(report: Report, name: str, namespace: str) -> None:
    if not name:
        report.problem("metadata.name", "is missing; every object needs a name")
    elif not valid_name(name):
        report.problem("metadata.name", f"is {name!r}; use letters, digits, dashes and dots only")
    if namespace and not valid_name(namespace):
        report.problem("metadata.namespace", f"is {namespace!r}; use letters, digits and dashes only")


_EXPECTED = {kind: f"{group}/{versions[0]}".lstrip("/") for kind, (group, versions) in wire.GROUPS.items()}
_KINDS = {struct: kind for kind, struct in wire.TYPES.items()}
