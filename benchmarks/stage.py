"""What a measurement finds: queues, messages in them, and the other side in a process of its own."""

from __future__ import annotations

import json
import os
from itertools import count as numbers
from typing import Any

from benchmarks.company import Company
from benchmarks.frames import BINARY, JSON, Properties, publish, table
from benchmarks.line import Address, Line

#: 256 bytes as JSON.
BODY: dict[str, Any] = {
    "number": 1,
    "name": "benchmark",
    "tags": ["a", "b", "c"],
    "padding": "x" * 184,
}
#: As Celery gives each message, but for the nested ones.
HEADERS: dict[str, str | int | None] = {
    "lang": "py",
    "task": "shop.tasks.send_mail",
    "id": "0b5e6a5c-6f0e-4f0c-8d1a-5f7b6e0c9a11",
    "root_id": "0b5e6a5c-6f0e-4f0c-8d1a-5f7b6e0c9a11",
    **dict.fromkeys(("parent_id", "group", "group_index", "eta", "expires", "shadow")),
    "retries": 0,
    "argsrepr": "(4711, 'ada@example.org')",
    "kwargsrepr": "{}",
    "origin": "gen4711@web-1",
    "replaced_task_nesting": 0,
    "stamped_headers": None,
}
#: 1 MiB.
LARGE = bytes(1 << 20)
#: Milliseconds after which the broker deletes a queue that a measurement left behind.
EXPIRES = 600_000
#: Bytes that are sent at once to fill a queue.
BATCH = 1 << 20


class Stage(Company):
    """The queues of one measurement.

    Sinks are exclusive queues: what is published there is never written to disk, whatever its delivery
    mode, so that the disk is not measured.  Sources hold transient messages for the same reason.

    Arguments:
        url: of the broker.
    """

    peers = "benchmarks.peers"

    def __init__(self, url: str) -> None:
        super().__init__(Address.of(url).url)
        self._line = Line(self.url)
        self._line.open_channel()
        self._names = (f"greenconn-benchmark-{os.getpid()}-{number}" for number in numbers())
        self._queues: list[str] = []
        #: A queue to look up: the answer says that the broker has all that was sent before.
        self.mark = self.sources(1)[0]

    def close(self) -> None:
        """End the connection."""
        self._line.delete(self.mark)
        self._line.close()

    def clear(self) -> None:
        """End the other sides and delete the queues."""
        self.end_peers()
        queues = [queue for queue in self._queues if queue != self.mark]
        self._line.delete(*queues)
        self._queues = []

    def sink(self, *, length: int | None = None) -> str:
        """A queue to publish to; with *length* it keeps that many messages."""
        (name,) = self._new(1)
        limits = {} if length is None else {"x_max_length": length}
        self._line.declare(name, exclusive=True, **limits)
        return name

    def source(self, count: int = 0) -> str:
        """A queue with *count* messages of 256 bytes."""
        return self._filled(count, json.dumps(BODY).encode(), Properties.encode(**JSON))

    def source_with_headers(self, count: int) -> str:
        """A queue with *count* messages of 256 bytes and 16 headers."""
        return self._filled(
            count, json.dumps(BODY).encode(), Properties.encode(headers=table(HEADERS), **JSON)
        )

    def large_source(self, count: int) -> str:
        """A queue with *count* messages of 1 MiB."""
        return self._filled(count, LARGE, Properties.encode(**BINARY))

    def sources(self, number: int) -> list[str]:
        """Empty queues."""
        names = self._new(number)
        self._line.declare(*names, x_expires=EXPIRES)
        return names

    def server(self) -> str:
        """The queue of a server of calls, which answers each with its body."""
        (requests,) = self.sources(1)
        self.peer("echo", requests)
        return requests

    def _filled(self, count: int, body: bytes, properties: bytes) -> str:
        (name,) = self.sources(1)
        message = publish(name, body, properties, frame_max=self._line.frame_max)
        at_once = max(1, BATCH // len(message))
        for begin in range(0, count, at_once):
            self._line.socket.sendall(message * min(at_once, count - begin))
        self._line.settle(name)
        return name

    def _new(self, number: int) -> list[str]:
        names = [next(self._names) for _ in range(number)]
        self._queues += names
        return names
