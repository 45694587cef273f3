"""The broker: one virtual host's exchanges and queues, and the messages in them.

Everything happens in one hub and at once: routing, delivering, expiring and dead-lettering never
switch greenlets, so a publish is there as a whole or not at all.  Only :meth:`Broker.yield_if_due`,
which comes before a publish, gives other greenlets a turn.

The rule of a queue: while a consumer has room, nothing waits.  So every change that adds a message or
room ends with :meth:`Queue.push`, and a message that finds an idle consumer never enters the store.
"""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from functools import partial
from heapq import heapify, heappop, heappush
from itertools import count
from time import monotonic
from typing import TYPE_CHECKING, Any, ClassVar, Final, Protocol
from weakref import WeakKeyDictionary

from gevent import get_hub
from msgspec import Struct

from greenconn.broker.consuming import Consumer, Turns
from greenconn.broker.envelope import Envelope, copied, level_of, lifetime_of
from greenconn.broker.errors import Method, no_exchange
from greenconn.broker.exchanges import PREDECLARED, BrokerState
from greenconn.broker.queues import Declaration, QueuePolicy
from greenconn.broker.settlements import (
    carbon_copies,
    dead_letter,
    is_cycle,
    visible_headers,
)
from greenconn.clocks import CLOCK
from greenconn.exceptions import ConnectionForced, RecoverableConnectionError
from greenconn.green.hub import HubAffinity, forget_at_fork, yield_to_hub
from greenconn.message import Message as BaseMessage
from greenconn.message import computed_slot
from greenconn.serialization import loads

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel
    from greenconn.broker.link import BrokerLink


logger = logging.getLogger("greenconn.transport.memory")

_set_body, _set_errors = (vars(BaseMessage)[name].__set__ for name in ("body", "errors"))
_get_errors = vars(BaseMessage)["errors"].__get__
_get_body = vars(BaseMessage)["body"].__get__


def size_of(body: Any) -> int:
    """Return the size of a body in bytes, as on a wire."""
    return len(body.encode()) if isinstance(body, str) else len(body or b"")


class Entry(Struct, eq=False):
    """One message in one queue: waiting there, or delivered and not settled yet.

    Attributes:
        envelope: the published message.  Its queues share it, so it must not be changed.
        position: where in the queue it came; a message that is given back returns to this place.
        expires_at: when it is too old to be delivered, by the broker's clock; None never.
        is_back: it waits again, behind a delivery.
        size: bytes of the body, where the queue counts them.
    """

    queue: Queue
    envelope: Envelope
    exchange: str
    routing_key: str
    position: int
    expires_at: float | None = None
    priority: int = 0
    redelivered: bool = False
    is_back: bool = False
    size: int = 0


class _Lane:
    """The messages of one priority, by position.

    Messages leave in order.  So whatever was given back was once taken from the head, and stands
    before everything that was never taken: a small heap before a queue is a sorted whole.
    """

    __slots__ = ("fresh", "returned")

    def __init__(self) -> None:
        self.fresh: deque[Entry] = deque()
        self.returned: list[tuple[int, Entry]] = []

    def head(self) -> Entry:
        return self.returned[0][1] if self.returned else self.fresh[0]


class WaitingMessages:
    """Waiting messages: the higher priority first, then by position.

    Arguments:
        max_priority: the highest there is; others are lowered to it.
    """

    __slots__ = ("_filled", "_lanes", "count", "size")

    def __init__(self, max_priority: int = 0) -> None:
        self._lanes = [_Lane() for _ in range(max_priority + 1)]
        #: Bit n is set while lane n has messages.
        self._filled = 0
        self.count = 0
        #: Sum of their sizes.
        self.size = 0

    def add(self, entry: Entry) -> None:
        """Take in a new message."""
        self._lanes[entry.priority].fresh.append(entry)
        self._filled |= 1 << entry.priority
        self.count += 1
        self.size += entry.size

    def put_back(self, entry: Entry) -> None:
        """Take back one that was taken out, to the place where it was; once, if it is repeated."""
        if entry.is_back:
            return
        returned, filled = self._lanes[entry.priority].returned, 1 << entry.priority
        # In one step with the call: a signal is raised behind it.
        entry.is_back = True
        self._filled |= filled
        self.count += 1
        self.size += entry.size
        heappush(returned, (entry.position, entry))

    def take(self, priority: int | None = None) -> Entry:
        """Take out the one whose turn it is, of all or of those of *priority*.  There must be one."""
        if priority is None:
            priority = self._filled.bit_length() - 1
        lane = self._lanes[priority]
        fresh, returned = lane.fresh, lane.returned
        # What changes the lane comes last: a signal is raised behind a call.
        if returned:
            entry = returned[0][1]
            if not fresh and len(returned) == 1:
                self._filled &= ~(1 << priority)
            self.count -= 1
            self.size -= entry.size
            entry.is_back = False
            heappop(returned)
        else:
            entry = fresh[0]
            if len(fresh) == 1:
                self._filled &= ~(1 << priority)
            self.count -= 1
            self.size -= entry.size
            del fresh[0]
        return entry

    def _filled_priorities(self) -> Iterator[int]:
        filled = self._filled
        while filled:
            priority = filled.bit_length() - 1
            yield priority
            filled &= ~(1 << priority)

    def next_expiry(self) -> float | None:
        """When the next message at the head of its priority is too old; None: never."""
        times = [self._lanes[each].head().expires_at for each in self._filled_priorities()]
        return min((each for each in times if each is not None), default=None)

    def take_expired(self, now: float) -> Entry | None:
        """Remove expired messages from the head of the queue; others stay, as in RabbitMQ."""
        for priority in self._filled_priorities():
            expires_at = self._lanes[priority].head().expires_at
            if expires_at is not None and expires_at <= now:
                return self.take(priority)
        return None

    def clear(self) -> int:
        """Drop everything and return how many there were."""
        count = self.count
        self._lanes = [_Lane() for _ in self._lanes]
        self._filled = self.count = self.size = 0
        return count

    def __iter__(self) -> Iterator[Entry]:
        """Yield the messages in the order in which they would be taken."""
        for priority in self._filled_priorities():
            lane = self._lanes[priority]
            yield from (entry for _, entry in sorted(lane.returned, key=lambda pair: pair[0]))
            yield from lane.fresh


class Message(BaseMessage):
    """A delivered message, with tables of its own.

    ``headers``, ``properties``, ``delivery_info`` and a ``body`` that is not text are made when they
    are first looked at.  The body is what AMQP makes of it: text where the encoding is one of text,
    else bytes.

    Arguments:
        entry: the message in its queue.
        consumer: who gets it; None for ``basic_get``.
        waiting: messages left in the queue, for ``basic_get``.
    """

    __slots__ = ("_compression", "_waiting", "consumer", "entry", "redelivered")

    headers = computed_slot("headers")
    properties = computed_slot("properties")
    delivery_info = computed_slot("delivery_info")
    body = computed_slot("body")
    errors = computed_slot("errors")

    #: The broker does not hold what was delivered: only the channel has it.
    is_held: ClassVar[bool] = False

    def __init__(
        self,
        channel: StoreChannel[Any] | None,
        delivery_tag: int,
        entry: Entry,
        consumer: Consumer | None = None,
        waiting: int | None = None,
    ) -> None:
        self.channel = channel
        self.delivery_tag = delivery_tag
        self.accept = None
        self._state = "RECEIVED"
        self._decoded_cache = None
        self.entry = entry
        self.consumer = consumer
        self.redelivered = entry.redelivered
        self._waiting = waiting
        envelope = entry.envelope
        self.content_type = envelope["content-type"]
        self.content_encoding = envelope["content-encoding"]
        headers = envelope["headers"]
        self._compression = (headers.get("compression") or None) if headers else None
        if self._compression is None:
            _set_errors(self, [])
            body = envelope["body"]
            if body.__class__ is str:
                _set_body(self, body)

    def _decode(self) -> Any:
        # Past the properties, of which each is a call.
        if self._compression is None and not _get_errors(self):
            try:
                body = _get_body(self)
            except AttributeError:  # bytes, which nothing has looked at
                body = self.body
            return loads(body, self.content_type, self.content_encoding, self.accept)
        return super()._decode()

    def _came_with(self, name: str) -> bool:
        headers = self.entry.envelope["headers"]
        return bool(headers) and name in headers

    def _headers(self) -> Any:
        return copied(self.entry.envelope["headers"])

    def _properties(self) -> Any:
        return copied(self.entry.envelope["properties"])

    def _body(self) -> Any:
        return self._text() if self._compression is None else self._unpack()[0]

    def _errors(self) -> list[Any]:
        return self._unpack()[1]  # there are none without a compression

    def _unpack(self) -> tuple[Any, list[Any]]:
        """Fill the slots that depend on the body.  May switch, so not before the program asks for it."""
        errors: list[Any] = []
        body = self._unpacked(self.entry.envelope["body"], self._compression, errors)
        self.body, self.errors = body, errors
        return body, errors

    def _text(self) -> Any:
        body, encoding = self.entry.envelope["body"], self.content_encoding
        if encoding and encoding != "binary" and isinstance(body, bytes):
            try:
                return body.decode(encoding)
            except (LookupError, UnicodeError):
                pass
        return body

    def _delivery_info(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "delivery_tag": self.delivery_tag,
            "redelivered": self.redelivered,
            "exchange": self.entry.exchange,
            "routing_key": self.entry.routing_key,
        }
        if self.consumer is not None:
            found["consumer_tag"] = self.consumer.tag
        if self._waiting is not None:
            found["message_count"] = self._waiting
        return found


#: Seconds until a full queue is given a delayed message again.
FULL_PAUSE = 0.1

#: Messages that grow too old at once are dropped so many a turn of the hub.
EXPIRED_A_TURN = 1000


class Queue:
    """One queue.

    Arguments:
        declared: what it is like.

    Raises:
        ValueError: an argument of its declaration cannot be.
    """

    def __init__(self, broker: Broker, name: str, declared: Declaration) -> None:
        self.name = name
        self.declared = declared
        self.policy = QueuePolicy.of(declared.arguments)
        self.store = WaitingMessages(self.policy.max_priority or 0)
        #: Consumers in the order in which they came.
        self.consumers: dict[Consumer, None] = {}
        self.is_deleted = False
        self._broker = broker
        self._tags = broker.tags
        self._turns = Turns()
        self._position = 0
        #: Whether messages may wait, so that new ones need more than a place in the store.
        self._is_ruled = self.policy.is_bounded or self.policy.message_ttl is not None
        #: Some of what waits, or waited since the store was last empty, may grow too old.
        self._may_expire = False
        #: (when it is due, number, accepts it, whether it is persistent) of what is delayed: a heap.
        self._delayed: list[tuple[float, int, Callable[[], bool], bool]] = []
        self._delays = broker.timer(self._accept_due)
        self._expiry = broker.timer(self._expire)
        self._idle = broker.timer(self._note_idle)
        self.touch()

    def __repr__(self) -> str:
        return f"<Queue: {self.name!r}, {len(self)} waiting, {len(self.consumers)} consumers>"

    def __len__(self) -> int:
        """Return the number of messages that wait."""
        return self.store.count

    @property
    def delayed(self) -> int:
        """The number of messages that are to come into it later."""
        return len(self._delayed)

    @property
    def has_timed(self) -> bool:
        """Whether something happens to a message of its own accord: it is delayed, or grows too old."""
        return bool(self._delayed) or self._expiry.at is not None

    @property
    def has_exclusive_consumer(self) -> bool:
        """Whether its one consumer wants to stay the only one."""
        first = next(iter(self.consumers), None)
        return first is not None and first.exclusive

    # -- messages

    def accept(
        self, envelope: Envelope, exchange: str, routing_key: str, ttl: float | None = None
    ) -> bool:
        """Take a message over: deliver it, or keep it.  False: the queue is full and refuses it.

        Arguments:
            ttl: seconds that the publisher lets it wait; None for ever.
        """
        policy = self.policy
        self._position += 1
        entry = Entry(self, envelope, exchange, routing_key, self._position)
        if ttl is not None or self._is_ruled:
            self._rule(entry, ttl)
            if policy.refuses_overflow and policy.is_above(
                self.store.count + 1, self.store.size + entry.size
            ):
                if policy.overflow == "reject-publish-dlx":
                    self._broker.dead_letter(entry, "maxlen")
                return False
        if policy.max_priority:
            entry.priority = level_of(envelope["properties"].get("priority"), policy.max_priority)
        if not self.store.count:
            consumer = self._turns.first()
            if consumer is not None:
                try:
                    self._deliver(consumer, entry)
                except BaseException as exc:
                    consumer.channel.connection.interrupted(exc)
                    raise
                return True
        self.store.add(entry)
        if entry.expires_at is not None or self._is_ruled:
            self._enforce()
        return True

    def accept_later(self, delay: float, envelope: Envelope, *rest: Any) -> None:
        """Accept a message in *delay* seconds; *rest* as for :meth:`accept`."""
        is_persistent: bool = envelope["properties"].get("delivery_mode") == 2
        accept: Callable[[], bool] = partial(self.accept, envelope, *rest)
        at = self._broker.now() + delay
        self._position += 1
        heappush(self._delayed, (at, self._position, accept, is_persistent))
        self._delays.set(self._delayed[0][0])

    def _accept_due(self) -> None:
        now = self._broker.now()
        while self._delayed and self._delayed[0][0] <= now:
            _, number, accept, is_persistent = heappop(self._delayed)
            if not accept() and self.policy.overflow == "reject-publish":
                # It was confirmed, so it must not be lost: it waits until there is room.
                heappush(self._delayed, (now + FULL_PAUSE, number, accept, is_persistent))
        if self._delayed:
            self._delays.set(self._delayed[0][0])

    def _rule(self, entry: Entry, ttl: float | None) -> None:
        policy = self.policy
        ttls = [each for each in (ttl, policy.message_ttl) if each is not None]
        if ttls:
            self._may_expire = True
            entry.expires_at = self._broker.now() + min(ttls)
        if policy.max_length_bytes is not None:
            entry.size = size_of(entry.envelope["body"])

    def take(self) -> Entry | None:
        """Take the next message out, for ``basic_get``; None when none waits."""
        if self.policy.expires is not None:
            self.touch()
        if self._may_expire:
            self._drop_expired()
        entry = self.store.take() if self.store.count else None
        if self._may_expire:
            self._watch_expiry()
        return entry

    def put_back(self, entries: Iterable[Entry]) -> None:
        """Take messages back to the places where they were, marked as redelivered.

        :meth:`settle` must follow, when all queues have got theirs back.
        """
        for entry in entries:
            entry.redelivered = True
            if not self.is_deleted:
                self.store.put_back(entry)
                self._may_expire |= entry.expires_at is not None

    def settle(self) -> None:
        """After :meth:`put_back`: deliver what can be, drop what is too old or too many."""
        self.push()
        if self.store.count:
            self._enforce()

    def keep_persistent(self) -> None:
        """Drop what would not survive a restart of the broker."""
        for entry in [self.store.take() for _ in range(self.store.count)]:
            if entry.envelope["properties"].get("delivery_mode") == 2:
                self.store.put_back(entry)
        self._delayed = [each for each in self._delayed if each[3]]
        heapify(self._delayed)
        self._watch_expiry()

    def purge(self) -> int:
        """Drop what waits and return how many there were."""
        count = self.store.clear()
        self._delayed.clear()
        self._delays.stop()
        self._watch_expiry()
        return count

    def push(self) -> None:
        """Deliver while messages wait and a consumer has room."""
        store = self.store
        if self._may_expire:
            self._drop_expired()
        while store.count:
            consumer = self._turns.first()
            if consumer is None:
                return
            entry = store.take()
            try:
                self._deliver(consumer, entry)
            except BaseException as exc:
                self._interrupted(consumer, entry, exc)
                raise
        if self._may_expire:
            self._watch_expiry()

    def _interrupted(self, consumer: Consumer, entry: Entry, exc: BaseException) -> None:
        """Put back *entry*, whose delivery a signal has interrupted, and end the consumer's link."""
        unacked = consumer.channel.deliveries.unacked.values()
        if not any(each.entry is entry for each in unacked):
            self.put_back([entry])
        link = consumer.channel.connection
        link.interrupted(exc)  # which puts back what the consumer has
        get_hub().loop.run_callback(self.settle)

    def _deliver(self, consumer: Consumer, entry: Entry) -> None:
        if len(self.consumers) > 1:
            self._turns.put_behind(consumer)
        channel = consumer.channel
        message = Message(channel, next(self._tags), entry, consumer)
        if not consumer.no_ack or consumer.sink is None:
            # What needs no ack and does not become an event is gone with its delivery.
            channel.deliveries.hold(consumer, message)
        consumer.hand_over(message, message)
        if consumer.is_parked and consumer.has_room():
            self._turns.add(consumer)

    # -- consumers

    def resume(self, consumer: Consumer) -> None:
        """Serve a consumer that has room again."""
        consumers = self.consumers
        if consumer not in consumers:
            return
        if not self.policy.is_single_active or next(iter(consumers)) is consumer:
            if self.store.count and not self._may_expire:
                # No other consumer has room, or none would wait: the next one is for this one.
                entry = self.store.take()
                try:
                    self._deliver(consumer, entry)
                except BaseException as exc:
                    self._interrupted(consumer, entry, exc)
                    raise
            else:
                self._turns.add(consumer)
            if self.store.count and not consumer.is_parked:
                self.push()

    def join(self, consumer: Consumer) -> None:
        """Add a consumer."""
        self.consumers[consumer] = None
        self.touch()
        consumer.wake()

    def leave(self, consumer: Consumer) -> None:
        """Remove a consumer: the next one may become the single active one."""
        if consumer not in self.consumers:
            return
        del self.consumers[consumer]
        self._turns.discard(consumer)
        if not self.consumers:
            self.touch()
            if self.declared.auto_delete:
                self._broker.unused(self)
        elif self.policy.is_single_active:
            next(iter(self.consumers)).wake()

    # -- time and length

    def touch(self) -> None:
        """Note that the queue is used: its time without use begins anew."""
        expires = self.policy.expires
        if expires is None or self.is_deleted:
            return
        if self.consumers:
            self._idle.stop()
        else:
            self._idle.set(self._broker.now() + expires)

    def _note_idle(self) -> None:
        if not self.consumers:
            self._broker.unused(self)

    def _enforce(self) -> None:
        """Drop what is too old or too many, and wait for the next that will be too old."""
        self._drop_expired()
        store, policy = self.store, self.policy
        if policy.is_bounded and not policy.refuses_overflow:
            while store.count and policy.is_above(store.count, store.size):
                self._broker.dead_letter(store.take(), "maxlen")
        self._watch_expiry()

    def _drop_expired(self, most: int | None = None) -> None:
        """Drop what is too old at the heads, and at most so many."""
        if not self._may_expire:
            return
        now = self._broker.now()
        while most is None or most > 0:
            entry = self.store.take_expired(now)
            if entry is None:
                break
            self._broker.dead_letter(entry, "expired")
            if most is not None:
                most -= 1

    def _expire(self) -> None:
        self._drop_expired(EXPIRED_A_TURN)
        self._watch_expiry()

    def _watch_expiry(self) -> None:
        """Wake when the next head is too old; a timer that comes too early looks again."""
        if not self._may_expire:
            return
        at = self.store.next_expiry()
        if at is None:
            self._expiry.stop()
            self._may_expire = self.store.count > 0
        elif self._expiry.at is None or self._expiry.at > at:
            self._expiry.set(at)

    def close(self) -> list[Consumer]:
        """Drop the messages of a deleted queue, and return its consumers."""
        self.is_deleted = True
        self._idle.stop()
        self.purge()
        consumers = list(self.consumers)
        self.consumers.clear()
        for consumer in consumers:
            self._turns.discard(consumer)
        return consumers


class Clock(Protocol):
    """A clock with alarms.  (Tests set it themselves.)"""

    def now(self) -> float:
        """Return the time in seconds, which never goes back."""
        ...

    def call_later(self, delay: float, function: Callable[[], Any]) -> Callable[[], Any]:
        """Call *function* in *delay* seconds; return what stops that."""
        ...


class HubClock:
    """The monotonic clock, and timers of one hub."""

    def __init__(self) -> None:
        self._hub = get_hub()

    def now(self) -> float:
        """Return the seconds of the monotonic clock."""
        return monotonic()

    def call_later(self, delay: float, function: Callable[[], Any]) -> Callable[[], Any]:
        """Call *function* in the hub; it must not switch."""
        timer = self._hub.loop.timer(delay)
        timer.start(function, update=True)
        return timer.close


class Timer:
    """Calls *function* at a time that can be changed.  Holds a timer only while it is set."""

    def __init__(self, clock: Clock, function: Callable[[], Any]) -> None:
        self._clock = clock
        self._function = function
        self._stop: Callable[[], Any] | None = None
        #: When it calls, by its clock; None while it is not set.
        self.at: float | None = None

    def set(self, at: float) -> None:
        """Call at *at* instead of whenever it was set to."""
        self.stop()
        self.at = at
        self._stop = self._clock.call_later(max(at - self._clock.now(), 0.0), self._on_time)

    def stop(self) -> None:
        """Call no more, until it is set again."""
        self.at = None
        if self._stop is not None:
            stop, self._stop = self._stop, None
            stop()

    def _on_time(self) -> None:
        at = self.at
        if at is not None and at > self._clock.now():
            self.set(at)  # A timer may be early by the loop's resolution.
            return
        self.stop()
        self._function()


#: Publishes between two looks at the clock.
STREAK = 64


class Outcome(Enum):
    """The outcome of a published message."""

    ROUTED = "routed"
    UNROUTED = "it reached no queue"
    REFUSED = "a queue refused it"


#: Returned for nearly each message: looking up a member of an Enum has a cost.
ROUTED: Final = Outcome.ROUTED


class Broker:
    """One virtual host.

    It belongs to the hub on which it was made: use from another thread raises ``WrongHub``.

    Arguments:
        virtual_host: its name.
        clock: what expiry goes by.
    """

    def __init__(self, virtual_host: str = "/", clock: Clock | None = None) -> None:
        self.virtual_host = virtual_host
        self.clock: Clock = HubClock() if clock is None else clock
        self.hub_affinity = HubAffinity()
        self.pid = os.getpid()
        self.state = BrokerState()
        self.queues: dict[str, Queue] = {}
        #: Numbers for deliveries: none is used twice.
        self.tags: Iterator[int] = count(1)
        #: Links that are open.
        #: In the order of their opening.  Not kept alive: one that its program drops closes.
        self.links: WeakKeyDictionary[BrokerLink, None] = WeakKeyDictionary()
        #: What queues have given up and is not sent yet, and why.
        self._dead: deque[tuple[Entry, str]] = deque()
        self._is_sending_dead = False
        self._published = 0
        self._turned_at = monotonic()
        for name, kind in PREDECLARED.items():
            self.state.declare(name, kind, durable=True)
        forget_at_fork(self)

    def __repr__(self) -> str:
        return f"<memory broker {self.virtual_host!r}: {len(self.queues)} queues>"

    @property
    def is_here(self) -> bool:
        """Whether it belongs to the hub of the caller."""
        return get_hub() is self.hub_affinity.hub

    # -- time

    def now(self) -> float:
        """Return the broker's clock, in seconds."""
        return self.clock.now()

    def timer(self, function: Any) -> Timer:
        """Return a timer on the broker's clock."""
        return Timer(self.clock, function)

    def yield_if_due(self) -> None:
        """Count a publish, and let others run when publishing has gone on for 5 ms.  May switch."""
        self._published += 1
        if self._published >= STREAK:
            self._published = 0
            if monotonic() - self._turned_at > CLOCK.pace:
                yield_to_hub()
                self._turned_at = monotonic()

    # -- queues

    def add_queue(self, name: str, declared: Declaration) -> Queue:
        """Make a queue, which must not exist yet."""
        queue = self.queues[name] = Queue(self, name, declared)
        return queue

    def delete_queue(self, name: str) -> int:
        """Delete a queue, its bindings and its consumers; return how many messages waited."""
        queue = self.queues.pop(name, None)
        if queue is None:
            return 0
        count = len(queue)
        self.state.queue_bindings_delete(name)
        for consumer in queue.close():
            consumer.channel.cancelled_by_broker(consumer)
        return count

    def unused(self, queue: Queue) -> None:
        """Delete a queue that expired without use or lost its last consumer (auto-delete)."""
        if not queue.is_deleted:
            self.delete_queue(queue.name)

    # -- messages

    def publish(
        self, envelope: Envelope, exchange: str, routing_key: str, delay: float = 0.0
    ) -> Outcome:
        """Put a message into the queues that it is routed to.

        Arguments:
            delay: seconds until it comes into them.

        Raises:
            NotFound: there is no such exchange.
            PreconditionFailed: its ``expiration`` is not a number of milliseconds.
        """
        expiration = envelope["properties"].get("expiration")
        ttl = None if expiration is None else lifetime_of(expiration)
        headers = envelope["headers"]
        if not exchange and not (headers and ("CC" in headers or "BCC" in headers)):
            queue = self.queues.get(routing_key)
            if queue is None:
                return Outcome.UNROUTED
            if delay:
                queue.accept_later(delay, envelope, exchange, routing_key, ttl)
                return ROUTED
            is_taken = queue.accept(envelope, exchange, routing_key, ttl)
            return ROUTED if is_taken else Outcome.REFUSED
        queues, envelope = self._routes(envelope, exchange, routing_key)
        outcome = ROUTED if queues else Outcome.UNROUTED
        for queue in queues:
            if delay:
                queue.accept_later(delay, envelope, exchange, routing_key, ttl)
                continue
            if not queue.accept(envelope, exchange, routing_key, ttl):
                outcome = Outcome.REFUSED
        return outcome

    def _routes(
        self, envelope: Envelope, exchange: str, routing_key: str
    ) -> tuple[list[Queue], Envelope]:
        """Return the queues, and the message without the header ``BCC``."""
        headers = envelope["headers"]
        if not headers or ("CC" not in headers and "BCC" not in headers):
            names = self._names(exchange, routing_key, headers)
            return [self.queues[each] for each in names], envelope
        keys = [routing_key, *carbon_copies(headers, "CC", "BCC")]
        found = dict.fromkeys(name for key in keys for name in self._names(exchange, key, headers))
        envelope = {**envelope, "headers": visible_headers(headers)}
        return [self.queues[each] for each in found], envelope

    def _names(
        self, exchange: str, routing_key: str, headers: Mapping[str, Any]
    ) -> tuple[str, ...]:
        if not exchange:
            return (routing_key,) if routing_key in self.queues else ()
        try:
            return self.state.route(exchange, routing_key, headers)
        except KeyError:
            raise no_exchange(exchange, self.virtual_host, Method.BASIC_PUBLISH) from None

    def dead_letter(self, entry: Entry, reason: str) -> None:
        """Send a message that its queue gives up to the queue's dead-letter exchange, if any.

        What that causes is done too when this returns, unless it is part of it: one that makes another
        queue overflow does not nest.
        """
        queue = entry.queue
        if queue.policy.dead_letter_exchange is None or queue.is_deleted:
            return
        self._dead.append((entry, reason))
        if self._is_sending_dead:
            return
        self._is_sending_dead = True
        try:
            while self._dead:
                self._send_dead(*self._dead.popleft())
        finally:
            self._is_sending_dead = False

    def _send_dead(self, entry: Entry, reason: str) -> None:
        queue, envelope = entry.queue, entry.envelope
        target = queue.policy.dead_letter_target(queue.name, None)
        if target is None or (target.exchange and target.exchange not in self.state.exchanges):
            return
        info = {"exchange": entry.exchange, "routing_key": entry.routing_key}
        properties = {**envelope["properties"], "delivery_info": info}
        try:
            letter = dead_letter(
                {**envelope, "properties": properties}, queue.name, *target, reason
            )
        except Exception as exc:  # its headers may be of any form
            logger.warning(
                "memory broker: a dead letter of queue %r is dropped: %s",
                queue.name,
                exc,
                extra={"queue": queue.name},
            )
            return
        key = letter["properties"].pop("delivery_info")["routing_key"]
        deaths = letter["headers"]["x-death"]
        queues, letter = self._routes(letter, target.exchange, key)
        for each in queues:
            if reason != "rejected" and is_cycle(each.name, deaths):
                continue
            if not each.accept(letter, target.exchange, key):
                # As RabbitMQ does, whose dead letters are published without a confirm.
                logger.warning(
                    "memory broker: a dead letter is dropped: queue %r is full and rejects it",
                    each.name,
                    extra={"queue": each.name},
                )

    # -- links

    def left(self, link: BrokerLink) -> None:
        """Delete the exclusive queues of a link that has ended."""
        self.links.pop(link, None)
        own = [name for name, each in self.queues.items() if each.declared.owner == link.owner]
        for name in own:
            self.delete_queue(name)

    def forget(self) -> None:
        """Forget all content and links in the child of a fork, as they are the parent's."""
        for queue in self.queues.values():
            queue.close()
        self.queues.clear()
        exc = RecoverableConnectionError("the connection was opened before a fork")
        for link in list(self.links):
            link.forget(exc)
        self.links.clear()
        self.state.clear()

    def restart(self) -> None:
        """Do what a restart of a broker does: all links are lost, and what is not durable."""
        for link in list(self.links):
            link.end(ConnectionForced("CONNECTION_FORCED - broker restarted"))
        for queue in list(self.queues.values()):
            if queue.declared.durable:
                queue.keep_persistent()
            else:
                self.delete_queue(queue.name)
        for exchange in list(self.state.exchanges.values()):
            if not exchange.durable:
                self.state.delete(exchange.name)

    def clear(self) -> None:
        """Close all links and forget everything."""
        # The queues first: what the first link gives back must not go to the next one.
        for queue in self.queues.values():
            queue.close()
        self.queues.clear()
        for link in list(self.links):
            link.end(RecoverableConnectionError("the memory broker was reset"), closed=True)
        self.state.clear()


class Queues(Mapping[str, Queue]):
    """The queues of *broker* by their names, for the tests of programs."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def __getitem__(self, name: str) -> Queue:
        return self._broker.queues[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._broker.queues)

    def __len__(self) -> int:
        return len(self._broker.queues)

    def clear(self) -> None:
        """Delete all queues, their bindings and their consumers."""
        for name in list(self):
            self._broker.delete_queue(name)
