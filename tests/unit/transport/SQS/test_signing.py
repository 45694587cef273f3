"""Signatures, beside botocore's."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any
from unittest import mock

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from greenconn.transport.SQS.signing import signed

NOW = datetime(2026, 11, 20, 15, 4, 5, tzinfo=timezone.utc)
printable = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=40)


def of_botocore(
    credentials: Credentials, path: str, headers: dict[str, str], body: bytes, region: str
) -> Any:
    request = AWSRequest("POST", f"https://{headers['Host']}{path}", headers=headers, data=body)
    with mock.patch("botocore.auth.get_current_datetime", return_value=NOW):
        SigV4Auth(credentials, "sqs", region).add_auth(request)
    return request.headers


@given(
    key=printable,
    secret=printable,
    token=st.none() | printable,
    body=st.binary(max_size=200),
    target=printable,
    region=st.sampled_from(["us-east-1", "cn-north-1"]),
    path=st.sampled_from(["/", "/queues/"]),
)
def test_signs_as_botocore_does(
    key: str, secret: str, token: str | None, body: bytes, target: str, region: str, path: str
) -> None:
    credentials = Credentials(key, secret, token)
    headers = {
        "Host": "sqs.example.com:8080",
        "Content-Type": "application/x-amz-json-1.0",
        "X-Amz-Target": target,
    }
    ours = signed(
        credentials,
        service="sqs",
        region=region,
        path=path,
        headers=headers,
        body=body,
        now=NOW,
    )
    theirs = of_botocore(credentials, path, headers, body, region)
    assert ours["Authorization"] == theirs["Authorization"]
    assert ours.get("X-Amz-Security-Token") == theirs.get("X-Amz-Security-Token")


def test_spaces_count_as_one() -> None:
    credentials = Credentials("key", "secret")
    headers = {"Host": "h", "X-Amz-Target": "  a   b "}
    ours = signed(
        credentials,
        service="sqs",
        region="us-east-1",
        path="/",
        headers=headers,
        body=b"",
        now=NOW,
    )
    theirs = of_botocore(credentials, "/", headers, b"", "us-east-1")
    assert ours["Authorization"] == theirs["Authorization"]
