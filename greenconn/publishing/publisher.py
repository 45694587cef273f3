"""The publisher of a connection, which all greenlets that publish over it share, and its messages.

All publish over one channel with confirms, so a publish costs no channel and waits for its confirm
only. The channel is opened by the first that needs it; a lost one is replaced by the next publish.

A publish returns when the broker has confirmed the message, and is retried until its deadline for
whatever may pass: a lost connection, a broker that is unavailable or blocks.  A message that was sent
may then be published twice; ``maybe_delivered`` of the error tells.

A message that the broker refuses costs the channel, and with it the confirms of all others on it, which
cannot know whose fault it was.  They are sent again one at a time on a channel of their own
(*isolated*), so that the refusal meets its own message only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, TypeVar

from msgspec import Struct

from greenconn.checks import Seconds, check_keywords, did_you_mean, is_number, milliseconds
from greenconn.common import Broadcast
from greenconn.compression import compress
from greenconn.defaults import declare_by_name
from greenconn.delays import checked_delay, delayed_route, seconds_until
from greenconn.encoding import plain_text
from greenconn.entity import DELIVERY_MODES, Exchange, Queue
from greenconn.entity.declaration import (
    ensure_declared,
    existence_key,
    forget_existence,
    has_messages,
    is_expected,
    note_deleted,
    wait_for_queue,
)
from greenconn.exceptions import (
    NEVER_REPEATED,
    AccessRefused,
    ConnectionBlocked,
    IrrecoverableConnectionError,
    LimitExceeded,
    NotAllowed,
    NotFound,
    OperationalError,
    PublishNacked,
    PublishRefused,
    PublishTimeout,
    Unroutable,
    error_text,
    is_unavailable,
)
from greenconn.green.deadline import Deadline, is_thrown
from greenconn.green.pool import FairPool
from greenconn.green.retry import RetryPolicy, attempts
from greenconn.green.slot import SingleFlight, Slot
from greenconn.green.supervisor import spawn
from greenconn.listeners import LISTENERS, Observation, Observers, PublishEvent, size_of
from greenconn.message import Message
from greenconn.messaging.producer import MessageProperties
from greenconn.serialization import dumps
from greenconn.session.session import Session, begin_channel

if TYPE_CHECKING:
    from greenconn.abc import Channel


logger = logging.getLogger("greenconn.publishing")

T = TypeVar("T")

#: After the loss of a connection: without a switch at first, so that messages are sent again in order.
PUBLISHING: Final = RetryPolicy(first=0.05, longest=2.0, jitter=0.0, immediate=1)
#: For a queue whose node is away.
FINDING: Final = RetryPolicy(first=0.05, longest=2.0, jitter=0.0)
#: Seconds for which an empty queue may refuse a message, since it may have no leader.
LEADER_WAIT: Final = 10.0

#: Seconds of a delay that has ended before its message is sent: there is none of 0.
SHORTEST_DELAY: Final = 0.001

#: A Broadcast is a Queue, whose exchange is meant.
Target: TypeAlias = str | Queue | Exchange


class PublishArguments(MessageProperties, total=False):
    """The options of :func:`greenconn.publish`, and of what publishes as it does."""

    at: datetime | None
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


#: The defaults of those that have one other than None.
DEFAULTS: Final = {"mandatory": True}
PROPERTIES: Final = MessageProperties.__optional_keys__
KNOWN: Final = PublishArguments.__optional_keys__
#: With *at*, the same call made later means another delay.
OPTIONS: Final = KNOWN - PROPERTIES - {"at"}
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
#: The number of options that are kept for the next call.
KEPT: Final = 1024
_kept: dict[tuple[Any, ...], PublishOptions] = {}
#: The result of a publish that was decided when it returned: a filled slot, whose ``wait`` returns.
_DONE: Final[Slot[None]] = Slot()
_DONE.offer(None)


class OutgoingMessage(Struct, eq=False):
    """One message: its serialised body, and the options that it is published with.

    Attributes:
        maybe_delivered: whether it was sent and never answered, so that the broker may have it.
        is_isolated: its channel was closed by an error while it was outstanding: from then on it is
            published on a channel of its own.
        own: properties that this message alone has.
        observation: of its publish, while there are listeners; else None.
    """

    options: PublishOptions
    body: Any
    content_type: str
    content_encoding: str
    headers: dict[str, Any] | None
    maybe_delivered: bool = False
    is_isolated: bool = False
    own: dict[str, Any] | None = None
    observation: Observation[PublishEvent] | None = None

    def observe(
        self, observers: Observers[PublishEvent], connection: str
    ) -> Observation[PublishEvent]:
        """Notify the listeners that it is about to be published.  Switches if one of them does.

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
            delay = options.delay_left(options.delay)
            route = delayed_route(
                channel, exchange, routing_key, delay, self.headers, options.properties
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
        "_at",
        "broadcasts",
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
        #: Whether it goes to the consumers of a Broadcast, of which there may be none.
        self.broadcasts = isinstance(target, Broadcast)
        self.mandatory = not self.broadcasts
        if isinstance(target, Broadcast):
            target = _exchange_of(target)
        self.target = target
        self.exchange, self.routing_key = _address(target, options.get("routing_key"))
        #: By which a life of the connection knows that the target exists.
        self.key = existence_key(target)
        #: Whether a queue that is known only by its name is declared; None: as the program chose.
        self.declare: bool | None = None
        #: Seconds until it reaches the queue, above 0; as of now, where a time was given.
        self.delay: float | None = None
        self._at: datetime | None = None
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
        """Return the options; those for a queue are kept for the next such call."""
        if type(target) is str:
            name, which = target, None
        elif (
            isinstance(target, Queue)
            and target.declared_as is not None
            and not (target.is_bound or isinstance(target, Broadcast))
        ):
            # The kept options refer to the queue, so that no other object gets its number.
            name, which = target.name, id(target)
        else:
            return cls(target, options, delivery_mode)
        if not OPTIONS.issuperset(options):
            return cls(target, options, delivery_mode)
        given = options.items() if options else ()
        try:
            kept = _kept.get(key := (name, which, delivery_mode, *given))
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
        self.mandatory = bool(get("mandatory", self.mandatory))
        self.declare = _declare(get("declare"), self.target)
        self._at = get("at")
        self.delay = checked_delay(get("delay"), self._at)
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

    def delay_left(self, delay: float) -> float:
        """Return *delay*, or what is left of it where the program has named a time; above 0."""
        return delay if self._at is None else max(SHORTEST_DELAY, seconds_until(self._at))

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


def _exchange_of(broadcast: Broadcast) -> Exchange:
    if broadcast.exchange is None or not broadcast.exchange.name:
        raise ValueError(f"target must have an exchange with a name, got {broadcast!r}")
    return broadcast.exchange


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


class Publisher:
    """The publisher of a connection, which all greenlets that publish over it share.

    Arguments:
        session: of the connection that publishes.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._channel: Any = None
        #: Channels that are not used any more, some with outstanding confirms.
        self._retired: list[Any] = []
        self._flight = SingleFlight("publish-channel")
        #: When an empty queue refused a message first, while its caller tries again.
        self._nacked_at: dict[OutgoingMessage, float] = {}
        #: One channel, one holder, in the order of arrival: where each message is sent alone.
        self._isolated: FairPool[Any] = FairPool(
            self._open,
            _close,
            lambda channel: bool(channel.is_open),
            1,
            lambda: f"isolated channel of {session.broker.label}",
        )

    @property
    def label(self) -> str:
        """The broker's URL, password masked."""
        return self._session.broker.label

    @property
    def lasting_errors(self) -> tuple[type[BaseException], ...]:
        """Errors that :meth:`retry` raises when its deadline ended."""
        return (*self._session.broker.connection_errors, TimeoutError, LimitExceeded)

    def publish(self, message: OutgoingMessage, deadline: Deadline) -> None:
        """Publish *message*, again as long as that may help.  May switch.

        Raises:
            OperationalError: see :func:`greenconn.publish`.
        """
        if (observers := LISTENERS.publishing) is not None and message.observation is None:
            message.observe(observers, self.label).run(self.publish, message, deadline)
            return
        failure: Exception | None = None
        try:
            try:
                # Nearly all succeed at once: no function in between, and nothing prepared for more.
                self._publish_once(message, deadline, reopen=True)
            except Exception as exc:
                failure = exc
            if failure is not None:
                try:
                    again = partial(self._publish_once, message, deadline)
                    self._try_again(again, deadline, failure)
                finally:
                    self._nacked_at.pop(message, None)
        except _NoLeader as exc:
            raise exc.nack from exc.nack.__cause__
        except ConnectionBlocked as exc:
            if not message.maybe_delivered:
                raise
            raise self.timed_out(message, deadline, exc) from exc
        except NEVER_REPEATED:
            raise
        except self.lasting_errors as exc:
            if is_thrown(exc):
                raise
            # Its text says all; our frames would make a page of each error while a broker is away.
            raise self.timed_out(message, deadline, exc) from exc.with_traceback(None)

    def publish_in(
        self, transaction: object, messages: Sequence[OutgoingMessage], deadline: Deadline
    ) -> None:
        """Publish messages when *transaction* is committed.  May switch.

        The broker's own connection says where they go.  A loss of that is waited for; the statement of
        the transaction is sent once.

        Raises:
            OperationalError: see :func:`greenconn.publish`.
            Exception: what a statement of the transaction raises.
        """
        self._session.broker.check_transactions(
            "publish after the commit, or by greenconn.contrib.outbox"
        )
        if (observers := LISTENERS.publishing) is not None:
            for message in messages:
                message.observe(observers, self.label)
        error: BaseException | None = None
        try:
            self._publish_in(transaction, messages, deadline)
        except BaseException as exc:
            error = exc
            raise
        finally:
            for message in messages:
                if message.observation is not None:
                    message.observation.end(error)

    def _publish_in(
        self, transaction: object, messages: Sequence[OutgoingMessage], deadline: Deadline
    ) -> None:
        def begin() -> tuple[Any, list[Any]]:
            self.ensure_target(messages[0].options, deadline)
            channel = self.shared_channel(deadline).within(transaction)
            return channel, [message.begin(channel, deadline) for message in messages]

        try:
            channel, outcomes = self.retry(begin, deadline)
        except NEVER_REPEATED:
            raise
        except self.lasting_errors as exc:
            if is_thrown(exc):
                raise
            for message in messages:
                message.maybe_delivered = False  # nothing is stored yet
            raise self.timed_out(messages[0], deadline, exc) from exc.with_traceback(None)
        except self._session.broker.channel_errors as exc:
            raise PublishRefused(f"cannot publish to {messages[0].options}: {exc}") from exc
        channel.store()
        for outcome in outcomes:
            outcome.wait(deadline)

    def retry(self, function: Callable[[], T], deadline: Deadline) -> T:
        """Return what *function* returns, called again after each loss of the connection.  May switch.

        Raises:
            OperationalError: the broker refused the login, or the connection was closed meanwhile.
            Exception: one of :attr:`lasting_errors`, the last one when the deadline ended; or another
                that *function* raised.
        """
        try:
            # While its channel is open the connection is.
            if (channel := self._channel) is None or not channel.is_open:
                self._connect(deadline, reopen=True)
            return function()
        except Exception as exc:
            failure = exc
        return self._try_again(function, deadline, failure)

    def _try_again(self, function: Callable[[], T], deadline: Deadline, failure: Exception) -> T:
        """Do the rest of :meth:`retry` after a first attempt that failed."""
        for attempt in attempts(PUBLISHING, deadline, self._is_lasting, failure=failure):
            with attempt:
                if (channel := self._channel) is None or not channel.is_open:
                    self._connect(deadline, reopen=False)
                return function()
        raise AssertionError("unreachable")

    def _is_lasting(self, exc: Exception) -> bool:
        """Return whether an error may pass before the deadline."""
        if isinstance(exc, NEVER_REPEATED) or not isinstance(exc, self.lasting_errors):
            return False
        if self._session.is_closed:
            raise OperationalError(
                f"the connection to {self.label} was closed during the call: {exc}"
            ) from exc
        return True

    def timed_out(
        self, message: OutgoingMessage, deadline: Deadline, exc: BaseException
    ) -> PublishTimeout:
        """Return the error of a publish whose deadline ended, because of *exc*."""
        within = "in time" if deadline.timeout is None else f"within {deadline.timeout:g} s"
        fate = "the broker may have it" if message.maybe_delivered else "nothing was sent"
        return PublishTimeout(
            f"{self.label} did not accept a message to {message.options} {within}, {fate}: {exc}",
            maybe_delivered=message.maybe_delivered,
        )

    def ensure_target(self, options: PublishOptions, deadline: Deadline) -> None:
        """See that the queue or exchange exists, once in the life of a connection.  May switch.

        A queue whose node is away is waited for.

        Raises:
            PublishRefused: the broker's refusal is its ``__cause__``.
            Unroutable: a queue known only by its name does not exist, and no consumer declares it.
            TimeoutError: the consumer of this thread that is about to declare it has not, in time; or
                its node is still away.
            ValueError: the broker cannot broadcast.
        """
        if options.key in self._session.life.declared_entities:
            return
        if options.broadcasts:
            self._session.broker.check_broadcast()
        away: NotFound | None = None
        for _ in attempts(FINDING, deadline):
            try:
                self._ensure(options, deadline)
                return
            except NotFound as exc:
                away = exc
            except TimeoutError as exc:
                if away is None or is_thrown(exc):
                    raise
        assert away is not None, "else it had been declared, or failed"
        raise TimeoutError(str(away)) from away

    def _ensure(self, options: PublishOptions, deadline: Deadline) -> None:
        """Do one attempt of :meth:`ensure_target`.

        Raises:
            NotFound: the queue's node is away.
        """
        target, session = options.target, self._session
        try:
            if isinstance(target, str):
                self._ensure_named(options, target, deadline)
            elif target.name:
                ensure_declared(session, target, deadline)
        except NEVER_REPEATED:
            raise
        except session.broker.channel_errors as exc:
            if is_unavailable(exc):
                raise
            raise PublishRefused(f"cannot publish to {options}: {exc}") from exc

    def _ensure_named(self, options: PublishOptions, name: str, deadline: Deadline) -> None:
        session = self._session
        declare = declare_by_name() if options.declare is None else options.declare
        if not (options.mandatory or declare or is_expected(session, name)):
            return  # without mandatory an unroutable message is no error
        try:
            wait_for_queue(session, name, deadline, declare=bool(declare))
        except NotFound as exc:
            if is_unavailable(exc):
                raise
            raise Unroutable(
                f"queue {name!r} does not exist at {self.label}, and publish() by name does not "
                f"declare it: start its consumer first, publish to a Queue with the arguments of "
                f"its consumer, or pass declare=True",
                routing_key=name,
            ) from exc

    def shared_channel(self, deadline: Deadline) -> Any:
        """Return the channel that all share, opened anew if it is not open.  May switch.

        Raises:
            TimeoutError: the deadline ended: nothing more may be sent.
        """
        channel = self._channel
        if channel is None or not channel.is_open:
            channel = self._flight.run("channel", self._open_shared, deadline)
        if deadline.has_ended:
            raise TimeoutError("the timeout has expired")
        return channel

    @staticmethod
    def may_pass(exc: PublishNacked, options: PublishOptions) -> bool:
        """Return whether the broker may take a message later that it has refused.

        Not if it said why; nor where the message may have reached other queues of an exchange.
        """
        return not (exc.has_reason or isinstance(options.target, Exchange))

    def _check_nack(
        self, exc: PublishNacked, message: OutgoingMessage, channel: Channel, deadline: Deadline
    ) -> None:
        """Return if the queue that refused a message is there and holds messages.  May switch.

        It may be full then.  But RabbitMQ also refuses what it cannot give to a queue that it knows: a
        classic one whose node is away, or a quorum queue between two leaders, of which it says that it
        is empty.  An empty queue may also be too small for the message.

        A channel of RabbitMQ 3.10 that never reached a quorum queue asks for the node on which it was
        led when the channel was opened.  While that is away it refuses all messages for the queue, and
        while it starts it also keeps all others waiting.  So the next attempt uses another channel.

        Raises:
            PublishNacked: *exc*: nothing is known of the queue, or it was empty for too long.
            TimeoutError: the queue is not available, and the next attempt waits for it.
        """
        options = message.options
        if not self.may_pass(exc, options) or not self._session.is_open:
            raise exc
        forget_existence(self._session, options.target)
        try:
            self._ensure(options, deadline)
            if has_messages(self._session, options.routing_key, deadline):
                return
        except Exception as failure:
            if is_thrown(failure):
                raise
            if isinstance(failure, (NotFound, TimeoutError)):
                raise TimeoutError(str(failure)) from exc.__cause__
            logger.debug(
                "checking %s after a nack: %s",
                options,
                error_text(failure),
                extra={"connection": self._session.broker.label, "queue": options.routing_key},
            )
            raise exc from exc.__cause__
        self.retire(channel)
        now = monotonic()
        if now - self._nacked_at.setdefault(message, now) > LEADER_WAIT:
            raise exc from exc.__cause__
        raise _NoLeader(exc)

    def retire(self, channel: Channel) -> None:
        """Publish over another channel from now on.  Never switches.

        It is closed when its publishes are confirmed and a further one is opened.
        """
        if channel is self._channel:
            self._channel = None
            self._retired.append(channel)

    def check_return(self, exc: Unroutable, options: PublishOptions, deadline: Deadline) -> None:
        """Return unless a message reached no queue since the node of its queue is away.  May switch.

        RabbitMQ up to 3.13 does not route to such a queue.

        Raises:
            TimeoutError: the next attempt waits for the queue.
        """
        self.note_failure(exc, options)
        if isinstance(options.target, Exchange) or not self._session.is_open:
            return  # the queue is not known
        try:
            has_messages(self._session, options.routing_key, deadline)
        except NotFound as away:
            if is_unavailable(away):
                raise TimeoutError(str(away)) from exc
        except Exception as failure:
            if is_thrown(failure):
                raise
            logger.debug(
                "checking %s after a return: %s",
                options,
                error_text(failure),
                extra={"connection": self._session.broker.label, "queue": options.routing_key},
            )

    def note_failure(self, exc: BaseException, options: PublishOptions) -> None:
        """Take note of why a message was not published."""
        if isinstance(exc, Unroutable):
            # It was there, and is gone: the next message declares it again.
            note_deleted(self._session, options.target)

    def _connect(self, deadline: Deadline, *, reopen: bool) -> None:
        try:
            self._session.link(deadline, reopen=reopen)
        except (AccessRefused, NotAllowed) as exc:
            raise OperationalError(f"{self.label} refused the connection: {exc}") from exc

    def _publish_once(
        self, message: OutgoingMessage, deadline: Deadline, *, reopen: bool = False
    ) -> None:
        """Publish *message* on the shared channel, or on one of its own.  May switch.

        Arguments:
            reopen: open a closed session again.
        """
        channel = self._channel
        # While its channel is open the connection is.
        is_ready = channel is not None and channel.is_open
        if reopen and not is_ready:
            self._connect(deadline, reopen=True)
        if message.is_isolated:
            channel = None
        else:
            try:
                options = message.options
                if options.key not in self._session.life.declared_entities:
                    self.ensure_target(options, deadline)
                    is_ready = False
                if not is_ready or ((at := deadline.at) is not None and monotonic() >= at):
                    channel = self.shared_channel(deadline)
                message.begin(channel, deadline).wait(deadline)
                return
            except PublishNacked as exc:
                # If it has a leader again, or room, it is taken now.
                self._check_nack(exc, message, channel, deadline)
            except Unroutable as exc:
                self.check_return(exc, message.options, deadline)
                raise
            except NEVER_REPEATED:
                raise
            except IrrecoverableConnectionError:
                # Some message or declaration made the broker close the whole connection.
                message.is_isolated = True
                raise
            except self._session.broker.channel_errors:
                message.is_isolated = True
                channel = None
        self._publish_isolated(message, deadline)
        if channel is not None:
            self.retire(channel)  # it refused what another one takes

    def _publish_isolated(self, message: OutgoingMessage, deadline: Deadline) -> None:
        """Publish *message* while no other one is on its channel: an error is about this one."""
        channel = self._isolated.acquire(True, deadline)
        is_settled = False
        try:
            self.ensure_target(message.options, deadline)
            if deadline.has_ended:
                raise TimeoutError("the timeout has expired")
            message.begin(channel, deadline).wait(deadline)
            is_settled = True
        except PublishNacked as exc:
            # The next message has another channel, as above.
            self._check_nack(exc, message, channel, deadline)
            raise
        except Unroutable as exc:
            is_settled = True
            self.check_return(exc, message.options, deadline)
            raise
        except NEVER_REPEATED:
            raise
        except (IrrecoverableConnectionError, *self._session.broker.channel_errors) as exc:
            raise PublishRefused(
                f"{self.label} refused a message to {message.options}: {exc}"
            ) from exc
        finally:
            if is_settled and channel.is_open:
                self._isolated.release(channel)
            else:
                # What is still outstanding on it must not be blamed on the next message.
                self._isolated.remove(channel)

    def _open_shared(self) -> Any:
        self._channel = channel = self._open(Deadline(self._session.broker.connect_timeout))
        retired, self._retired = self._retired, []
        for each in retired:
            if each.is_open and each.has_unconfirmed:
                self._retired.append(each)
            else:
                spawn("retired-channel", _discard, each)  # it may be slow to answer
        return channel

    def _open(self, deadline: Deadline) -> Any:
        session = self._session
        channel = begin_channel(session.broker.transport, session.link(deadline))
        try:
            if hasattr(channel, "begin_confirms"):
                channel.begin_confirms()
            elif hasattr(channel, "confirm_select"):
                channel.confirm_select()
        except BaseException:
            _close(channel)
            raise
        return channel


class _NoLeader(TimeoutError):
    """A nack by an empty queue, which may be taken back by the next attempt."""

    def __init__(self, nack: PublishNacked) -> None:
        super().__init__(str(nack))
        self.nack = nack


def _discard(channel: Channel) -> None:
    try:
        _close(channel)
    except Exception as exc:
        logger.debug("closing %r: %s", channel, error_text(exc))


def _close(channel: Channel) -> None:
    if getattr(channel, "is_open", True):
        channel.close()
