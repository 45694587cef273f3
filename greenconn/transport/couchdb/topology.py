"""Queues, exchanges and bindings as documents, and their cache.

All links of a hub to one database share one cache: what one of them changes all know at once, although
the changes feed takes a moment.  Each link notes what its own feed delivers, so the same news comes
several times, and late.  The generation of a revision, which grows over deletions too, tells what is
newer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final
from weakref import WeakValueDictionary

from greenconn.broker.topology_port import ExchangeRecord, Row, TopologyStore
from greenconn.green.hub import PerHub
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.couchdb.api import CouchApi
from greenconn.transport.couchdb.documents import (
    BINDING,
    EXCHANGE,
    QUEUE,
    Document,
    binding_id,
    generation,
    name_of,
    named,
)
from greenconn.transport.virtual.declaration import Declaration
from greenconn.transport.virtual.entities import PREDECLARED


def queue_document(name: str, declaration: Declaration) -> Document:
    """Return the document of a queue."""
    return {"_id": named(QUEUE, name), "declared": declaration.text()}


def read_queue(doc: Document) -> Declaration:
    """Return the declaration in a document; empty where it cannot be read."""
    return Declaration.read(str(doc.get("declared")).encode())


class TopologyCache:
    """The queues, exchanges and bindings of one database.  It may lag behind other processes."""

    def __init__(self) -> None:
        self.queues: dict[str, Declaration] = {}
        self.exchanges: dict[str, ExchangeRecord] = {}
        #: Exchange -> its bindings; the same object as long as nothing has changed.
        self._tables: dict[str, tuple[Row, ...]] = {}
        self._bindings: dict[str, dict[str, Row]] = {}
        self._revisions: dict[str, str] = {}
        #: What has changed and was not read yet: id -> revision.
        self._unread: dict[str, str] = {}

    @classmethod
    def of(cls, database: str) -> TopologyCache:
        """Return the cache of this hub for the database at an address."""
        return _caches.get().setdefault(database, cls())

    def table(self, exchange: str) -> tuple[Row, ...]:
        """Return the bindings of an exchange.  Never switches."""
        table = self._tables.get(exchange)
        if table is None:
            rows = self._bindings.get(exchange, {})
            table = self._tables[exchange] = tuple(rows[doc_id] for doc_id in sorted(rows))
        return table

    def fetch(self, api: CouchApi, doc_id: str) -> Document | None:
        """Read a document, and note what it says; None: there is none.  May switch."""
        known = self._revisions.get(doc_id)
        doc = api.get(doc_id)
        if doc is not None:
            self.take(doc)
        elif self._revisions.get(doc_id) == known:
            self.remove(doc_id)
        return doc

    def revision(self, doc_id: str) -> str | None:
        """Return the revision of a document that is known."""
        return self._revisions.get(doc_id)

    def revisions(self) -> dict[str, str]:
        """Return the ids of all known documents, with their revisions."""
        return dict(self._revisions)

    def keep(self, found: Collection[str], before: Mapping[str, str]) -> None:
        """Remove what was deleted while no link of this hub followed the changes.  Never switches.

        Arguments:
            found: the ids of all documents that were read.
            before: :meth:`revisions` before they were read.
        """
        for doc_id, revision in before.items():
            if doc_id not in found and self._revisions.get(doc_id) == revision:
                self.remove(doc_id)

    def refresh(self, api: CouchApi) -> None:
        """Read what has changed.  May switch, if something has."""
        if not self._unread:
            return
        unread = dict(self._unread)
        found = api.read(list(unread))
        for doc_id, revision in unread.items():
            if doc_id in found:
                self.take(found[doc_id])
            elif self._unread.get(doc_id) == revision:
                self.remove(doc_id)

    def note(self, doc_id: str, revision: str, is_deleted: bool) -> bool:
        """Note a changed document; return whether it is deleted now.  Never switches."""
        newest = self._unread.get(doc_id) or self._revisions.get(doc_id, "")
        if generation(revision) < generation(newest):
            return False
        if is_deleted:
            self.remove(doc_id)
        elif revision != newest:
            self._unread[doc_id] = revision
        return is_deleted

    def take(self, doc: Document) -> None:
        """Take a state of a document, if no newer one is known.  Never switches."""
        doc_id, revision = doc["_id"], doc["_rev"]
        name, kind = name_of(doc_id), doc_id[: len(QUEUE)]
        number = generation(revision)
        if number < generation(self._revisions.get(doc_id, "")):
            return
        self._revisions[doc_id] = revision
        if number >= generation(self._unread.get(doc_id, "")):
            self._unread.pop(doc_id, None)
        record = _record(doc)
        if kind == QUEUE:
            self.queues[name] = read_queue(doc)
        elif kind == EXCHANGE:
            self.exchanges[name] = record
        elif kind == BINDING:
            self._bindings.setdefault(name, {})[doc_id] = _row(record)
            self._tables.pop(name, None)

    def remove(self, doc_id: str) -> None:
        """Remove a deleted document.  Never switches."""
        self._revisions.pop(doc_id, None)
        self._unread.pop(doc_id, None)
        name = name_of(doc_id)
        if doc_id.startswith(QUEUE):
            self.queues.pop(name, None)
        elif doc_id.startswith(EXCHANGE):
            self.exchanges.pop(name, None)
        else:
            rows = self._bindings.get(name, {})
            rows.pop(doc_id, None)
            self._tables.pop(name, None)

    def bindings_to(self, name: str, to_exchange: bool) -> Sequence[str]:
        """Return the ids of the bindings that end at a queue or an exchange."""
        return [
            doc_id
            for rows in self._bindings.values()
            for doc_id, row in rows.items()
            if row.queue == name and row.to_exchange is to_exchange
        ]

    def bindings_from(self, exchange: str) -> Sequence[str]:
        """Return the ids of the bindings of an exchange."""
        return list(self._bindings.get(exchange, ()))


#: Database -> its cache, as long as a link has it.
_caches: Final[PerHub[WeakValueDictionary[str, TopologyCache]]] = PerHub(WeakValueDictionary)


class CouchTopology(TopologyStore):
    """The records of one database, as one link uses them."""

    def __init__(self, api: CouchApi, cache: TopologyCache) -> None:
        self._api = api
        self._cache = cache

    def get(self, exchange: str) -> ExchangeRecord | None:
        doc = self._cache.fetch(self._api, named(EXCHANGE, exchange))
        return None if doc is None else self._cache.exchanges[exchange]

    def put(self, exchange: str, record: ExchangeRecord) -> None:
        self._store({"_id": named(EXCHANGE, exchange), "declared": dumps(record)})

    def delete(self, exchange: str) -> None:
        self._cache.refresh(self._api)
        self._remove([named(EXCHANGE, exchange), *self._cache.bindings_from(exchange)])

    def rows(self, exchange: str) -> Sequence[Row] | None:
        cache = self._cache
        cache.refresh(self._api)
        is_known = exchange in cache.exchanges or exchange in PREDECLARED
        if not is_known and self.get(exchange) is None:
            return None
        return cache.table(exchange)

    def add(self, exchange: str, row: Row) -> None:
        record = {**row._asdict(), "arguments": dict(row.arguments or {})}
        self._store({"_id": binding_id(exchange, row), "declared": dumps(record)})

    def remove(self, exchange: str, row: Row) -> bool:
        return bool(self._remove([binding_id(exchange, row)]))

    def remove_to(self, destination: str, *, is_exchange: bool) -> Collection[str]:
        self._cache.refresh(self._api)
        ids = self._cache.bindings_to(destination, to_exchange=is_exchange)
        self._remove(ids)
        return {name_of(doc_id) for doc_id in ids}

    def _store(self, doc: Document) -> None:
        """Store what is equal for all programs that declare it."""
        if self._cache.revision(doc["_id"]) is not None:
            return
        revision = self._api.put(doc)
        if revision is None:
            found = self._api.get(doc["_id"])
            if found is None:
                return self._store(doc)  # it was deleted meanwhile
            doc, revision = found, found["_rev"]
        return self._cache.take({**doc, "_rev": revision})

    def _remove(self, ids: Sequence[str]) -> Collection[str]:
        """Delete documents; return the ids of those that were there."""
        found = self._api.read(ids) if ids else {}
        if found:
            self._api.write([deleted(doc_id, doc["_rev"]) for doc_id, doc in found.items()])
        for doc_id in ids:
            self._cache.remove(doc_id)
        return found


def deleted(doc_id: str, revision: str) -> Document:
    """Return what deletes a document."""
    return {"_id": doc_id, "_rev": revision, "_deleted": True}


def _record(doc: Document) -> Mapping[str, Any]:
    try:
        record = loads(doc.get("declared") or "{}")
    except (ValueError, TypeError):
        return {}
    return record if isinstance(record, dict) else {}


def _row(record: Mapping[str, Any]) -> Row:
    return Row(
        str(record.get("routing_key", "")),
        str(record.get("pattern", "")),
        str(record.get("queue", "")),
        _table(record.get("arguments")) or None,
        bool(record.get("to_exchange")),
    )


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
