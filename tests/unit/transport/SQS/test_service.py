"""Requests to services of AWS, written and signed by botocore, and their responses."""

from __future__ import annotations

import json
import logging
from typing import Any, cast
from unittest import mock
from urllib.parse import parse_qs

import botocore.session
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from greenconn.green.deadline import Deadline
from greenconn.green.http import HttpClient, HttpResponse
from greenconn.transport.SQS import service as module
from greenconn.transport.SQS.service import (
    Endpoint,
    Keys,
    Refusal,
    Service,
    ServiceBusy,
    StaticLogin,
    sign,
)

SECRET = "a-token-that-nobody-may-see"


class Client:
    """A client whose server gives one response."""

    where = "here"

    def __init__(self, response: HttpResponse) -> None:
        self.response = response
        self.sent: dict[str, Any] = {}

    def request(self, method: str, path: str, **sent: Any) -> HttpResponse:
        self.sent = sent
        return self.response


def service_of(
    name: str, body: bytes, status: int = 200, headers: dict[str, str] | None = None
) -> tuple[Service, Client]:
    """Return a service whose response is given, and what it sends with."""
    model = botocore.session.Session().get_service_model(name)
    client = Client(HttpResponse(status, headers or {}, body))
    service = Service(
        Endpoint("https://aws.example.com/x", "us-east-1", model, "greenconn"),
        cast(HttpClient, client),
        StaticLogin(Keys("AKIA", "secret", SECRET)),
        timeout=10.0,
        try_timeout=None,
        retries=0,
    )
    return service, client


def refusal_of(
    name: str, action: str, body: bytes, status: int, headers: dict[str, str] | None = None
) -> Refusal:
    service, _ = service_of(name, body, status, headers)
    shape = service.endpoint.model.operation_model(action).output_shape
    with pytest.raises(Refusal) as caught:
        service.read(HttpResponse(status, headers or {}, body), shape)
    return caught.value


def test_json() -> None:
    service, client = service_of("sqs", b'{"Messages": [{"Body": "x", "Unknown": 1}]}')
    said = service.call("ReceiveMessage", QueueUrl="u", MaxNumberOfMessages=1)
    assert said["Messages"] == [{"Body": "x"}]
    assert client.sent["headers"]["X-Amz-Target"] == "AmazonSQS.ReceiveMessage"
    assert client.sent["headers"]["Host"] == "aws.example.com"
    assert json.loads(client.sent["body"]) == {"QueueUrl": "u", "MaxNumberOfMessages": 1}


def test_a_form() -> None:
    body = b"""<PublishBatchResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/">
      <PublishBatchResult>
        <Failed><member><Id>1</Id><Code>X</Code><SenderFault>false</SenderFault></member></Failed>
        <Successful><member><Id>0</Id><MessageId>m</MessageId></member></Successful>
      </PublishBatchResult>
      <ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></PublishBatchResponse>"""
    service, client = service_of("sns", body)
    entry = {
        "Id": "0",
        "Message": "é&=",
        "MessageAttributes": {"b": {"DataType": "Binary", "BinaryValue": b"\0"}},
    }
    said = service.call("PublishBatch", TopicArn="t", PublishBatchRequestEntries=[entry])
    assert [each["Id"] for each in said["Successful"]] == ["0"]
    assert [each["SenderFault"] for each in said["Failed"]] == [False]
    form = parse_qs(client.sent["body"].decode())
    member = "PublishBatchRequestEntries.member.1"
    assert form[f"{member}.Message"] == ["é&="]
    assert form[f"{member}.MessageAttributes.entry.1.Value.BinaryValue"] == ["AA=="]


@pytest.mark.parametrize("headers", [{}, {"x-amzn-query-error": "AWS.Simple.NonExistent;Sender"}])
def test_json_refuses(headers: dict[str, str]) -> None:
    body = b'{"__type": "com.amazonaws.sqs#QueueDoesNotExist", "message": "none"}'
    refusal = refusal_of("sqs", "GetQueueUrl", body, 400, headers)
    assert (refusal.status, refusal.code, refusal.message) == (400, "QueueDoesNotExist", "none")


def test_xml_refuses() -> None:
    body = b"""<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><Error>
      <Type>Sender</Type><Code>AuthorizationError</Code><Message>no</Message></Error>
      <RequestId>r</RequestId></ErrorResponse>"""
    refusal = refusal_of("sns", "CreateTopic", body, 403)
    assert (refusal.status, refusal.code) == (403, "AuthorizationError")


@pytest.mark.parametrize(("name", "action"), [("sqs", "GetQueueUrl"), ("sns", "CreateTopic")])
@pytest.mark.parametrize("status", [200, 302, 400, 502])
@pytest.mark.parametrize("body", [b"<html>Bad Gateway", b"\xff\xfe", b"[1]", b"<a>x</a>", b'"x"'])
def test_a_response_in_another_form_is_asked_for_again(
    name: str, action: str, body: bytes, status: int
) -> None:
    assert refusal_of(name, action, body, status).status >= 500
    service, _ = service_of(name, body, status)
    with pytest.raises(ServiceBusy, match="not a response"):
        service.call(action)


@pytest.mark.parametrize("body", [b"", b"{}"])
def test_an_error_without_a_code_is_of_something_on_the_way(body: bytes) -> None:
    assert refusal_of("sqs", "GetQueueUrl", body, 400).status >= 500


@pytest.mark.parametrize("token", [None, SECRET])
def test_signs_as_botocore_does(token: str | None) -> None:
    auth = SigV4Auth(Credentials("AKIA", "secret", token), "sqs", "us-east-1")
    headers = {"Host": "h:8080", "Content-Type": "application/json", "X-Amz-Target": "  a   b "}
    ours, theirs = (AWSRequest("POST", "https://h:8080/x/", headers, b"{}") for _ in range(2))
    auth.add_auth(theirs)
    with mock.patch.object(module, "datetime") as clock:
        clock.now.return_value.strftime.return_value = theirs.headers["X-Amz-Date"]
        sign(ours, auth)
    assert dict(ours.headers.items()) == dict(theirs.headers.items())


def test_neither_tokens_nor_bodies_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    body = json.dumps({"Messages": [{"Body": SECRET}]}).encode()
    service, client = service_of("sqs", body)
    with caplog.at_level(logging.DEBUG):
        said = service.call("ReceiveMessage", QueueUrl="u", deadline=Deadline(10.0))
    assert said["Messages"][0]["Body"] == SECRET
    assert client.sent["headers"]["X-Amz-Security-Token"] == SECRET
    assert SECRET not in caplog.text
