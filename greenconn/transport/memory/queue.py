"""A queue of the memory broker: its messages, its consumers and its policy.

Rule: while a consumer has room, nothing waits.  So every change that adds a message or room ends
with :meth:`Queue.push`, and a message that finds an idle consumer never enters the store.

Nothing here switches greenlets.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING, Any, ClassVar

from greenconn.broker.consuming import Consumer, Turns
from greenconn.broker.envelope import Envelope, copied, level_of
from greenconn.broker.queues import Declaration, QueuePolicy
from greenconn.message import Message as BaseMessage
from greenconn.message import computed_slot
from greenconn.serialization import loads

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel
    from greenconn.broker.consuming import Consumer
    from greenconn.broker.envelope import Envelope
    from greenconn.transport.memory.broker import Broker

_set_body, _set_errors = (vars(BaseMessage)[name].__set__ for name in ("body", "errors"))
_get_errors = vars(BaseMessage)["errors"].__get__


def size_of(body: Any) -> int:
    """Return the size of a body in bytes, as on a wire."""
    return len(body.encode()) if isinstance(body, str) else len(body or b"")


class Entry:
    """One message in one queue: waiting there, or delivered and not settled yet."""

    __slots__ = (
        "envelope",
        "exchange",
        "expires_at",
        "position",
        "priority",
        "queue",
        "redelivered",
        "routing_key",
        "size",
    )

    def __init__(
        self,
        queue: Queue,
        envelope: Envelope,
        exchange: str,
        routing_key: str,
        position: int,
        expires_at: float | None = None,
        priority: int = 0,
    ) -> None:
        self.queue = queue
        #: The published message.  Its queues share it, so it must not be changed.
        self.envelope = envelope
        self.exchange = exchange
        self.routing_key = routing_key
        #: Where in the queue it came; a message that is given back returns to this place.
        self.position = position
        #: When it is too old to be delivered, by the broker's clock; None never.
        self.expires_at = expires_at
        self.priority = priority
        self.redelivered = False
        #: Bytes of the body, where the queue counts them.
        self.size = 0


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
        """Take back one that was taken out, to the place where it was."""
        heappush(self._lanes[entry.priority].returned, (entry.position, entry))
        self._filled |= 1 << entry.priority
        self.count += 1
        self.size += entry.size

    def take(self) -> Entry:
        """Take out the one whose turn it is.  There must be one."""
        return self._take_from(self._filled.bit_length() - 1)

    def _take_from(self, priority: int) -> Entry:
        lane = self._lanes[priority]
        fresh, returned = lane.fresh, lane.returned
        entry = heappop(returned)[1] if returned else fresh.popleft()
        if not (fresh or returned):
            self._filled &= ~(1 << priority)
        self.count -= 1
        self.size -= entry.size
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
                return self._take_from(priority)
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
            return loads(self.body, self.content_type, self.content_encoding, self.accept)
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
                self._deliver(consumer, entry)
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
            self._deliver(consumer, store.take())
        if self._may_expire:
            self._watch_expiry()

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
                self._deliver(consumer, self.store.take())
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
        if policy.is_bounded:
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
