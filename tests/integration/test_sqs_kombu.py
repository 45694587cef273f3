"""Beside kombu's transport of the same name, with boto3, in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

from greenconn import Connection, Exchange, Queue
from tests.integration.contract import SOON
from tests.integration.processes import run, start

pytestmark = [pytest.mark.full, pytest.mark.programs]

#: What kombu's programs begin with; ``sys.argv`` has the URL and a name.
HEAD = """
import sys
from kombu import Connection, Exchange, Queue
url, name = sys.argv[1:]
options = {"wait_time_seconds": 1, "polling_interval": 0.1, "region": "us-east-1",
           "is_secure": False, "supports_fanout": True}
connection = Connection(url, transport_options=options)
"""
SEND = """
with connection.channel() as channel:
    producer = connection.Producer(channel)
    producer.publish({"text": "caf\\u00e9"}, routing_key=name, headers={"h": 1},
                     declare=[Queue(name)])
    producer.publish(b"\\x00\\xff", routing_key=name, content_type="application/data",
                     content_encoding="binary")
    producer.publish("x" * 5000, routing_key=name, compression="zlib")
"""
TAKE = """
import json
got = []
def take(body, message):
    got.append([body, message.headers.get("h"), message.delivery_info["routing_key"]])
    message.ack()
with connection.Consumer([Queue(name)], callbacks=[take], accept=["json", "text/plain"]):
    while len(got) < 3:
        connection.drain_events(timeout=30)
print(json.dumps(got))
"""
FAN = """
exchange = Exchange(name, "fanout")
with connection.channel() as channel:
    queue = Queue(name + "-theirs", exchange)(channel)
    queue.declare()
    got = []
    with connection.Consumer([queue], channel=channel, callbacks=[
        lambda body, message: (got.append(body), message.ack())
    ]):
        connection.Producer(channel).publish("from kombu", exchange=exchange)
        while len(got) < 1:
            connection.drain_events(timeout=30)
        print("ready", flush=True)
        sys.stdin.readline()
        while len(got) < 2:
            connection.drain_events(timeout=30)
    print(got)
"""


@pytest.fixture
def connection(sqs_url: str) -> Iterator[Connection]:
    """Ours."""
    with Connection(sqs_url, transport_options={"get_wait_time": 0}) as connection:
        yield connection


def kombu(program: str, url: str, name: str) -> str:
    """Run a program of kombu's and return what it prints."""
    env = {**os.environ, "AWS_DEFAULT_REGION": "us-east-1"}
    outcome = run("-c", HEAD + program, url, name, env=env)
    assert outcome.code == 0, outcome.errors
    return outcome.output


def test_we_take_what_kombu_sends(connection: Connection, sqs_url: str, unique: str) -> None:
    kombu(SEND, sqs_url, unique)
    queue = Queue(unique)(connection.default_channel)
    bodies = []
    for _ in range(3):
        message = queue.get(no_ack=True, accept=["json", "application/data", "text/plain"])
        assert message is not None
        bodies.append(message.payload)
    assert {"text": "café"} in bodies
    assert b"\x00\xff" in bodies
    assert "x" * 5000 in bodies
    queue.delete()


def test_kombu_takes_what_we_send(connection: Connection, sqs_url: str, unique: str) -> None:
    queue = Queue(unique)(connection.default_channel)
    queue.declare()
    producer = connection.Producer()
    producer.publish({"text": "café"}, routing_key=unique, headers={"h": 1})
    producer.publish([1, 2], routing_key=unique, compression="zlib")
    producer.publish("plain", routing_key=unique, serializer="raw", content_type="text/plain")
    printed = kombu(TAKE, sqs_url, unique)
    assert '{"text": "caf\\u00e9"}, 1' in printed
    assert "[1, 2]" in printed
    assert "plain" in printed
    queue.delete()


def test_topics_are_shared(connection: Connection, sqs_url: str, unique: str) -> None:
    exchange = Exchange(unique, "fanout")
    queue = Queue(f"{unique}-ours", exchange)(connection.default_channel)
    queue.declare()
    env = {**os.environ, "AWS_DEFAULT_REGION": "us-east-1"}
    theirs = start("-c", HEAD + FAN, sqs_url, unique, env=env)
    try:
        assert theirs.line() == "ready"
        connection.Producer().publish("from us", exchange=exchange, declare=[exchange])
        outcome = theirs.outcome(b"\n")
    finally:
        theirs.end()
    assert outcome.code == 0, outcome.errors
    assert "['from kombu', 'from us']" in outcome.output
    bodies: list[str] = []

    def take(body: str, message: Any) -> None:
        bodies.append(body)
        message.ack()

    with connection.Consumer([queue], callbacks=[take]):
        while len(bodies) < 2:
            connection.drain_events(timeout=SOON)
    assert sorted(bodies) == ["from kombu", "from us"]
    queue.delete()
    connection.default_channel.exchange_delete(unique)
