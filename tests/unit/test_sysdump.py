"""What is removed before anything goes into the archive."""

import pytest

from ctl.sysdump import without_secrets


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (b"Authorization: Bearer abc.def-ghi", b"Authorization: Bearer REMOVED"),
        (b'{"token": "s3cr3t", "node": "n1"}', b'{"token": "REMOVED", "node": "n1"}'),
        (b"password=hunter2 next", b"password=REMOVED next"),
        (b"https://admin:hunter2@10.0.0.1:6443/api", b"https://REMOVED@10.0.0.1:6443/api"),
        (b"x eyJhbGciOiJSUzI1.eyJpc3MiOiJrdWJl.c2lnbmF0dXJl y", b"x REMOVED y"),
        (b"client-key-data: LS0tLS1CRUdJTg==", b"client-key-data: REMOVED"),
        (b"default/token-service:http 10.96.0.1:80", b"default/token-service:http 10.96.0.1:80"),
        (b"table ip hotplane { map services { } }", b"table ip hotplane { map services { } }"),
    ],
)
def test_credentials_are_removed_and_nothing_else(text: bytes, kept: bytes) -> None:
    assert without_secrets(text) == kept
