"""How queues and exchanges were declared, and what is bound: on the server, for all programs.

Bindings of queues to direct, topic and fan-out exchanges are rows of kombu's.  Others (of headers
exchanges, and between exchanges) kombu would misread: they are kept with the exchange.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import timedelta
from time import monotonic
from typing import Any, Final

from pymongo import ReturnDocument

from greenconn.broker.port import Row, TakenForDead
from greenconn.jsoncodec import dumps, loads
from greenconn.transport.mongodb.broadcast import PREFIX
from greenconn.transport.mongodb.client import Client
from greenconn.transport.mongodb.documents import DEAD_AT, EXPIRE_AT, Document
from greenconn.transport.mongodb.options import MongoOptions
from greenconn.transport.virtual.declaration import UNDECLARED, Declaration
from greenconn.transport.virtual.entities import PREDECLARED
from greenconn.transport.virtual.exchange import ROUTERS
from greenconn.transport.virtual.state import Exchange

__all__ = ["Directory"]

#: Exchange types whose bindings of queues kombu can read.
_KOMBUS: Final = frozenset({"direct", "topic", "fanout"})
#: What the notes of a client keep bindings, and types of exchanges, under.
_ROWS: Final = "rows"
_KINDS: Final = "kinds"


class Directory:
    """What one connection asks and tells of queues and exchanges.  All its methods may switch.

    Arguments:
        client: the servers.
        options: names of the collections.
    """

    def __init__(self, client: Client, options: MongoOptions) -> None:
        self._client = client
        self._options = options
        database = client.database
        self._messages: Any = database[options.messages_collection]
        self._queues: Any = database[options.queues_collection]
        self._routing: Any = database[options.routing_collection]
        self._exchanges: Any = database[options.exchanges_collection]
        self._lease = timedelta(seconds=options.lease)
        #: What says when a queue that nobody uses is deleted.
        self._end = EXPIRE_AT if options.ttl else DEAD_AT
        #: Queues that are deleted when nobody has used them for some time, as far as is known.
        self._expiring: dict[str, timedelta] = {}
        #: Those of them that are consumed here.
        self._consumed: set[str] = set()
        #: Exclusive queues of this connection, and the owner that they were declared with.
        self._owned: dict[str, str] = {}
        self._renewed_at = monotonic()
        #: Exchange -> when it was read, and the rows; shared by all connections of the hub.
        self._rows: dict[str, tuple[float, tuple[Row, ...] | None]]
        self._rows = client.notes.setdefault(_ROWS, {})
        #: Exchange -> its type; the same.
        self._kinds: dict[str, str] = client.notes.setdefault(_KINDS, {})
        #: Fan-out exchange -> its rows, and those that stand for them.
        self._broadcasts: dict[str, tuple[Sequence[Row], tuple[Row, ...]]] = {}

    # -- queues

    def make_queue(self, name: str, declaration: Declaration) -> Declaration:
        """Make a queue; return how it was declared, which for an existing one may differ."""
        self._note_expiry(name, declaration)
        document = self._client.call(
            self._queues.find_one_and_update,
            {"_id": name},
            {"$setOnInsert": self._queue_document(declaration)},
            upsert=True,
            return_document=ReturnDocument.AFTER,
        )
        made = _declaration(document)
        if declaration.owner is not None and made.owner == declaration.owner:
            self._owned[name] = declaration.owner
        return made

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
        document, is_there = self._client.call(self._find_queue, name)
        if document is None:
            return UNDECLARED if is_there else None
        now = self._client.now()
        if document.get("owner_until", now) < now or document.get(self._end, now) < now:
            # Its connection has gone without a word, or nobody has used it for too long.
            self.drop_queue(name)
            return None
        declaration = _declaration(document)
        self._note_expiry(name, declaration)
        return declaration

    def _find_queue(self, name: str) -> tuple[Document | None, bool]:
        document = self._queues.find_one({"_id": name})
        if document is not None:
            return document, True
        # kombu notes no declaration: a queue of its programs shows by what is in it or bound to it.
        found = self._messages.find_one({"queue": name}, {"_id": 1})
        return None, (found or self._routing.find_one({"queue": name}, {"_id": 1})) is not None

    def drop_queue(self, name: str) -> int:
        """Delete a queue, its messages and its bindings; return how many messages waited in it."""
        self._owned.pop(name, None)
        self._expiring.pop(name, None)
        self._consumed.discard(name)
        count: int = self._client.call(self._drop_queue, name)
        self._rows.clear()
        return count

    def _drop_queue(self, name: str) -> int:
        bound = self._routing.distinct("exchange", {"queue": name})
        self._routing.delete_many({"queue": name})
        gone = {"to": name, "is_exchange": False}
        holding = {"bindings": {"$elemMatch": gone}}
        bound += self._exchanges.distinct("_id", holding)
        self._exchanges.update_many(holding, {"$pull": {"bindings": gone}})
        self._drop_unbound(bound)
        self._queues.delete_one({"_id": name})
        # Also what somebody works on, or is delayed: by the indexes of those.
        held = [{"lease_until": {"$exists": True}}, {"due_at": {"$exists": True}}]
        self._messages.delete_many({"$or": held, "claimed": name})
        return int(self._messages.delete_many({"queue": name}).deleted_count)

    def purge(self, name: str) -> int:
        """Delete the messages that wait in a queue and return how many there were."""
        result = self._client.call(self._messages.delete_many, {"queue": name})
        return int(result.deleted_count)

    def size(self, name: str) -> int:
        """How many messages wait in a queue."""
        if not self._options.calc_queue_size:
            return 0
        return int(self._client.call(self._size, name))

    def _size(self, name: str) -> int:
        late = {DEAD_AT: {"$lte": self._client.now()}, "queue": name}
        waiting = int(self._messages.count_documents({"queue": name}))
        return waiting - int(self._messages.count_documents(late)) if waiting else 0

    def renew(self) -> None:
        """This connection lives: its exclusive queues stay, and those that it consumes.

        Raises:
            TakenForDead: it was silent for too long, and others have deleted one of them.
        """
        is_late = monotonic() - self._renewed_at > self._lease.total_seconds()
        self._renewed_at = monotonic()
        gone: set[str] = set()
        if self._consumed:
            missing = self._client.call(self._touch, list(self._consumed))
            if is_late:  # else somebody has deleted it
                gone |= missing & self._consumed
        if self._owned:
            # Those that were deleted from here meanwhile are not among them any more.
            gone |= self._client.call(self._renew_owned, dict(self._owned)) & self._owned.keys()
        if gone:
            raise TakenForDead

    def _renew_owned(self, owned: Mapping[str, str]) -> set[str]:
        """Begin the leases of exclusive queues anew; return those that are gone."""
        mine = {"_id": {"$in": list(owned)}, "owner": {"$in": list(set(owned.values()))}}
        until = {"owner_until": self._client.now() + self._lease}
        result = self._queues.update_many(mine, {"$set": until})
        if result.matched_count == len(owned):
            return set()
        return owned.keys() - {each["_id"] for each in self._queues.find(mine, {"_id": 1})}

    def enrol(self, name: str, consumers: int) -> None:
        """A queue that is deleted when nobody uses it has so many consumers here now."""
        if name in self._expiring:
            if consumers:
                self._consumed.add(name)
            else:
                self._consumed.discard(name)
            self._client.call(self._touch, [name])

    def fetched(self, queues: Iterable[str]) -> None:
        """Somebody has looked for a message in these queues."""
        due = [each for each in queues if each in self._expiring and each not in self._consumed]
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
            result = self._queues.update_one({"_id": name}, {"$set": {self._end: end}})
            if not result.matched_count:
                gone.add(name)
            if self._options.ttl:
                self._routing.update_many({"queue": name}, {"$set": {self._end: end}})
        return gone

    def drop_unused(self) -> list[str]:
        """Delete the queues that nobody has used for too long; return their names."""
        late = {self._end: {"$lte": self._client.now()}}
        names: list[str] = self._client.call(self._queues.distinct, "_id", late)
        for name in names:
            self.drop_queue(name)
        return names

    # -- exchanges

    def note_exchange(self, exchange: Exchange) -> None:
        """An exchange was declared."""
        document = {
            "type": exchange.type,
            "durable": exchange.durable,
            "auto_delete": exchange.auto_delete,
            "arguments": dumps(dict(exchange.arguments)),
        }
        self._client.call(
            self._exchanges.update_one,
            {"_id": exchange.name},
            {"$setOnInsert": document},
            upsert=True,
        )
        self._kinds[exchange.name] = exchange.type
        known = self._rows.get(exchange.name)
        if known is not None and known[1] is None:
            del self._rows[exchange.name]

    def kind(self, name: str) -> str:
        """The type of an exchange; direct for one that nobody has declared."""
        kind = PREDECLARED.get(name) or self._kinds.get(name)
        if kind is None:
            found = self.find_exchange(name)
            kind = "direct" if found is None else found.type
        return kind

    def find_exchange(self, name: str) -> Exchange | None:
        """Return an exchange (without its bindings); None: there is none."""
        found = self._client.call(self._exchanges.find_one, {"_id": name})
        if found is None or found.get("type") not in ROUTERS:
            return None
        kind = self._kinds[name] = found["type"]
        return Exchange(
            name,
            kind,
            ROUTERS[kind](),
            durable=bool(found.get("durable")),
            auto_delete=bool(found.get("auto_delete")),
            arguments=_table(found.get("arguments")),
        )

    def drop_exchange(self, name: str) -> None:
        """Delete an exchange and its bindings."""
        self._client.call(self._drop_exchange, name)
        self._rows.clear()
        self._kinds.pop(name, None)

    def _drop_exchange(self, name: str) -> None:
        self._routing.delete_many({"exchange": name})
        self._exchanges.delete_one({"_id": name})
        gone = {"to": name, "is_exchange": True}
        holding = {"bindings": {"$elemMatch": gone}}
        self._exchanges.update_many(holding, {"$pull": {"bindings": gone}})

    def _drop_unbound(self, names: list[str]) -> None:
        """Delete those auto-delete exchanges, of some, that have lost their last binding."""
        for each in self._exchanges.find({"_id": {"$in": names}, "auto_delete": True}):
            if not each.get("bindings") and not self._routing.find_one({"exchange": each["_id"]}):
                self._drop_exchange(each["_id"])

    # -- bindings

    def bind(self, exchange: str, kind: str, row: Row) -> None:
        """Add a binding of an exchange of the type *kind*; again: changes nothing."""
        if row.to_exchange or kind not in _KOMBUS:
            self._change(exchange, "$addToSet", row)
        else:
            lookup = _lookup(exchange, row)
            data = dict(lookup)
            if self._options.ttl:
                # Where the queue expires, so does this.
                document = self._client.call(self._queues.find_one, {"_id": row.queue}) or {}
                data[EXPIRE_AT] = document.get(EXPIRE_AT)
            self._client.call(self._routing.update_one, lookup, {"$set": data}, upsert=True)
        self._rows.pop(exchange, None)

    def unbind(self, exchange: str, kind: str, row: Row) -> None:
        """Remove a binding; one that is not there is no error."""
        if row.to_exchange or kind not in _KOMBUS:
            self._change(exchange, "$pull", row)
        else:
            self._client.call(self._routing.delete_many, _lookup(exchange, row))
        self._rows.pop(exchange, None)

    def _change(self, exchange: str, operator: str, row: Row) -> None:
        binding = {
            "to": row.queue,
            "is_exchange": row.to_exchange,
            # Names of arguments may be such as MongoDB keeps for itself.
            "row": dumps([row.routing_key, row.pattern, dict(row.arguments or {})]),
        }
        update = {operator: {"bindings": binding}}
        self._client.call(self._exchanges.update_one, {"_id": exchange}, update)

    def rows(self, exchange: str) -> tuple[Row, ...] | None:
        """The bindings of an exchange; None: there is no such exchange any more."""
        known = self._rows.get(exchange)
        now = monotonic()
        if known is not None and now - known[0] < self._options.routing_lifetime:
            return known[1]
        rows = self._client.call(self._read_rows, exchange)
        if known is not None and known[1] == rows:
            rows = known[1]  # the same object says that nothing has changed
        self._rows[exchange] = (now, rows)
        return rows

    def _read_rows(self, exchange: str) -> tuple[Row, ...] | None:
        rows = [
            Row(each.get("routing_key") or "", each.get("pattern") or "", each["queue"])
            for each in self._routing.find({"exchange": exchange})
            if each.get("queue")
        ]
        document = self._exchanges.find_one({"_id": exchange})
        if document is None:
            return tuple(rows) if rows or exchange in PREDECLARED else None
        for each in document.get("bindings", ()):
            key, pattern, arguments = loads(each["row"])
            rows.append(Row(key, pattern, each["to"], arguments, bool(each["is_exchange"])))
        return tuple(rows)

    def broadcast_rows(self, exchange: str, rows: Sequence[Row]) -> tuple[Row, ...]:
        """The rows of a fan-out exchange whose messages are broadcast: one, for all its queues."""
        known = self._broadcasts.get(exchange)
        if known is not None and known[0] is rows:
            return known[1]
        onward = tuple(each for each in rows if each.to_exchange)
        one = () if len(onward) == len(rows) else (Row("", "", PREFIX + exchange),)
        self._broadcasts[exchange] = (rows, one + onward)
        return one + onward

    def exchanges_of(self, queue: str) -> list[str]:
        """The fan-out exchanges that a queue is bound to."""
        found: list[str] = self._client.call(self._exchanges_of, queue)
        return found

    def _exchanges_of(self, queue: str) -> list[str]:
        names = [each["exchange"] for each in self._routing.find({"queue": queue})]
        if not names:
            return []
        fanout = {"_id": {"$in": names}, "type": "fanout"}
        found = [each["_id"] for each in self._exchanges.find(fanout, {"_id": 1})]
        return found + [each for each in names if PREDECLARED.get(each) == "fanout"]


def _lookup(exchange: str, row: Row) -> Document:
    # For a key that is no pattern kombu stores None.
    return {
        "exchange": exchange,
        "queue": row.queue,
        "routing_key": row.routing_key,
        "pattern": row.pattern or None,
    }


def _declaration(document: Document) -> Declaration:
    options: Mapping[str, Any] = document.get("options") or {}
    arguments = options.get("arguments")
    return Declaration(
        durable=bool(options.get("durable")),
        auto_delete=bool(options.get("auto_delete")),
        owner=document.get("owner"),
        arguments=dict(arguments) if isinstance(arguments, Mapping) else {},
    )


def _table(text: Any) -> dict[str, Any]:
    try:
        table = loads(text)
    except (TypeError, ValueError):
        return {}
    return table if isinstance(table, dict) else {}
