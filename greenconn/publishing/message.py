"""A message to be published: its serialised body, its target and its options."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from greenconn.checks import Seconds, check_keywords, did_you_mean, is_number, milliseconds
from greenconn.compression import compress
from greenconn.delays import checked_delay, delayed_route
from greenconn.encoding import plain_text
from greenconn.entity import DELIVERY_MODES, Exchange, Queue
from greenconn.entity.existence import existence_key
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.listeners import Observation, Observers, PublishEvent, size_of
from greenconn.message import Message
from greenconn.messaging.producer import MessageProperties
from greenconn.serialization import dumps

if TYPE_CHECKING:
    from greenconn.abc import Channel

Target: TypeAlias = str | Queue | Exchange


class PublishArguments(MessageProperties, total=False):
    """The options of :func:`greenconn.publish`, and of what publishes as it does."""

    compression: str | None
    content_encoding: str | None
    content_type: str | None
    declare: bool | None
    delay: Seconds | None
    delivery_mode: Literal["transient", "persistent", 1, 2] | None
    expiration: Seconds | None
    expires: Seconds | None
    headers: Mapping[str, Any] | None
    mandatory: bool
    priority: int | None
    routing_key: str | None
    serializer: str | None


PROPERTIES: Final = MessageProperties.__optional_keys__
KNOWN: Final = PublishArguments.__optional_keys__
OPTIONS: Final = KNOWN - PROPERTIES
#: What ``Producer.publish`` takes and this does not, and what to do instead.
ELSEWHERE: Final = {
    "exchange": "pass the Exchange as target",
    "queue": "pass the queue as target",
    "retry": "publish retries by itself until the timeout",
    "retry_policy": "publish retries by itself until the timeout",
}
#: Bytes that AMQP has room for in a name or a property (0-9-1, 4.2.5.3).
SHORT: Final = 255
PERSISTENT: Final = 2
TRANSIENT: Final = 1
#: How many are kept.
KEPT: Final = 1024
_kept: dict[tuple[Any, ...], PublishOptions] = {}
#: The result of a publish that was decided when it returned: a filled slot, whose ``wait`` returns.
_DONE: Final[Slot[None]] = Slot()
_DONE.offer(None)


class OutgoingMessage:
    """One message: its serialised body, and the options that it is published with.

    Attributes:
        maybe_delivered: whether it was sent and never answered, so that the broker may have it.
        is_isolated: its channel was closed by an error while it was outstanding: from then on it is
            published on a channel of its own.
        observation: of its publish, while there are listeners; else None.
        own: properties that this message alone has.
    """

    __slots__ = (
        "body",
        "content_encoding",
        "content_type",
        "headers",
        "is_isolated",
        "maybe_delivered",
        "observation",
        "options",
        "own",
    )

    def __init__(
        self,
        options: PublishOptions,
        body: Any,
        content_type: str,
        content_encoding: str,
        headers: dict[str, Any] | None,
    ) -> None:
        self.options = options
        self.body = body
        self.content_type = content_type
        self.content_encoding = content_encoding
        self.headers = headers
        self.maybe_delivered = False
        self.is_isolated = False
        self.own: dict[str, Any] | None = None
        self.observation: Observation[PublishEvent] | None = None

    def observe(
        self, observers: Observers[PublishEvent], connection: str
    ) -> Observation[PublishEvent]:
        """Notify the listeners that it is about to be published.  Never switches.

        Arguments:
            connection: the broker's URL, password masked.
        """
        options = self.options
        # The headers are a copy: other messages may have the same.
        headers = self.headers = dict(self.headers or ())
        event = PublishEvent(
            connection,
            options.exchange,
            options.routing_key,
            headers,
            {**options.properties, **(self.own or {})},
            size_of(self.body),
        )
        self.observation = observers.begin(event)
        return self.observation

    def prepare(self, channel: Channel) -> Any:
        """Return the message as *channel* sends it.  Never switches.

        Raises:
            ValueError: a header or property cannot be sent.
        """
        options = self.options
        properties = options.properties
        return channel.prepare_message(
            self.body,
            options.priority,
            self.content_type,
            self.content_encoding,
            self.headers,
            properties.copy() if self.own is None else {**properties, **self.own},
        )

    def replace(self, received: Message[Any]) -> bool:
        """Have the broker deliver this one, after its delay, in the place of *received*.  May switch.

        Returns:
            False: it cannot do that in one step, and nothing was done.

        Raises:
            ValueError: the transport cannot keep this delay.
        """
        channel, options = received.channel, self.options
        if (
            options.delay is None
            or not isinstance(received, Message)
            or not hasattr(channel, "replace_delivery")
        ):
            return False
        exchange, queue = options.exchange, options.routing_key
        route = delayed_route(
            channel, exchange, queue, options.delay, self.headers, options.properties
        )
        self.headers = route.headers
        return received.replace(self.prepare(channel), queue)

    def begin(self, channel: Channel, deadline: Deadline) -> Any:
        """Publish on *channel*.  May switch, before the first byte only.

        Returns:
            an object whose ``wait(deadline)`` tells what became of it.
        """
        options = self.options
        exchange, routing_key = options.exchange, options.routing_key
        if options.delay is not None:
            route = delayed_route(
                channel, exchange, routing_key, options.delay, self.headers, options.properties
            )
            exchange, routing_key = route.exchange, route.routing_key
            self.headers = route.headers
        message = self.prepare(channel)
        begin = getattr(channel, "begin_publish", None)
        if begin is None:
            # A channel made for kombu: what it knows of the outcome is known when it returns.
            self.maybe_delivered = True
            channel.basic_publish(
                message,
                exchange=exchange,
                routing_key=routing_key,
                mandatory=options.mandatory,
            )
            return _DONE
        confirm = begin(message, exchange, routing_key, options.mandatory, False, deadline)
        self.maybe_delivered = True
        return confirm

    def request(self, channel: Channel, deadline: Deadline) -> None:
        """Publish on *channel* without a wait for the confirm, where the channel can.  May switch."""
        request = getattr(channel, "request", None)
        if request is None:
            self.begin(channel, deadline).wait(deadline)
            return
        options = self.options
        request(
            self.prepare(channel),
            options.exchange,
            options.routing_key,
            options.mandatory,
            deadline,
        )


class PublishOptions:
    """The target and the options of one call, shared by its messages and checked once.

    It does not change.

    Arguments:
        target: a queue or an exchange.
        options: see :func:`greenconn.publish`.
        delivery_mode: where neither *options* nor the target has one.

    Raises:
        TypeError, ValueError: one is wrong; names it.
    """

    __slots__ = (
        "compression",
        "content_encoding",
        "content_type",
        "declare",
        "delay",
        "exchange",
        "headers",
        "key",
        "mandatory",
        "priority",
        "properties",
        "routing_key",
        "serializer",
        "target",
    )

    def __init__(
        self, target: Target, options: Mapping[str, Any], delivery_mode: int = PERSISTENT
    ) -> None:
        self.target = target
        self.exchange, self.routing_key = _address(target, options.get("routing_key"))
        #: By which a life of the connection knows that the target exists.
        self.key = existence_key(target)
        self.mandatory = True
        #: Whether a queue that is known only by its name is declared; None: as the program chose.
        self.declare: bool | None = None
        #: Seconds until it reaches the queue, above 0.
        self.delay: float | None = None
        self.serializer: str | None = None
        self.compression: str | None = None
        self.content_type: str | None = None
        self.content_encoding: str | None = None
        self.headers: dict[str, Any] | None = None
        self.priority: int | None = None
        self.properties: dict[str, Any] = {"delivery_mode": delivery_mode}
        if isinstance(target, Exchange) and target.delivery_mode:
            self.properties["delivery_mode"] = _delivery_mode(target.delivery_mode)
        if options:
            self._take(options)

    @classmethod
    def of(
        cls, target: Target, options: Mapping[str, Any], delivery_mode: int = PERSISTENT
    ) -> PublishOptions:
        """Return the options; those for a queue by its name are kept for the next such call."""
        if target.__class__ is not str or not OPTIONS.issuperset(options):
            return cls(target, options, delivery_mode)
        key = (target, delivery_mode, *options.items()) if options else (target, delivery_mode)
        try:
            kept = _kept.get(key)
        except TypeError:  # headers: who gave them may change them
            return cls(target, options, delivery_mode)
        if kept is None:
            kept = cls(target, options, delivery_mode)
            if len(_kept) >= KEPT:
                _kept.clear()
            _kept[key] = kept
        return kept

    def _take(self, options: Mapping[str, Any]) -> None:
        _refuse_unknown(options)
        get = options.get
        self.mandatory = bool(get("mandatory", True))
        self.declare = _declare(get("declare"), self.target)
        self.delay = checked_delay(get("delay"))
        self.serializer = _text("serializer", get("serializer"))
        self.compression = _text("compression", get("compression"))
        self.content_type = _text("content_type", get("content_type"))
        self.content_encoding = _text("content_encoding", get("content_encoding"))
        self.headers = _headers(get("headers"))
        self.priority = _priority(get("priority"))
        properties = self.properties
        if (mode := get("delivery_mode")) is not None:
            properties["delivery_mode"] = _delivery_mode(mode)
        for name in ("expiration", "expires"):
            if (seconds := get(name)) is not None:
                if "expiration" in properties:
                    raise ValueError("expires must be None with expiration, whose other name it is")
                properties["expiration"] = milliseconds(name, seconds)
        for name in PROPERTIES & options.keys():
            value = options[name]
            if name == "reply_to" and isinstance(value, Queue):
                value = value.name
            if value is not None:
                properties[name] = _timestamp(value) if name == "timestamp" else _text(name, value)

    def message(self, body: Any) -> OutgoingMessage:
        """Serialise *body*.

        Raises:
            EncodeError: it cannot be.
            SerializerNotInstalled: there is no such serializer.
            ValueError: there is no such compression.
        """
        headers = self.headers
        if self.content_type:
            content_type, encoding, body = self._as_given(body)
        else:
            content_type, encoding, body = dumps(body, self.serializer)
        if self.compression:
            try:
                body, name = compress(body, self.compression)
            except KeyError as exc:
                raise ValueError(f"compression={self.compression!r}: {exc.args[0]}") from None
            headers = {**(headers or {}), "compression": name}
        return OutgoingMessage(self, body, content_type, encoding, headers)

    def _as_given(self, body: Any) -> tuple[str, str, Any]:
        """Return a body that is serialised already, with the content type that the caller named."""
        encoding = self.content_encoding
        assert self.content_type is not None
        if isinstance(body, str):
            encoding = encoding or "utf-8"
            return self.content_type, encoding, body.encode(encoding)
        if isinstance(body, (bytes, bytearray, memoryview)):
            return self.content_type, encoding or "binary", bytes(body)
        raise TypeError(
            f"a body that is serialized already, as content_type={self.content_type!r} says, must be "
            f"text or bytes, got {type(body).__name__} (or pass a serializer instead)"
        )

    def __str__(self) -> str:
        if isinstance(self.target, Exchange):
            return f"exchange {self.exchange!r} with routing key {self.routing_key!r}"
        return f"queue {self.routing_key!r}"


def _address(target: Target, routing_key: Any) -> tuple[str, str]:
    if isinstance(target, Exchange):
        return _name("target", target.name or ""), _name("routing_key", routing_key or "")
    name = target.name if isinstance(target, Queue) else target
    if not isinstance(name, str):
        raise TypeError(
            f"target must be the name of a queue, a Queue or an Exchange, got {target!r}"
        )
    if not name:
        raise ValueError(f"target must have a name, got {target!r}")
    if routing_key is not None:
        raise ValueError(
            f"routing_key must be None for a message to queue {name!r}, whose name it is (or give the "
            f"Exchange as target), got {routing_key!r}"
        )
    return "", _name("target", name)


def _name(option: str, value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{option} must be text, got {value!r}")
    if len(value) * 3 > SHORT and len(value.encode("utf-8", "surrogatepass")) > SHORT:
        raise ValueError(
            f"{option} must have at most {SHORT} bytes (limit of AMQP), got {value[:40]!r}..."
        )
    return value if value.__class__ is str else plain_text(value)


def _declare(value: Any, target: Target) -> bool | None:
    if value not in (None, True, False):
        raise TypeError(f"declare must be True, False or None, got {value!r}")
    if value is False and not isinstance(target, str):
        raise ValueError(
            f"declare must not be False for {target!r}, which is declared as it is an entity: "
            f"pass its name, or create it with no_declare=True"
        )
    return None if value is None else bool(value)


def _text(option: str, value: Any) -> str | None:
    return None if value is None else _name(option, value)


def _headers(value: Any) -> dict[str, Any] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping) or not all(isinstance(each, str) for each in value):
        keys = (
            f"keys {sorted(map(repr, value))}"
            if isinstance(value, Mapping)
            else type(value).__name__
        )
        raise TypeError(f"headers must be a mapping with text as keys, got {keys}")
    return dict(value)


def _priority(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value <= 255:
        raise ValueError(f"priority must be an integer from 0 to 255, got {value!r}")
    return int(value)


def _delivery_mode(value: Any) -> int:
    if isinstance(value, str):
        if value in DELIVERY_MODES:
            return int(DELIVERY_MODES[value])
    elif value in (1, 2):
        return int(value)
    raise ValueError(
        f"delivery_mode must be 1 or 'transient', 2 or 'persistent', got {value!r}"
        + f"; {did_you_mean(str(value), DELIVERY_MODES)}" * isinstance(value, str)
    )


def _timestamp(value: Any) -> Any:
    if isinstance(value, datetime) or (is_number(value) and value >= 0):
        return value
    raise ValueError(f"timestamp must be a datetime, or seconds since 1970, got {value!r}")


def _refuse_unknown(options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in KNOWN:
            if name in ELSEWHERE:
                raise TypeError(f"publish() has no option {name!r}: {ELSEWHERE[name]}")
            check_keywords("publish", (name,), KNOWN)
