"""The stage on MongoDB, and its driver by hand."""

from __future__ import annotations

from typing import Any

import pymongo
from gevent import sleep

from benchmarks.clock import Clock, Figures
from benchmarks.redis.envelopes import envelope
from benchmarks.rivals.shape import PREFETCH
from benchmarks.stage import BODY
from benchmarks.stores.stage import StoreStage

#: What nobody else uses.
DATABASE = "greenconn-benchmark"


def document(queue: str) -> dict[str, Any]:
    """A message as it is stored."""
    return {"payload": envelope(BODY, queue).decode(), "queue": queue, "priority": 9}


class Stage(StoreStage):
    """Queues in a database that is dropped afterwards."""

    def __init__(self, url: str) -> None:
        super().__init__(f"{url.rstrip('/')}/{DATABASE}")
        self.client: Any = pymongo.MongoClient(url)
        self.messages: Any = self.client[DATABASE]["messages"]

    def clear(self) -> None:
        """Delete all messages."""
        self.messages.delete_many({})

    def close(self) -> None:
        """Drop the database."""
        self.client.drop_database(DATABASE)
        self.client.close()

    def source(self, count: int) -> str:
        name = self.name()
        self.messages.insert_many([document(name) for _ in range(count)])
        return name

    def wait_empty(self, queue: str) -> None:
        # Look seldom: that costs too.
        while self.messages.find_one({}, {"_id": 1}) is not None:
            sleep(0.02)


class Works:
    """What the driver takes for a message, if nobody asks for anything else.

    One by one it is as kombu uses it; in hundreds, what greenlets do at once is as greenconn does it.
    """

    def __init__(self, url: str, stage: Stage) -> None:
        self.stage = stage

    def close(self) -> None:
        """Nothing is open but the stage."""

    def publish(self, count: int) -> Figures:
        """``insert_one``."""
        documents = [document("sink") for _ in range(count)]
        with Clock() as clock:
            for each in documents:
                self.stage.messages.insert_one(each)
        return clock.per(count)

    def publish_many(self, count: int) -> Figures:
        """``insert_many``, in hundreds."""
        documents = [document("sink") for _ in range(count)]
        with Clock() as clock:
            for begin in range(0, count, PREFETCH):
                self.stage.messages.insert_many(documents[begin : begin + PREFETCH], ordered=False)
        return clock.per(count)

    def consume(self, count: int) -> Figures:
        """``find``, ``update_many`` and ``delete_many``, in hundreds."""
        source, messages = self.stage.source(count), self.stage.messages
        with Clock() as clock:
            for _ in range(0, count, PREFETCH):
                keys = {
                    "$in": [each["_id"] for each in messages.find({"queue": source}).limit(100)]
                }
                messages.update_many({"_id": keys}, {"$set": {"claim": 1}})
                messages.delete_many({"_id": keys})
        return clock.per(count)
