"""A directory of manifests is read when nobody writes there, whatever a look meets."""

import asyncio
import time
from collections.abc import Callable, Container
from pathlib import Path

import pytest

from ctl.daemon.log import Log
from ctl.daemon.sync.inbox import Inbox
from ctl.daemon.sync.names import Names
from ctl.sources import directory
from ctl.sources.directory import DirectorySource

SERVICE = (
    "kind: Service\nmetadata: {{name: {name}}}\nspec: {{clusterIP: 10.96.0.{number}, ports: [{{port: 80}}]}}\n---\n"
)
PATIENCE = 60.0


class Read(Inbox):
    """Keeps how many Services there were, each time that all was read."""

    def __init__(self) -> None:
        super().__init__(("Service",))
        self.counts: list[int] = []

    def complete(
        self, kind: str, present: Container[tuple[str, str]], covers: Callable[[str], bool] = lambda _: True
    ) -> int:
        assert isinstance(present, Names)
        self.counts.append(len(present))
        return super().complete(kind, present, covers)


def services(count: int) -> str:
    return "".join(SERVICE.format(name=f"s{number}", number=number) for number in range(1, count + 1))


def looked_at(file: Path, change: Callable[[Read], object]) -> list[int]:
    """What was read of a file with one Service while it is changed."""

    async def scenario() -> list[int]:
        inbox = Read()
        source = DirectorySource([str(file)], inbox, Log())
        source.read()
        looking = asyncio.create_task(source.run())
        await asyncio.to_thread(change, inbox)
        looking.cancel()
        return inbox.counts

    file.write_text(services(1))
    return asyncio.run(scenario())


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "POLL_SECONDS", 0.01)


def test_a_file_that_is_written_anew_never_looks_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opened, which empties it, and written some looks later."""

    monkeypatch.setattr(directory, "AGAIN_SECONDS", PATIENCE)

    def write(inbox: Read) -> None:
        with (tmp_path / "s.yaml").open("w") as file:
            time.sleep(0.3)
            file.write(services(2))
        until(lambda: inbox.counts[-1] == 2)

    assert looked_at(tmp_path / "s.yaml", write) == [1, 2]


def test_a_file_that_is_written_in_pieces_is_read_when_there_are_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = [frozenset({(str(tmp_path), 1, size)}) for size in (1, 2, 3, 3, 4)]
    left = iter(looks)
    source = DirectorySource([str(tmp_path)], Read(), Log())
    monkeypatch.setattr(source, "_stamp", lambda: next(left))
    asyncio.run(source._settle())
    assert list(left) == looks[4:]


def test_a_file_that_stays_empty_has_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "AGAIN_SECONDS", 0.2)

    def empty(inbox: Read) -> None:
        (tmp_path / "s.yaml").write_text("")
        until(lambda: inbox.counts[-1] == 0)

    assert looked_at(tmp_path / "s.yaml", empty) == [1, 0]
