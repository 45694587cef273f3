"""MongoDB as a user has it: consumers and publishers, waking, fan-out, login, the hub."""

from __future__ import annotations

from time import monotonic
from typing import Any

import gevent
import pytest

import greenconn
from greenconn import Connection
from greenconn.exceptions import AccessRefused, RecoverableConnectionError
from greenconn.jsoncodec import dumps
from tests.brokers.mongodb_server import MongoServer
from tests.fix_mongodb import Database, MongoFactory
from tests.fix_wires import until
from tests.integration.contract import SOON, collecting


def test_hub_turns_while_calls_wait(own_mongodb: MongoServer, unique: str, long: bool) -> None:
    beats: list[float] = []

    def beat() -> None:
        while True:
            beats.append(monotonic())
            gevent.sleep(0.01)

    url = f"{own_mongodb.url}/{unique}"
    with Connection(url) as connection:
        greenconn.publish("q", 1, connection=connection, declare=True)
        beating = gevent.spawn(beat)
        own_mongodb.pause()
        publishers = [
            gevent.spawn(greenconn.publish, "q", number, connection=connection, declare=True)
            for number in range(20)
        ]
        gevent.sleep(0.1)  # they are on their way, and wait
        before = len(beats)
        gevent.sleep(3.0 if long else 0.5)
        assert len(beats) > before + 5
        own_mongodb.resume()
        gevent.joinall(publishers, timeout=SOON, raise_error=True)
        beating.kill()
        with connection.SimpleQueue("q") as queue:
            bodies = [queue.get(timeout=SOON).payload for _ in range(21)]
        assert sorted(bodies) == sorted([1, *range(20)])


def test_server_that_does_not_answer(own_mongodb: MongoServer, unique: str) -> None:
    options = {"reply_timeout": 0.3}
    url = f"{own_mongodb.url}/{unique}"
    with Connection(url, transport_options=options, connect_timeout=0.5) as connection:
        greenconn.publish("q", 1, connection=connection, declare=True)
        own_mongodb.pause()
        began = monotonic()
        with pytest.raises(greenconn.exceptions.PublishTimeout):
            greenconn.publish("q", 2, connection=connection, timeout=0.8, declare=True)
        assert monotonic() - began < 8
        own_mongodb.resume()
        greenconn.publish("q", 3, connection=connection, timeout=SOON, declare=True)


# Login


def test_login(mongodb_with: MongoFactory, caplog: pytest.LogCaptureFixture) -> None:
    server = mongodb_with(login="ada:secret-word")
    place = server.url.partition("://")[2]
    end = server.login_options
    with Connection(f"mongodb://ada:secret-word@{place}/db{end}") as connection:
        greenconn.publish("q", 1, connection=connection, declare=True)
        assert "secret-word" not in connection.as_uri() + repr(connection)
    with Connection(
        f"mongodb://{place}/db{end}", userid="ada", password="secret-word"
    ) as connection:
        connection.connect()
    for wrong in (f"mongodb://ada:other-word@{place}/db{end}", f"mongodb://{place}/db"):
        with Connection(wrong) as connection, pytest.raises(AccessRefused) as caught:
            connection.connect()
        assert "other-word" not in repr(caught.value) + caplog.text
        assert "roles" in str(caught.value)


# Greenlets and processes


@pytest.mark.long
def test_claims_of_a_lost_link_come_back(mongodb_url: str) -> None:
    """At once, long before the lease ends, whatever a claim was at when its link was lost."""
    got: set[Any] = set()
    count = 100
    with Connection(mongodb_url, transport_options={"lease": 300.0}) as connection:
        consumer = greenconn.spawn_consumer(
            "q", lambda body, message: got.add(body), connection=connection, prefetch_count=10
        )
        assert consumer.wait_ready(SOON)
        for number in range(count):
            greenconn.publish("q", number, connection=connection)
            if number % 10 == 0:
                connection.connection.end(RecoverableConnectionError("cut by the test"))
        until(lambda: len(got) == count)
        assert consumer.stop(SOON)


def test_foreign_message_does_not_stop_a_consumer(
    mongodb_url: str, mongodb_database: Database
) -> None:
    got: list[Any] = []
    with Connection(mongodb_url) as connection:
        consumer = collecting(connection, "q", got)
        for payload in ("{no", 5, b"\xff", None, dumps({"body": 1}), dumps([])):
            mongodb_database["messages"].insert_one(
                {"payload": payload, "queue": "q", "priority": 9}
            )
        mongodb_database["messages"].insert_one({"queue": "q"})
        greenconn.publish("q", "fine", connection=connection)
        until(lambda: got == ["fine"])
        until(lambda: not mongodb_database["messages"].count_documents({"queue": "q"}))
        assert consumer.stop(SOON)
