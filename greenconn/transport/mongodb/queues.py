"""The declarations of queues, exchanges and bindings, kept on the server for all programs.

Several connections may find at the same time that a queue has ended: that its owner is dead, or that
it was not used for long enough.  One of them marks its record, if that is still as it was seen, deletes
what belongs to the queue, and the record last.  The others wait until it is gone.  So a queue that was
declared anew meanwhile is not deleted, nor are its messages and bindings.

Bindings of queues to direct, topic and fan-out exchanges are rows of kombu's.  Others (of headers
exchanges, and between exchanges) kombu would misread: they are kept with the exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

import gevent
from bson import ObjectId
from pymongo import ReturnDocument

from greenconn.broker.exchanges import PREDECLARED, ExchangeRecord, Row, TopologyStore
from greenconn.broker.port import LeaseExpired
from greenconn.broker.queues import UNDECLARED, Declaration, is_lost
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.mongodb.changes import PREFIX, Broadcast
from greenconn.transport.mongodb.client import DEAD_AT, EXPIRE_AT, Client, Document

if TYPE_CHECKING:
    from greenconn.transport.mongodb import MongoOptions


#: In the record of a queue that is being deleted: by which deletion, and until when that is taken for
#: living.
_ENDING: Final = "ending"
_ENDING_UNTIL: Final = "ending_until"
#: What belongs to an exclusive queue in its record.
_OWNED: Final = ("owner", "owner_until")
#: Seconds that a deletion may take until another connection goes on with it, and between two looks
#: whether it is over.
ENDING_TIMEOUT: Final = timedelta(seconds=10)
LOOK_INTERVAL: Final = 0.02


class Queues:
    """The queues of one database.  All methods may switch.

    Arguments:
        client: the servers.
        options: names of the collections.
        topology: forgets the bindings of queues that are deleted.
    """

    def __init__(self, client: Client, options: MongoOptions, topology: TopologyStore) -> None:
        self._client = client
        self._options = options
        self._topology = topology
        self._messages: Any = client.database[options.messages_collection]
        self._queues: Any = client.durable[options.queues_collection]
        self._routing: Any = client.durable[options.routing_collection]
        self._lease = timedelta(seconds=options.lease)
        #: The record of when an unused queue is deleted.
        self._end = EXPIRE_AT if options.ttl else DEAD_AT
        #: Queues that expire when they are unused, as far as is known.
        self._expiring: dict[str, timedelta] = {}
        #: Queues that are consumed here.
        self._consumed: set[str] = set()
        #: Exclusive queues of this connection, and the owner that they were declared with.
        self._owned: dict[str, str] = {}
        self._renewed_at = monotonic()

    # -- queues

    def make_queue(self, name: str, declaration: Declaration) -> Declaration:
        """Make a queue; return how it was declared, which for an existing one may differ."""
        self._note_expiry(name, declaration)
        while _ENDING in (document := self._make_queue(name, declaration)):
            self.find_queue(name)  # returns when it is gone
        made = _declaration(document)
        if declaration.owner is not None and made.owner == declaration.owner:
            self._owned[name] = declaration.owner
        return made

    def _make_queue(self, name: str, declaration: Declaration) -> Document:
        document: Document = self._client.upsert(
            self._queues.find_one_and_update,
            {"_id": name},
            {"$setOnInsert": self._queue_document(declaration)},
            return_document=ReturnDocument.AFTER,
        )
        return document

    def _queue_document(self, declaration: Declaration) -> Document:
        now = self._client.now()
        document: Document = {
            # As kombu writes it.
            "options": {
                "durable": declaration.durable,
                "exclusive": declaration.owner is not None,
                "auto_delete": declaration.auto_delete,
                "arguments": dict(declaration.arguments),
            }
        }
        if declaration.owner is not None:
            document.update(owner=declaration.owner, owner_until=now + self._lease)
        expires_ms = declaration.expires_ms
        if expires_ms is not None:
            document[self._end] = now + timedelta(milliseconds=expires_ms)
        return document

    def _note_expiry(self, name: str, declaration: Declaration) -> None:
        expires_ms = declaration.expires_ms
        if expires_ms is not None:
            self._expiring[name] = timedelta(milliseconds=expires_ms)

    def find_queue(self, name: str) -> Declaration | None:
        """Return how a queue was declared, as far as it is known; None: there is none."""
        while True:
            document, is_there = self._client.call(self._find_queue, name)
            if document is None:
                return UNDECLARED if is_there else None
            if not self._has_ended(document):
                declaration = _declaration(document)
                self._note_expiry(name, declaration)
                return declaration
            if self._is_being_deleted(document):
                gevent.sleep(LOOK_INTERVAL)
            elif self._end_queue(name, document):
                return None

    def _has_ended(self, document: Document) -> bool:
        """Return whether a queue has lost its owner, has expired, or is being deleted."""
        now = self._client.now()
        return bool(
            _ENDING in document
            or is_lost(document.get("owner"))
            or document.get("owner_until", now) < now
            or document.get(self._end, now) < now
        )

    def _is_being_deleted(self, document: Document) -> bool:
        now = self._client.now()
        return bool(document.get(_ENDING_UNTIL, now) > now)

    def queue_names(self) -> Collection[str]:
        """Return the names of the queues that are declared, or that have messages."""
        names: set[str] = self._client.call(self._queue_names)
        return names

    def _queue_names(self) -> set[str]:
        declared = {document["_id"] for document in self._queues.find({}, {"_id": 1})}
        return declared.union(self._messages.distinct("queue"))

    def _find_queue(self, name: str) -> tuple[Document | None, bool]:
        document = self._queues.find_one({"_id": name})
        if document is not None:
            return document, True
        # kombu notes no declaration: a queue of its programs shows by what is in it or bound to it.
        found = self._messages.find_one({"queue": name}, {"_id": 1})
        return None, (found or self._routing.find_one({"queue": name}, {"_id": 1})) is not None

    def drop_queue(self, name: str) -> int:
        """Delete a queue, its messages and its bindings; return how many messages waited in it.

        One that was exclusive to this connection stays if another one has declared it meanwhile.
        """
        owner = self._owned.get(name)
        self._forget(name)
        mark = self._mark(name, {} if owner is None else {"owner": owner})
        if mark is None and owner is not None:
            return 0
        return self._delete(name, mark)

    def _end_queue(self, name: str, seen: Document) -> bool:
        """Delete a queue that has ended, unless its record has changed; return whether it has not."""
        owner = self._owned.pop(name, None)  # first: it is not to be renewed any more
        mark = self._mark(name, {each: seen.get(each) for each in (*_OWNED, _ENDING, self._end)})
        if mark is None:
            if owner is not None:
                self._owned.setdefault(name, owner)  # the next renewal finds out
            return False
        self._forget(name)
        self._delete(name, mark)
        return True

    def _mark(self, name: str, seen: Mapping[str, Any]) -> ObjectId | None:
        """Begin to delete a queue; None: its record is not as it was *seen*, or there is none."""
        mark = ObjectId()
        update = {
            "$set": {_ENDING: mark, _ENDING_UNTIL: self._client.now() + ENDING_TIMEOUT},
            "$unset": {"owner": ""},  # whose lease cannot be renewed from now on
        }
        result = self._client.call(self._queues.update_one, {"_id": name, **seen}, update)
        return mark if result.matched_count else None

    def _forget(self, name: str) -> None:
        self._owned.pop(name, None)
        self._expiring.pop(name, None)
        self._consumed.discard(name)

    def _delete(self, name: str, mark: ObjectId | None) -> int:
        """Delete what belongs to a queue, and last its record, if it has one that was marked."""
        self._topology.forget_queue(name)
        count: int = self._client.call(self._delete_messages, name)
        if mark is not None:
            self._client.call(self._queues.delete_one, {"_id": name, _ENDING: mark})
        return count

    def _delete_messages(self, name: str) -> int:
        # Including claimed and delayed messages, by their indexes.
        held = [{"lease_until": {"$exists": True}}, {"due_at": {"$exists": True}}]
        self._messages.delete_many({"$or": held, "claimed": name})
        return int(self._messages.delete_many({"queue": name}).deleted_count)

    def purge(self, name: str) -> int:
        """Delete the messages that wait in a queue and return how many there were."""
        result = self._client.call(self._messages.delete_many, {"queue": name})
        return int(result.deleted_count)

    def size(self, name: str) -> int:
        """Return the number of messages that wait in a queue."""
        if not self._options.calc_queue_size:
            return 0
        return int(self._client.call(self._size, name))

    def _size(self, name: str) -> int:
        late = {DEAD_AT: {"$lte": self._client.now()}, "queue": name}
        waiting = int(self._messages.count_documents({"queue": name}))
        return waiting - int(self._messages.count_documents(late)) if waiting else 0

    def renew(self) -> None:
        """Renew the lease of this connection's exclusive queues and of those that it consumes.

        Raises:
            LeaseExpired: it was silent for too long, and others have deleted one of them.
        """
        is_late = monotonic() - self._renewed_at > self._lease.total_seconds()
        self._renewed_at = monotonic()
        gone: set[str] = set()
        expiring = self._consumed & self._expiring.keys()
        if expiring:
            missing = self._client.call(self._touch, expiring)
            if is_late:  # otherwise it was deleted already
                gone |= missing & self._consumed
        if self._owned:
            # Those that were deleted from here meanwhile are not among them any more.
            gone |= self._client.call(self._renew_owned, dict(self._owned)) & self._owned.keys()
        if gone:
            raise LeaseExpired

    def deleted(self) -> list[str]:
        """Return the queues that are consumed here, and that others have deleted."""
        consumed = list(self._consumed)
        if not consumed:
            return []
        there = self._client.call(self._find_names, consumed)
        # Of a queue that a program of kombu has declared there may be no record.
        return [name for name in consumed if name not in there and self.find_queue(name) is None]

    def _find_names(self, names: list[str]) -> set[str]:
        return {each["_id"] for each in self._queues.find({"_id": {"$in": names}}, {"_id": 1})}

    def _renew_owned(self, owned: Mapping[str, str]) -> set[str]:
        """Begin the leases of exclusive queues anew; return those that are gone."""
        mine = {"_id": {"$in": list(owned)}, "owner": {"$in": list(set(owned.values()))}}
        until = {"owner_until": self._client.now() + self._lease}
        result = self._queues.update_many(mine, {"$set": until})
        if result.matched_count == len(owned):
            return set()
        return owned.keys() - {each["_id"] for each in self._queues.find(mine, {"_id": 1})}

    def set_consumers(self, name: str, consumers: int) -> None:
        """Set the number of consumers that this connection has of a queue."""
        if consumers:
            self._consumed.add(name)
        else:
            self._consumed.discard(name)
        if name in self._expiring:
            self._client.call(self._touch, [name])

    def fetched(self, queues: Iterable[str]) -> None:
        """Note that messages of these queues are fetched, which begins their expiry anew."""
        due = [queue for queue in queues if queue in self._expiring and queue not in self._consumed]
        if due:
            self._client.call(self._touch, due)

    def _touch(self, names: Iterable[str]) -> set[str]:
        """Begin the time without use anew; return the queues that are gone."""
        now = self._client.now()
        gone: set[str] = set()
        for name in names:
            end = now + self._expiring[name]
            if name in self._consumed:
                end += self._lease  # until it is said again
            record = {"_id": name, _ENDING: None}
            result = self._queues.update_one(record, {"$set": {self._end: end}})
            if not result.matched_count:
                gone.add(name)
            if self._options.ttl:
                self._routing.update_many({"queue": name}, {"$set": {self._end: end}})
        return gone

    def drop_unused(self) -> list[str]:
        """Delete the expired queues; return the names of those that were deleted here."""
        late = {self._end: {"$lte": self._client.now()}}
        found: list[Document] = self._client.call(self._find_records, late)
        return [
            document["_id"]
            for document in found
            if not self._is_being_deleted(document) and self._end_queue(document["_id"], document)
        ]

    def _find_records(self, which: Document) -> list[Document]:
        return list(self._queues.find(which))


def _declaration(document: Document) -> Declaration:
    options: Mapping[str, Any] = document.get("options") or {}
    arguments = options.get("arguments")
    return Declaration(
        durable=bool(options.get("durable")),
        auto_delete=bool(options.get("auto_delete")),
        owner=document.get("owner"),
        arguments=dict(arguments) if isinstance(arguments, Mapping) else {},
    )


#: Exchange types whose bindings of queues kombu can read.
_KOMBU_TYPES: Final = frozenset({"direct", "topic", "fanout"})


class KnownExchange:
    """The knowledge of an exchange that all connections of a hub to one database share.

    Attributes:
        kind: its type; None: it was not read.
        read_at: when its bindings were read.
        rows: its bindings; None: there is neither it nor any.
        broadcast_rows: its bindings as publishers see them, one for all its queues, if it is a fan-out
            exchange that is broadcast; None: they were not asked for.
    """

    def __init__(self) -> None:
        self.kind: str | None = None
        self.rows: tuple[Row, ...] | None = None
        self.broadcast_rows: tuple[Row, ...] | None = None
        self.read_at = -inf

    def note_change(self) -> None:
        """Have the bindings read anew.  Never switches."""
        self.read_at = -inf


class MongoTopology(TopologyStore):
    """The records of one database.

    Arguments:
        client: the servers.
        options: names of the collections.
        broadcast: listens for the queues that are bound to fan-out exchanges here.
        user: what listens there.
        wake: called with a queue that a broadcast has come for.
    """

    def __init__(
        self,
        client: Client,
        options: MongoOptions,
        broadcast: Broadcast,
        user: object,
        wake: Callable[[str | None], None],
    ) -> None:
        self._client = client
        self._options = options
        self._broadcast = broadcast
        self._user = user
        self._wake = wake
        self._queues: Any = client.durable[options.queues_collection]
        self._routing: Any = client.durable[options.routing_collection]
        self._exchanges: Any = client.durable[options.exchanges_collection]
        names = options.routing_collection, options.exchanges_collection
        self._cache = client.exchanges.setdefault(names, {})

    # -- exchanges

    def get(self, exchange: str) -> ExchangeRecord | None:
        found: Document | None = self._client.call(self._exchanges.find_one, {"_id": exchange})
        if found is None:
            return self._guess(exchange)
        self._known(exchange).kind = found.get("type") or "direct"
        return {**found, "arguments": _table(found.get("arguments"))}

    def _known(self, exchange: str) -> KnownExchange:
        known = self._cache.get(exchange)
        if known is None:
            known = self._cache[exchange] = KnownExchange()
        return known

    def _guess(self, exchange: str) -> ExchangeRecord | None:
        """Return what an exchange looks like that only programs of kombu have declared."""
        if not self._client.call(self._routing.find_one, {"exchange": exchange}, {"_id": 1}):
            return None
        patterned = {"exchange": exchange, "pattern": {"$nin": [None, ""]}}
        has_patterns = self._client.call(self._routing.find_one, patterned, {"_id": 1})
        return {"type": "topic" if has_patterns else "direct", "is_guess": True}

    def put(self, exchange: str, record: ExchangeRecord) -> None:
        document = {**record, "arguments": dumps(record["arguments"])}
        update = {"$setOnInsert": document}
        self._client.upsert(self._exchanges.update_one, {"_id": exchange}, update)
        known = self._known(exchange)
        known.kind = record["type"]
        if known.rows is None:
            known.note_change()

    def delete(self, exchange: str) -> None:
        self._client.call(self._routing.delete_many, {"exchange": exchange})
        self._client.call(self._exchanges.delete_one, {"_id": exchange})
        self._cache.pop(exchange, None)

    def _kind(self, exchange: str) -> str:
        """Return the type of an exchange; direct for one that was not declared."""
        kind = PREDECLARED.get(exchange) or self._known(exchange).kind
        if kind is None:
            self.get(exchange)
            kind = self._known(exchange).kind
        return kind or "direct"

    # -- bindings

    def rows(self, exchange: str) -> Sequence[Row] | None:
        known = self._known(exchange)
        now = monotonic()
        if now - known.read_at >= self._options.routing_lifetime:
            rows = self._client.call(self._read, exchange)
            known = self._known(exchange)
            known.read_at = now
            if known.rows != rows:  # the same object says that nothing has changed
                known.rows, known.broadcast_rows = rows, None
        if not known.rows or self._options.fanout_lists or self._kind(exchange) != "fanout":
            return known.rows
        if known.broadcast_rows is None:
            rows = known.rows or ()  # others may have read them anew meanwhile
            onward = tuple(row for row in rows if row.to_exchange)
            one = () if len(onward) == len(rows) else (Row("", "", PREFIX + exchange),)
            known.broadcast_rows = one + onward
        return known.broadcast_rows

    def _read(self, exchange: str) -> tuple[Row, ...] | None:
        rows = [
            Row(each.get("routing_key") or "", each.get("pattern") or "", each["queue"])
            for each in self._routing.find({"exchange": exchange})
            if each.get("queue")
        ]
        document = self._exchanges.find_one({"_id": exchange})
        if document is None:
            return tuple(rows) or None
        for binding in document.get("bindings", ()):
            key, pattern, arguments = loads(binding["row"])
            rows.append(Row(key, pattern, binding["to"], arguments, bool(binding["is_exchange"])))
        return tuple(rows)

    def add(self, exchange: str, row: Row) -> None:
        kind = self._kind(exchange)
        if row.to_exchange or kind not in _KOMBU_TYPES:
            self._change(exchange, "$addToSet", row)
        else:
            lookup = _lookup(exchange, row)
            data = dict(lookup)
            if self._options.ttl:
                # Where the queue expires, so does this.
                document = self._client.call(self._queues.find_one, {"_id": row.queue}) or {}
                data[EXPIRE_AT] = document.get(EXPIRE_AT)
            self._client.upsert(self._routing.update_one, lookup, {"$set": data})
        self._known(exchange).note_change()
        if kind == "fanout" and not row.to_exchange and not self._options.fanout_lists:
            self._broadcast.listen(self._user, row.queue, exchange, self._wake)

    def remove(self, exchange: str, row: Row) -> bool:
        kind = self._kind(exchange)
        if row.to_exchange or kind not in _KOMBU_TYPES:
            count = self._change(exchange, "$pull", row)
        else:
            lookup = _lookup(exchange, row)
            count = self._client.call(self._routing.delete_many, lookup).deleted_count
        self._known(exchange).note_change()
        if kind == "fanout" and not row.to_exchange:
            self._broadcast.forget(row.queue, exchange)
        return bool(count)

    def _change(self, exchange: str, operator: str, row: Row) -> int:
        binding = {
            "to": row.queue,
            "is_exchange": row.to_exchange,
            # Names of arguments may be such as MongoDB keeps for itself.
            "row": dumps([row.routing_key, row.pattern, dict(row.arguments or {})]),
        }
        update = {operator: {"bindings": binding}}
        result = self._client.call(self._exchanges.update_one, {"_id": exchange}, update)
        return int(result.modified_count)

    def remove_to(self, destination: str, *, is_exchange: bool) -> Collection[str]:
        sources: list[str] = self._client.call(self._remove_to, destination, is_exchange)
        for source in sources:
            self._known(source).note_change()
        return sources

    def _remove_to(self, destination: str, is_exchange: bool) -> list[str]:
        sources: list[str] = []
        if not is_exchange:
            sources += self._routing.distinct("exchange", {"queue": destination})
            self._routing.delete_many({"queue": destination})
        gone = {"to": destination, "is_exchange": is_exchange}
        holding = {"bindings": {"$elemMatch": gone}}
        sources += self._exchanges.distinct("_id", holding)
        self._exchanges.update_many(holding, {"$pull": {"bindings": gone}})
        return sources

    def fanouts_of(self, queue: str) -> list[str]:
        """Return the fan-out exchanges that a queue is bound to.  May switch."""
        found: list[str] = self._client.call(self._fanouts_of, queue)
        return found

    def _fanouts_of(self, queue: str) -> list[str]:
        names = [each["exchange"] for each in self._routing.find({"queue": queue})]
        if not names:
            return []
        fanout = {"_id": {"$in": names}, "type": "fanout"}
        found = [each["_id"] for each in self._exchanges.find(fanout, {"_id": 1})]
        return found + [name for name in names if PREDECLARED.get(name) == "fanout"]


def _lookup(exchange: str, row: Row) -> Document:
    # For a key that is no pattern kombu stores None.
    return {
        "exchange": exchange,
        "queue": row.queue,
        "routing_key": row.routing_key,
        "pattern": row.pattern or None,
    }


def _table(text: Any) -> dict[str, Any]:
    try:
        table = loads(text)
    except (TypeError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}
