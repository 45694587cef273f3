"""Reading new documents as they arrive: messages of fan-out exchanges, and notifications of messages.

Fan-out is as kombu has it: its messages are in one capped collection, which is read at its end.  A
message goes to those that listen now; it is not stored, and not acknowledged.  Consumers of ours that
share a queue within one process share its messages, too: they are kept here, for each queue that is
bound to a fan-out exchange, since the queue was bound or first consumed from here.

Claims that found no message are notified when one is published.  A member of a replica set tells of
changes (a *change stream*), as long as we want to know: while the queues are empty.  A lone server
cannot; there we poll, after 10 ms, then less and less often, up to once a second, and at once again when
there was something.  On both, what leases and delays have requeued is looked for once a second.

Both cursors are plain commands in a session.  pymongo's own cursors would send commands to the server
when they are garbage collected, at any time and in any process.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping
from math import inf
from time import monotonic
from typing import Any, Final

import gevent
from bson import Int64
from gevent.event import Event
from msgspec.structs import replace
from pymongo import DESCENDING, errors
from pymongo.errors import OperationFailure, PyMongoError

from greenconn.broker.port import Claimed, Settlement, SettleRequest
from greenconn.green.deadline import NEVER
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.supervisor import OnDemand, spawn
from greenconn.transport.mongodb.client import (
    REDELIVERED,
    Client,
    Document,
    LinkLost,
    LoginRefused,
    claimed_of,
)

logger = logging.getLogger("greenconn.transport.mongodb")

#: Seconds that the server waits for something new before it answers that there is nothing: so long
#: does the end of a connection wait for a call that is on its way.
AWAIT_TIME: Final = 0.5


class TailCursor:
    """A cursor and its thread.  Its methods may switch.

    Arguments:
        client: the servers.
        collection: the name of the collection.
    """

    def __init__(self, client: Client, collection: str) -> None:
        self._client = client
        self._collection = collection
        # It waits in its call nearly all the time: others are not to wait for it.
        self._threads = client.call_pool(1)
        self._session: Any = None
        self._id = 0

    @property
    def is_alive(self) -> bool:
        """Whether more may come."""
        return self._id != 0

    def open(self, command: Mapping[str, Any]) -> list[Document]:
        """Open it with *command*; return what there is already."""
        self._session = self._client.session()
        return self._run(command, "firstBatch")

    def more(self) -> list[Document]:
        """Return what is new, after :data:`AWAIT_TIME` at most."""
        command = {
            "getMore": Int64(self._id),
            "collection": self._collection,
            "maxTimeMS": int(AWAIT_TIME * 1000),
        }
        return self._run(command, "nextBatch")

    def _run(self, command: Mapping[str, Any], batch: str) -> list[Document]:
        self._id = 0  # if it fails, there is no cursor
        reply = self._client.call_in(
            self._threads, self._client.database.command, dict(command), session=self._session
        )
        cursor = reply["cursor"]
        self._id = int(cursor["id"])
        found: list[Document] = cursor[batch]
        return found

    def close(self) -> None:
        """Close the cursor, or leave that to a server that cannot be asked, and end its thread."""
        try:
            if self._id:
                number, self._id = self._id, 0
                command = {"killCursors": self._collection, "cursors": [Int64(number)]}
                self._client.call_in(self._threads, self._client.database.command, command)
        except errors.PyMongoError:
            pass  # the server closes it by itself
        finally:
            session, self._session = self._session, None
            if session is not None:
                session.end_session()
            self._threads.close()


#: Begins the name that stands for a fan-out exchange where a queue is expected; no queue has it.
PREFIX: Final = "\0fanout\0"
#: Messages that are kept for one queue; older ones are dropped.
MOST_KEPT: Final = 10_000
#: For a collection that is empty or a server that is away.
READING: Final = RetryPolicy(first=0.25, factor=1.0, jitter=0.0)


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
                taken.append(replace(found, handle=copy, deliveries=copy.deliveries))
                count -= 1
        return taken

    def put_back(self, copy: Copy) -> None:
        """Put back a message that was taken and not delivered.  Never switches."""
        self.settle(
            SettleRequest(Claimed(copy.queue, None, copy), Settlement.REQUEUE, is_unseen=True)
        )

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
                for document in found:
                    if is_new:
                        self._take_in(document)
                    elif document["_id"] == self._last:
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
    found = client.broadcasts.get(collection)
    if found is None:
        found = client.broadcasts[collection] = Broadcast(client, collection)
    return found


#: Seconds between two looks: at first, and in the end.
SHORTEST: Final = 0.01
LONGEST: Final = 1.0
#: The same while the server tells of changes.
WATCHED: Final = 5.0
#: Seconds between two looks for what came back by itself.
SWEEP_INTERVAL: Final = 1.0
#: Seconds of work without a pause after which changes are not of interest any more.
BUSY: Final = 2.0
#: Number of polls without a claim in between after which polling ends.
IN_VAIN: Final = 3

_STREAM: Final = [
    {"$changeStream": {}},
    # What waits now: new, or back.
    {
        "$match": {
            "$or": [
                {"operationType": {"$in": ["insert", "replace"]}},
                {"updateDescription.updatedFields.queue": {"$exists": True}},
            ]
        }
    },
    # Nothing of the messages themselves.
    {"$project": {"new": "$fullDocument.queue", "back": "$updateDescription.updatedFields.queue"}},
]


class Notifications:
    """Wakes the consumers of one connection.

    Arguments:
        client: the servers.
        collection: the name of the collection of messages.
        interval: seconds between two polls; None adapts.
        wake: has a consumed queue claimed from, or all for None.  Never switches.
        sweep: requeues messages whose lease is not renewed or whose delay is over, takes what has
            expired if its argument says that claims are made here, and returns the seconds until
            something else is due; None where nothing is known to be.  May switch.
    """

    def __init__(
        self,
        client: Client,
        collection: str,
        interval: float | None,
        wake: Callable[[str | None], None],
        sweep: Callable[[bool], float | None],
    ) -> None:
        self._client = client
        self._collection = collection
        self._interval = interval
        self._wake = wake
        self._sweep = sweep
        self._pause = SHORTEST
        self._wanted = Event()
        self._empty_polls = 0
        self._polling = OnDemand("mongodb notifications", self._poll)
        self._streaming = OnDemand("mongodb changes", self._watch)
        self._is_streaming = False
        self._is_stopped = False
        self._can_stream = client.is_set
        #: When queues were last seen empty.
        self._empty_at = monotonic()
        #: When something is due that is known here; it may be past.
        self._due_at = inf

    def note_claim(self, count: int, wanted: int) -> None:
        """Note that a claim found *count* of *wanted* messages.  Never switches."""
        self._empty_polls = 0
        if count:
            self._pause = SHORTEST
        if count < wanted:
            self._empty_at = monotonic()
        if self._is_stopped:
            return
        self._polling.start()
        if self._can_stream and not count:
            self._streaming.start()

    def expect(self, seconds: float) -> None:
        """Something is due in so many seconds.  Never switches."""
        at = monotonic() + seconds
        if at < self._due_at:
            self._due_at = at
            self._wanted.set()
        if not self._is_stopped:
            self._polling.start()

    def stop(self) -> None:
        """Stop.  Never switches."""
        self._is_stopped = True
        self._polling.end()
        self._streaming.end()

    def _next_pause(self) -> float:
        pause = self._interval
        if pause is None:
            pause = WATCHED if self._is_streaming else self._pause
            self._pause = min(self._pause * 2, LONGEST)
        return min(pause, SWEEP_INTERVAL, max(0.0, self._due_at - monotonic()))

    def _poll(self) -> None:
        swept_at = woken_at = monotonic()
        while self._empty_polls < IN_VAIN or self._due_at < inf:
            pause = self._next_pause()
            self._wanted.clear()
            if self._wanted.wait(pause):
                continue  # something is due earlier
            now = monotonic()
            if now >= self._due_at or now - swept_at >= SWEEP_INTERVAL:
                swept_at = now
                self._due_at = inf  # the sweep says what is due next
                self._sweep_late()
            if not self._is_streaming or now - woken_at >= WATCHED:
                woken_at = now
                self._empty_polls += 1
                self._wake(None)

    def _sweep_late(self) -> None:
        try:
            due = self._sweep(self._empty_polls < IN_VAIN)
        except (LinkLost, PyMongoError) as exc:
            # The next claim meets the same, and ends the connection if it must.
            logger.debug(
                "%s: polling: %s", self._client.where, exc, extra={"connection": self._client.where}
            )
            self._wake(None)
            return
        if due is not None:
            self.expect(due)

    # -- change streams

    def _watch(self) -> None:
        try:
            self._follow()
        except (OperationFailure, LoginRefused) as exc:
            self._can_stream = False
            self._log(f"does not permit a change stream ({exc})")
        except (LinkLost, PyMongoError) as exc:
            logger.debug(
                "%s: change stream: %s",
                self._client.where,
                exc,
                extra={"connection": self._client.where},
            )
            gevent.sleep(LONGEST)
        finally:
            self._is_streaming = False
            self._pause = SHORTEST

    def _follow(self) -> None:
        reading = TailCursor(self._client, self._collection)
        try:
            command = {"aggregate": self._collection, "pipeline": _STREAM, "cursor": {}}
            found = reading.open(command)
            self._is_streaming = True
            self._wake(None)  # what came before it was open
            while reading.is_alive and monotonic() - self._empty_at < max(BUSY, WATCHED * 2):
                for queue in {document.get("new") or document.get("back") for document in found}:
                    if isinstance(queue, str):
                        self._wake(queue)
                found = reading.more()
        finally:
            spawn("mongodb changes end", reading.close)

    def log_polling(self) -> None:
        """Say once that the server cannot tell of changes.  Never switches."""
        if not self._can_stream:
            self._log("is no member of a replica set and has no change streams")

    def _log(self, why: str) -> None:
        if not self._client.is_polling_logged:
            self._client.is_polling_logged = True
            pause = "up to 1 s" if self._interval is None else f"{self._interval:g} s"
            logger.info(
                "%s %s: empty queues are polled every %s (polling_interval)",
                self._client.where,
                why,
                pause,
                extra={"connection": self._client.where},
            )
