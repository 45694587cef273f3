"""The stage on SQS, and its driver by hand."""

from __future__ import annotations

import importlib
from base64 import b64encode
from typing import Any
from urllib.parse import urlsplit

from gevent import sleep

from benchmarks.clock import Clock, Figures
from benchmarks.redis.envelopes import envelope
from benchmarks.stage import BODY
from benchmarks.stores.stage import StoreStage

#: Messages of one request.
TEN = 10
WAITING = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]


def text(queue: str) -> str:
    """A message as it is sent."""
    return b64encode(envelope(BODY, queue)).decode()


class Stage(StoreStage):
    """Queues that are deleted afterwards."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        boto3: Any = importlib.import_module("boto3")
        parts = urlsplit(url)
        self.client: Any = boto3.client(
            "sqs",
            region_name="us-east-1",
            endpoint_url=f"http://{parts.hostname}:{parts.port}",
            aws_access_key_id=parts.username,
            aws_secret_access_key=parts.password,
        )
        self._urls: dict[str, str] = {}

    def clear(self) -> None:
        """Delete the queues that were made here."""
        for url in self._urls.values():
            self.client.delete_queue(QueueUrl=url)
        self._urls.clear()

    def close(self) -> None:
        """Leave nothing."""
        self.clear()
        self.client.close()

    def url_of(self, queue: str) -> str:
        """Make a queue."""
        if queue not in self._urls:
            self._urls[queue] = self.client.create_queue(QueueName=queue)["QueueUrl"]
        return self._urls[queue]

    def send(self, url: str, queue: str, count: int) -> None:
        """Send messages, ten at a time."""
        for begin in range(0, count, TEN):
            entries = [
                {"Id": str(each), "MessageBody": text(queue)}
                for each in range(min(TEN, count - begin))
            ]
            self.client.send_message_batch(QueueUrl=url, Entries=entries)

    def source(self, count: int) -> str:
        name = self.name()
        self.send(self.url_of(name), name, count)
        return name

    def wait_empty(self, queue: str) -> None:
        url = self.url_of(queue)
        while True:
            answer = self.client.get_queue_attributes(QueueUrl=url, AttributeNames=WAITING)
            if not any(int(each) for each in answer["Attributes"].values()):
                return
            # Look seldom: that costs too.
            sleep(0.02)


class Works:
    """What the driver takes for a message, if nobody asks for anything else.

    One by one it is as kombu uses it; in tens, what greenlets do at once is as greenconn does it.
    """

    def __init__(self, url: str, stage: Stage) -> None:
        self.stage = stage

    def close(self) -> None:
        """Nothing is open but the stage."""

    def publish(self, count: int) -> Figures:
        """``send_message``."""
        name = self.stage.name()
        url = self.stage.url_of(name)
        with Clock() as clock:
            for _ in range(count):
                self.stage.client.send_message(QueueUrl=url, MessageBody=text(name))
        return clock.per(count)

    def publish_many(self, count: int) -> Figures:
        """``send_message_batch``."""
        name = self.stage.name()
        url = self.stage.url_of(name)
        with Clock() as clock:
            self.stage.send(url, name, count)
        return clock.per(count)

    def consume(self, count: int) -> Figures:
        """``receive_message`` and ``delete_message_batch``."""
        source, client = self.stage.source(count), self.stage.client
        url = self.stage.url_of(source)
        left = count
        with Clock() as clock:
            while left > 0:
                answer = client.receive_message(QueueUrl=url, MaxNumberOfMessages=TEN)
                entries = [
                    {"Id": str(number), "ReceiptHandle": each["ReceiptHandle"]}
                    for number, each in enumerate(answer["Messages"])
                ]
                client.delete_message_batch(QueueUrl=url, Entries=entries)
                left -= len(entries)
        return clock.per(count)
