"""Fan-out exchanges in MongoDB, which are broadcasts, as with kombu."""

from __future__ import annotations

from typing import Any

import greenconn
from greenconn import Connection, Exchange, Queue
from tests.fix_mongodb import Database
from tests.fix_wires import until
from tests.integration.contract import SOON
from tests.receiving import consuming


def test_broadcast(mongodb_url: str, mongodb_database: Database) -> None:
    news = Exchange("news", "fanout")
    got: dict[str, list[Any]] = {"one": [], "two": []}
    with Connection(mongodb_url) as connection, Connection(mongodb_url) as other:
        for name, bodies in got.items():

            def handle(body: Any, message: Any, bodies: list[Any] = bodies) -> None:
                bodies.append(body)

            consuming(Queue(name, news), handle, connection=connection)
        greenconn.publish(news, "ours", connection=other)
        # As a program of kombu's does it.
        (ours,) = mongodb_database["messages.broadcast"].find({"queue": "news"})
        assert mongodb_database["messages"].count_documents({}) == 0
        theirs = ours["payload"].replace("b3Vycw==", "dGhlaXJz")
        mongodb_database["messages.broadcast"].insert_one({"payload": theirs, "queue": "news"})
        mongodb_database["messages.broadcast"].insert_one({"payload": theirs, "queue": "other"})
        until(lambda: got == {"one": ["ours", "theirs"], "two": ["ours", "theirs"]})


def test_broadcast_that_is_rejected_comes_again(mongodb_url: str) -> None:
    news = Exchange("news", "fanout")
    seen: list[bool] = []

    def handle(body: Any, message: Any) -> None:
        seen.append(message.delivery_info["redelivered"])
        if len(seen) == 1:
            message.requeue()
        else:
            message.ack()

    with Connection(mongodb_url) as connection:
        consumer = consuming(Queue("q", news), handle, connection=connection)
        greenconn.publish(news, 1, connection=connection)
        until(lambda: seen == [False, True])
        assert consumer.stop(SOON)


def test_broadcast_waits_for_nobody(mongodb_url: str) -> None:
    news = Exchange("news", "fanout")
    with Connection(mongodb_url) as connection:
        connection.Producer().publish("too early", exchange=news, declare=[news])
        with connection.SimpleQueue(Queue("q", news)) as queue:
            greenconn.publish(news, "in time", connection=connection, declare=True)
            assert queue.get(timeout=SOON).payload == "in time"
            assert queue.qsize() == 0
