"""One transport under the contract: how its tests open links, make entities, send and drain."""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

import gevent
import pytest

from greenconn.connection import Connection
from greenconn.entity import Queue
from greenconn.transport import memory
from greenconn.transport.amqp import Transport as AmqpTransport
from greenconn.transport.beanstalk import Transport as BeanstalkTransport
from greenconn.transport.couchdb import Transport as CouchTransport
from greenconn.transport.hooks.hosted import hosted
from greenconn.transport.mongodb import Transport as MongoTransport
from greenconn.transport.postgresql import Transport as PostgresTransport
from greenconn.transport.redis import ClusterTransport
from greenconn.transport.redis import Transport as RedisTransport
from greenconn.transport.sqlite import Transport as SqliteTransport
from greenconn.transport.SQS import Transport as SqsTransport
from greenconn.worker import ConsumerGreenlet, spawn_consumer
from tests.compat.programs.library import GREENCONN, KOMBU
from tests.integration.hooked import hooked
from tests.tiny_client import TinyClient

#: Seconds that a test waits for something that must come.
SOON = 30.0


class Store(deque[Any]):
    """A sink that keeps what it is given."""

    taken: Callable[[Any], None] | None = None

    def __init__(self) -> None:
        super().__init__()
        self.lost: list[BaseException] = []

    def deliver(self, message: Any) -> None:
        """Keep *message*."""
        self.append(message)

    def requeue_unseen(self) -> None:
        """Put all back."""
        for message in self:
            message.put_back()

    def cancelled(self, exc: BaseException) -> None:
        """Keep the reason."""
        self.lost.append(exc)

    def take(self) -> Any:
        """Take the oldest message."""
        message = self.popleft()
        if self.taken is not None:
            self.taken(message)
        return message


class Side:
    """A transport, and what a test made with it.

    Arguments:
        kind: ``memory``, ``amqp``, ``redis`` or ``sqlite``.
        transport: makes links.
        prefix: begins the names of the test's entities.
    """

    def __init__(self, kind: str, transport: Any, prefix: str) -> None:
        self.kind = kind
        self.transport = transport
        self.prefix = prefix
        self.links: list[Any] = []
        self._queues: list[str] = []
        self._exchanges: list[str] = []

    def link(self) -> Any:
        """Open a link; closed after the test."""
        link = self.transport.establish_connection()
        self.links.append(link)
        return link

    def channel(self, link: Any = None) -> Any:
        """Open a channel, on a link of its own unless one is given."""
        return self.transport.create_channel(self.link() if link is None else link)

    def is_rabbitmq(self, major: int, minor: int = 0) -> bool:
        """Return whether the broker is RabbitMQ of that version or a later one."""
        if self.kind != "amqp":
            return False
        version: tuple[int, int] | None = self.links[0].server_version
        return version is not None and version >= (major, minor)

    def name(self, what: str = "q") -> str:
        """A name that no other test uses."""
        count = len(self._queues) + len(self._exchanges)
        return f"{self.prefix}-{what}-{count}"

    def queue(self, channel: Any, name: str | None = None, **options: Any) -> str:
        """Declare a queue; deleted after the test."""
        options = {"durable": False, "auto_delete": False, "exclusive": False, **options}
        declared = channel.queue_declare(self.name() if name is None else name, **options)
        self._queues.append(declared.queue)
        return str(declared.queue)

    def exchange(self, channel: Any, type: str = "direct", **options: Any) -> str:
        """Declare an exchange; deleted after the test."""
        name = self.name("x")
        channel.exchange_declare(name, type, **{"auto_delete": False, **options})
        self._exchanges.append(name)
        return name

    def open_queue(self, *arguments: Any, **options: Any) -> tuple[Any, str]:
        """Open a channel and declare a queue."""
        channel = self.channel()
        return channel, self.queue(channel, *arguments, **options)

    def open_exchange(self, *arguments: Any, **options: Any) -> tuple[Any, str]:
        """Open a channel and declare an exchange."""
        channel = self.channel()
        return channel, self.exchange(channel, *arguments, **options)

    def send(
        self,
        channel: Any,
        body: Any,
        exchange: str,
        routing_key: str,
        *,
        headers: dict[str, Any] | None = None,
        mandatory: bool = False,
        **properties: Any,
    ) -> None:
        """Publish, and wait until the broker has it."""
        priority = properties.pop("priority", None)
        message = channel.prepare_message(
            body,
            priority=priority,
            content_type="text/plain",
            content_encoding="utf-8",
            headers=headers or {},
            properties=properties,
        )
        channel.basic_publish_confirm(message, exchange, routing_key, mandatory, timeout=SOON)

    def drain(self, link: Any, until: Callable[[], Any], timeout: float = SOON) -> None:
        """Drain events until *until* is true."""
        end = monotonic() + timeout
        while not until():
            self.transport.drain_events(link, timeout=max(end - monotonic(), 0.0))

    def drain_all(self, link: Any, quiet: float | None = None) -> None:
        """Drain events until none comes any more."""
        if quiet is None:
            quiet = 0 if self.kind == "memory" else 0.2
        try:
            while True:
                self.transport.drain_events(link, timeout=quiet)
        except TimeoutError:
            pass

    def get(self, channel: Any, queue: str) -> Any:
        """Take a message that must be there, or come.

        What a closed channel had not answered is back a moment after RabbitMQ 3.10 has said that the
        channel is closed: when its queue hears that the channel's process is gone.
        """
        end = monotonic() + SOON
        while (message := channel.basic_get(queue, no_ack=True)) is None:
            assert monotonic() < end, "there is no message"
            gevent.sleep(0.01)
        return message

    def bodies(self, channel: Any, queue: str) -> list[Any]:
        """Take all bodies out of *queue*."""
        bodies = []
        while (message := channel.basic_get(queue, no_ack=True)) is not None:
            bodies.append(message.body)
        return bodies

    def close(self) -> None:
        """Delete what the test made and close its links."""
        if self._queues or self._exchanges:
            channel = self.channel()
            for name in self._queues:
                try:
                    channel.queue_delete(name)
                except self.transport.channel_errors:
                    channel = self.channel()
            for name in self._exchanges:
                channel.exchange_delete(name)
        for link in self.links:
            link.close()


def memory_side(prefix: str) -> Side:
    """The memory broker."""
    return Side("memory", memory.Transport(TinyClient(f"memory:///{prefix}")), prefix)


def rabbitmq_side(url: str, prefix: str) -> Side:
    """A RabbitMQ."""
    return Side("amqp", AmqpTransport(TinyClient(url)), prefix)


def redis_side(url: str, prefix: str) -> Side:
    """A Redis, where fan-out goes into lists, since nothing else keeps a message for later."""
    return Side("redis", RedisTransport(TinyClient(url, fanout_lists=True)), prefix)


def redis_cluster_side(url: str, prefix: str) -> Side:
    """A Redis Cluster, with the same."""
    return Side("redis", ClusterTransport(TinyClient(url, fanout_lists=True)), prefix)


def mongodb_side(url: str, prefix: str) -> Side:
    """A MongoDB, where fan-out goes into queues, since nothing else keeps a message for later."""
    client = TinyClient(url, fanout_lists=True)
    client.hostname = url  # it is the transport's to parse
    client.virtual_host = "/"
    return Side("mongodb", MongoTransport(client), prefix)


def postgresql_side(url: str, prefix: str) -> Side:
    """A schema of a PostgreSQL."""
    client = TinyClient()
    client.hostname = url  # it is the transport's to parse
    return Side("postgresql", PostgresTransport(client), prefix)


def beanstalk_side(url: str, prefix: str) -> Side:
    """A beanstalkd."""
    return Side("beanstalk", BeanstalkTransport(TinyClient(url)), prefix)


def sqlite_side(url: str, prefix: str) -> Side:
    """A SQLite file."""
    return Side("sqlite", SqliteTransport(TinyClient(url)), prefix)


def couchdb_side(url: str, prefix: str) -> Side:
    """A database of CouchDB."""
    return Side("couchdb", CouchTransport(TinyClient(url)), prefix)


def folder_side(url: str, prefix: str) -> Side:
    """A folder, by the store that stands among the examples."""
    example = importlib.import_module("folder_broker")
    return Side("folder", example.Transport(TinyClient(url)), prefix)


def polled_side(prefix: str) -> Side:
    """A transport that somebody has written over our ``virtual.Channel``."""
    return Side("polled", hooked(GREENCONN)(TinyClient(f"hooks:///{prefix}")), prefix)


def hosted_side(prefix: str) -> Side:
    """The same over kombu's ``virtual.Channel``, hosted."""
    pytest.importorskip("kombu")
    return Side("hosted", hosted(hooked(KOMBU))(TinyClient(f"hooks:///{prefix}")), prefix)


def sqs_side(url: str, prefix: str) -> Side:
    """An SQS, where a look into a queue does not wait for a second."""
    return Side("sqs", SqsTransport(TinyClient(url, get_wait_time=0)), prefix)


def collecting(
    connection: Connection, queue: str | Queue | list[Queue], got: list[Any], **options: Any
) -> ConsumerGreenlet:
    """Spawn a consumer that appends the bodies of its messages to *got*, and wait until it is ready."""
    consumer = spawn_consumer(
        queue, lambda body, message: got.append(body), connection=connection, **options
    )
    assert consumer.wait_ready(SOON)
    return consumer
