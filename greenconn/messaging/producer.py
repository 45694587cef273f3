"""The producer of kombu's API, which publishes messages.

Theory
------
Many greenlets share a producer.  Each publish keeps its state in local variables, so publishes do not
disturb each other and need no lock.  The object itself keeps only the channel, what is known of its
exchange, and each open batch by the greenlet that opened it.

A publish takes one of two paths:

- Without *retry* and *timeout* it goes straight to the channel.  If the channel is open and the
  exchange is known to be declared, nothing else is done; this path is measured, so it makes no
  object but the message's own.  Otherwise the channel is replaced or the exchange declared first,
  which may switch.
- With either, or while there are listeners, it is a :class:`Publication`, which has the deadline and
  the attempts.

A channel that is not open is replaced by its successor (``session.channels``).  The new channel is set
without a switch after it was looked up, and only if no other greenlet has replaced it meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from sys import getrefcount
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict

from gevent import Timeout, getcurrent

from greenconn.abstract import ChannelPromise, DefaultChannel, current_channel
from greenconn.checks import Seconds, check_keywords, in_seconds, is_connection, milliseconds
from greenconn.delays import checked_delay, delayed_route
from greenconn.entity import Exchange, Queue, maybe_declare, maybe_delivery_mode
from greenconn.entity.declaration import declaration_key
from greenconn.exceptions import NotBoundError, NotFound, OperationalError, PublishTimeout
from greenconn.green.deadline import Deadline
from greenconn.listeners import LISTENERS, Observation, Observers, PublishEvent, size_of
from greenconn.serialization import dumps

if TYPE_CHECKING:
    from datetime import datetime

    from typing_extensions import Self, Unpack

    from greenconn.abc import Channel, ChannelOrConnection
    from greenconn.pools import ProducerPool


DEFAULT_BATCH_SIZE: Final = 1000

#: What ``delivery_mode`` may be, as numbers; nothing means persistent, and so does None.
_MODES: Final = {"": 2, 0: 2, 1: 1, 2: 2, "transient": 1, "persistent": 2}

#: The default exchange, unbound; producers bind copies of it.
_DEFAULT: Final = Exchange("")

#: What ``getrefcount`` returns for a producer's connection to which only the producer refers.
UNSHARED: Final = 3


#: The first arguments of ``Producer._publish``: body, priority, content type and encoding, headers,
#: properties, routing key, mandatory, immediate, exchange.
Outgoing: TypeAlias = tuple[
    Any, int, str, str, dict[str, Any], dict[str, Any], str, bool, bool, str
]

#: What of a retry policy concerns the opening of the connection.
_CONNECTING = ("errback", "max_retries", "interval_start", "interval_step", "interval_max")


class Publication:
    """One call of ``Producer.publish`` that may take more than one attempt, has a deadline or listeners.

    The first attempt is made at once.  Only if it fails ``Connection.ensure`` is asked, and told of
    that failure as if it had made the attempt itself: it counts the retries and decides which errors
    are worth one.

    The deadline is the channel's business while a message is handed over (only the channel knows
    what has left); before and between the attempts it is a ``gevent.Timeout``.

    Arguments:
        producer: whose channel is used.
        declare: entities that must exist before.
        timeout: seconds for all of it, or None.
        policy: for ``Connection.ensure``; None: one attempt.
        delay: seconds until the message reaches its queue, above 0; None: at once.
    """

    _message: Outgoing
    #: ``ensure`` names its wrapper after this.
    __name__ = "publish"

    def __init__(
        self,
        producer: Producer,
        declare: Iterable[Any] | None,
        timeout: float | None,
        policy: dict[str, Any] | None,
        delay: float | None = None,
    ) -> None:
        self._producer = producer
        self._declare = None if declare is None else list(declare)
        self._timeout = timeout
        self._deadline = Deadline(timeout)
        self._policy = policy
        self._delay = delay
        self._confirm_timeout: float | None = None
        self._failure: Exception | None = None
        self._maybe_delivered = False
        self._timer: Timeout | None = None

    def run(self, confirm_timeout: float | None, message: Outgoing) -> Any:
        """Publish.  May switch.

        Arguments:
            confirm_timeout, message: arguments of ``Producer._publish``.

        Raises:
            PublishTimeout: the deadline ended first.
        """
        self._confirm_timeout = confirm_timeout
        self._message = message
        if (observers := LISTENERS.publishing) is not None:
            return self._observe(observers).run(self._run)
        return self._run()

    def _observe(self, observers: Observers[PublishEvent]) -> Observation[PublishEvent]:
        """Notify the listeners that the message is about to be published.  Never switches."""
        (
            body, priority, content_type, content_encoding, headers, properties,
            routing_key, mandatory, immediate, exchange,
        ) = self._message  # fmt: skip
        connection = self._producer.connection
        event = PublishEvent(
            "" if connection is None else connection.as_uri(),
            exchange,
            routing_key,
            dict(headers),  # the caller may use its own for the next message
            properties,
            size_of(body),
        )
        self._message = (
            body, priority, content_type, content_encoding, event.headers, properties,
            routing_key, mandatory, immediate, exchange,
        )  # fmt: skip
        return observers.begin(event)

    def _run(self) -> Any:
        try:
            if self._policy is None:
                return self._attempt(self._timeout)
            try:
                return self._attempt(self._timeout)
            except Exception as exc:
                self._failure = exc
            if isinstance(self._failure, NotFound):
                try:
                    # What others have deleted is forgotten by now, and declared again.
                    return self._attempt(self._deadline.left())
                except Exception as exc:
                    self._failure = exc
            return self._retry()
        except Timeout as exc:
            if exc is not self._timer:
                raise
            raise self._too_late() from None
        finally:
            self._stop_timer()

    def _retry(self) -> Any:
        connection = self._producer.connection
        if connection is None:
            assert self._failure is not None
            raise self._failure
        self._start_timer()
        return connection.ensure(self, self, **(self._policy or {}))()

    def __call__(self) -> Any:
        """Make an attempt, for ``ensure``; the first call reports the one that was made."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        return self._attempt(self._deadline.left())

    def revive(self, channel: Channel) -> None:
        """Take note that there is a connection again, for ``ensure``.

        A producer finds its channel by itself; only one whose channel cannot be replaced, since it
        was closed by an error or cannot tell, or there is no session, goes on with the connection's own.
        """
        own = self._producer.channel
        if own is None or not getattr(own, "is_open", False):
            self._producer.revive(channel)

    def _attempt(self, timeout: float | None) -> Any:
        producer = self._producer
        channel = producer._channel
        if self._declare or not producer._is_ready(channel, producer._exchange):
            self._start_timer()
            channel = self._ready_channel()
            timeout = self._deadline.left()
        message = self._message
        if self._delay is not None:
            self._start_timer()
            message = self._delayed(channel, self._delay)
            timeout = self._deadline.left()
        self._stop_timer()
        try:
            return producer._publish(
                *message,
                None,
                timeout,
                self._confirm_timeout,
                channel,
                self._policy is not None,
            )
        except Exception:
            self._maybe_delivered = True
            self._start_timer()
            raise

    def _delayed(self, channel: Channel, delay: float) -> Outgoing:
        """Return the message as it is published to arrive later.  May switch."""
        (
            body, priority, content_type, content_encoding, headers, properties,
            routing_key, mandatory, immediate, exchange,
        ) = self._message  # fmt: skip
        route = delayed_route(channel, exchange, routing_key, delay, headers, properties)
        return (
            body, priority, content_type, content_encoding, route.headers, properties,
            route.routing_key, mandatory, immediate, route.exchange,
        )  # fmt: skip

    def _ready_channel(self) -> Any:
        producer = self._producer
        if self._policy is not None:
            connection = producer.connection
            if connection is not None and not connection.connected:
                # The policy counts for this too, not the connection's own, which may be to wait.
                options = {name: self._policy[name] for name in _CONNECTING if name in self._policy}
                connection.ensure_connection(**options)
            if not getattr(producer.channel, "is_open", True):
                producer.revive(producer.connection.default_channel)
        return producer._ready_channel(self._declare)

    def _start_timer(self) -> None:
        self._stop_timer()
        left = self._deadline.left()
        if left is not None:
            self._timer = Timeout.start_new(left)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.close()

    def _too_late(self) -> PublishTimeout:
        fate = (
            "the broker may have the message"
            if self._maybe_delivered
            else "the message was not sent"
        )
        routing_key, exchange = self._message[6], self._message[9]
        return PublishTimeout(
            f"publish to exchange {exchange!r} with routing key {routing_key!r} took longer than "
            f"{self._timeout:g} s; {fate}",
            maybe_delivered=self._maybe_delivered,
        )


class MessageProperties(TypedDict, total=False):
    """The message properties that a caller may set, beside the options with names of their own."""

    app_id: str | None
    cluster_id: str | None
    correlation_id: str | None
    message_id: str | None
    reply_to: str | Queue | None
    timestamp: datetime | float | None
    type: str | None
    user_id: str | None


#: Further keywords of a publish: AMQP's properties, those of SQS, and what a message that is published
#: again has from its store.
if TYPE_CHECKING:

    class _Properties(MessageProperties, total=False):
        """The further arguments of :meth:`Producer.publish`."""

        DelaySeconds: int | None
        MessageDeduplicationId: str | None
        MessageGroupId: str | None
        at: datetime | None
        delay: Seconds | None
        delay_seconds: int | None
        expires: Seconds | None
        message_attributes: Mapping[str, Any] | None


_PROPERTIES: Final = MessageProperties.__optional_keys__ | {
    *("at", "delay", "expires", "application_headers"),
    *(
        "DelaySeconds",
        "MessageDeduplicationId",
        "MessageGroupId",
        "delay_seconds",
        "message_attributes",
    ),
    *("body_encoding", "delivery_info", "delivery_tag"),
}
#: In no set of declared entities: an exchange that has to be declared each time.
_NEVER_KNOWN: Final = object()


class _OwnExchange:
    """The attribute ``exchange`` of a producer, which is kept as ``_exchange``.

    The default exchange is bound when it is first asked for: pools make a producer for each loan, and
    most publish without a look at their exchange.
    """

    def __get__(self, producer: Producer | None, owner: type[Producer]) -> Any:
        if producer is None:
            return None
        exchange = producer._exchange
        if exchange is _DEFAULT:
            exchange = producer._exchange = Exchange("").bind(producer._binding)
        return exchange

    def __set__(self, producer: Producer, exchange: Any) -> None:
        producer._exchange = exchange

    def __delete__(self, producer: Producer) -> None:
        del producer._exchange


class _ShadowedExchange:
    """The attribute ``_exchange`` of a producer whose class has an attribute ``exchange`` of its own.

    Such an attribute hides the descriptor above, so the exchange is kept as ``exchange`` then.
    """

    def __get__(self, producer: Producer | None, owner: type[Producer]) -> Any:
        return None if producer is None else producer.exchange

    def __set__(self, producer: Producer, exchange: Any) -> None:
        producer.exchange = Exchange("") if exchange is _DEFAULT else exchange


class Producer:
    """Publishes messages; any number of greenlets may share one.

    Nothing is kept on the object while a message is on its way, so calls of many greenlets do not
    meet.  On a connection it uses the default channel, whichever that is at the moment; on a channel
    it uses that one, and after its connection was lost the one that took its place.

    Arguments:
        channel: a connection (nothing is opened before the first publish) or a channel.
        exchange: where messages go, an Exchange or a name; None is the default exchange.
        routing_key: where a publish names none.
        serializer: name of a serializer; None: JSON, text and bytes as they are.
        auto_declare: declare *exchange* when a message is published (not if it was given by name).
        compression: name of a compression.
        on_return: called as ``on_return(exc, exchange, routing_key, message)`` for mandatory messages
            that reached no queue: in a greenlet that drains the connection, or with ``confirm_publish``
            by ``publish``, which raises where it is missing.
    """

    exchange: Any = _OwnExchange()
    routing_key: str = ""
    serializer: str | None = None
    compression: str | None = None
    auto_declare: bool = True
    on_return: Callable[..., Any] | None = None

    # What is the producer's own is in slots, and what a program has set in the dict.  So a pool can lend
    # a producer again as if it was new.
    __slots__ = (
        *("__connection__", "__dict__", "__weakref__", "_attributes", "_binding", "_channel"),
        *("_exchange", "_ident", "_known", "_loan", "_pool", "batches"),
    )

    #: The connection, if that is what the producer was made with.
    __connection__: Any
    #: The batches that are open, by the greenlet that has opened them; None while there are none.
    batches: dict[Any, BatchState] | None

    #: A channel, the promise of one, or None.  Replaced without a switch after it was looked up.
    _channel: Any
    #: What publishes read as their exchange.  The default exchange is not bound until it is asked for.
    _exchange: Any
    #: What the default exchange will be bound to.
    _binding: Any
    #: The exchange that ``_ident`` belongs to.
    _known: Any
    #: What the set of declared entities has when the exchange is declared.
    _ident: Any
    #: The pool that it came from and goes back to; None if there is none, and after the release.
    _pool: ProducerPool | None
    #: The pool's record of it; None if the pool does not lend it again.
    _loan: Any
    #: Its ``__dict__``, which takes longer to ask for, if it was lent again; else None.
    _attributes: dict[str, Any] | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # A name or an Exchange as an attribute of the class, as in kombu.compat.
        of_class = next(vars(each)["exchange"] for each in cls.__mro__ if "exchange" in vars(each))
        if type(of_class) is not _OwnExchange:
            cls._exchange = _ShadowedExchange()

    def __init__(
        self,
        channel: ChannelOrConnection | None,
        exchange: Any = None,
        routing_key: str | None = None,
        serializer: str | None = None,
        auto_declare: bool | None = None,
        compression: str | None = None,
        on_return: Callable[..., Any] | None = None,
    ) -> None:
        self._channel = channel
        self.__connection__ = self._binding = None
        self._known = self._ident = self._loan = self._pool = self._attributes = None
        self.batches = None
        if exchange is None:
            self._exchange = _DEFAULT
        elif isinstance(exchange, str):
            # Only a name: the type to declare it with is unknown.
            self._exchange = Exchange(exchange, no_declare=True)
        else:
            self._exchange = exchange
        # What is not given is the class's: pools make producers, whose dict stays empty.
        if routing_key:
            self.routing_key = routing_key
        if serializer:
            self.serializer = serializer
        if compression:
            self.compression = compression
        if on_return:
            self.on_return = on_return
        if auto_declare is not None:
            self.auto_declare = auto_declare
        if channel is not None:
            self.revive(channel)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self._channel}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return self.__class__, self.__reduce_args__()

    def __reduce_args__(self) -> tuple[Any, ...]:
        return (
            None,
            self.exchange,
            self.routing_key,
            self.serializer,
            self.auto_declare,
            self.compression,
        )

    # The channel

    @property
    def channel(self) -> Any:
        """The channel to use now, None if there is none.  May switch."""
        channel = self._channel
        if channel is None or getattr(channel, "is_open", True):
            return channel
        return self._renew()

    @channel.setter
    def channel(self, channel: Channel | None) -> None:
        self._channel = channel

    def _renew(self) -> Any:
        """Return the channel that takes the place of ours, which is not open.  May switch."""
        old = self._channel
        if old is None:
            raise NotBoundError(
                "this producer has no channel, as it was released or created without one: call "
                "revive(channel) first"
            )
        channel = current_channel(old, self.__connection__)
        if channel is not old and self._channel is old:
            self._channel = channel
            if self.on_return:
                self._listen(channel, self.on_return)
        return channel

    def _listen(self, channel: Channel, on_return: Callable[..., Any]) -> None:
        channel.events["basic_return"].add(on_return)

    @property
    def connection(self) -> Any:
        """The connection, None if there is none."""
        if self.__connection__ is not None:
            return self.__connection__
        return getattr(getattr(self._channel, "connection", None), "client", None)

    def revive(self, channel: ChannelOrConnection) -> None:
        """Use *channel* (a channel or a connection) from now on.  Never switches."""
        if is_connection(channel):
            self.__connection__ = channel
            # Most connections have their channel already; one that has not is not opened here.
            own = getattr(channel, "ready_channel", None) or DefaultChannel(channel)
        else:
            own = channel
        # A pool lends it again only with the connection that it was acquired with.
        self._loan = None
        self._channel = own
        if self.on_return and not isinstance(own, ChannelPromise):
            self._listen(own, self.on_return)
        self._binding = channel
        if self._exchange is not _DEFAULT:
            self._exchange = self._exchange.bind(channel)

    # Declaring

    def declare(self) -> None:
        """Declare the exchange.  May switch."""
        if self.exchange.name:
            self.exchange.declare()

    def maybe_declare(self, entity: Any, retry: bool = False, **retry_policy: Any) -> Any:
        """Declare *entity* unless that was done in this life of the connection.  May switch."""
        if entity:
            return maybe_declare(entity, self.channel, retry, **retry_policy)
        return None

    def _learn(self, exchange: Any) -> Any:
        """Note what tells that *exchange*, our own, is declared."""
        self._known = exchange
        self._ident = declaration_key(exchange) if exchange.can_cache_declaration else _NEVER_KNOWN
        return self._ident

    # Publishing

    def publish(
        self,
        body: Any,
        routing_key: str | None = None,
        delivery_mode: Any = None,
        mandatory: bool = False,
        immediate: bool = False,
        priority: int = 0,
        content_type: str | None = None,
        content_encoding: str | None = None,
        serializer: str | None = None,
        headers: dict[str, Any] | None = None,
        compression: str | None = None,
        exchange: Any = None,
        retry: bool = False,
        retry_policy: dict[str, Any] | None = None,
        declare: Iterable[Any] | None = None,
        expiration: Seconds | None = None,
        timeout: Seconds | None = None,
        confirm_timeout: Seconds | None = None,
        **properties: Unpack[_Properties],
    ) -> Any:
        """Publish a message.  May switch.

        It returns when the message is on its way, where a dying broker may lose it.  With the transport
        option ``confirm_publish`` it returns when the broker has it: at least once, with *retry*.

        Arguments:
            body: what the serializer takes; with *content_type* text or bytes, sent as they are.
            routing_key: None is the producer's.
            delivery_mode: 1 or ``transient``, 2 or ``persistent``; None is the exchange's.
            mandatory: the broker returns it when no queue takes it.
            immediate: RabbitMQ does not know it any more.
            priority: 0 is the lowest (on Redis it is served first).
            content_type: of a body that is serialised already.
            content_encoding: its character set.
            serializer, compression: names; None is the producer's.
            headers: the application's headers.
            exchange: an Exchange or a name; None is the producer's.
            retry: reconnect and publish again when the connection is lost.
            retry_policy: as ``Connection.ensure`` takes it: ``max_retries``, ``interval_start``...
            declare: entities that must exist before.
            expiration: seconds that it may wait in a queue.
            timeout: seconds for all of it: connecting, declaring, sending, the confirm.
            confirm_timeout: seconds for the confirm, on a channel with confirms.
            properties: other AMQP properties: ``reply_to`` (a Queue too), ``correlation_id``...; beside
                those ``delay``: seconds until it reaches its queue (RabbitMQ has whole ones, rounded
                up), ``at``: a datetime with a time zone at which it does, and ``expires``: same as
                *expiration*.

        Raises:
            PublishTimeout: *timeout* ended first.
            EncodeError, SerializerNotInstalled: the body could not be serialised.
            OperationalError: retrying was given up.
            ConnectionError, ChannelError: what ended the channel, without *retry*.
            ValueError: the transport cannot keep *delay*.
            TypeError: a property is unknown (the transports of kombu and of programs know their own).
        """
        # The fast path makes no object but the message's own: every microsecond here is paid for
        # each message of a program, and the rest of a publish costs about four.
        fields: dict[str, Any] = properties  # type: ignore[assignment]
        delay = None
        if fields:
            if not _PROPERTIES.issuperset(fields):
                self._check_properties(fields)
            delay = checked_delay(fields.pop("delay", None), fields.pop("at", None))
            if (expires := fields.pop("expires", None)) is not None:
                if expiration is not None:
                    raise ValueError("expires must be None with expiration, whose other name it is")
                expiration = expires
        if compression is None:
            compression = self.compression
        if compression:
            # A copy: the caller may use the dict for the next message, which is not compressed.
            headers = dict(headers or ())
        elif headers is None:
            headers = {}
        if content_type or compression:
            body, content_type, content_encoding = self._prepare(
                body, serializer, content_type, content_encoding, compression, headers
            )
        else:
            content_type, content_encoding, body = dumps(body, serializer or self.serializer)
        default = self._exchange
        if not exchange:
            exchange, mode = default.name, delivery_mode or default.delivery_mode
        elif isinstance(exchange, Exchange):
            exchange, mode = exchange.name, delivery_mode or exchange.delivery_mode
        else:
            mode = delivery_mode or default.delivery_mode
        fields["delivery_mode"] = (
            2 if mode is None else _MODES.get(mode) or maybe_delivery_mode(mode)
        )
        if expiration is not None:
            fields["expiration"] = milliseconds("expiration", expiration)
        if confirm_timeout is not None:
            confirm_timeout = in_seconds(confirm_timeout)
        if routing_key is None:
            routing_key = self.routing_key
        if retry or timeout is not None or delay is not None or LISTENERS.publishing is not None:
            policy = retry_policy or {} if retry else None
            publication = Publication(self, declare, in_seconds(timeout), policy, delay)
            message = (
                body, priority, content_type, content_encoding, headers, fields,
                routing_key, mandatory, immediate, exchange,
            )  # fmt: skip
            return publication.run(confirm_timeout, message)
        channel = self._channel
        if declare or not self._is_ready(channel, default):
            channel = self._ready_channel(declare)
        return self._publish(
            body, priority, content_type, content_encoding, headers, fields,
            routing_key, mandatory, immediate, exchange, declare, None, confirm_timeout, channel,
        )  # fmt: skip

    def _check_properties(self, properties: Iterable[str]) -> None:
        """Refuse unknown properties, which are misspelt arguments, unless the transport may know them.

        Raises:
            TypeError: there is one.
        """
        transport = getattr(self.connection, "transport", None)
        if not getattr(transport, "takes_any_property", transport is not None):
            known = _PROPERTIES.union(type(self).publish.__annotations__) - {"properties", "return"}
            check_keywords("Producer.publish", properties, known, is_kombus=True)

    def _prepare(
        self,
        body: Any,
        serializer: str | None = None,
        content_type: str | None = None,
        content_encoding: str | None = None,
        compression: str | None = None,
        headers: dict[str, Any] | None = None,
    ) -> tuple[Any, str, str]:
        """Return the body as it is sent, its content type and its encoding.  Never switches.

        Arguments:
            headers: get the name of the compression.
        """
        if not content_type:
            content_type, content_encoding, body = dumps(body, serializer or self.serializer)
        elif isinstance(body, str):
            content_encoding = content_encoding or "utf-8"
            body = body.encode(content_encoding)
        elif not content_encoding:
            content_encoding = "binary"
        if compression:
            from greenconn.compression import compress  # for who compresses

            body, name = compress(body, compression)
            if headers is not None:
                headers["compression"] = name
        return body, content_type, content_encoding

    def _is_ready(self, channel: Channel, default: Exchange) -> bool:
        """Return whether *channel* can be published to without anything before.

        Arguments:
            default: the producer's exchange.
        """
        if channel is None or not getattr(channel, "is_open", True):
            return False
        if not default.name or not self.auto_declare:
            return True
        # An attribute and a set: cheaper than asking maybe_declare each time.
        ident = self._ident if default is self._known else self._learn(default)
        return ident in channel.connection.client.declared_entities

    def _ready_channel(self, declare: Iterable[Any] | None) -> Any:
        """Return an open channel, after declaring what has to exist.  May switch."""
        channel = self._channel
        if channel is None or not getattr(channel, "is_open", True):
            channel = self._renew()
        entities = list(declare or ())
        if self.auto_declare and self.exchange.name and self.exchange not in entities:
            entities.append(self.exchange)
        for entity in entities:
            self.maybe_declare(entity, retry=False)
        return channel

    def _publish(
        self,
        body: Any,
        priority: int,
        content_type: str,
        content_encoding: str,
        headers: dict[str, Any],
        properties: dict[str, Any],
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        exchange: str,
        declare: Iterable[Any] | None,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
        channel: Channel | None = None,
        resends: bool = False,
    ) -> Any:
        """Hand a message to the channel.  May switch.

        The name and the order of the arguments are kombu's: monitoring tools (Datadog's, New Relic's)
        wrap this method, and read body, headers, routing key and exchange by their positions.

        Arguments:
            channel: where everything in *declare* exists already; None: see to that first.
            resends: send it again if the connection is lost before it has left.
        """
        if channel is None:
            channel = self._ready_channel(declare)
        if "reply_to" in properties and isinstance(properties["reply_to"], Queue):
            # By now it has its name, if it is one of *declare* that the broker names.
            properties["reply_to"] = properties["reply_to"].name
        message = channel.prepare_message(
            body, priority, content_type, content_encoding, headers, properties
        )
        send = channel.basic_publish
        if self.batches is not None and (batch := self.batches.get(getcurrent())) is not None:
            send = partial(batch.publish, channel)
        # By keyword: channels of programs, written for kombu, take some of these as **kwargs.
        result = send(
            message,
            exchange=exchange,
            routing_key=routing_key,
            mandatory=mandatory,
            immediate=immediate,
            timeout=timeout,
            confirm_timeout=confirm_timeout,
        )
        if resends and (keep := getattr(channel, "keep_publish", None)) is not None:
            keep()
        return result

    # Batches and the end

    @property
    def supports_batch_publish(self) -> bool:
        """Whether the transport can defer the messages of a batch."""
        implements = getattr(getattr(self.connection, "transport", None), "implements", None)
        return bool(getattr(implements, "batch_publish", False))

    def batch(self, max_size: int = DEFAULT_BATCH_SIZE) -> ProducerBatch:
        """Return a context for many calls of :meth:`publish`.

        Each message leaves at once: what greenlets write in one turn of the hub shares a send anyway.
        Only a channel of another kind that has ``create_publish_batch`` holds back what this greenlet
        publishes, until the end of the ``with`` block.

        Arguments:
            max_size: messages that are held back at most; at least 1.

        Raises:
            ValueError: *max_size* is no such number.
        """
        return ProducerBatch(self, max_size)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # A channel of a pool that an error has broken is not used again.  (Being killed breaks nothing.)
        if exc is not None and isinstance(exc, Exception):
            # By kombu's name for the pool, so that its connections are replaced, too.
            replace = getattr(getattr(self.__connection__, "_pool", None), "replace", None)
            if replace is not None and not self._is_connected():
                replace(self.__connection__)
        self.release()

    def _is_connected(self) -> bool:
        """Return whether the connection, which was in use, still is as it should be."""
        try:
            return not self.__connection__.session.may_be_lost
        except OperationalError:
            return True  # given back already: it is no business of ours any more
        except AttributeError:
            return False  # kombu's tell nothing

    def release(self) -> None:
        """Give the producer back, if it came from a pool; else does nothing."""
        if self._pool is not None:
            self._pool.release(self)

    def close(self) -> None:
        """Same as :meth:`release`."""
        self.release()

    # For pools

    def lend_again(self, pool: ProducerPool) -> bool:
        """Lend it to another holder, as if it and its connection were new; False if they cannot be.

        For pools, if nothing refers to it since its release.  Never switches.
        """
        self._exchange = _DEFAULT
        self._known = None
        if (
            self._loan is None
            # Its two attributes, and this expression.
            or getrefcount(self.__connection__) != UNSHARED
            or self.__connection__.__weakref__ is not None
            or not self.__connection__.lend_again(pool.connection_lender)
        ):
            return False
        attributes = self._attributes
        if attributes is None:
            attributes = self._attributes = self.__dict__
        if attributes:  # of the last holder
            attributes.clear()
        connection = self.__connection__
        self._channel = connection.ready_channel or DefaultChannel(connection)
        self.batches = None
        self._pool = pool
        return True

    def mark_released(self) -> None:
        """Mark it and its connection as released.  For pools.  Never switches."""
        self._pool = self._channel = None
        if self._loan is not None:
            self.__connection__.mark_released()


class BatchState:
    """The state that nested batches of one producer in one greenlet share.

    Arguments:
        max_size: of the outermost batch.
    """

    def __init__(self, max_size: int) -> None:
        self._max_size = max_size
        #: What ``create_publish_batch(max_size=...)`` of a channel of kombu's contract returned.
        self._channel_batch: Any = None
        self._is_immediate = False
        self._is_aborted = False

    def publish(self, channel: Channel, message: Any, **kwargs: Any) -> Any:
        """Publish *message* by the batch of *channel*, or at once if it makes none.  May switch.

        Raises:
            RuntimeError: a nested batch has failed, or the producer has got another channel.
        """
        self._check()
        batch = self._batch_of(channel)
        if batch is None:
            return channel.basic_publish(message, **kwargs)
        return batch.publish(message, **kwargs)

    def _batch_of(self, channel: Channel) -> Any:
        batch = self._channel_batch
        if batch is None and not self._is_immediate:
            create = getattr(channel, "create_publish_batch", None)
            if create is None or not getattr(channel, "supports_batch_publish", True):
                self._is_immediate = True
            else:
                batch = self._channel_batch = create(max_size=self._max_size)
        if batch is not None and batch.channel is not channel:
            raise RuntimeError(
                "the producer's channel changed while a batch of its messages was open"
            )
        return batch

    def _check(self) -> None:
        if self._is_aborted:
            raise RuntimeError("this is part of an aborted batch: a batch inside it has failed")

    def flush(self) -> None:
        """Publish what is held back.  May switch."""
        self._check()
        if self._channel_batch is not None:
            self._channel_batch.flush()

    def end(self, *, has_failed: bool, is_outermost: bool) -> None:
        """Leave a ``with`` block.  May switch.

        Raises:
            Exception: why what was held back could not be published.
        """
        batch = self._channel_batch
        steps: list[Callable[[], None]] = []
        if batch is not None:
            if has_failed and not self._is_aborted:
                steps.append(batch.discard)
            elif is_outermost and not self._is_aborted:
                steps.append(batch.flush)
            if is_outermost:
                steps.append(batch.close)
        self._is_aborted = self._is_aborted or has_failed
        _call_each(steps)


def _call_each(steps: list[Callable[[], None]]) -> None:
    """Make all calls; the first error is raised in the end."""
    if steps:
        try:
            steps[0]()
        except BaseException:
            with suppress(Exception):
                _call_each(steps[1:])
            raise
        _call_each(steps[1:])


class ProducerBatch:
    """The context that ``Producer.batch()`` returns.

    Channels of greenconn hold nothing back.  One of another kind that has ``create_publish_batch``
    (kombu 5.7) gets what this greenlet publishes with the producer until the end of the ``with`` block.

    Arguments:
        producer: whose messages.
        max_size: messages that a channel holds back at most; at least 1.

    Raises:
        ValueError: *max_size* is no such number.
    """

    def __init__(self, producer: Producer, max_size: int) -> None:
        if isinstance(max_size, bool) or not isinstance(max_size, int) or max_size < 1:
            raise ValueError(f"max_size must be a positive integer, got {max_size!r}")
        self.max_size = max_size
        self._producer = producer
        self._was_entered = False
        self._is_outermost = False
        self._state: BatchState | None = None

    def __enter__(self) -> Self:
        if self._was_entered:
            raise RuntimeError("a batch cannot be re-entered: ask the producer for another")
        self._was_entered = True
        batches = self._producer.batches
        if batches is None:
            batches = self._producer.batches = {}
        greenlet = getcurrent()
        state = batches.get(greenlet)
        if state is None:
            self._is_outermost = True
            state = batches[greenlet] = BatchState(self.max_size)
        self._state = state
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        state, self._state = self._state, None
        assert state is not None
        if self._is_outermost:
            self._forget()
        try:
            state.end(has_failed=exc is not None, is_outermost=self._is_outermost)
        except Exception:
            if exc is None:
                raise  # else the error of the block is the one to tell

    def _forget(self) -> None:
        batches = self._producer.batches
        assert batches is not None
        del batches[getcurrent()]
        if not batches:
            self._producer.batches = None

    def flush(self) -> None:
        """Have what was published so far leave now.  May switch.

        Raises:
            RuntimeError: outside of the ``with`` block.
        """
        if self._state is None:
            raise RuntimeError("the batch is not active: flush() belongs into its with block")
        self._state.flush()
