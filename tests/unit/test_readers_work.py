"""Readers' work grows with the length of what they read and no faster: a megabyte takes seconds of one processor at
most. Small samples of each by default; with --soak a megabyte, whose processor time is measured."""

import contextlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from ctl.config import API_VERSION, parse_config
from dataplane.errors import HotplaneError
from dataplane.model import decode, yamlload
from dataplane.model.decode import decode_object, decode_strictly
from dataplane.model.objects import SOURCE
from dataplane.model.strict import unknown_fields

MEGABYTE, SAMPLE = 1_000_000, 30_000
MOST_SECONDS = 10.0
"""Of processor time for a megabyte: two, times five for slow and busy machines. What is not linear takes more."""

CONFIG = f"apiVersion: {API_VERSION}\nkind: KubeProxyConfiguration\n".encode()


class Sample(NamedTuple):
    """A document that grows: what stands before, between and after, and how many bytes a turn takes."""

    before: bytes
    turn: bytes
    after: bytes = b""

    def of(self, size: int) -> bytes:
        return self.before + self.turn * (size // len(self.turn)) + self.after


SERVICE = b'{"kind":"Service","metadata":{"name":"a"},"spec":{"clusterIP":"10.0.0.1",'
SLICE = b'{"kind":"EndpointSlice","metadata":{"name":"a"},"addressType":"IPv4","endpoints":['
ALIASES = (
    b"---\nkind: Service\nmetadata: {name: a}\nl0: &l0 [x, x, x, x, x, x, x, x, x, x]\n"
    b"l1: &l1 [*l0, *l0, *l0, *l0, *l0, *l0, *l0, *l0, *l0, *l0]\nspec: {externalIPs: *l1}\n"
)
OBJECTS = {
    "yaml list": Sample(b"[", b"a,", b"]"),
    "yaml documents": Sample(b"", b"---\na\n"),
    "yaml documents that break off": Sample(b"", b"---\n[\n"),
    "yaml nesting": Sample(b"a: ", b"[[a, "),
    "yaml documents that are ignored": Sample(b"", b"---\nkind: A\n"),
    "yaml documents that are null": Sample(b"", b"---\n~\n"),
    "yaml blanks": Sample(b"", b" \n", b"]"),
    "yaml comments": Sample(b"", b"# a\n", b"]"),
    "yaml aliases": Sample(b"", ALIASES),
    "json items": Sample(b'{"kind":"List","items":[', b"1,", b"1]}"),
    "json items that are ignored": Sample(b'{"kind":"List","items":[', b'{"kind":"A"},', b"1]}"),
    "json services": Sample(b'{"kind":"ServiceList","items":[', b"{},", b"{}]}"),
    "json lines": Sample(b"", b"{}\n"),
    "json lines that are ignored": Sample(b"", b'{"kind":"A"}\n'),
    "json endpoints, all wrong": Sample(SLICE, b"1,", b"1]}"),
    "json endpoints, the last wrong": Sample(SLICE, b"{},", b"1," * 190 + b"1]}"),
    "json ports": Sample(SERVICE + b'"ports":[', b'{"port":1},', b"1]}}"),
    "json addresses": Sample(SERVICE + b'"externalIPs":[', b'"1.1.1.1",', b'"x"]}}'),
    "json number": Sample(SERVICE + b'"ports":[{"port":', b"9", b"}]}}"),
    "json name": Sample(b'{"kind":"Service","metadata":{"name":"', b"a-", b'"}}'),
    "json address": Sample(b'{"kind":"Service","metadata":{"name":"a"},"spec":{"clusterIP":"', b"1.", b'"}}'),
    "json that is flow style": Sample(b'{"a": 1,}\n', b"{a: [", b""),
}
CONFIGS = {
    "duration": Sample(CONFIG + b'iptables: {syncPeriod: "', b"9", b'"}'),
    "durations": Sample(CONFIG + b'iptables: {syncPeriod: "', b"1s", b'x"}'),
    "fractions": Sample(CONFIG + b'iptables: {syncPeriod: "0.', b"9", b's"}'),
    "list": Sample(CONFIG + b"nodePortAddresses: [", b"a,", b"]"),
    "unknown": Sample(CONFIG + b"featureGates: {", b" ", b"}"),
}


def _bounded(read: Callable[[bytes], object], sample: Sample, *, soak: bool) -> None:
    data = sample.of(MEGABYTE if soak else SAMPLE)
    started = time.process_time()
    with contextlib.suppress(HotplaneError):
        read(data)
    assert not soak or time.process_time() - started < MOST_SECONDS


@pytest.mark.parametrize("sample", OBJECTS.values(), ids=OBJECTS)
def test_objects(sample: Sample, soak: bool) -> None:
    _bounded(lambda data: decode_strictly(data, "file"), sample, soak=soak)
    _bounded(decode_object, sample, soak=soak)


@pytest.mark.parametrize("sample", CONFIGS.values(), ids=CONFIGS)
def test_the_configuration(sample: Sample, soak: bool) -> None:
    _bounded(lambda data: parse_config(data, "file"), sample, soak=soak)


def test_what_an_unknown_field_means_is_guessed_for_a_few(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def close(*words: object) -> list[str]:
        asked.append(words)
        return []

    monkeypatch.setattr("difflib.get_close_matches", close)
    found = unknown_fields("Service", {"spec": {f"clusterIq{n}": 1 for n in range(5000)}})
    assert len(found) == 5000
    assert sum(1 for words in asked if words[1]) <= 20


NAMELESS = (
    "yaml list", "yaml documents", "yaml documents that break off", "json items", "json services", "json lines",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMELESS)
def test_what_is_no_object_is_read_so_often_and_no_more(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[object] = []

    def counted(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            read.append(arguments)
            return function(*arguments)

        return call

    monkeypatch.setattr(decode, "decode_object", counted(decode.decode_object))
    monkeypatch.setattr(yamlload, "_values", counted(yamlload._values))
    found = decode_strictly(OBJECTS[name].of(10 * SAMPLE), "file")
    assert len(read) <= decode.MAX_NAMELESS + 1
    assert len(found.problems) <= decode.MAX_NAMELESS + 1


def test_what_stands_behind_too_much_that_is_no_object_is_not_read() -> None:
    service = b"---\nkind: Service\nmetadata: {name: a}\nspec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n"
    fine = decode_strictly(b"---\na\n" * (decode.MAX_NAMELESS - 1) + service, "file")
    assert [each.ref.name for each in fine.objects] == ["a"]
    cut = decode_strictly(b"---\na\n" * decode.MAX_NAMELESS + service, "file")
    assert not cut.objects
    told = cut.problems[-1]
    assert told.ref.kind == SOURCE, "so that apply and the daemon change nothing"
    assert "file line 1999: is the 1000th that is no object with a kind and a name" in str(told)
