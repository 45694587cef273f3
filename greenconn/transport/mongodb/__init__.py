"""The MongoDB transport: kombu's collections, with claims that end when a process dies.

MongoDB changes one document as a whole, and many documents one by one.  So a claim of many looks for
candidates first, then updates those of them that still wait, each marked with the number of this
very claim; if another client was faster with some, it reads which ones it got.
"""

from __future__ import annotations

from greenconn.importing import needed

needed("pymongo", "pymongo", "mongodb")

# ruff: noqa: E402 - these import pymongo
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple

import gevent
import pymongo
from bson import ObjectId
from pymongo import ASCENDING, IndexModel, ReplaceOne, errors
from pymongo.errors import BulkWriteError, CollectionInvalid, OperationFailure, PyMongoError

from greenconn.broker.channel import StoreChannel
from greenconn.broker.envelope import envelope_json
from greenconn.broker.link import StoreLink, StoreOptions, StoreTransport
from greenconn.broker.port import Claimed, Entry, Settlement, SettleRequest, Store
from greenconn.broker.queues import Declaration
from greenconn.checks import check_count, check_seconds, check_type, invalid
from greenconn.exceptions import (
    ChannelError,
    ConnectionError,
    ContentTooLarge,
    InconsistencyError,
    RecoverableConnectionError,
)
from greenconn.green.deadline import Deadline, marking_thrown
from greenconn.green.hub import weakly
from greenconn.green.supervisor import spawn
from greenconn.transport.mongodb.changes import PREFIX, Broadcast, Copy, Notifications, broadcast_of
from greenconn.transport.mongodb.client import (
    DEAD_AT,
    EXPIRE_AT,
    HELD_EXPIRE_AT,
    REDELIVERED,
    REQUEUE,
    Client,
    ClientReference,
    Document,
    Handle,
    LinkLost,
    address_of,
    claim_update,
    claimed_of,
    message_of,
    refusals_in,
)
from greenconn.transport.mongodb.queues import MongoTopology, Queues
from greenconn.url import mask_secrets

if TYPE_CHECKING:
    from gevent import Greenlet

__all__ = ["Channel", "MongoOptions", "Transport"]

logger = logging.getLogger("greenconn.transport.mongodb")

_COLLECTIONS = (
    "messages_collection",
    "routing_collection",
    "broadcast_collection",
    "queues_collection",
    "exchanges_collection",
)

#: Bytes that a document may have, and those of ours beside the payload.
LARGEST: Final = 16 * 1024 * 1024
_OVERHEAD: Final = 16 * 1024
#: Seconds for which a queue is known not to be bound to any fan-out exchange.
_BOUND_LIFETIME: Final = 1.0
#: The server's number for a collection that is there already.
_EXISTS: Final = 48
#: How a claim sorts messages.
_ORDER: Final = [("priority", ASCENDING), ("_id", ASCENDING)]
#: Looks for candidates that one claim makes when some queues have more than is wanted of them.
_LOOKS: Final = 4
#: Expired messages that are taken at once.
_DEAD_LIMIT: Final = 100
#: Seconds to wait for the end of claims that no caller waits for.
ABANDONED_TIMEOUT: Final = 5.0
#: Seconds that giving that back may take; else the lease does it.
REQUEUE_TIMEOUT: Final = 0.5
#: Seconds that a request takes to the server which was sent before its connection was dropped.
ON_ITS_WAY: Final = 0.05


class MongoOptions(StoreOptions):
    """The options of a connection to MongoDB."""

    # -- collections, which all programs on one database must agree on

    default_hostname: str = "127.0.0.1"
    """Host of the server, if the URL names none (kombu's)."""

    default_port: int = 27017
    """Port of that server (kombu's)."""

    default_database: str = "kombu_default"
    """Name of the database, if the URL names none (kombu's)."""

    messages_collection: str = "messages"
    """Name of the collection of messages (kombu's)."""

    routing_collection: str = "messages.routing"
    """Name of the collection of bindings (kombu's)."""

    broadcast_collection: str = "messages.broadcast"
    """Name of the capped collection of fan-out messages (kombu's)."""

    queues_collection: str = "messages.queues"
    """Name of the collection of queue declarations (kombu's, which writes it only with *ttl*)."""

    exchanges_collection: str = "messages.exchanges"
    """Name of the collection of exchange declarations, and of bindings that kombu lacks: of headers
    exchanges, and between exchanges."""

    capped_queue_size: int = 100_000
    """Maximum bytes of the broadcast collection, if it is created here (kombu's)."""

    calc_queue_size: bool = True
    """Whether queues are counted; with False each seems to be empty (kombu's)."""

    ttl: bool = False
    """Whether the server removes expired messages and queues (kombu's).  Otherwise our consumers
    do, and publish dead letters."""

    fanout_lists: bool = False
    """Whether a fan-out exchange puts messages into its queues, where they wait for consumers,
    instead of broadcasting them to subscribers.  All programs must have the same value."""

    body_encoding: str | None = "base64"
    """Encoding of bodies; None stores text as it is (kombu's)."""

    # -- the connection

    connect_timeout: float | None = None
    """Seconds to connect to one server; None is the connection's ``connect_timeout`` (kombu's)."""

    ssl: Any = None
    """Whether to use TLS; None is the connection's ``ssl`` (kombu's)."""

    threads: int = 4
    """Maximum number of concurrent calls of pymongo in a process that is not monkey-patched."""

    polling_interval: float | None = None
    """Seconds between polls of empty queues, if the server has no change streams (no replica set);
    None begins at 10 ms and grows to 1 s."""

    routing_lifetime: float = 1.0
    """Seconds for which a publisher caches bindings, which other processes may change; 0 reads them
    for each message, like kombu."""

    def __post_init__(self) -> None:
        StoreOptions.__post_init__(self)
        check_type(self, str, "default_hostname", "default_database", *_COLLECTIONS)
        check_type(self, bool, "calc_queue_size", "ttl", "fanout_lists")
        check_type(self, str, "body_encoding", optional=True)
        check_count(self, "default_port", least=1, optional=False)
        check_count(self, "capped_queue_size", least=4096, optional=False)
        check_count(self, "threads", least=1, optional=False)
        check_seconds(self, "connect_timeout", "polling_interval")
        check_seconds(self, "routing_lifetime", optional=False)
        if self.body_encoding not in (None, "base64"):
            raise invalid(self, "body_encoding", "'base64' or None")


class Channel(StoreChannel[StoreLink]):
    """A channel to a database."""

    supported_arguments = replace(
        StoreChannel.supported_arguments,
        queue=StoreChannel.supported_arguments.queue | {"x-expires"},
    )


class Transport(StoreTransport):
    """``mongodb://``: kombu's collections.

    ``transport_options`` are those of :class:`~greenconn.transport.mongodb.MongoOptions`, which may
    also stand behind the question mark of the URL.  What else stands there is pymongo's.
    """

    Channel = Channel
    Options: ClassVar[type[StoreOptions]] = MongoOptions
    driver_type = "mongodb"
    driver_name = "pymongo"
    default_port = 27017
    inner_schemes = frozenset({"srv"})
    can_parse_url = True
    connection_errors = (
        ConnectionError,
        InconsistencyError,
        OSError,
        errors.ConnectionFailure,
    )
    channel_errors = (ChannelError, errors.OperationFailure)
    recoverable_connection_errors = (
        RecoverableConnectionError,
        OSError,
        errors.ConnectionFailure,
    )

    def driver_version(self) -> str:
        return str(pymongo.version)

    def make_store(self, wake: Callable[[str | None], None]) -> MongoStore:
        return MongoStore(self.client, wake, self.options, self.kept(set))

    def place(self) -> str:
        """Servers and database."""
        address = address_of(self.client, self.options)
        return f"{mask_secrets(address.host)} {address.database}"

    def as_uri(self, uri: str, include_password: bool = False, mask: str = "**") -> str:
        """Mask the password of a URL, which may name many servers."""
        if not uri:
            return "mongodb://"
        if uri.startswith("srv://"):
            uri = f"mongodb+{uri}"
        if include_password:
            return uri
        return mask_secrets(uri, mask)


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
    topology: MongoTopology

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
        #: The same, for messages that are published.
        self._durable: Any
        self._claims: Claims
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
        self._messages = servers.database[options.messages_collection]
        self._durable = servers.durable[options.messages_collection]
        servers.call(_prepare, servers.database, options)
        self._claims = Claims(servers, self._messages, options)
        self._broadcast = broadcast_of(servers, options.broadcast_collection)
        self.topology = MongoTopology(servers, options, self._broadcast, self, self.wake)
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
            with marking_thrown():
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
        self._abandoned.update(claimed.handle.claim for claimed in self._dead)
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
                payload = envelope_json(envelope)
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
            refused = self._servers.call(_insert, self._durable, messages)
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
        for copy in copies:
            left[copy.queue] -= 1
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
            exchanges = self.topology.fanouts_of(queue)
            for exchange in exchanges:
                self._broadcast.listen(self, queue, exchange, self.wake)
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
        for request in requests:
            entry = request.entries[0] if len(request.entries) == 1 else None
            if entry is None or not entry.delay or not isinstance(request.handle, Handle):
                left.append(request)
                continue
            payload = envelope_json(entry.envelope)
            if len(payload) > LARGEST - _OVERHEAD:
                left.append(self.unless_refused(request, [_too_large(len(payload))]))
                continue
            document = message_of(entry, payload, self._servers.now, ttl=self._options.ttl)
            places.append(Replacement(request.handle, document))
            delayed.append(request)
        if places:
            refused = self._claims.replace(places)
            left += [self.unless_refused(delayed[at], [exc]) for at, exc in refused.items()]
            self._notifications.expect(min(each.entries[0].delay for each in delayed))
        return left

    def _with_copies(self, requests: Sequence[SettleRequest]) -> Sequence[SettleRequest]:
        """Store the copies of all requests; where one is refused, its message stays."""
        entries = [entry for request in requests for entry in request.entries]
        if not entries:
            return requests
        outcomes = iter(self.put(entries))
        return [
            self.unless_refused(request, [next(outcomes) for _ in request.entries])
            for request in requests
        ]

    def renew(self, handles: Sequence[Any]) -> Sequence[Any]:
        self._queues.renew()
        for name in self._queues.deleted():
            self.gone(name)
        held = [handle for handle in handles if isinstance(handle, Handle)]
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


class Replacement(NamedTuple):
    """A message that is held, and the document that takes its place."""

    handle: Handle
    document: Document


class Claims:
    """The messages that one connection holds.

    Arguments:
        client: the servers.
        messages: the collection.
        options: of the connection.
    """

    def __init__(self, client: Client, messages: Any, options: MongoOptions) -> None:
        self._client = client
        self._messages = messages
        self._lease = timedelta(seconds=options.lease)
        # Without ``ttl`` there is no index by the other: all that waits would be read.
        self._ends = (DEAD_AT, EXPIRE_AT) if options.ttl else (DEAD_AT,)
        #: Key -> the claim by which it is held here: a message that came back and was taken again is
        #: not settled by the link that had it first.
        self._held: dict[Any, Handle] = {}
        #: Claims that have not returned to who made them.
        self._open: set[Any] = set()
        #: Claims that run, in whichever thread.
        self._running: set[Any] = set()

    # -- claiming

    def take(self, wanted: Mapping[str, int], limit: int) -> list[Claimed]:
        """Claim at most *limit* messages.  May switch."""
        if len(wanted) > 1:
            return self._call(self._take_of_many, wanted, limit)
        ((queue, count),) = wanted.items()
        if min(count, limit) == 1:
            return self._call(self._take_one, queue)
        return self._call(self._take_of_one, queue, min(count, limit))

    def take_dead(self) -> list[Claimed]:
        """Claim messages of any queue that have expired.  May switch."""
        return self._call(self._take_dead)

    def _call(self, function: Callable[..., list[Claimed]], *args: Any) -> list[Claimed]:
        claim = ObjectId()
        self._open.add(claim)
        try:
            found = self._client.call(self._run, function, claim, args)
        except OperationFailure:
            self._open.discard(claim)
            raise
        # If this greenlet was killed or its connection lost, the claim stays open: see abandon().
        self._open.discard(claim)
        for message in found:
            self._held[message.handle.id] = message.handle
        return found

    def abandon(self) -> set[Any]:
        """Stop waiting for claims, and return those whose messages will not be delivered."""
        return set(self._open)

    def wait_for_abandoned(self) -> None:
        """Wait until nothing more can be claimed.  May switch."""
        deadline = Deadline(ABANDONED_TIMEOUT)
        # One whose connection was cut may still be on its way.
        gevent.sleep(0.0 if self._running else ON_ITS_WAY)
        while self._running and not deadline.has_ended:
            gevent.sleep(0.01)

    def requeue(self, claims: Collection[Any]) -> None:
        """Requeue all that *claims* have taken.  May switch."""
        self._client.call(self._requeue, list(claims))

    # What runs in a thread, where there are threads, begins here.

    def _run(
        self, function: Callable[..., list[Claimed]], claim: Any, args: tuple[Any, ...]
    ) -> list[Claimed]:
        self._running.add(claim)
        try:
            return function(claim, *args)
        finally:
            self._running.discard(claim)

    def _requeue(self, claims: list[Any]) -> None:
        update = {**REQUEUE, "$inc": {"deliveries": -1}}
        mine = {"lease_until": {"$exists": True}, "claim": {"$in": claims}}
        with pymongo.timeout(REQUEUE_TIMEOUT):
            self._messages.update_many(mine, update)

    def _take_one(self, claim: Any, queue: str) -> list[Claimed]:
        now = self._client.now()
        found = self._messages.find_one_and_update(
            {"queue": queue}, claim_update(claim, now + self._lease), sort=_ORDER
        )
        return [] if found is None else [claimed_of(found, claim, queue, _dead(found, now))]

    def _take_of_one(self, claim: Any, queue: str, count: int) -> list[Claimed]:
        candidates = list(self._messages.find({"queue": queue}, sort=_ORDER, limit=count))
        return self._claim(claim, {"queue": queue}, candidates)

    def _take_of_many(self, claim: Any, wanted: Mapping[str, int], limit: int) -> list[Claimed]:
        ids = self._candidates(wanted, limit)
        if not ids:
            return []
        now = self._client.now()
        mine = {"_id": {"$in": ids}, "queue": {"$in": list(wanted)}}
        self._messages.update_many(mine, claim_update(claim, now + self._lease))
        found = self._messages.find({"_id": {"$in": ids}, "claim": claim}, sort=_ORDER)
        return [
            claimed_of(document, claim, document["claimed"], _dead(document, now), counted=1)
            for document in found
        ]

    def _candidates(self, wanted: Mapping[str, int], limit: int) -> list[Any]:
        """Keys of messages, of each queue as many as are wanted, if there are."""
        room = dict(wanted)
        chosen: dict[Any, None] = {}
        for _ in range(_LOOKS):
            # Without their bodies: there may be more than are wanted.
            found = list(
                self._messages.find(
                    {"queue": {"$in": list(room)}}, {"queue": 1}, sort=_ORDER, limit=limit
                )
            )
            for document in found:
                queue, key = document["queue"], document["_id"]
                if room.get(queue) and key not in chosen and len(chosen) < limit:
                    room[queue] -= 1
                    chosen[key] = None
            room = {queue: count for queue, count in room.items() if count}
            if len(found) < limit or not room or len(chosen) >= limit:
                break
        return list(chosen)

    def _take_dead(self, claim: Any) -> list[Claimed]:
        now = self._client.now()
        found: list[Document] = []
        for name in self._ends:
            late = {name: {"$lte": now}, "queue": {"$exists": True}}
            found += self._messages.find(late, limit=_DEAD_LIMIT)
        return self._claim(claim, {"queue": {"$exists": True}}, found)

    def _claim(self, claim: Any, waiting: Document, candidates: list[Document]) -> list[Claimed]:
        """Claim those of *candidates* that still wait."""
        if not candidates:
            return []
        now = self._client.now()
        keys = {"$in": [candidate["_id"] for candidate in candidates]}
        result = self._messages.update_many(
            {"_id": keys, **waiting}, claim_update(claim, now + self._lease)
        )
        if result.modified_count != len(candidates):
            mine = self._messages.find({"_id": keys, "claim": claim}, {"_id": 1})
            won = {each["_id"] for each in mine}
            candidates = [candidate for candidate in candidates if candidate["_id"] in won]
        return [
            claimed_of(candidate, claim, candidate["queue"], _dead(candidate, now))
            for candidate in candidates
        ]

    # -- settling

    def is_mine(self, handle: Handle) -> bool:
        """Return whether a message is held by that claim, as far as is known here.

        What a former connection of this process has claimed is not known, and may be.
        """
        return self._held.get(handle.id, handle) == handle

    def settle(self, requests: Sequence[SettleRequest]) -> None:
        """Say what became of messages.  May switch."""
        valid = [request for request in requests if self.is_mine(request.handle)]
        self._client.call(self._settle, valid)
        for each in valid:
            self._held.pop(each.handle.id, None)

    def _settle(self, requests: list[SettleRequest]) -> None:
        gone = [each.handle for each in requests if each.settlement is not Settlement.REQUEUE]
        if gone:
            self._messages.delete_many(_held_by(gone))
        returned: dict[tuple[float, bool, bool], list[Handle]] = {}
        for request in requests:
            if request.settlement is Settlement.REQUEUE:
                how = (request.delay, request.is_unseen, request.is_unhandled)
                returned.setdefault(how, []).append(request.handle)
        for how, handles in returned.items():
            self._messages.update_many(_held_by(handles), self._back(*how))

    def _back(self, delay: float, is_unseen: bool, is_unhandled: bool) -> Document:
        noted: Document = {REDELIVERED: True} if is_unhandled else {}
        if delay > 0:
            noted["due_at"] = self._client.now() + timedelta(seconds=delay)
            taken = {"claim": "", "lease_until": ""}
            update: Document = {"$unset": taken}
        else:
            update = dict(REQUEUE)
        if noted:
            update["$set"] = noted
        if is_unseen or is_unhandled:
            update["$inc"] = {"deliveries": -1}
        return update

    def replace(self, places: Sequence[Replacement]) -> Mapping[int, Exception]:
        """Put documents in the places of messages; return, by number, why some were not.  May switch.

        One that is not held any more is passed over.
        """
        valid = [number for number, each in enumerate(places) if self.is_mine(each.handle)]
        if not valid:
            return {}
        refused = self._client.call(self._replace, [places[number] for number in valid])
        found = {valid[at]: error for at, error in refused.items()}
        for number in valid:
            if number not in found:
                self._held.pop(places[number].handle.id, None)
        return found

    def _replace(self, places: Sequence[Replacement]) -> dict[int, Exception]:
        requests = []
        for handle, document in places:
            # Its key stays: a message is replaced in one step, and keeps its age.
            document.pop("_id", None)
            requests.append(ReplaceOne({"_id": handle.id, "claim": handle.claim}, document))
        try:
            self._messages.bulk_write(requests, ordered=False)
        except BulkWriteError as exc:
            return refusals_in(exc)
        return {}

    # -- keeping

    def renew(self, handles: Sequence[Handle]) -> list[Handle]:
        """Begin leases anew; return those that were lost.  May switch."""
        mine = [handle for handle in handles if self.is_mine(handle)]
        left = self._client.call(self._renew, mine) if mine else set()
        lost = [handle for handle in handles if handle.id not in left or not self.is_mine(handle)]
        for each in lost:
            if self._held.get(each.id) == each:
                del self._held[each.id]
        return lost

    def _renew(self, handles: list[Handle]) -> set[Any]:
        held = _held_by(handles)
        until = self._client.now() + self._lease
        result = self._messages.update_many(held, {"$set": {"lease_until": until}})
        if result.matched_count == len(handles):
            return {handle.id for handle in handles}
        return {each["_id"] for each in self._messages.find(held, {"_id": 1})}

    def requeue_due(self) -> float | None:
        """Requeue messages whose lease or delay has ended.  May switch.

        Returns:
            in how many seconds something else is due: a message that is delayed, or that expires.
        """
        due: float | None = self._client.call(self._requeue_due)
        return due

    def _requeue_due(self) -> float | None:
        now = self._client.now()
        late = {"$lte": now}
        either = {"$or": [{"lease_until": late}, {"due_at": late}]}
        self._messages.update_many(either, REQUEUE)
        ends = []
        for name in ("due_at", DEAD_AT):
            later = {name: {"$gt": now}}
            first = self._messages.find_one(later, {name: 1}, sort=[(name, ASCENDING)])
            if first is not None:
                ends.append(first[name])
        return (min(ends) - now).total_seconds() if ends else None


def _held_by(handles: Sequence[Handle]) -> Document:
    return {
        "_id": {"$in": [handle.id for handle in handles]},
        "claim": {"$in": list({handle.claim for handle in handles})},
    }


def _dead(document: Document, now: datetime) -> str | None:
    """Why a message is not delivered, if it is not."""
    for name in (DEAD_AT, EXPIRE_AT, HELD_EXPIRE_AT):
        end = document.get(name)
        if isinstance(end, datetime) and end <= now:
            return "expired"
    return None
