"""Messages in the queues of the memory broker: waiting, or delivered."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, ClassVar

from greenconn.broker.envelope import copied
from greenconn.message import Message as BaseMessage
from greenconn.message import computed_slot
from greenconn.serialization import loads

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel
    from greenconn.broker.consuming import Consumer
    from greenconn.broker.envelope import Envelope
    from greenconn.transport.memory.queue import Queue

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
