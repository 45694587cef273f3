"""Fan-out as kombu has it: messages of fan-out exchanges in one capped collection, read at its end.

A message goes to those that listen now; it is not stored, and not acknowledged.  Consumers of ours
that share a queue within one process share its messages, too: they are kept here, for each queue that
is bound to a fan-out exchange, since the queue was bound or first consumed from here.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from pymongo import DESCENDING
from pymongo.errors import PyMongoError

from greenconn.broker.port import Claimed, Settlement, SettleRequest
from greenconn.green.deadline import NEVER
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.supervisor import OnDemand, spawn
from greenconn.transport.mongodb.client import Client, LinkLost, TailCursor
from greenconn.transport.mongodb.documents import REDELIVERED, Document, claimed_of

logger = logging.getLogger("greenconn.transport.mongodb")

#: Begins the name that stands for a fan-out exchange where a queue is expected; no queue has it.
PREFIX: Final = "\0fanout\0"
#: Messages that are kept for one queue; older ones are dropped.
MOST_KEPT: Final = 10_000
#: For a collection that is empty or a server that is away.
READING: Final = RetryPolicy(first=0.25, factor=1.0, jitter=0.0)
_NOTE: Final = "broadcast "


class Copy:
    """A message of a fan-out exchange, for one queue: there is nothing on the server to settle."""

    __slots__ = ("deliveries", "document", "queue")

    def __init__(self, queue: str, document: Document) -> None:
        self.queue = queue
        self.document = document
        self.deliveries = 0


class _Listener:
    """A queue that is bound to fan-out exchanges.

    Attributes:
        exchanges: their names.
        users: those to wake for new messages, by connection.
    """

    def __init__(self) -> None:
        self.exchanges: set[str] = set()
        self.copies: deque[Copy] = deque()
        self.users: dict[object, Callable[[str | None], None]] = {}


class Broadcast:
    """The messages of fan-out exchanges for the queues that are used in this process.

    Arguments:
        client: the servers.
        collection: the name of the capped collection.

    Attributes:
        dropped: number of messages that were not consumed in time.
    """

    def __init__(self, client: Client, collection: str) -> None:
        self._client = client
        self._name = collection
        self._collection: Any = client.database[collection]
        self._listeners: dict[str, _Listener] = {}
        self._reading = OnDemand("mongodb broadcast", self._run)
        #: Key of the document that was read last.
        self._last: Any = None
        self.dropped = 0

    def listen(
        self, user: object, queue: str, exchange: str, wake: Callable[[str | None], None]
    ) -> None:
        """Keep what comes through *exchange* from now on for *queue*.  May switch."""
        listener = self._listeners.get(queue)
        if listener is None:
            listener = self._listeners[queue] = _Listener()
        listener.users[user] = wake
        if self._reading.greenlet is None:
            last = self._client.call(self._last_key)
            if user not in listener.users:
                return  # its connection went meanwhile
            if self._reading.greenlet is None:
                self._last = last
                self._reading.start()
        listener.exchanges.add(exchange)

    def _last_key(self) -> Any:
        found = self._collection.find_one({}, {"_id": 1}, sort=[("$natural", DESCENDING)])
        return None if found is None else found["_id"]

    def has_listener(self, queue: str, user: object) -> bool:
        """Return whether *user* is woken for *queue*."""
        listener = self._listeners.get(queue)
        return listener is not None and user in listener.users

    def forget(self, queue: str, exchange: str | None = None) -> None:
        """Forget a queue's binding to *exchange*; None: all of its bindings.  Never switches."""
        listener = self._listeners.get(queue)
        if listener is None:
            return
        if exchange is not None:
            listener.exchanges.discard(exchange)
        if exchange is None or not listener.exchanges:
            del self._listeners[queue]
            self._stop_if_unused()

    def leave(self, user: object) -> None:
        """Remove a connection that has ended.  Never switches."""
        for queue, listener in list(self._listeners.items()):
            listener.users.pop(user, None)
            if not listener.users:
                del self._listeners[queue]
        self._stop_if_unused()

    def _stop_if_unused(self) -> None:
        if not self._listeners:
            self._reading.end()

    # -- taking

    def take(self, wanted: Mapping[str, int]) -> list[Claimed]:
        """Take messages that have come.  Never switches."""
        taken: list[Claimed] = []
        if not self._listeners:
            return taken
        for queue, count in wanted.items():
            listener = self._listeners.get(queue)
            while listener is not None and listener.copies and count > 0:
                copy = listener.copies.popleft()
                found = claimed_of(copy.document, None, queue)
                taken.append(found._replace(handle=copy, deliveries=copy.deliveries))
                count -= 1
        return taken

    def put_back(self, copy: Copy) -> None:
        """Put back a message that was taken and not delivered.  Never switches."""
        self.settle(SettleRequest(copy, Settlement.REQUEUE, is_unseen=True))

    def settle(self, request: SettleRequest) -> None:
        """Say what became of a message.  Never switches."""
        copy: Copy = request.handle
        listener = self._listeners.get(copy.queue)
        if request.settlement is Settlement.REQUEUE and listener is not None:
            if request.is_unhandled:
                copy.document = {**copy.document, REDELIVERED: True}
            elif not request.is_unseen:
                copy.deliveries += 1
            listener.copies.appendleft(copy)
            self._wake(copy.queue, listener)

    def size(self, queue: str) -> int:
        """Return the number of messages that wait here for a queue.  Never switches."""
        listener = self._listeners.get(queue)
        return 0 if listener is None else len(listener.copies)

    def purge(self, queue: str) -> int:
        """Drop what is here for a queue.  Never switches."""
        count = self.size(queue)
        if count:
            self._listeners[queue].copies.clear()
        return count

    # -- reading

    def _run(self) -> None:
        def may_pass(exc: Exception) -> bool:
            return isinstance(exc, (LinkLost, PyMongoError))

        for attempt in attempts(READING, NEVER, may_pass):
            with attempt:
                self._read()
            if attempt.error is not None:
                # Those who publish and claim meet the same, and say so.
                logger.debug(
                    "%s: reading broadcasts: %s",
                    self._client.where,
                    attempt.error,
                    extra={"connection": self._client.where},
                )

    def _read(self) -> None:
        reading = TailCursor(self._client, self._name)
        try:
            command = {"find": self._name, "tailable": True, "awaitData": True}
            found = reading.open(command)
            is_new = self._last is None
            if not is_new and not any(each["_id"] == self._last for each in found):
                # What was read last may be in a later batch, or be gone with all before it.
                is_new = not self._client.call(self._is_there, self._last)
            while True:
                for each in found:
                    if is_new:
                        self._take_in(each)
                    elif each["_id"] == self._last:
                        is_new = True
                if not reading.is_alive:
                    return  # so is the cursor of an empty collection
                found = reading.more()
        finally:
            spawn("mongodb broadcast end", reading.close)

    def _is_there(self, key: Any) -> bool:
        return self._collection.find_one({"_id": key}, {"_id": 1}) is not None

    def _take_in(self, document: Document) -> None:
        self._last = document["_id"]
        for queue, listener in self._listeners.items():
            if document.get("queue") not in listener.exchanges:
                continue
            if len(listener.copies) >= MOST_KEPT:
                listener.copies.popleft()
                if not self.dropped:
                    logger.warning(
                        "%s: queue %r has %d unconsumed messages of fan-out exchanges: the "
                        "oldest are dropped from now on",
                        self._client.where,
                        queue,
                        MOST_KEPT,
                        extra={"connection": self._client.where, "queue": queue},
                    )
                self.dropped += 1
            listener.copies.append(Copy(queue, document))
            self._wake(queue, listener)

    def _wake(self, queue: str, listener: _Listener) -> None:
        for wake in listener.users.values():
            wake(queue)


def broadcast_of(client: Client, collection: str) -> Broadcast:
    """Return the broadcast of a client, one for all connections.  Never switches."""
    found: Broadcast | None = client.notes.get(_NOTE + collection)
    if found is None:
        found = client.notes[_NOTE + collection] = Broadcast(client, collection)
    return found
