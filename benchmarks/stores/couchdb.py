"""The stage on CouchDB, and its HTTP interface by hand."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import urlsplit

from gevent import sleep
from geventhttpclient import HTTPClient

from benchmarks.clock import Clock, Figures
from benchmarks.redis.envelopes import envelope
from benchmarks.rivals.shape import PREFETCH
from benchmarks.stage import BODY
from benchmarks.stores.stage import StoreStage
from greenconn.broker.queues import Declaration
from greenconn.transport.couchdb.api import MESSAGE, QUEUE, message_id, named, range_of

#: What nobody else uses.
DATABASE = "greenconn-benchmark"

Document = dict[str, Any]


def documents(queue: str, begin: int, count: int) -> list[Document]:
    """Messages as they are stored."""
    payload = envelope(BODY, queue).decode()
    return [
        {"_id": message_id(queue, 0, number, "0"), "queue": queue, "payload": payload}
        for number in range(begin, begin + count)
    ]


class Stage(StoreStage):
    """Queues in a database that is deleted afterwards."""

    def __init__(self, url: str) -> None:
        super().__init__(f"{url.rstrip('/')}/{DATABASE}")
        parts = urlsplit(url)
        self._http = HTTPClient(
            str(parts.hostname), parts.port or 5984, network_timeout=60, concurrency=10
        )
        self._number = 0
        self.ask("PUT")

    def ask(self, method: str, path: str = "", content: Any = None) -> Any:
        """One request; returns what the answer says."""
        body = b"" if content is None else json.dumps(content).encode()
        answer = self._http.request(
            method, f"/{DATABASE}{path}", body=body, headers={"Content-Type": "application/json"}
        )
        return json.loads(answer.read())

    def write(self, docs: list[Document]) -> list[Document]:
        """Store documents."""
        results: list[Document] = self.ask("POST", "/_bulk_docs", {"docs": docs})
        return results

    def rows(self, queue: str | None, limit: int, **query: str) -> list[Document]:
        """The first messages of a queue, or of all."""
        within = range_of(MESSAGE, queue)
        start, end = json.dumps(within.start), json.dumps(within.end)
        path = f"/_all_docs?limit={limit}&startkey={start}&endkey={end}"
        path += "".join(f"&{name}={value}" for name, value in query.items())
        rows: list[Document] = self.ask("GET", path.replace('"', "%22").replace("\\", "%5C"))[
            "rows"
        ]
        return rows

    def new(self, queue: str, count: int) -> list[Document]:
        """Messages that were not stored yet."""
        self._number += count
        return documents(queue, self._number - count, count)

    def clear(self) -> None:
        """Delete all messages."""
        while rows := self.rows(None, 1000):
            self.write(
                [{"_id": r["id"], "_rev": r["value"]["rev"], "_deleted": True} for r in rows]
            )

    def close(self) -> None:
        """Delete the database."""
        self.ask("DELETE")
        self._http.close()

    def source(self, count: int) -> str:
        name = self.name()
        self.write([{"_id": named(QUEUE, name), "declared": Declaration().text()}])
        for begin in range(0, count, PREFETCH):
            self.write(self.new(name, min(PREFETCH, count - begin)))
        return name

    def wait_empty(self, queue: str) -> None:
        while self.rows(queue, 1):
            sleep(0.02)


class Works:
    """What the HTTP client and JSON take for a message, if nobody asks for anything else."""

    def __init__(self, url: str, stage: Stage) -> None:
        self.stage = stage

    def close(self) -> None:
        """Nothing is open but the stage."""

    def publish(self, count: int) -> Figures:
        """One document in each request."""
        docs = self.stage.new("sink", count)
        with Clock() as clock:
            for doc in docs:
                self.stage.write([doc])
        return clock.per(count)

    def publish_many(self, count: int) -> Figures:
        """In hundreds."""
        docs = self.stage.new("sink", count)
        with Clock() as clock:
            for begin in range(0, count, PREFETCH):
                self.stage.write(docs[begin : begin + PREFETCH])
        return clock.per(count)

    def consume(self, count: int) -> Figures:
        """Read, claimed and deleted, in hundreds."""
        source = self.stage.source(count)
        with Clock() as clock:
            while rows := self.stage.rows(source, PREFETCH, include_docs="true"):
                held = self.stage.write([{**row["doc"], "owner": "me"} for row in rows])
                self.stage.write(
                    [{"_id": each["id"], "_rev": each["rev"], "_deleted": True} for each in held]
                )
        return clock.per(count)
