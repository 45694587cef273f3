"""The declarations of queues and of super streams."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypedDict
from uuid import UUID

from greenconn.abstract import MaybeChannelBound, Object
from greenconn.checks import (
    CONSUMER_ARGUMENTS,
    QUEUE_ARGUMENTS,
    check_argument_names,
    check_keywords,
    check_names,
    check_tables,
    shows,
)
from greenconn.encoding import plain_text
from greenconn.entity.exchange import Exchange, name_of, pretty_bindings, shown
from greenconn.exceptions import ContentDisallowed
from greenconn.listeners import LISTENERS, DeliverEvent, url_of
from greenconn.serialization import prepare_accept_content

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from greenconn.abc import Channel, ChannelOrConnection
    from greenconn.abstract import ChannelPromise
    from greenconn.checks import Seconds
    from greenconn.message import Message


class QueueOptions(TypedDict, total=False):
    """The further arguments of queues of all kinds."""

    binding_arguments: dict[str, Any] | None
    consumer_arguments: dict[str, Any] | None
    dead_letter: bool | str | None
    durable: bool | None
    exclusive: bool | None
    expires: Seconds | None
    max_length: int | None
    max_length_bytes: int | None
    max_priority: int | None
    message_ttl: Seconds | None
    no_ack: bool | None
    no_declare: bool | None
    queue_arguments: dict[str, Any] | None


class QueueArguments(QueueOptions, total=False):
    """The further arguments of :class:`Queue`."""

    alias: str | None
    auto_delete: bool | None


class FlatQueueArguments(QueueArguments, total=False):
    """The arguments of :meth:`Queue.from_dict`."""

    binding_key: str | None
    bindings: Iterable[Any] | None
    delivery_mode: int | str | None
    exchange: Any
    exchange_arguments: dict[str, Any] | None
    exchange_auto_delete: bool | None
    exchange_durable: bool | None
    exchange_type: str | None
    on_declared: Callable[..., Any] | None
    queue_auto_delete: bool | None
    queue_durable: bool | None
    routing_key: str | None


#: What a queue's name gets for that of its dead letters.
DEAD: Final = ".dead"


class Queue(MaybeChannelBound):
    """A queue, as it is to be declared, with its bindings.

    Arguments:
        name: '' lets the broker choose one: it stands in ``name`` once the queue was declared, and
            is chosen anew after the connection was lost.
        exchange: what it is bound to: an Exchange, a name, or a list of bindings.
        routing_key: key or pattern of that binding.
        channel: a channel or connection to bind to.
        bindings: :class:`~greenconn.entity.binding` objects, instead of *exchange*.
        on_declared: called as ``on_declared(name, messages, consumers)`` after each declaration.
        durable: it outlives a restart of the broker (default True).
        exclusive: only this connection may use it, and it goes with it.  Implies *auto_delete*.
        auto_delete: it is deleted when its last consumer goes (default False).
        no_ack: consumers and :meth:`get` need not acknowledge, unless they say otherwise.
        expires: seconds without use after which the broker deletes it.
        message_ttl: seconds that a message stays in it.
        max_length, max_length_bytes: messages, bytes that it holds; what is more is dropped.
        max_priority: highest priority; None: a queue without priorities.
        queue_arguments, binding_arguments, consumer_arguments: of the declaration, the binding and
            the consumers.
        alias: a name for the program's own use.
        no_declare: never declare it, nor its exchange and bindings.
        dead_letter: keep what it gives up (rejected, too old, delivered too often) in another queue,
            which is declared with it: True is ``<name>.dead``, text the name of one.

    Raises:
        TypeError: an argument is unknown, or is of the wrong type.
        ValueError: a name in *queue_arguments* or *consumer_arguments* is misspelled.
    """

    ContentDisallowed: ClassVar[type[ContentDisallowed]] = ContentDisallowed

    name: str = ""
    exchange: Exchange | None = Exchange("")
    routing_key: str = ""
    queue_arguments: dict[str, Any] | None
    binding_arguments: dict[str, Any] | None
    consumer_arguments: dict[str, Any] | None
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    no_ack: bool = False
    alias: str | None
    bindings: set[Any]
    no_declare: bool | None
    expires: float | None
    message_ttl: float | None
    max_length: int | None
    max_length_bytes: int | None
    max_priority: int | None
    on_declared: Callable[..., Any] | None

    #: Not in ``attrs``, which are kombu's.
    dead_letter: bool | str | None = None
    _keywords = ("dead_letter",)

    #: The link on which the broker chose the name; None: the program did.
    _named_on: Any = None

    attrs: tuple[tuple[str, Callable[[Any], Any] | None], ...] = (
        ("name", None),
        ("exchange", None),
        ("routing_key", None),
        ("queue_arguments", None),
        ("binding_arguments", None),
        ("consumer_arguments", None),
        ("durable", bool),
        ("exclusive", bool),
        ("auto_delete", bool),
        ("no_ack", None),
        ("alias", None),
        ("bindings", list),
        ("no_declare", bool),
        ("expires", float),
        ("message_ttl", float),
        ("max_length", int),
        ("max_length_bytes", int),
        ("max_priority", int),
    )

    @shows(QueueArguments, defaults=lambda: vars(Queue))
    def __init__(
        self,
        name: str | None = "",
        exchange: Any = None,
        routing_key: str | None = "",
        channel: ChannelOrConnection | None = None,
        bindings: Iterable[Any] | None = None,
        on_declared: Callable[..., Any] | None = None,
        **kwargs: Unpack[QueueArguments],
    ) -> None:
        super().__init__(**kwargs)
        check_names(self, name=name, routing_key=routing_key)
        check_tables(self, "queue_arguments", "binding_arguments", "consumer_arguments")
        if isinstance(exchange, (bytes, int, float)) and exchange:
            raise TypeError(
                f"exchange of {type(self).__name__} must be an Exchange, its name or a list of "
                f"bindings, got {exchange!r}"
            )
        self.name = plain_text(name or self.name)
        check_argument_names(self, "queue_arguments", QUEUE_ARGUMENTS)
        check_argument_names(self, "consumer_arguments", CONSUMER_ARGUMENTS)
        if isinstance(exchange, str):
            self.exchange = Exchange(exchange)
        elif isinstance(exchange, Exchange):
            self.exchange = exchange
        self.routing_key = plain_text(routing_key or self.routing_key)
        self.bindings = set(bindings or ())
        self.on_declared = on_declared
        if isinstance(exchange, (list, tuple, set)):
            self.bindings |= set(exchange)
        if self.bindings:
            self.exchange = None
        if self.exclusive:
            self.auto_delete = True
        if kwargs.get("dead_letter"):
            self.dead_letter = kwargs["dead_letter"]
        target = self.dead_letter_queue
        if target is not None:
            if target == self.name:
                raise ValueError(
                    f"dead_letter must be another queue than {target!r}, which would get its own dead "
                    f"letters again and again"
                )
            self.queue_arguments = {
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": target,
                **(self.queue_arguments or {}),
            }
        self.maybe_bind(channel)

    def __copy__(self) -> Self:
        new = super().__copy__()
        new.bindings = set(self.bindings)
        new.on_declared = new._named_on = None
        return new

    def bind(self, channel: ChannelOrConnection | ChannelPromise | None) -> Self:
        """Return a copy that is bound to *channel* (a channel or a connection).  Never switches."""
        bound = super().bind(channel)
        bound.on_declared = self.on_declared
        bound._named_on = self._named_on
        return bound

    def when_bound(self) -> None:
        """Bind the exchange to the same channel."""
        if self.exchange:
            self.exchange = self.exchange(self._connection or self._channel)

    def __hash__(self) -> int:
        return hash(f"Q|{self.name}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Queue):
            return NotImplemented
        return (
            self.name == other.name
            and self.exchange == other.exchange
            and self.routing_key == other.routing_key
            and self.queue_arguments == other.queue_arguments
            and self.binding_arguments == other.binding_arguments
            and self.consumer_arguments == other.consumer_arguments
            and self.durable == other.durable
            and self.exclusive == other.exclusive
            and self.auto_delete == other.auto_delete
        )

    @property
    def dead_letter_queue(self) -> str | None:
        """Name of the queue that ``dead_letter`` means; None: it means none."""
        if self.dead_letter is True:
            if not self.name:
                raise ValueError(
                    "dead_letter must be the name of a queue for a queue without a name"
                )
            return f"{self.name}{DEAD}"
        return plain_text(self.dead_letter) if self.dead_letter else None

    @property
    def can_cache_declaration(self) -> bool:  # type: ignore[override]  # computed here
        """Whether it stays once it was declared."""
        expires = self.expires is not None or "x-expires" in (self.queue_arguments or ())
        return not expires and not self.auto_delete

    def declaration_key(self) -> str:
        """Return a key that only queues which are declared and bound in the same way have in common.

        It names the exchanges: without one of them the queue is not bound any more.  It is kept for the
        next publish: what is changed afterwards, but for the name, is not noticed.
        """
        kept = self.declared_as
        if kept is not None and kept[0] == self.name:
            return kept[1]
        exchange = self.exchange
        ways = (
            self.durable,
            self.exclusive,
            self.no_declare,
            self.message_ttl,
            self.max_length,
            self.max_length_bytes,
            self.max_priority,
            repr(self.queue_arguments or None),
            exchange.declaration_key() if exchange and exchange.name else None,
            self.routing_key,
            repr(self.binding_arguments or None),
            frozenset([each.declaration_key() for each in self.bindings])
            if self.bindings
            else None,
        )
        key = f"Q|{self.name}|{hash(ways)}|{exchange.name if exchange else ''}|"
        for each in self.bindings:
            key += f"{getattr(each.exchange, 'name', each.exchange)}|"
        self.declared_as = (self.name, key)
        return key

    def declare(self, nowait: bool = False, channel: Channel | None = None) -> str:
        """Declare the exchange, then the queue, then bind it.  May switch.

        Returns:
            The name of the queue.
        """
        if self.no_declare:
            return self.name
        if type(self) is Queue and self.on_declared is None:
            through = self.channel if channel is None and self.is_bound else channel
            nowait = nowait or may_skip_counts(through)
        if self.exchange:
            self.exchange.declare(nowait=nowait, channel=channel)
        target = self.dead_letter_queue
        if target is not None:
            # First, so that nothing that it gives up is lost.
            through = self.channel if channel is None else channel
            through.queue_declare(queue=target, durable=True, auto_delete=False, nowait=nowait)
        self.queue_declare(nowait=nowait, passive=False, channel=channel)
        if self.exchange and self.exchange.name:
            self.queue_bind(nowait=nowait, channel=channel)
        for each in self.bindings:
            through = self.channel if channel is None else channel
            each.declare(through, nowait=nowait)
            each.bind(self, nowait=nowait, channel=through)
        return self.name

    def queue_declare(
        self,
        nowait: bool = False,
        passive: bool = False,
        channel: Channel | None = None,
    ) -> Any:
        """Declare the queue alone.  May switch.

        Arguments:
            nowait: do not wait for the broker's reply.
            passive: only check that it exists.

        Returns:
            Name, number of messages, number of consumers.
        """
        if channel is None:
            channel = self.channel
        name = self._name_on(channel)
        if self._named_on is not None and not passive:
            # Only the broker gives such names: the queue is there, or went with its connection.
            if self._named_on is channel.connection:
                passive = True
            else:
                name = ""
        reply = channel.queue_declare(
            queue=name,
            passive=passive,
            durable=self.durable,
            exclusive=self.exclusive,
            auto_delete=self.auto_delete,
            arguments=channel.prepare_queue_arguments(
                self.queue_arguments or {},
                expires=self.expires,
                message_ttl=self.message_ttl,
                max_length=self.max_length,
                max_length_bytes=self.max_length_bytes,
                max_priority=self.max_priority,
            ),
            nowait=nowait,
        )
        if reply is None:
            return None
        if not self.name or self._named_on is not None:
            self.name, self._named_on = reply[0], channel.connection
        if self.on_declared:
            self.on_declared(*reply)
        return reply

    def _name_on(self, channel: Channel) -> str:
        """Return the name to use on *channel*.  Never switches.

        The broker names a queue anew in each life: this one follows the session, which has declared
        it again.
        """
        link = channel.connection
        if self._named_on is not None and self._named_on is not link:
            topology = getattr(link, "topology", None)
            present = "" if topology is None else topology.current_name(self.name)
            if present:
                self.name, self._named_on = present, link
        return self.name

    def queue_bind(self, nowait: bool = False, channel: Channel | None = None) -> Any:
        """Bind the queue to its exchange.  May switch."""
        return self.bind_to(
            self.exchange,
            self.routing_key,
            self.binding_arguments,
            channel=channel,
            nowait=nowait,
        )

    def bind_to(
        self,
        exchange: Any = "",
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        nowait: bool = False,
        channel: Channel | None = None,
    ) -> Any:
        """Bind the queue to *exchange* (an Exchange or a name).  May switch."""
        if channel is None:
            channel = self.channel
        return channel.queue_bind(
            queue=self._name_on(channel),
            exchange=name_of(exchange),
            routing_key=routing_key,
            arguments=arguments,
            nowait=nowait,
        )

    def queue_unbind(
        self,
        arguments: dict[str, Any] | None = None,
        nowait: bool = False,
        channel: Channel | None = None,
    ) -> Any:
        """Unbind the queue from its exchange.  May switch."""
        return self.unbind_from(self.exchange, self.routing_key, arguments, nowait, channel)

    def unbind_from(
        self,
        exchange: Any = "",
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        nowait: bool = False,
        channel: Channel | None = None,
    ) -> Any:
        """Undo :meth:`bind_to`.  May switch."""
        if channel is None:
            channel = self.channel
        return channel.queue_unbind(
            queue=self._name_on(channel),
            exchange=name_of(exchange),
            routing_key=routing_key,
            arguments=arguments,
            nowait=nowait,
        )

    def get(self, no_ack: bool | None = None, accept: Iterable[str] | None = None) -> Any:
        """Take one message from the queue; None if it is empty.  May switch.

        Arguments:
            no_ack: the broker need not wait for an ack; None is what the queue says.
            accept: names or content types that the message may be decoded from.
        """
        channel = self.channel
        message = channel.basic_get(
            queue=self._name_on(channel), no_ack=self.no_ack if no_ack is None else no_ack
        )
        if message is None:
            return None
        to_python = getattr(channel, "message_to_python", None)
        if to_python is not None:
            message = to_python(message)
        if message.errors:
            message._reraise_error()
        message.accept = prepare_accept_content(accept)
        if (observers := LISTENERS.handling) is not None:
            url, name = url_of(channel), self._name_on(channel)
            observers.begin(DeliverEvent(url, name, (message,), None))
        return message

    def purge(self, nowait: bool = False) -> int:
        """Purge the queue and return the number of its messages.  May switch."""
        channel = self.channel
        return channel.queue_purge(queue=self._name_on(channel), nowait=nowait) or 0

    def consume(
        self,
        consumer_tag: str = "",
        callback: Callable[[Any], Any] | None = None,
        no_ack: bool | None = None,
        nowait: bool = False,
        on_cancel: Callable[[str], Any] | None = None,
    ) -> Any:
        """Start a consumer on the bound channel.  May switch.

        Arguments:
            consumer_tag: '' lets one be chosen.
            callback: called with each message in the greenlet that drains the connection.
            no_ack: messages need no ack; None is what the queue says.
            nowait: do not wait for the broker's reply.
            on_cancel: called with the tag when the broker cancels the consumer.
        """
        channel = self.channel
        return channel.basic_consume(
            queue=self._name_on(channel),
            no_ack=self.no_ack if no_ack is None else no_ack,
            consumer_tag=consumer_tag or "",
            callback=callback,
            nowait=nowait,
            arguments=self.consumer_arguments,
            on_cancel=on_cancel,
        )

    def cancel(self, consumer_tag: str) -> Any:
        """End a consumer.  May switch."""
        return self.channel.basic_cancel(consumer_tag)

    def delete(self, if_unused: bool = False, if_empty: bool = False, nowait: bool = False) -> Any:
        """Delete the queue.  May switch.

        Arguments:
            if_unused: only if it has no consumers, else a channel error.
            if_empty: only if it has no messages, else a channel error.
        """
        channel = self.channel
        return channel.queue_delete(
            queue=self._name_on(channel), if_unused=if_unused, if_empty=if_empty, nowait=nowait
        )

    @staticmethod
    def sharded(
        name: str,
        shards: int = 8,
        *,
        key: Callable[[Any], str | bytes | int | UUID],
        queue_arguments: Mapping[str, Any] | None = None,
    ) -> ShardedQueue:
        """Return queues that share messages by their key, and keep the order of each key.

        ::

            ledger = Queue.sharded("ledger", key=lambda body: body["account"])
            greenconn.publish(ledger, {"account": 7, "amount": -30})
            greenconn.spawn_consumer(ledger, book, concurrency=100, retry=Retry())

        All processes that consume it divide the shards; each shard has one active consumer.  A message
        begins when the earlier ones of its key were handled, or given up.  Requires RabbitMQ, Redis,
        PostgreSQL, SQLite or the in-memory broker.

        Arguments:
            name: of the exchange, and the beginning of the queues' names.
            shards: number of queues, and the most processes that can have a part of the work.  It must
                not change while messages wait.
            key: a function that returns the key for the body of a message that is published.
            queue_arguments: of each queue.

        Raises:
            TypeError, ValueError: an argument is wrong; names it.
        """
        return ShardedQueue(name, shards, key, queue_arguments)

    @classmethod
    def from_dict(cls, queue: str, **options: Unpack[FlatQueueArguments]) -> Queue:
        """Make a queue and its exchange from flat options, as settings have them.

        Arguments:
            queue: its name.
            options: ``exchange``, ``exchange_type``, ``exchange_durable``,
                ``exchange_auto_delete``, ``exchange_arguments``, ``delivery_mode``,
                ``binding_key`` or ``routing_key``, ``queue_durable``, ``queue_auto_delete``;
                ``durable`` and ``auto_delete`` mean both; everything else that a Queue takes.

        Raises:
            TypeError: an option is unknown.
        """
        given: dict[str, Any] = {**options}
        further = {name for name, _ in cls.attrs} | {"dead_letter", "on_declared"}
        check_keywords("Queue.from_dict", given, further | _FLAT, is_kombus=True)

        def either(*names: str) -> Any:
            return next((given[name] for name in names if given.get(name) is not None), None)

        exchange = Exchange(
            given.get("exchange"),
            type=given.get("exchange_type"),
            delivery_mode=given.get("delivery_mode"),
            durable=either("exchange_durable", "durable"),
            auto_delete=either("exchange_auto_delete", "auto_delete"),
            arguments=given.get("exchange_arguments"),
        )
        return Queue(
            queue,
            exchange=exchange,
            routing_key=either("binding_key", "routing_key"),
            durable=either("queue_durable", "durable"),
            auto_delete=either("queue_auto_delete", "auto_delete"),
            **{name: given[name] for name in given.keys() & further - _TAKEN},
        )

    def as_dict(self, recurse: bool = False) -> dict[str, Any]:
        """Return what a Queue can be made from again.

        Arguments:
            recurse: exchange and bindings as dicts too.
        """
        result = super().as_dict(recurse)
        if self.dead_letter:
            result["dead_letter"] = self.dead_letter
        if recurse and result.get("bindings"):
            result["bindings"] = [
                each.as_dict(recurse=True) if isinstance(each, Object) else each
                for each in result["bindings"]
            ]
        return result

    def __repr__(self) -> str:
        name = shown(self.name)
        if self.bindings:
            return self._repr_entity(f"Queue {name} -> {pretty_bindings(self.bindings)}")
        return self._repr_entity(f"Queue {name} -> {self.exchange!r} -> {shown(self.routing_key)}")


#: Attributes that ``from_dict`` derives from several options.
_TAKEN: Final = frozenset({"name", "exchange", "routing_key", "durable", "auto_delete"})
#: What they are derived from, and the attributes of the exchange.
_FLAT: Final = frozenset(
    {"binding_key", "delivery_mode", "exchange_arguments", "exchange_auto_delete"}
    | {"exchange_durable", "exchange_type", "queue_auto_delete", "queue_durable"}
)

#: The hash of a key begins with it in all clients, so that they agree where the key belongs.
SEED: Final = 104729
#: Header of a message in a sharded queue: its key; and the most characters that are believed.
KEY: Final = "x-greenconn-key"
LONGEST_KEY: Final = 255
_MASK: Final = 0xFFFFFFFF


def may_skip_counts(channel: Channel | None) -> bool:
    """Return whether ``nowait`` means on *channel* only that a queue's messages are not counted."""
    # Of the type: a program's stand-in for a channel has every attribute.
    return bool(getattr(type(channel), "may_skip_counts", False))


class SuperStream:
    """Streams that share the messages of one name between them, each key in one of them.

    Messages of one key keep their order.  The number of streams cannot change later: keys would go to
    other ones.  RabbitMQ's own tools and the clients of its stream protocol know super streams by their
    layout: a direct exchange, and the streams ``name-0``, ``name-1``... bound to it by their numbers.

    Arguments:
        name: of the exchange, and the beginning of the streams' names.
        partitions: number of streams.
        queue_arguments: of each stream, such as ``{"x-max-age": "7D"}``.

    Attributes:
        exchange: the exchange to which the streams are bound by their numbers.
        streams: one :class:`Queue` for each partition.
    """

    __slots__ = ("exchange", "name", "streams")

    def __init__(
        self, name: str, partitions: int = 3, *, queue_arguments: Mapping[str, Any] | None = None
    ) -> None:
        if not name:
            raise ValueError("name of a super stream must not be empty")
        if isinstance(partitions, bool) or not isinstance(partitions, int) or partitions < 1:
            raise ValueError(
                f"partitions of super stream {name!r} must be a positive integer, got {partitions!r}"
            )
        self.name = name
        self.exchange = Exchange(name, type="direct", arguments={"x-super-stream": True})
        self.streams = tuple(
            Queue(
                f"{name}-{number}",
                exchange=self.exchange,
                routing_key=str(number),
                binding_arguments={"x-stream-partition-order": number},
                queue_arguments={**(queue_arguments or {}), "x-queue-type": "stream"},
            )
            for number in range(partitions)
        )

    def __repr__(self) -> str:
        return f"<SuperStream {self.name!r} of {len(self.streams)} streams>"

    def stream_of(self, key: str | bytes) -> Queue:
        """Return the stream for the messages of *key*, as all clients compute it.  Never switches."""
        data = key.encode() if isinstance(key, str) else key
        return self.streams[murmur3_32(data, SEED) % len(self.streams)]

    def declare(self, channel: Channel) -> None:
        """Declare the exchange and the streams, and bind them.  May switch."""
        for stream in self.streams:
            stream(channel).declare()

    def delete(self, channel: Channel) -> None:
        """Delete the streams with their messages, and the exchange.  May switch."""
        for stream in self.streams:
            stream(channel).delete()
        self.exchange(channel).delete()


class ShardedQueue:
    """Queues that share the messages of one name between them, each key in one of them, in order.

    Made by :meth:`Queue.sharded`.  Each shard has a single active consumer, so that the messages of a
    key are handled one after the other over all processes, their retries included.  The number of
    shards must not change while messages wait: keys would go to other ones.

    Other programs publish to the direct exchange of its name, with the number of the shard as routing
    key: MurmurHash3 of the key (32 bits, seed 104729) modulo the number of shards, as for super streams.
    Without the header ``x-greenconn-key``, their messages are handled in the order of the shard.

    Attributes:
        queues: one :class:`Queue` for each shard.
    """

    __slots__ = ("_key", "exchange", "name", "queues")

    def __init__(
        self,
        name: str,
        shards: int,
        key: Callable[[Any], str | bytes | int | UUID],
        queue_arguments: Mapping[str, Any] | None,
    ) -> None:
        if not isinstance(name, str) or not name:
            raise ValueError(
                f"name of a sharded queue must be text that is not empty, got {name!r}"
            )
        if isinstance(shards, bool) or not isinstance(shards, int) or shards < 1:
            raise ValueError(f"shards of queue {name!r} must be a positive integer, got {shards!r}")
        if not callable(key):
            raise TypeError(f"key of queue {name!r} must be a function of the body, got {key!r}")
        self.name = name
        self._key = key
        self.exchange = Exchange(name, type="direct")
        self.queues = tuple(
            Queue(
                f"{name}-{number}",
                exchange=self.exchange,
                routing_key=str(number),
                queue_arguments={**(queue_arguments or {}), "x-single-active-consumer": True},
            )
            for number in range(shards)
        )

    def __repr__(self) -> str:
        return f"<ShardedQueue {self.name!r} of {len(self.queues)} shards>"

    def __iter__(self) -> Iterator[Queue]:
        return iter(self.queues)

    def queue_of(self, key: str | bytes | int | UUID) -> Queue:
        """Return the queue for the messages of *key*.  Never switches.

        Raises:
            TypeError, ValueError: *key* is of another type, or longer than 255 characters.
        """
        return self._queue_of(self._text_of(key))

    def _queue_of(self, key: str) -> Queue:
        return self.queues[
            murmur3_32(key.encode("utf-8", "surrogatepass"), SEED) % len(self.queues)
        ]

    def _text_of(self, key: object) -> str:
        if isinstance(key, bytes):
            key = key.decode("utf-8", "backslashreplace")
        if not isinstance(key, (str, int, UUID)):
            raise TypeError(
                f"key of a message to queue {self.name!r} must be text, bytes, a number or a UUID, got "
                f"{key!r}"
            )
        text = str(key)
        if len(text) > LONGEST_KEY:
            raise ValueError(
                f"key of a message to queue {self.name!r} must have at most {LONGEST_KEY} characters, "
                f"got {text[:40]!r}..."
            )
        return text

    def routed(self, body: Any, options: Mapping[str, Any]) -> tuple[Queue, dict[str, Any]]:
        """Return the shard for a message, and the options of its publish with its key as a header.

        Raises:
            Exception: what the function for the key raised.
            TypeError, ValueError: the key cannot be used, or *options* has a ``routing_key``.
        """
        if options.get("routing_key") is not None:
            raise ValueError(
                f"routing_key must be None for a message to {self!r}, whose key decides, got "
                f"{options['routing_key']!r}"
            )
        key = self._text_of(self._key(body))
        headers = options.get("headers")
        if headers is None or isinstance(headers, Mapping):  # else the publish refuses it
            headers = {**(headers or {}), KEY: key}
        return self._queue_of(key), {**options, "headers": headers}

    def declare(self, channel: Channel) -> None:
        """Declare the exchange and the shards, and bind them.  May switch."""
        for queue in self.queues:
            queue(channel).declare()

    def delete(self, channel: Channel) -> None:
        """Delete the shards with their messages, and the exchange.  May switch."""
        for queue in self.queues:
            queue(channel).delete()
        self.exchange(channel).delete()


def key_of(body: object, message: Message) -> str | None:
    """Return the key of a message of a shard; None: who published it gave none that can be used."""
    key = message.headers.get(KEY)
    return key if isinstance(key, str) and len(key) <= LONGEST_KEY else None


def murmur3_32(data: bytes, seed: int) -> int:
    """Return the hash of *data* by MurmurHash3 (x86, 32 bits).  Never switches."""
    result = seed
    tail = len(data) & ~3
    for start in range(0, tail, 4):
        result ^= _scrambled(int.from_bytes(data[start : start + 4], "little"))
        result = (_rotated(result, 13) * 5 + 0xE6546B64) & _MASK
    result ^= _scrambled(int.from_bytes(data[tail:], "little")) ^ len(data)
    result = ((result ^ result >> 16) * 0x85EBCA6B) & _MASK
    result = ((result ^ result >> 13) * 0xC2B2AE35) & _MASK
    return result ^ result >> 16


def _scrambled(block: int) -> int:
    return (_rotated((block * 0xCC9E2D51) & _MASK, 15) * 0x1B873593) & _MASK


def _rotated(value: int, by: int) -> int:
    return (value << by | value >> 32 - by) & _MASK
