"""One connection to a database of messages.

The work is done by the parts: :class:`~greenconn.transport.mongodb.claiming.Claims` for messages,
:class:`~greenconn.transport.mongodb.queues.Queues` for queues,
:class:`~greenconn.transport.mongodb.topology.MongoTopology` for exchanges and bindings,
:class:`~greenconn.transport.mongodb.fanout.Broadcast` for fan-out, and
:class:`~greenconn.transport.mongodb.notifications.Notifications` of what others have published.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final

from bson import ObjectId
from pymongo import IndexModel
from pymongo.errors import BulkWriteError, CollectionInvalid, OperationFailure, PyMongoError

from greenconn.broker.port import Claimed, Entry, SettleRequest, Store
from greenconn.broker.topology import DirectTopology, Topology
from greenconn.exceptions import ContentTooLarge
from greenconn.green.deadline import Deadline
from greenconn.green.hub import weakly
from greenconn.green.supervisor import spawn
from greenconn.jsoncodec import dumps
from greenconn.transport.mongodb.claiming import Claims, Replacement
from greenconn.transport.mongodb.client import (
    Client,
    ClientReference,
    LinkLost,
    address_of,
    refusals_in,
)
from greenconn.transport.mongodb.documents import DEAD_AT, EXPIRE_AT, Document, Handle, message_of
from greenconn.transport.mongodb.fanout import PREFIX, Broadcast, Copy, broadcast_of
from greenconn.transport.mongodb.notifications import Notifications
from greenconn.transport.mongodb.options import MongoOptions
from greenconn.transport.mongodb.queues import Queues
from greenconn.transport.mongodb.topology import MongoTopology
from greenconn.transport.virtual.declaration import Declaration

if TYPE_CHECKING:
    from gevent import Greenlet


logger = logging.getLogger("greenconn.transport.mongodb")

#: Bytes that a document may have, and those of ours beside the payload.
LARGEST: Final = 16 * 1024 * 1024
_OVERHEAD: Final = 16 * 1024
#: Seconds for which a queue is known not to be bound to any fan-out exchange.
_BOUND_LIFETIME: Final = 1.0
#: The server's number for a collection that is there already.
_EXISTS: Final = 48


class MongoStore(Store):
    """See :class:`~greenconn.broker.port.Store`.

    Arguments:
        options: the transport options.
        unanswered: the claims of former lives that may have taken messages without a reply.
    """

    claim_limit: ClassVar[int] = 100
    put_limit: ClassVar[int] = 1000
    put_bytes: ClassVar[int] = 4 * 1024 * 1024
    replaces_at_once: ClassVar[bool] = True
    settle_limit: ClassVar[int] = 1000
    topology: Topology

    def __init__(
        self,
        client: Any,
        wake: Callable[[str | None], None],
        options: MongoOptions,
        unanswered: set[Any] | None = None,
    ) -> None:
        super().__init__(client, wake)
        self._unanswered = set() if unanswered is None else unanswered
        #: Claims of this life that have taken, or will yet take, messages without a reply.
        self._abandoned: set[Any] = set()
        self.lease = options.lease
        self.body_encoding = options.body_encoding
        self._options = options
        self._reference: ClientReference | None = None
        self._servers: Client
        self._messages: Any
        self._claims: Claims
        self._bindings: MongoTopology
        self._queues: Queues
        self._broadcast: Broadcast
        self._notifications: Notifications
        self._is_ending = False
        #: Expired messages that are to be dead letters.
        self._dead: list[Claimed] = []
        self._dead_since = 0.0
        #: Queue -> when it was found not to be bound to a fan-out exchange.
        self._unbound: dict[str, float] = {}

    # -- life

    def open(self, deadline: Deadline) -> None:
        options = self._options
        where = self.client.as_uri()
        self._reference = ClientReference(address_of(self.client, options), where, options.threads)
        servers = self._servers = self._reference.client
        servers.greet(deadline)
        database = servers.database
        self._messages = database[options.messages_collection]
        servers.call(_prepare, database, options)
        self._claims = Claims(servers, self._messages, options.lease)
        self._broadcast = broadcast_of(servers, options.broadcast_collection)
        self._bindings = MongoTopology(servers, options, self._broadcast, self, self.wake)
        self.topology = DirectTopology(self._bindings)
        self._queues = Queues(servers, options, self.topology)
        self._notifications = Notifications(
            servers,
            options.messages_collection,
            options.polling_interval,
            weakly(self.wake),
            weakly(self._sweep),
        )
        self._notifications.log_polling()
        if self._unanswered:
            self._requeue(self._unanswered)

    def close(self) -> None:
        ending = self._release()
        if ending is not None:
            ending.join()

    def drop(self) -> None:
        self._release()

    def _release(self) -> Greenlet[..., Any] | None:
        """Let go of everything; return what still has to end, if anything has.  Never switches."""
        if self._reference is None:
            return None
        if not hasattr(self, "_notifications"):
            return self._reference.release()
        self._notifications.stop()
        self._broadcast.leave(self)
        if self._is_ending or self._servers.is_inherited:
            return None
        self._abandoned |= self._claims.abandon()
        self._abandon_dead()
        self._unanswered |= self._abandoned
        if not self._abandoned:
            return self._reference.release()
        self._is_ending = True
        return spawn("mongodb end", self._end)

    def _end(self) -> None:
        try:
            self._claims.wait_for_abandoned()
            self._abandon_dead()
            self._requeue(self._abandoned)
        finally:
            assert self._reference is not None
            ending = self._reference.release()
            if ending is not None:
                ending.join()

    def _abandon_dead(self) -> None:
        """Abandon the claims of messages that this link does not dead-letter any more."""
        self._abandoned.update(each.handle.claim for each in self._dead)
        self._dead.clear()

    def _requeue(self, claims: set[Any]) -> None:
        """Requeue what *claims* have taken, or leave it to the next life."""
        claims = set(claims)
        try:
            self._claims.requeue(claims)
        except (LinkLost, PyMongoError) as exc:
            self._unanswered |= claims
            logger.debug(
                "%s: requeueing messages: %s",
                self._servers.where,
                exc,
                extra={"connection": self._servers.where},
            )
        else:
            self._unanswered -= claims

    # -- queues

    def make_queue(self, name: str, declaration: Declaration) -> Declaration:
        return self._queues.make_queue(name, declaration)

    def find_queue(self, name: str) -> Declaration | None:
        if name.startswith(PREFIX):
            return Declaration()
        return self._queues.find_queue(name)

    def queue_names(self) -> Collection[str]:
        return self._queues.queue_names()

    def drop_queue(self, name: str) -> int:
        count = self._queues.drop_queue(name) + self._broadcast.size(name)
        self._broadcast.forget(name)
        return count

    def purge(self, name: str) -> int:
        return self._queues.purge(name) + self._broadcast.purge(name)

    def size(self, name: str) -> int:
        return self._queues.size(name) + self._broadcast.size(name)

    def set_consumers(self, name: str, consumers: int, *, exclusive: bool = False) -> bool:
        may = super().set_consumers(name, consumers, exclusive=exclusive)
        if may:
            self._queues.set_consumers(name, consumers)
        return may

    # -- messages

    def put(self, entries: Sequence[Entry]) -> Sequence[Exception | None]:
        outcomes: list[Exception | None] = [None] * len(entries)
        messages: list[Document] = []
        copies: list[Document] = []
        places: list[int] = []
        now, ttl = self._servers.now, self._options.ttl
        soonest: float | None = None
        payload, envelope = "", None
        for number, entry in enumerate(entries):
            if entry.envelope is not envelope:  # one message may go to many queues
                envelope = entry.envelope
                payload = dumps(envelope)
            if len(payload) > LARGEST - _OVERHEAD:
                outcomes[number] = _too_large(len(payload))
            elif entry.queue.startswith(PREFIX):
                exchange = entry.queue[len(PREFIX) :]
                copies.append({"_id": ObjectId(), "payload": payload, "queue": exchange})
            else:
                messages.append(message_of(entry, payload, now, ttl=ttl))
                places.append(number)
                due = entry.delay or entry.lifetime
                if due is not None and due > 0 and (soonest is None or due < soonest):
                    soonest = due
        if messages:
            refused = self._servers.call(_insert, self._messages, messages)
            for index, error in refused.items():
                outcomes[places[index]] = error
        if copies:
            collection = self._servers.database[self._options.broadcast_collection]
            self._servers.call(_insert, collection, copies)
        if soonest is not None:
            self._notifications.expect(soonest)
        return outcomes

    def claim(self, wanted: Mapping[str, int], wait: float) -> Sequence[Claimed]:
        if not self._options.fanout_lists:
            self._listen(wanted)
        self._queues.fetched(wanted)
        found = self._take_dead()
        copies = self._broadcast.take(wanted)
        left = dict(wanted)
        for each in copies:
            left[each.queue] -= 1
        left = {queue: count for queue, count in left.items() if count > 0}
        try:
            taken = self._claims.take(left, self.claim_limit) if left else []
        except BaseException:
            self._dead += found
            for each in reversed(copies):
                self._broadcast.put_back(each.handle)
            raise
        found += copies + taken
        self._notifications.note_claim(len(copies) + len(taken), sum(wanted.values()))
        return found

    def _take_dead(self) -> list[Claimed]:
        """Return the expired messages that wait for a claim, unless it has come too late for them."""
        dead, self._dead = self._dead, []
        return dead if monotonic() - self._dead_since < self._options.lease / 2 else []

    def _listen(self, queues: Mapping[str, int]) -> None:
        """Listen for the fan-out exchanges that other connections have bound *queues* to."""
        now = monotonic()
        for queue in queues:
            if self._broadcast.has_listener(queue, self):
                continue
            if now - self._unbound.get(queue, 0.0) < _BOUND_LIFETIME:
                continue
            exchanges = self._bindings.fanouts_of(queue)
            for each in exchanges:
                self._broadcast.listen(self, queue, each, self.wake)
            if not exchanges:
                self._unbound[queue] = now

    def settle(self, requests: Sequence[SettleRequest]) -> None:
        stored: list[SettleRequest] = []
        soonest: float | None = None
        # Dead letters first: if we die between the two, there is one too many, and none too few.
        for each in self._with_copies(self._without_replaced(requests)):
            if isinstance(each.handle, Copy):
                self._broadcast.settle(each)
                continue
            stored.append(each)
            if each.delay > 0 and (soonest is None or each.delay < soonest):
                soonest = each.delay
        if stored:
            self._claims.settle(stored)
        if soonest is not None:
            self._notifications.expect(soonest)

    def _without_replaced(self, requests: Sequence[SettleRequest]) -> Sequence[SettleRequest]:
        """Put delayed copies in the places of their messages; return the requests that are left."""
        if not any(each.entries for each in requests):
            return requests
        left: list[SettleRequest] = []
        delayed: list[SettleRequest] = []
        places: list[Replacement] = []
        for each in requests:
            entry = each.entries[0] if len(each.entries) == 1 else None
            if entry is None or not entry.delay or not isinstance(each.handle, Handle):
                left.append(each)
                continue
            payload = dumps(entry.envelope)
            if len(payload) > LARGEST - _OVERHEAD:
                left.append(self.unless_refused(each, [_too_large(len(payload))]))
                continue
            document = message_of(entry, payload, self._servers.now, ttl=self._options.ttl)
            places.append(Replacement(each.handle, document))
            delayed.append(each)
        if places:
            refused = self._claims.replace(places)
            left += [self.unless_refused(delayed[at], [exc]) for at, exc in refused.items()]
            self._notifications.expect(min(each.entries[0].delay for each in delayed))
        return left

    def _with_copies(self, requests: Sequence[SettleRequest]) -> Sequence[SettleRequest]:
        """Store the copies of all requests; where one is refused, its message stays."""
        entries = [entry for each in requests for entry in each.entries]
        if not entries:
            return requests
        outcomes = iter(self.put(entries))
        return [
            self.unless_refused(each, [next(outcomes) for _ in each.entries]) for each in requests
        ]

    def renew(self, handles: Sequence[Any]) -> Sequence[Any]:
        self._queues.renew()
        held = [each for each in handles if isinstance(each, Handle)]
        return self._claims.renew(held) if held else ()

    # -- what comes by time

    def _sweep(self, is_claiming: bool) -> float | None:
        self._servers.set_clock()
        due = self._claims.requeue_due()
        if is_claiming:
            dead = self._claims.take_dead()
            if dead:
                # They become dead letters with the next claim.
                self._dead += dead
                self._dead_since = monotonic()
                self.wake(None)
        for name in self._queues.drop_unused():
            self.gone(name)
        return due


def _prepare(database: Any, options: MongoOptions) -> None:
    """Make indexes and the capped collection, if they are not there.  (kombu's, and ours.)"""
    if options.broadcast_collection not in database.list_collection_names(
        filter={"name": options.broadcast_collection}
    ):
        try:
            database.create_collection(
                options.broadcast_collection, size=options.capped_queue_size, capped=True
            )
            # A cursor at the end of an empty collection would be dead at once.
            database[options.broadcast_collection].insert_one({"queue": None, "payload": None})
        except CollectionInvalid:
            pass  # another client was faster
        except OperationFailure as exc:
            if exc.code != _EXISTS:
                raise
    messages = [
        IndexModel([("queue", 1), ("priority", 1), ("_id", 1)]),
        IndexModel([("lease_until", 1)], sparse=True),
        IndexModel([("due_at", 1)], sparse=True),
        IndexModel([(DEAD_AT, 1)], sparse=True),
    ]
    queues = IndexModel([(DEAD_AT, 1)], sparse=True)
    database[options.queues_collection].create_indexes([queues])
    routing = [IndexModel([("queue", 1), ("exchange", 1)]), IndexModel([("exchange", 1)])]
    if options.ttl:
        expiring = IndexModel([(EXPIRE_AT, 1)], expireAfterSeconds=0)
        messages.append(expiring)
        routing.append(expiring)
        database[options.queues_collection].create_indexes([expiring])
    database[options.messages_collection].create_indexes(messages)
    database[options.routing_collection].create_indexes(routing)


def _insert(collection: Any, documents: list[Document]) -> dict[int, Exception]:
    """Insert documents; return, by their place, why some were not."""
    try:
        if len(documents) == 1:
            collection.insert_one(documents[0])
        else:
            collection.insert_many(documents, ordered=False)
    except BulkWriteError as exc:
        return refusals_in(exc)
    return {}


def _too_large(size: int) -> Exception:
    error: Exception = ContentTooLarge(
        f"a message must have at most {LARGEST} bytes (a document of MongoDB), got {size}"
    )
    return error
