"""Requests to services of AWS and their answers, and how they are signed."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from typing import Any
from unittest import mock
from urllib.parse import parse_qsl

import botocore.session
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.serialize import create_serializer
from hypothesis import given
from hypothesis import strategies as st

from greenconn.green.http import HttpResponse
from greenconn.transport.SQS.protocol import PROTOCOLS, Refusal, signed

SNS = PROTOCOLS["sns"]
SQS = PROTOCOLS["sqs"]


def reply(body: bytes, status: int = 200) -> HttpResponse:
    return HttpResponse(status, {}, body)


@pytest.mark.parametrize(
    ("action", "parameters"),
    [
        (
            "CreateTopic",
            {
                "Name": "t",
                "Attributes": {"FifoTopic": "true"},
                "Tags": [{"Key": "a", "Value": "b"}, {"Key": "c", "Value": "d"}],
            },
        ),
        ("Subscribe", {"TopicArn": "t", "Protocol": "sqs", "ReturnSubscriptionArn": True}),
        (
            "PublishBatch",
            {
                "TopicArn": "t",
                "PublishBatchRequestEntries": [
                    {
                        "Id": "0",
                        "Message": "é&=",
                        "MessageAttributes": {
                            "n": {"DataType": "Number", "StringValue": "1"},
                            "s": {"DataType": "String", "StringValue": "x"},
                        },
                    },
                    {"Id": "1", "Message": "b", "MessageGroupId": "g"},
                ],
            },
        ),
    ],
)
def test_query_is_written_as_botocore_does(action: str, parameters: dict[str, Any]) -> None:
    session = botocore.session.Session()
    client = session.create_client(
        "sns", "us-east-1", aws_access_key_id="a", aws_secret_access_key="b"
    )
    model = client.meta.service_model
    theirs = create_serializer(model.resolved_protocol).serialize_to_request(
        parameters, model.operation_model(action)
    )
    headers, body = SNS.request(action, parameters)
    assert headers == dict(theirs["headers"])
    assert dict(parse_qsl(body.decode())) == theirs["body"]


def test_query_responses() -> None:
    body = b"""<PublishBatchResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/">
      <PublishBatchResult><Failed/><Successful>
        <member><Id>0</Id><MessageId>m</MessageId></member>
        <member><Id>1</Id><MessageId>n</MessageId></member>
      </Successful></PublishBatchResult>
      <ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></PublishBatchResponse>"""
    answer = SNS.parse_response("PublishBatch", reply(body))
    assert [each["Id"] for each in answer["Successful"]] == ["0", "1"]
    assert not answer["Failed"]


def test_query_refuses() -> None:
    body = b"""<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><Error>
      <Type>Sender</Type><Code>AuthorizationError</Code><Message>no</Message></Error>
      <RequestId>r</RequestId></ErrorResponse>"""
    with pytest.raises(Refusal) as caught:
        SNS.parse_response("CreateTopic", reply(body, 403))
    assert (caught.value.status, caught.value.code) == (403, "AuthorizationError")


def test_json() -> None:
    headers, body = SQS.request("SendMessageBatch", {"QueueUrl": "u", "Entries": []})
    assert headers["X-Amz-Target"] == "AmazonSQS.SendMessageBatch"
    assert json.loads(body) == {"QueueUrl": "u", "Entries": []}
    assert SQS.parse_response("DeleteQueue", reply(b"")) == {}
    assert SQS.parse_response("X", reply(b'{"a": 1}')) == {"a": 1}
    with pytest.raises(Refusal) as caught:
        SQS.parse_response(
            "X",
            reply(b'{"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "none"}', 400),
        )
    assert caught.value.code == "com.amazonaws.sqs#QueueDoesNotExist"
    assert caught.value.message == "none"


@pytest.mark.parametrize("protocol", ["sqs", "sns"])
@pytest.mark.parametrize("status", [400, 502])
@pytest.mark.parametrize(
    "body", [b"<html>Bad Gateway", b"\xff\xfe", b"[1]", b"<a>x</a>", b"", b"{}"]
)
def test_what_is_no_response_may_be_requested_again(
    protocol: str, body: bytes, status: int
) -> None:
    with pytest.raises(Refusal) as caught:
        PROTOCOLS[protocol].parse_response("X", reply(body, status))
    assert caught.value.status >= 500


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
