"""The declarations of queues, kept on the server for all programs.

Several connections may find at the same time that a queue has ended: that its owner is dead, or that
it was not used for long enough.  One of them marks its record, if that is still as it was seen, deletes
what belongs to the queue, and the record last.  The others wait until it is gone.  So a queue that was
declared anew meanwhile is not deleted, nor are its messages and bindings.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from datetime import timedelta
from time import monotonic
from typing import Any, Final

import gevent
from bson import ObjectId
from pymongo import ReturnDocument

from greenconn.broker.port import LeaseExpired
from greenconn.broker.topology import Topology
from greenconn.transport.mongodb.client import Client
from greenconn.transport.mongodb.documents import DEAD_AT, EXPIRE_AT, Document
from greenconn.transport.mongodb.options import MongoOptions
from greenconn.transport.virtual.declaration import UNDECLARED, Declaration
from greenconn.transport.virtual.names import is_lost

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

    def __init__(self, client: Client, options: MongoOptions, topology: Topology) -> None:
        self._client = client
        self._options = options
        self._topology = topology
        database = client.database
        self._messages: Any = database[options.messages_collection]
        self._queues: Any = database[options.queues_collection]
        self._routing: Any = database[options.routing_collection]
        self._lease = timedelta(seconds=options.lease)
        #: The record of when an unused queue is deleted.
        self._end = EXPIRE_AT if options.ttl else DEAD_AT
        #: Queues that expire when they are unused, as far as is known.
        self._expiring: dict[str, timedelta] = {}
        #: Those of them that are consumed here.
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
        document: Document = self._client.call(
            self._queues.find_one_and_update,
            {"_id": name},
            {"$setOnInsert": self._queue_document(declaration)},
            upsert=True,
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
        if self._consumed:
            missing = self._client.call(self._touch, list(self._consumed))
            if is_late:  # otherwise it was deleted already
                gone |= missing & self._consumed
        if self._owned:
            # Those that were deleted from here meanwhile are not among them any more.
            gone |= self._client.call(self._renew_owned, dict(self._owned)) & self._owned.keys()
        if gone:
            raise LeaseExpired

    def _renew_owned(self, owned: Mapping[str, str]) -> set[str]:
        """Begin the leases of exclusive queues anew; return those that are gone."""
        mine = {"_id": {"$in": list(owned)}, "owner": {"$in": list(set(owned.values()))}}
        until = {"owner_until": self._client.now() + self._lease}
        result = self._queues.update_many(mine, {"$set": until})
        if result.matched_count == len(owned):
            return set()
        return owned.keys() - {each["_id"] for each in self._queues.find(mine, {"_id": 1})}

    def set_consumers(self, name: str, consumers: int) -> None:
        """Set the number of consumers here of an auto-delete queue."""
        if name in self._expiring:
            if consumers:
                self._consumed.add(name)
            else:
                self._consumed.discard(name)
            self._client.call(self._touch, [name])

    def fetched(self, queues: Iterable[str]) -> None:
        """Note that messages of these queues are fetched, which begins their expiry anew."""
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
            each["_id"]
            for each in found
            if not self._is_being_deleted(each) and self._end_queue(each["_id"], each)
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
