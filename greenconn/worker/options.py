"""The options of a consumer: the arguments of ``spawn_consumer``, validated once.

Also the handler that runs in a transaction of a database, in which its message is acknowledged, too.
What the handler writes and the end of its message are committed together, so its effects in the database
happen exactly once, however often the message is delivered.  If the handler fails, both are undone, and
the rules of the consumer for failures apply.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import MISSING, dataclass, field, fields
from functools import update_wrapper
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias, TypedDict

from gevent import Timeout

from greenconn.checks import (
    Seconds,
    check_callable,
    check_count,
    check_has_run,
    check_keywords,
    check_runs,
    check_seconds,
    check_type,
    invalid,
)
from greenconn.common import Broadcast
from greenconn.entity import Queue
from greenconn.entity.queue import DEAD, ShardedQueue, key_of
from greenconn.green.retry import RetryPolicy
from greenconn.green.supervisor import spawn
from greenconn.log import message_fields
from greenconn.options import Limit, Rate, Retry
from greenconn.schemas import Convert, converter_of, item_of, schema_of, signature_of
from greenconn.serialization import prepare_accept_content
from greenconn.streams import OFFSET, Offset, OffsetStore, check_offset, offset_of
from greenconn.worker.dispatch import Order, order_of

if TYPE_CHECKING:
    from typing_extensions import NotRequired

    from greenconn.message import Message


logger = logging.getLogger("greenconn.worker")

#: Begins a transaction, which ends with the block: gives it, and the further arguments of the handler.
Begin: TypeAlias = "Callable[[], AbstractContextManager[tuple[Any, tuple[Any, ...]]]]"

_WHAT: Final = (
    "the alias of a database of Django, an Engine or a sessionmaker of SQLAlchemy, or a pool of "
    "psycopg"
)


class _NotHeld(Exception):
    """The message was redelivered, or its transaction was committed after all."""


class TransactionHandler:
    """Calls a handler in a transaction, and acknowledges its message in that.

    Arguments:
        handler: called as ``handler(body, message)`` with a database of Django, else with a session or
            connection as the third argument.
        given: see :func:`greenconn.spawn_consumer`.

    Raises:
        TypeError: *given* is nothing that begins a transaction.
    """

    def __init__(self, handler: Callable[..., Any], given: Any) -> None:
        self._handler = handler
        self._begin = begin_of(given)
        update_wrapper(self, handler)

    def __call__(self, body: Any, message: Message) -> None:
        ack: Any = None
        try:
            with self._begin() as (transaction, arguments):
                result = self._handler(body, message, *arguments)
                if result is not None:
                    check_has_run("the handler", result)
                if message.acknowledged:
                    return  # the handler has decided what becomes of it
                ack = message.channel.within(transaction)
                if not ack.ack(message):
                    raise _NotHeld
        except _NotHeld:
            _log_not_held(message)
        except (Exception, Timeout):
            # An error of the commit does not tell whether it is done: the row of the message does.
            if ack is None or ack.is_held(message):
                raise
        except BaseException:
            if ack is not None:
                ack.undo(message)
            raise
        # The row is gone, and this is for the link alone.
        message.ack(flush=False)


def begin_of(given: Any) -> Begin:
    """Return what begins a transaction.

    Raises:
        TypeError: *given* is nothing that does.
    """
    if isinstance(given, str):
        return lambda: _django(given)
    if callable(getattr(given, "getconn", None)) and callable(getattr(given, "connection", None)):
        return lambda: _pool(given)
    if hasattr(given, "dialect") and callable(getattr(given, "connect", None)):
        from sqlalchemy.orm import Session

        return lambda: _session(lambda: Session(given))
    if callable(getattr(given, "begin", None)) and callable(given):
        return lambda: _session(given)
    raise TypeError(f"transaction must be {_WHAT}, got {given!r}")


@contextmanager
def _django(alias: str) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    from django.db import connections, transaction

    connection = connections[alias]
    connection.close_if_unusable_or_obsolete()
    try:
        with transaction.atomic(using=alias):
            yield alias, ()
    finally:
        connection.close_if_unusable_or_obsolete()


@contextmanager
def _pool(pool: Any) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    with pool.connection() as connection, connection.transaction():
        yield connection, (connection,)


@contextmanager
def _session(make: Callable[[], Any]) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    with make() as session, session.begin():
        yield session, (session,)


def takes_session(given: Any) -> bool:
    """Return whether the handler gets a session or connection beside the message."""
    return not isinstance(given, str)


def _log_not_held(message: Message) -> None:
    spawn(
        "log",
        logger.warning,
        "delivery %s was redelivered while its handler ran; its transaction was rolled back",
        message.delivery_tag,
        extra=message_fields(message),
    )


QueueLike: TypeAlias = "str | Queue"
Handler: TypeAlias = Callable[..., Any]
#: What a handler may return, for type checkers.  It is not used; but a coroutine or a generator, of
#: which nothing would run, is neither of them.
Returned: TypeAlias = (
    "bool | float | str | bytes | Sequence[Any] | Mapping[Any, Any] | Set[Any] | None"
)
OnError: TypeAlias = (
    "Literal['dead_letter', 'reject', 'requeue', 'discard'] | Callable[[Any, BaseException], Any]"
)


class ServerArguments(TypedDict, total=False):
    """The options that consumers and RPC servers share; see :class:`ConsumerOptions`."""

    accept: Iterable[str] | None
    arguments: Mapping[str, Any] | None
    blocking_threshold: Seconds | None
    concurrency: int
    dead_letter: Literal[True] | str | None
    exclusive: bool
    handler_timeout: Seconds | None
    name: str | None
    offset: Offset | None
    offsets: OffsetStore | None
    on_error: OnError
    passive: bool
    prefetch_count: int | None
    priority: int | None
    single_active: bool
    store_every: int
    store_interval: Seconds
    tag_prefix: str


class ConsumerArguments(ServerArguments, total=False):
    """The options of consumers whose handler is called with one message."""

    limit: Limit | None
    no_ack: bool
    on_decode_error: Callable[[Message, Exception], object] | None
    rate: Rate | None
    retry: Retry | Mapping[str, Any] | None
    transaction: Any


class TransactionArguments(ConsumerArguments):
    """The options of consumers whose handler gets a session of its transaction, too."""

    transaction: Any  # type: ignore[misc]  # required here


class BatchArguments(ConsumerArguments):
    """The options of consumers whose handler is called with a batch of messages."""

    batch_size: int
    batch_interval: NotRequired[Seconds | None]


class AllArguments(ConsumerArguments, total=False):
    """The options of consumers of all kinds."""

    batch_size: int | None
    batch_interval: Seconds | None


#: Minimum of the default prefetch count.
LEAST_PREFETCH: Final = 10
#: Maximum prefetch count of ``basic.qos``.
MOST_PREFETCH: Final = 65535
BATCH_INTERVAL: Final = 1.0
#: What may become of a message that failed, beside what a callable does.
ON_ERROR: Final = ("dead_letter", "reject", "requeue", "discard")


@dataclass(frozen=True, kw_only=True, slots=True)
class ConsumerOptions:
    """The options of a consumer."""

    #: Errors name the option alone: it may have been given to ``App.consumer`` or ``App.rpc``, too.
    function_name: ClassVar[str] = ""

    queues: tuple[QueueLike, ...]
    """Queues to consume from.  A queue given by name is used as it is; a ``Queue`` is declared."""

    handler: Handler
    """Function that is called with the body and the message; with *batch_size*, with a list of bodies
    and a list of messages."""

    schema: Any = None
    """Type to which decoded bodies are converted.  None uses the annotation of the handler's first
    parameter if it contains a dataclass, a TypedDict, a ``msgspec.Struct`` or a pydantic model."""

    concurrency: int = 1
    """Maximum number of handlers that run at the same time."""

    prefetch_count: int | None = None
    """Maximum number of unacknowledged messages over all queues; 0 sets no limit.  None sets a number at
    which no handler waits for the broker: the greatest of 10, 2 x *concurrency*, *batch_size* x
    *concurrency* and the number of queues."""

    no_ack: bool = False
    """Whether the broker deletes a message as soon as it has sent it."""

    accept: Iterable[str] | None = None
    """Names of serializers or content types to accept.  None accepts all that are not disabled."""

    on_error: OnError = "dead_letter"
    """Action for a message whose handler failed after all retries: ``'dead_letter'``, ``'reject'``,
    ``'requeue'``, ``'discard'``, or a callable that is called as ``(message, exc)``."""

    dead_letter: Literal[True] | str | None = None
    """Queue for messages that are given up: True uses the queue ``<queue>.dead``, a string the queue of
    that name.  None uses the dead-letter exchange of the queue if it is known to have one, else
    ``<queue>.dead``."""

    retry: Retry | Mapping[str, Any] | None = None
    """Policy for calling a handler again after it failed.  None does not retry."""

    name: str | None = None
    """Name of the consumer for logs and its greenlet.  None uses the names of the queues."""

    on_decode_error: Callable[[Any, Exception], Any] | None = None
    """Function that is called as ``(message, exc)`` for a body that cannot be decoded, is not accepted
    or does not fit the schema.  None makes a dead letter of the message.  Neither happens where the
    process lacks memory: the message goes back."""

    tag_prefix: str = "greenconn-"
    """Prefix of the consumer tag that the broker shows."""

    exclusive: bool = False
    """Whether no other consumer may consume from the queue."""

    priority: int | None = None
    """Consumer priority (``x-priority``): the broker delivers to consumers with a higher priority first.
    None sets no priority."""

    arguments: Mapping[str, Any] | None = None
    """Additional arguments of ``basic.consume``."""

    passive: bool = False
    """Whether the queue is never declared.  A queue that does not exist is then an error."""

    declares_names: bool = True
    """Whether to declare a queue that is given by name and does not exist."""

    offset: Offset | None = None
    """Position in a stream to start from (``x-stream-offset``): ``'first'``, ``'last'``, ``'next'``, the
    number of a message, a datetime, or an interval such as ``'1h'``.  None uses ``'next'`` for a
    ``Queue`` that is declared as a stream, and sends no offset for other queues."""

    offsets: OffsetStore | None = None
    """Store that keeps the position in a stream between runs, under the *name* of the reader."""

    single_active: bool = False
    """Whether only one of the readers with the same *name* reads a stream at a time."""

    store_every: int = 1000
    """Number of messages after which the position is stored in *offsets*."""

    store_interval: float = 5.0
    """Seconds after which the position is stored in *offsets*, if it has changed."""

    handler_timeout: float | None = None
    """Maximum seconds for one call of the handler.  A handler that exceeds it is interrupted, which
    counts as a failure.  None sets no limit."""

    blocking_threshold: float | None = 0.5
    """Seconds that a handler may run without switching to other greenlets before this is logged, once.
    None never logs it."""

    batch_size: int | None = None
    """Maximum number of messages in a batch.  None calls the handler with single messages instead of
    lists."""

    batch_interval: float | None = None
    """Maximum seconds that a message waits for its batch to fill.  None is 1 s."""

    transaction: Any = None
    """Database in whose transaction the handler runs and its message is acknowledged, with a broker in
    PostgreSQL.  None: in none."""

    limit: Limit | None = None
    """Limit on the handlers that run at the same time, in all processes together.  None sets no limit
    beside *concurrency*."""

    rate: Rate | None = None
    """Rate limit on the handlers that start, in all processes together.  None sets no limit."""

    convert: Convert | None = field(init=False, default=None)
    """Function that converts decoded bodies to the schema.  None leaves bodies unconverted."""

    is_sharded: bool = False
    """Whether the queues are the shards of one, each with one active consumer at a time."""

    order: Order | None = field(init=False, default=None)
    """Order that ``in_order`` has given to the handler.  None: messages are handled as they come."""

    def __post_init__(self) -> None:
        arguments = 2 if self.transaction is None or not takes_session(self.transaction) else 3
        _check_handler(self.handler, arguments)
        check_count(self, "concurrency", least=1, optional=False)
        check_count(self, "prefetch_count", most=MOST_PREFETCH)
        check_count(self, "batch_size", least=1)
        check_count(self, "store_every", least=1, optional=False)
        check_seconds(self, "store_interval", above_zero=True, optional=False)
        check_type(self, bool, "no_ack", "exclusive", "passive", "single_active")
        check_type(self, str, "name", optional=True)
        check_type(self, str, "tag_prefix")
        check_type(self, int, "priority", optional=True)
        check_type(self, Mapping, "arguments", optional=True)
        check_type(self, Limit, "limit", optional=True)
        check_type(self, Rate, "rate", optional=True)
        check_callable(self, "on_decode_error")
        check_runs("on_decode_error", self.on_decode_error)
        check_runs("on_error", self.on_error)
        check_seconds(
            self, "handler_timeout", "batch_interval", "blocking_threshold", above_zero=True
        )
        if self.offsets is not None:
            self._check_offsets()
        elif self.single_active:
            raise ValueError(
                "offsets must be given with single_active: the next reader goes on where they say"
            )
        self._settle()
        self._check_acks()
        self._check_order()
        self._check_prefetch()

    def _settle(self) -> None:
        """Convert options that have several forms to one."""
        put = object.__setattr__
        put(self, "retry", Retry.of(self.retry))
        put(self, "accept", prepare_accept_content(self.accept))
        if self.name is None:
            put(self, "name", ", ".join(map(_shown, self.queues)))
        if self.prefetch_count is None:
            batch = (self.batch_size or 1) * self.concurrency
            enough = max(LEAST_PREFETCH, 2 * self.concurrency, len(self.queues), batch)
            put(self, "prefetch_count", min(enough, MOST_PREFETCH))
        if self.batch_size is not None and self.batch_interval is None:
            put(self, "batch_interval", BATCH_INTERVAL)
        schema = self.schema
        if schema is None:
            schema = schema_of(self.handler)
            if schema is not None and self.batch_size is not None:
                schema = item_of(schema)
        if schema is not None:
            put(self, "convert", converter_of(schema))
        order = order_of(self.handler)
        if self.is_sharded:
            if order is not None:
                raise TypeError(
                    f"handler must not have in_order with a sharded queue, whose key is the order, got "
                    f"{self.handler!r}"
                )
            order = Order(key_of, waits=True)
        if self.transaction is not None:
            put(self, "handler", TransactionHandler(self.handler, self.transaction))
        if order is not None:
            # Around the transaction, which must not wait for another message.
            put(self, "order", order)
            put(self, "handler", order.ordered(self.handler))

    def _check_order(self) -> None:
        if self.order is not None and self.batch_size is not None:
            raise ValueError(
                f"batch_size must be None with in_order, as a batch has no key, got {self.batch_size!r}"
            )
        if self.keeps_order and self.on_error == "requeue":
            raise ValueError(
                "on_error must not be 'requeue' with in_order, as the message would come back behind "
                "others of its key: use retry, or on_failure='skip'"
            )

    def _check_acks(self) -> None:
        if self.on_error not in ON_ERROR and not callable(self.on_error):
            raise ValueError(
                f"on_error must be {', '.join(map(repr, ON_ERROR))} or a callable, got "
                f"{self.on_error!r}"
            )
        if self.no_ack and self.retry is not None:
            raise ValueError(
                f"retry must be None with no_ack, as the broker has already deleted the message, "
                f"got {self.retry!r}"
            )
        if self.dead_letter not in (True, None) and not (
            isinstance(self.dead_letter, str) and self.dead_letter
        ):
            what = "True, the name of a queue or None (on_error='discard' loses failed messages)"
            raise invalid(self, "dead_letter", what)
        if self.dead_letter and (self.no_ack or self.on_error in ("reject", "requeue", "discard")):
            why = "no_ack" if self.no_ack else f"on_error={self.on_error!r}"
            raise ValueError(f"dead_letter must be None with {why}, got {self.dead_letter!r}")
        for queue in map(_name_of, self.queues):
            if queue and self.dead_letters_of(queue) == queue:
                raise ValueError(
                    f"dead_letter must be another queue than {queue!r}, which would get its own dead "
                    f"letters again and again"
                )
        if self.batch_size is not None and self.holds == "broker":
            raise ValueError(
                "retry must not have hold='broker' with batch_size, as a batch is retried as one"
            )
        if self.no_ack and self.on_error == "requeue":
            raise ValueError(
                "on_error must not be 'requeue' with no_ack, as the broker has already deleted the "
                "message"
            )
        if self.transaction is not None and (self.no_ack or self.batch_size is not None):
            what = "no_ack" if self.no_ack else "batch_size"
            raise ValueError(
                f"transaction must be None with {what}: each message is acknowledged in its own"
            )
        for name in ("limit", "rate"):
            if getattr(self, name) is not None and self.order is not None:
                raise ValueError(
                    f"{name} must be None with in_order, as a message that goes back to the broker "
                    f"loses its place"
                )
            if getattr(self, name) is not None and (self.no_ack or self.batch_size is not None):
                what = "no_ack" if self.no_ack else "batch_size"
                raise ValueError(
                    f"{name} must be None with {what}: each message waits at the broker for its own turn"
                )
        if self.batch_interval is not None and self.batch_size is None:
            raise ValueError(
                f"batch_interval must be None without batch_size, got {self.batch_interval!r}"
            )
        if self.offset is not None:
            check_offset(self.offset)
        if any(self.offset_of(queue) is not None for queue in self.queues):
            self._check_stream()

    def _check_stream(self) -> None:
        if self.is_unbounded:
            raise ValueError(
                f"a consumer of a stream (or with an offset) must have acks and a prefetch_count, got "
                f"no_ack={self.no_ack!r} and prefetch_count={self.prefetch_count!r}"
            )
        for name in ("limit", "rate"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name} must be None for a stream, to which no message can go back: use concurrency"
                )
        if self.on_error == "requeue":
            raise ValueError(
                "on_error must not be 'requeue' for a stream, which cannot requeue: use retry"
            )

    def _check_offsets(self) -> None:
        if not all(callable(getattr(self.offsets, name, None)) for name in ("load", "store")):
            raise TypeError(f"offsets must have methods load and store, got {self.offsets!r}")
        if not self.name:
            raise ValueError(
                "name must be given with offsets, which are kept under the name of each reader"
            )
        for queue in self.queues:
            if isinstance(queue, Queue) and self.offset is None and offset_of(queue) is None:
                raise ValueError(f"offsets must be None for {queue!r}, which is not a stream")

    def _check_prefetch(self) -> None:
        prefetch = self.prefetch
        if not prefetch:
            return
        if prefetch < len(self.queues):
            raise ValueError(
                f"prefetch_count must be at least 1 for each of {len(self.queues)} queues, got "
                f"{prefetch}"
            )
        if self.batch_size is not None and prefetch < self.batch_size * self.concurrency:
            raise ValueError(
                f"prefetch_count must be at least batch_size x concurrency = "
                f"{self.batch_size * self.concurrency}, for full batches, got {prefetch}"
            )

    @property
    def prefetch(self) -> int:
        """Maximum number of unacknowledged messages; 0 sets no limit."""
        return self.prefetch_count or 0

    @property
    def is_unbounded(self) -> bool:
        """Whether the broker may send without limit, as there are no acks or no prefetch limit."""
        return self.no_ack or not self.prefetch

    @property
    def keeps_order(self) -> bool:
        """Whether the messages of a key wait for the retry of one that failed."""
        return self.order is not None and self.order.waits

    @property
    def holds(self) -> str | None:
        """Return where a message waits for a retry; None: at the broker if the delay is long."""
        if self.keeps_order:
            return "process"  # in its place in the queue
        return self.retry.hold if isinstance(self.retry, Retry) else "process"

    def dead_letters_of(self, queue: str) -> str | None:
        """Return the queue that the program has named for dead letters of *queue*; None: it has not."""
        own = next((each for each in self.queues if _name_of(each) == queue), queue)
        if self.dead_letter is True:
            return f"{_shown(own)}{DEAD}"
        if self.dead_letter:
            return self.dead_letter
        return own.dead_letter_queue if isinstance(own, Queue) else None

    @property
    def policy(self) -> RetryPolicy | None:
        """The policy for calling a failed handler again; None does not retry."""
        retry = self.retry
        if not isinstance(retry, Retry):
            return None
        return RetryPolicy(
            first=float(retry.delay),
            factor=retry.backoff,
            longest=retry.max_delay,
            jitter=0.5 if retry.jitter else 0.0,
            tries=retry.tries,
        )

    def shares(self) -> list[int]:
        """Return the prefetch count of each queue; their sum is the prefetch count of the consumer."""
        share, rest = divmod(self.prefetch, len(self.queues))
        return [share + (position < rest) for position in range(len(self.queues))]

    def consume_arguments(self) -> dict[str, Any]:
        """Return the arguments of ``basic.consume``."""
        arguments = dict(self.arguments or {})
        if self.priority is not None:
            arguments["x-priority"] = self.priority
        if self.offset is not None:
            arguments[OFFSET] = self.offset
        return arguments

    def offset_of(self, queue: QueueLike) -> Offset | None:
        """Return the offset at which to start in *queue*; None if that is not known to be a stream."""
        if self.offset is not None:
            return self.offset
        arguments = (queue.consumer_arguments or {}) if isinstance(queue, Queue) else {}
        if self.offsets is not None and OFFSET not in arguments:
            return "first"  # a reader whose position is kept leaves nothing out
        return offset_of(queue) if isinstance(queue, Queue) else None


#: Names of the options of a consumer.
def option_defaults() -> dict[str, Any]:
    """Return the defaults of the options of consumers, by name."""
    found = {each.name: each.default for each in fields(ConsumerOptions)}
    return {name: default for name, default in found.items() if default is not MISSING}


CONSUMER_OPTIONS: Final = frozenset(
    {"schema"} | BatchArguments.__optional_keys__ | BatchArguments.__required_keys__
)


def checked_options(
    queue: QueueLike | Iterable[QueueLike],
    options: Mapping[str, Any],
    further: Mapping[str, Any],
    *,
    starts: bool = False,
) -> ConsumerOptions:
    """Validate the options of a call of ``spawn_consumer`` and return them.

    Arguments:
        queue: a name, a ``Queue``, or an iterable of them.
        options: the named parameters of ``spawn_consumer``.
        further: the options that were passed as ``consumer_args``.
        starts: whether the consumer starts now, so that broadcasts get its own queues.

    Raises:
        TypeError: *further* has an unknown name, or a value has the wrong type.
        ValueError: a value is out of range, or two options exclude each other.
    """
    check_keywords("spawn_consumer", further, CONSUMER_OPTIONS)
    if not isinstance(queue, (str, Queue)) and (
        not isinstance(queue, Iterable) or isinstance(queue, (bytes, Mapping))
    ):
        raise TypeError(f"queue must be a name, a Queue, or a list of them, got {queue!r}")
    if isinstance(queue, ShardedQueue):
        options = {**options, "is_sharded": True, "name": options.get("name") or queue.name}
    given = [queue] if isinstance(queue, (str, Queue)) else list(queue)
    if not given:
        raise ValueError("queue must be a name, a Queue, or a list of them, got an empty list")
    queues = tuple(map(_checked, given))
    if starts:
        queues = tuple(
            each.of_consumer() if isinstance(each, Broadcast) else each for each in queues
        )
    return ConsumerOptions(queues=queues, **options, **further)


def _check_handler(handler: object, arguments: int) -> None:
    """Refuse a handler that cannot be called, for which each message would be rejected later."""
    if not callable(handler):
        raise TypeError(f"handler must be a callable, got {handler!r}")
    check_runs("handler", handler)
    try:
        signature = signature_of(handler)
    except (TypeError, ValueError):
        return  # of a function in C, which does not say
    try:
        signature.bind(*[None] * arguments)
    except TypeError as exc:
        names = ", ".join(("body", "message", "session")[:arguments])
        raise TypeError(
            f"handler must take {('two', 'three')[arguments - 2]} arguments, as it is called as "
            f"handler({names}) ({exc}), got {handler!r}"
        ) from None


def _checked(queue: object) -> QueueLike:
    if isinstance(queue, Queue):
        # A copy: a name that the broker gives is not written into the program's object.
        own = copy(queue)
        own.on_declared = queue.on_declared
        own._named_on = queue._named_on
        return own
    if not isinstance(queue, str):
        raise TypeError(f"queue must be a name, a Queue, or a list of them, got {queue!r}")
    if not queue:
        raise ValueError(
            "queue must not be empty: pass a Queue if the broker is to choose the name"
        )
    return queue


def _name_of(queue: QueueLike) -> str:
    return queue.name if isinstance(queue, Queue) else queue


def _shown(queue: QueueLike) -> str:
    """Return the name for logs: all queues of a broadcast have the same."""
    return queue.alias if isinstance(queue, Broadcast) and queue.alias else _name_of(queue)
