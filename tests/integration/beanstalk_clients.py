"""What tests of beanstalk need: stores of their own, and a client that does as it is told."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gevent import socket

from greenconn.broker.port import Claimed, Entry
from greenconn.green.deadline import Deadline
from greenconn.transport.beanstalk import BeanstalkOptions, BeanstalkStore
from greenconn.wire.beanstalk import BeanstalkParser, Reply, statistics
from tests.tiny_client import TinyClient

SOON = 30.0


class Raw:
    """A client that sends what it is told.

    Arguments:
        url: of the server.
    """

    def __init__(self, url: str) -> None:
        client = TinyClient(url)
        self._sock = socket.create_connection(
            (str(client.hostname), int(client.port or 0)), timeout=SOON
        )
        self._parser = BeanstalkParser()
        self._replies: list[Reply] = []

    def __call__(self, command: str, body: bytes | None = None) -> Reply:
        """Send a command, with a body for ``put``, and return the reply."""
        data = b"" if body is None else body + b"\r\n"
        self._sock.sendall(command.encode() + b"\r\n" + data)
        while not self._replies:
            received = self._sock.recv(65536)
            assert received, f"the server closed the connection after {command!r}"
            self._replies += self._parser.feed(received)
        return self._replies.pop(0)

    def put(self, tube: str, body: bytes, *, time_to_run: int = 60, priority: int = 1024) -> int:
        """Store a job and return its number."""
        self(f"use {tube}")
        reply = self(f"put {priority} 0 {time_to_run} {len(body)}", body)
        assert reply.word == b"INSERTED", reply
        return reply.number

    def counts(self, tube: str) -> dict[str, str]:
        """What the server counts of a tube."""
        found = statistics(self(f"stats-tube {tube}").body)
        return {name.decode(): value.decode() for name, value in found.items()}

    def close(self) -> None:
        """Close the connection, without a word."""
        self._sock.close()


@contextmanager
def raw_to(url: str) -> Iterator[Raw]:
    """A raw client that is closed afterwards."""
    raw = Raw(url)
    try:
        yield raw
    finally:
        raw.close()


@contextmanager
def store_at(url: str, owner: str = "test", **options: Any) -> Iterator[BeanstalkStore]:
    """An open store that is closed afterwards."""
    with stores_at(url, 1, owner, **options) as stores:
        yield stores[0]


@contextmanager
def stores_at(
    url: str, count: int, owner: str = "test", **options: Any
) -> Iterator[list[BeanstalkStore]]:
    """Open stores, as many processes have them."""
    stores = []
    try:
        for number in range(count):
            store = BeanstalkStore(TinyClient(url), _nothing, BeanstalkOptions(**options))
            store.owner = f"{owner}{number}"
            stores.append(store)
            store.open(Deadline(SOON))
        yield stores
    finally:
        for store in stores:
            store.drop()


def entry(queue: str, body: str = "x", **options: Any) -> Entry:
    """A message on its way."""
    envelope = {
        "body": body,
        "content-type": "text/plain",
        "content-encoding": "utf-8",
        "headers": {},
        "properties": {"delivery_tag": "t", "delivery_info": {}, "body_encoding": None},
    }
    return Entry(queue, envelope, **options)


def bodies(claimed: list[Claimed]) -> list[Any]:
    """What was claimed."""
    return [each.envelope["body"] if each.envelope else each.raw for each in claimed]


def _nothing(queue: str | None) -> None:
    pass
