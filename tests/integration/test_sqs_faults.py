"""An SQS that refuses, is busy or answers by halves, and logins that must not be seen."""

from __future__ import annotations

import gc
import json
import logging
from base64 import b64decode
from collections import Counter
from collections.abc import Callable
from typing import Any
from weakref import ref

import gevent
import pytest
from gevent.event import Event

from greenconn import Connection
from greenconn.exceptions import AccessRefused
from greenconn.transport.SQS.service import ServiceBusy
from tests.brokers.moto import MotoServer
from tests.fix_peer import PeerFactory
from tests.fix_relay import RelayFactory
from tests.fix_sqs import Connect
from tests.fix_wires import until
from tests.integration.contract import SOON
from tests.integration.sqs_peer import Asked, Scripted, error, stored, usual

pytestmark = pytest.mark.full


def script(answers: dict[str, Callable[[Asked], Any]]) -> Callable[[Asked], Any]:
    """Answer some actions so, and others as usual."""
    return lambda asked: answers.get(asked.action, usual)(asked)


def connect(server: Scripted, **options: Any) -> Connection:
    return Connection(server.url, transport_options={"get_wait_time": 0, **options})


def test_a_queue_is_never_missing_because_a_request_was_cut(
    sqs_connect: Connect, moto: MotoServer, relay_to: RelayFactory, unique: str
) -> None:
    """The server sees the end of the request, and its answer to that comes back."""
    relay = relay_to(moto.url)
    connection = sqs_connect(relay.url)
    channel = connection.channel()
    channel.queue_declare(unique)
    before = relay.passed
    channel.queue_declare(unique, passive=True)
    sizes = range(1, relay.passed - before, 29)
    for size in sizes:
        relay.budget = size
        declaring = gevent.spawn(channel.queue_declare, unique, passive=True)
        until(lambda: relay.budget == 0)
        relay.budget = None
        assert declaring.get(timeout=SOON).queue == unique
    assert len(sizes) > 10


def test_throttled_requests_are_sent_again(peer: PeerFactory) -> None:
    answers = iter([error("RequestThrottled"), (503, b"<html>busy"), None])
    server = Scripted(peer, lambda asked: next(answers, None) or usual(asked))

    def send(asked: Asked) -> Any:
        try:
            return next(answers)
        except StopIteration:
            return usual(asked)

    server.answer = script({"SendMessageBatch": send})
    with connect(server) as connection:
        connection.Producer().publish("x", routing_key="q")
    bodies = [each.parameters["Entries"] for each in server.actions("SendMessageBatch")]
    assert len(bodies) == 4
    assert all(each == bodies[0] for each in bodies)


def test_service_that_stays_busy(peer: PeerFactory) -> None:
    server = Scripted(peer, script({"SendMessageBatch": lambda asked: error("Throttling")}))
    with connect(server, retries=1) as connection:
        with pytest.raises(ServiceBusy, match="Throttling"):
            connection.Producer().publish("x", routing_key="q")
        assert connection.connected
    assert len(server.actions("SendMessageBatch")) == 2


def test_each_message_of_a_batch_has_its_own_outcome(peer: PeerFactory) -> None:
    seen: Counter[str] = Counter()

    def send(asked: Asked) -> Any:
        failed = []
        for entry in asked.parameters["Entries"]:
            body = b64decode(json.loads(entry["MessageBody"])["body"]).decode()
            seen[body] += 1
            refusal = {"Id": entry["Id"], "Code": "InvalidMessageContents", "SenderFault": True}
            if body == "refused":
                failed.append(refusal)
            elif body == "later" and seen[body] < 3:
                failed.append({**refusal, "Code": "InternalError", "SenderFault": False})
        return stored(asked, *failed)

    server = Scripted(peer, script({"SendMessageBatch": send}))
    outcomes: dict[str, BaseException | None] = {}
    with connect(server, sqs_base64_encoding=False) as connection:

        def publish(body: str) -> None:
            try:
                connection.channel().basic_publish_confirm(
                    connection.default_channel.prepare_message(body), "", "q"
                )
                outcomes[body] = None
            except Exception as exc:
                outcomes[body] = exc

        connection.default_channel.queue_declare("q", passive=True)
        names = ["refused", "later", *(f"good-{n}" for n in range(6))]
        gevent.joinall([gevent.spawn(publish, name) for name in names], raise_error=True)
    assert {name for name, outcome in outcomes.items() if outcome is not None} == {"refused"}
    assert "InvalidMessageContents" in str(outcomes["refused"])
    assert seen == {name: 3 if name == "later" else 1 for name in names}


def test_refused_login(peer: PeerFactory) -> None:
    said = "The signature does not match.\n\nx-amz-security-token:a-token-that-nobody-may-see"
    refusal = error("InvalidSignatureException", 403, said)
    server = Scripted(peer, lambda asked: refusal)
    with connect(server) as connection, pytest.raises(AccessRefused, match="secret key") as caught:
        connection.ensure_connection(max_retries=1)
    assert "nobody-may-see" not in str(caught.value)


def test_account_that_may_not_list_queues_can_connect(peer: PeerFactory) -> None:
    server = Scripted(peer, script({"ListQueues": lambda asked: error("AccessDenied", 403)}))
    with connect(server) as connection:
        connection.connect()
    server.answer = script(
        {
            "CreateQueue": lambda asked: error("AccessDenied", 403),
            "GetQueueUrl": lambda asked: error("QueueDoesNotExist"),
        }
    )
    with connect(server) as connection, pytest.raises(AccessRefused, match="policy"):
        connection.default_channel.queue_declare("q")


def test_polls_take_turns(peer: PeerFactory) -> None:
    """Three queues and one connection for polls: each is looked at."""
    polled: Counter[str] = Counter()

    def receive(asked: Asked) -> Any:
        polled[asked.parameters["QueueUrl"]] += 1
        gevent.sleep(0.02)
        return {}

    def url(asked: Asked) -> Any:
        return {"QueueUrl": asked.parameters["QueueName"]}

    server = Scripted(peer, script({"ReceiveMessage": receive, "GetQueueUrl": url}))
    with connect(server, poll_connections=1) as connection:
        for name in ("a", "b", "c"):
            connection.default_channel.basic_consume(name, callback=lambda message: None)
        until(lambda: min((polled[name] for name in "abc"), default=0) > 2)
        waits = [each.parameters["WaitTimeSeconds"] for each in server.actions("ReceiveMessage")]
    assert 1 in waits
    assert max(waits) <= 10


def test_dropped_connection_does_not_wait_for_its_long_poll(peer: PeerFactory) -> None:
    polls, may_answer = Event(), Event()

    def receive(asked: Asked) -> Any:
        polls.set()
        may_answer.wait()
        return {}

    server = Scripted(peer, script({"ReceiveMessage": receive}))

    def consume() -> ref[Any]:
        connection = connect(server)
        channel = connection.default_channel
        tag = channel.basic_consume("q", callback=lambda message: None)
        assert polls.wait(SOON)
        channel.basic_cancel(tag)
        return ref(connection.connection)

    link = consume()

    def is_closed() -> bool:
        gc.collect()
        return link() is None

    until(is_closed, SOON)
    may_answer.set()


def test_secrets_stay_secret(peer: PeerFactory, caplog: pytest.LogCaptureFixture) -> None:
    secret = "a-secret-key-of-aws"
    server = Scripted(peer, usual)
    url = f"sqs://AKIAX:{secret}@127.0.0.1:{server.peer.port}"
    keys = {"url": "http://x/1/q", "access_key_id": "AKIAY", "secret_access_key": f"{secret}-2"}
    options = {"session_token": f"{secret}-3", "predefined_queues": {"q": keys}}
    with caplog.at_level(logging.DEBUG), Connection(url, transport_options=options) as connection:
        connection.Producer().publish("x", routing_key="q")
        link = connection.connection
        shown = [connection, connection.as_uri(), link, link.store, connection.transport.options]
        shown += [link.store.queues.get("q").service.login]
        assert secret not in "".join(map(repr, shown))
    assert secret not in caplog.text


def test_busy_queue_is_asked_by_several_requests(peer: PeerFactory) -> None:
    given = running = most = 0

    def receive(asked: Asked) -> Any:
        nonlocal given, running, most
        running += 1
        most = max(most, running)
        gevent.sleep(0.02)
        running -= 1
        count = min(asked.parameters["MaxNumberOfMessages"], 120 - given)
        given += count
        return {"Messages": [{"Body": str(n), "ReceiptHandle": str(n)} for n in range(count)]}

    server = Scripted(peer, script({"ReceiveMessage": receive}))
    got: list[Any] = []

    def take(message: Any) -> None:
        got.append(message)
        message.ack()

    with connect(server) as connection:
        connection.default_channel.basic_consume("q", callback=take)
        with gevent.Timeout(SOON):
            while len(got) < 120:
                connection.drain_events()
    assert 1 < most <= 5
    assert sum(len(each.parameters["Entries"]) for each in server.actions("DeleteMessageBatch"))
