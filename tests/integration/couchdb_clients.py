"""Stores over a CouchDB, and its documents as they lie there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import gevent

from greenconn.broker.port import Claimed, Entry, Settlement, SettleRequest
from greenconn.broker.queues import Declaration
from greenconn.green.deadline import Deadline
from greenconn.green.http import HttpClient
from greenconn.transport.couchdb import CouchStore, Transport
from tests.tiny_client import TinyClient

#: Seconds that a test waits for something that must come.
SOON = 30.0


@contextmanager
def store_at(
    url: str, wake: Callable[[str | None], None] = lambda queue: None, **options: Any
) -> Iterator[CouchStore]:
    """An open store, closed in good order."""
    store = Transport(TinyClient(url, **options)).make_store(wake)
    try:
        store.open(Deadline(SOON))
        yield store
        store.close()
    finally:
        store.drop()
        gevent.sleep(0)


def entry(queue: str, body: str, **options: Any) -> Entry:
    """A message of text."""
    envelope = {"body": body, "headers": {}, "properties": {"delivery_tag": body}}
    return Entry(queue, envelope, **options)


def bodies(claimed: Iterable[Claimed]) -> list[str]:
    """What was claimed."""
    return [each.envelope["body"] for each in claimed if each.envelope is not None]


class Raw:
    """Plain requests to a database."""

    def __init__(self, web: HttpClient, database: str) -> None:
        self._web = web
        self._database = database

    def __call__(self, method: str, path: str = "", content: Any = None) -> Any:
        """Send one and return what the answer says."""
        reply = self._web.request(
            method,
            f"{self._database}{path}",
            deadline=Deadline(SOON),
            headers={"Content-Type": "application/json"},
            body=b"" if content is None else json.dumps(content).encode(),
        )
        return json.loads(reply.body)

    def docs(self, prefix: str = "") -> list[dict[str, Any]]:
        """All documents whose ids begin with *prefix*."""
        rows = self("GET", "/_all_docs?include_docs=true")["rows"]
        return [row["doc"] for row in rows if row["id"].startswith(prefix)]

    def put(self, *docs: dict[str, Any]) -> list[dict[str, Any]]:
        """Store documents."""
        results: list[dict[str, Any]] = self("POST", "/_bulk_docs", {"docs": list(docs)})
        return results


@contextmanager
def raw_to(url: str) -> Iterator[Raw]:
    """Requests to the database of *url*."""
    parts = urlsplit(url)
    web = HttpClient(str(parts.hostname), int(parts.port or 5984))
    try:
        yield Raw(web, parts.path)
    finally:
        web.close()
        gevent.sleep(0)


PLAIN = Declaration()


def done(claimed: Claimed) -> SettleRequest:
    return SettleRequest(claimed, Settlement.ACK)


def back(claimed: Claimed, **options: Any) -> SettleRequest:
    return SettleRequest(claimed, Settlement.REQUEUE, **options)


def put(store: CouchStore, *entries: Any) -> None:
    assert list(store.put(entries)) == [None] * len(entries)
