"""Queues, exchanges and bindings as documents, and what a link remembers of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from greenconn.broker.port import Row
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.couchdb.api import CouchApi, Document
from greenconn.transport.couchdb.names import (
    BINDING,
    EXCHANGE,
    QUEUE,
    binding_id,
    generation,
    name_of,
    named,
)
from greenconn.transport.virtual.declaration import Declaration
from greenconn.transport.virtual.exchange import ROUTERS
from greenconn.transport.virtual.state import Exchange

__all__ = ["Places", "binding_document", "exchange_document", "queue_document", "read_queue"]


def queue_document(name: str, declaration: Declaration) -> Document:
    """How a queue was declared."""
    return {"_id": named(QUEUE, name), "declared": declaration.text()}


def exchange_document(exchange: Exchange) -> Document:
    """How an exchange was declared."""
    facts = {
        "type": exchange.type,
        "durable": exchange.durable,
        "auto_delete": exchange.auto_delete,
        "arguments": dict(exchange.arguments),
    }
    return {"_id": named(EXCHANGE, exchange.name), "declared": dumps(facts)}


def binding_document(exchange: str, row: Row) -> Document:
    """A binding."""
    facts = {**row._asdict(), "arguments": dict(row.arguments or {})}
    return {"_id": binding_id(exchange, row), "declared": dumps(facts)}


def read_queue(doc: Document) -> Declaration:
    """How a queue was declared; what cannot be read says nothing."""
    return Declaration.read(str(doc.get("declared")).encode())


class Places:
    """What one link knows.  It may be a moment behind what other processes did."""

    def __init__(self) -> None:
        self.queues: dict[str, Declaration] = {}
        self.exchanges: dict[str, Exchange] = {}
        #: Exchange -> its bindings; the same object as long as nothing has changed.
        self._tables: dict[str, tuple[Row, ...]] = {}
        self._bindings: dict[str, dict[str, Row]] = {}
        self._revisions: dict[str, str] = {}
        #: What has changed and was not read yet.
        self._unread: set[str] = set()

    def table(self, exchange: str) -> tuple[Row, ...]:
        """The bindings of an exchange.  Never switches."""
        table = self._tables.get(exchange)
        if table is None:
            rows = self._bindings.get(exchange, {})
            table = self._tables[exchange] = tuple(rows[doc_id] for doc_id in sorted(rows))
        return table

    def revision(self, doc_id: str) -> str | None:
        """The revision of a document that is known."""
        return self._revisions.get(doc_id)

    def refresh(self, api: CouchApi) -> None:
        """Read what has changed.  May switch, if something has."""
        if not self._unread:
            return
        ids, self._unread = list(self._unread), set()
        found = api.read(ids)
        for doc_id in ids:
            if doc_id in found:
                self.take(found[doc_id])
            else:
                self.remove(doc_id)

    def note(self, doc_id: str, revision: str, is_deleted: bool) -> str | None:
        """A document has changed.  Never switches.

        Returns:
            The name of a queue that was known here and was deleted.
        """
        known = self._revisions.get(doc_id)
        if known is not None and generation(revision) < generation(known):
            return None  # late news
        if not is_deleted:
            if known != revision:
                self._unread.add(doc_id)
            return None
        self.remove(doc_id)
        is_queue = known is not None and doc_id.startswith(QUEUE)
        return name_of(doc_id) if is_queue else None

    def take(self, doc: Document) -> None:
        """A document as it is now.  Never switches."""
        doc_id = doc["_id"]
        name, kind = name_of(doc_id), doc_id[: len(QUEUE)]
        self._revisions[doc_id] = doc["_rev"]
        self._unread.discard(doc_id)
        facts = _facts(doc)
        if kind == QUEUE:
            self.queues[name] = read_queue(doc)
        elif kind == EXCHANGE and facts.get("type") in ROUTERS:
            self.exchanges[name] = _exchange(name, facts)
        elif kind == BINDING:
            self._bindings.setdefault(name, {})[doc_id] = _row(facts)
            self._tables.pop(name, None)

    def remove(self, doc_id: str) -> None:
        """A document is gone.  Never switches."""
        self._revisions.pop(doc_id, None)
        self._unread.discard(doc_id)
        name = name_of(doc_id)
        if doc_id.startswith(QUEUE):
            self.queues.pop(name, None)
        elif doc_id.startswith(EXCHANGE):
            self.exchanges.pop(name, None)
        else:
            rows = self._bindings.get(name, {})
            rows.pop(doc_id, None)
            self._tables.pop(name, None)

    def leading_to(self, name: str, to_exchange: bool) -> Iterable[str]:
        """The ids of the bindings that end at a queue or an exchange."""
        return [
            doc_id
            for rows in self._bindings.values()
            for doc_id, row in rows.items()
            if row.queue == name and row.to_exchange is to_exchange
        ]

    def beginning_at(self, exchange: str) -> Iterable[str]:
        """The ids of the bindings of an exchange."""
        return list(self._bindings.get(exchange, ()))


def _facts(doc: Document) -> Mapping[str, Any]:
    try:
        facts = loads(doc.get("declared") or "{}")
    except (ValueError, TypeError):
        return {}
    return facts if isinstance(facts, dict) else {}


def _exchange(name: str, facts: Mapping[str, Any]) -> Exchange:
    return Exchange(
        name,
        facts["type"],
        ROUTERS[facts["type"]](),
        durable=bool(facts.get("durable")),
        auto_delete=bool(facts.get("auto_delete")),
        arguments=_table(facts.get("arguments")),
    )


def _row(facts: Mapping[str, Any]) -> Row:
    return Row(
        str(facts.get("routing_key", "")),
        str(facts.get("pattern", "")),
        str(facts.get("queue", "")),
        _table(facts.get("arguments")) or None,
        bool(facts.get("to_exchange")),
    )


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
