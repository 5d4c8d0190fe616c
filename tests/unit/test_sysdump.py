"""What is removed before anything goes into the archive, and what is said of parts that could not be had."""

import sys
import tarfile
from pathlib import Path

import pytest

from ctl.sysdump import Part, without_secrets, write


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (b"Authorization: Bearer abc.def-ghi", b"Authorization: Bearer REMOVED"),
        (b'{"token": "s3cr3t", "node": "n1"}', b'{"token": "REMOVED", "node": "n1"}'),
        (b"password=hunter2 next", b"password=REMOVED next"),
        (b"https://admin:hunter2@10.0.0.1:6443/api", b"https://REMOVED@10.0.0.1:6443/api"),
        (b"x eyJhbGciOiJSUzI1.eyJpc3MiOiJrdWJl.c2lnbmF0dXJl y", b"x REMOVED y"),
        (b"client-key-data: LS0tLS1CRUdJTg==", b"client-key-data: REMOVED"),
        (b'"access_token":"s3cr3t"', b'"access_token":"REMOVED"'),
        (
            b"-----BEGIN EC PRIVATE KEY-----\nMHcC\nAQ==\n-----END EC PRIVATE KEY-----",
            b"-----BEGIN EC PRIVATE KEY-----REMOVED-----END EC PRIVATE KEY-----",
        ),
        (b"default/token-service:http 10.96.0.1:80", b"default/token-service:http 10.96.0.1:80"),
        (b"table ip hotplane { map services { } }", b"table ip hotplane { map services { } }"),
    ],
)
def test_credentials_are_removed_and_nothing_else(text: bytes, kept: bytes) -> None:
    assert without_secrets(text) == kept


def test_a_part_that_fails_is_named_with_its_problem_and_costs_no_other(tmp_path: Path) -> None:
    failing = "import sys; print('half'); sys.exit('token: s3cr3t is wrong')"
    wanted = [
        Part("fails.txt", (sys.executable, "-c", failing)),
        Part("missing.txt", ("no-such-program-here",)),
        Part("page.txt", url="http://127.0.0.1:9/healthz"),
        Part("good.txt", (sys.executable, "-c", "print('good')")),
    ]
    told: list[str] = []
    written = {each.part: each for each in write(tmp_path / "dump.tar.gz", "dump", wanted, told.append)}
    assert told == [part.name for part in wanted]
    assert written["fails.txt"].problem == "exit status 1: token: REMOVED is wrong"
    assert written["missing.txt"].problem == "no-such-program-here: No such file or directory"
    assert written["page.txt"].problem == (
        "http://127.0.0.1:9/healthz does not answer (Connection refused); does a daemon run here?"
    )
    assert (written["good.txt"].bytes, written["good.txt"].problem) == (5, "")
    with tarfile.open(tmp_path / "dump.tar.gz") as archive:
        texts = {m.name: (archive.extractfile(m) or sys.exit(m.name)).read() for m in archive.getmembers()}
    assert texts["dump/fails.txt"] == b"half\n\n# exit status 1: token: REMOVED is wrong\n"
    assert texts["dump/missing.txt"].startswith(b"not to be had: ")
