"""Which network namespaces are in use, on a machine on which others come and go all the time."""

import itertools
import os

import pytest

from dataplane.errors import HotplaneError
from dataplane.kernel.namespaces import netns_alive

OWN = os.stat("/proc/self/ns/net").st_ino
HERE = {OWN: ["/proc/self/ns/net"]}
AWAY = "/proc/self/ns/none"


@pytest.fixture(autouse=True)
def _sight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rights to enter a namespace: what is found there is its inode."""

    def look_into(inode: int, paths: list[str], cookies: set[int]) -> bool:
        cookies |= {inode} if paths != [AWAY] else set()
        return paths != [AWAY]

    monkeypatch.setattr(netns_alive, "check_sight", lambda: None)
    monkeypatch.setattr(netns_alive, "_look_into", look_into)


def test_others_that_come_and_go_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = itertools.count(1)
    monkeypatch.setattr(netns_alive, "_holders", lambda: HERE | {next(numbers): [AWAY]})
    assert netns_alive.living_cookies() == {OWN}
    assert next(numbers) == 3, "the first one was looked for again"


def test_one_that_changed_hands_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([HERE | {7: [AWAY]}, HERE | {7: ["/proc/7/ns/net"]}])
    monkeypatch.setattr(netns_alive, "_holders", lambda: next(looks))
    assert netns_alive.living_cookies() == {OWN, 7}


def test_one_that_cannot_be_caught_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netns_alive, "_holders", lambda: HERE | {7: [AWAY]})
    with pytest.raises(HotplaneError, match="faster than they can be looked at"):
        netns_alive.living_cookies()
