"""Consumers, the greenlets that call a handler with each message of a queue."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypedDict, TypeVar, overload

import gevent
from gevent import Greenlet, GreenletExit, getcurrent

from greenconn.checks import Seconds, check_keywords, in_seconds, keyword_defaults, shows
from greenconn.common import Broadcast
from greenconn.connection import Connection
from greenconn.defaults import consuming_connection, declare_by_name
from greenconn.exceptions import AMQPError, KombuError, error_summary
from greenconn.green.deadline import Deadline
from greenconn.green.hub import HubAffinity, PerHub
from greenconn.options import Retry
from greenconn.worker.lifecycle import ConsumerLifecycle, ConsumerState, TargetState
from greenconn.worker.options import (
    CONSUMER_OPTIONS,
    AllArguments,
    ConsumerOptions,
    Handler,
    OnError,
    QueueLike,
    checked_options,
    option_defaults,
)

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenconn.message import Message
    from greenconn.worker.options import (
        BatchArguments,
        ConsumerArguments,
        Returned,
        TransactionArguments,
    )

    T = TypeVar("T")

    class Undeclared(Any):  # type: ignore[misc]  # it fits everywhere
        """The body of a handler that declares none."""

    _Greenlet = Greenlet[..., "ConsumerStats"]
else:
    _Greenlet = Greenlet

#: Seconds that ``stop`` waits, after its own time, for handlers that it has interrupted.
GRACE: Final = 2.0
#: Failures that are kept; the oldest are forgotten.
FAILURES_KEPT: Final = 100
#: The remedy for a call from another thread.
REMEDY: Final = (
    "do it in that thread, for example with gevent.get_hub().loop.run_callback_threadsafe() of "
    "its hub"
)


class ConsumerStats(TypedDict):
    """The state and the counters of a consumer.

    Attributes:
        state: the name of the current state.
        received, handled: numbers of messages since the start, as all that follow.
        failed: the handler raised, or the body could not be decoded.
        discarded: the handler raised ``Discard``.
        retried, rejected, requeued: what became of those that failed.
        dropped: with ``no_ack``, received but never handled.
        deferred: put back for a limit.
        skipped: debounced: a later message took its place.
        in_flight: messages that handlers have started and that are not settled.
        concurrency, prefetch_count: the options of the consumer.
        last_delivery_age: seconds since the last delivery; None before the first.
    """

    state: str
    received: int
    handled: int
    failed: int
    discarded: int
    retried: int
    rejected: int
    requeued: int
    dropped: int
    deferred: int
    skipped: int
    in_flight: int
    concurrency: int
    prefetch_count: int
    last_delivery_age: float | None


class ConsumerGreenlet(_Greenlet):
    """A running consumer, created by :func:`~greenconn.worker.spawn_consumer`.

    It is a ``gevent.Greenlet``: ``join``, ``get``, ``link``, ``kill``, ``dead`` and ``ready()`` behave
    as documented by gevent.  ``get()`` returns the final :meth:`stats` after :meth:`stop`, and raises
    the error if the broker refused the consumer for good.  ``kill()`` loses no message that requires an
    acknowledgement: the handlers are interrupted and their messages return to the queue.  With
    ``no_ack``, messages that have been received but not handled are dropped.  A ``with`` block stops the
    consumer at its end.

    The consumer stops when its connection is closed: running handlers finish, and the broker redelivers
    the other messages.

    All methods must be called in the thread that spawned the consumer; in another thread they raise
    :class:`~greenconn.exceptions.WrongHub`.  Only :attr:`state` and :meth:`stats` may be read from any
    thread.
    """

    __slots__ = (
        "_has_begun",
        "_hub_affinity",
        "_killed_by",
        "answers_calls",
        "lifecycle",
    )

    def __init__(self, options: ConsumerOptions, connection: Connection) -> None:
        super().__init__(None)  # type: ignore[arg-type]  # it runs _run
        connection.session.ready_life()  # raises if it was opened in another thread
        #: It runs the end of the consumer, which until then is steered by callbacks of the hub.
        self._has_begun = False
        self._killed_by: BaseException | None = None
        self.name = f"greenconn:consumer:{options.name}"
        self._hub_affinity = HubAffinity()
        #: Whether callers wait for a reply to each message: True for a server of ``rpc``.
        self.answers_calls = False
        #: For internal use.
        self.lifecycle = ConsumerLifecycle(options, connection, self)
        self.rawlink(_on_end)

    def start(self) -> None:
        """Start the consumer, once.  Never switches."""
        self._hub_affinity.check(self, REMEDY)
        _register(self)
        self.lifecycle.steer_soon()

    def __bool__(self) -> bool:
        return not self.ready()

    def _run(self) -> ConsumerStats:
        self._has_begun = True
        lifecycle = self.lifecycle
        lifecycle.run()
        if self._killed_by is not None:
            try:
                raise self._killed_by
            finally:
                self._killed_by = None  # its traceback leads here
        if lifecycle.error is not None:
            raise _without_our_frames(lifecycle.error)
        return self.stats()

    @property
    def state(self) -> ConsumerState:
        """The current state of the consumer."""
        return self.lifecycle.state

    @property
    def runs_here(self) -> bool:
        """Whether the calling greenlet runs one of this consumer's handlers."""
        return self.lifecycle.dispatcher.runs_in(getcurrent())

    def unsettled(self) -> int:
        """Return the number of messages that are handled or wait for a handler.  Never switches."""
        return self.lifecycle.dispatcher.unsettled()

    def wait_ready(self, timeout: Seconds | None = None) -> bool:
        """Wait until the broker has confirmed the consumer.  May switch.

        If the broker is unavailable, the call waits until it returns.

        Arguments:
            timeout: maximum seconds to wait.  None waits without limit.

        Returns:
            True once the broker has confirmed the consumer; False if the timeout passed or the consumer
            has ended.

        Raises:
            ChannelError, ConnectionError: the broker refused the consumer for good.
        """
        self._hub_affinity.check(self, REMEDY)
        lifecycle, deadline = self.lifecycle, Deadline(timeout)
        while not lifecycle.is_confirmed:
            if lifecycle.error is not None:
                raise _without_our_frames(lifecycle.error)
            if self.ready():
                return False
            if not self._wait_change(deadline):
                return False
        return True

    def _wait_change(self, deadline: Deadline) -> bool:
        """Wait for the next change; return False at the deadline.  May switch."""
        try:
            self.lifecycle.changed.wait(deadline)
        except TimeoutError:
            if not deadline.has_ended:
                raise  # not the timeout of this call
            return False
        return True

    def stop(self, timeout: Seconds | None = None) -> bool:
        """Shut the consumer down gracefully.  May switch.

        The consumer cancels its subscription.  Messages that no handler has started are requeued at
        once; running handlers finish.  The consumer has ended when the broker has the requeues and the
        acks, so that the program may end at once.  With ``no_ack`` nothing can be requeued, so all
        received messages are handled first.  A call from one of the consumer's own handlers returns at
        once, because that handler has to finish first.

        Arguments:
            timeout: maximum seconds to wait for running handlers.  None waits without limit.

        Returns:
            True if the consumer has ended, or if one of its own handlers made the call.  False if the
            timeout passed: the remaining handlers were interrupted and their messages requeued.
        """
        self._hub_affinity.check(self, REMEDY)
        deadline = Deadline(timeout)
        self.lifecycle.request(TargetState.STOPPED)
        if self.runs_here:
            return True
        self.join(deadline.left())
        if self.ready():
            return True
        self.lifecycle.request(TargetState.ABORTED)
        self.join(GRACE)
        return False

    def pause(self, timeout: Seconds | None = None) -> bool:
        """Stop consuming, and requeue the messages that no handler has started.  May switch.

        The consumer is paused when the broker has the requeues.  Running handlers continue.  With
        ``no_ack``, received messages are kept until :meth:`resume`.

        Arguments:
            timeout: maximum seconds to wait until the consumer is paused.  None waits without limit.

        Returns:
            Whether the consumer is paused.
        """
        self._hub_affinity.check(self, REMEDY)
        lifecycle, deadline = self.lifecycle, Deadline(timeout)
        lifecycle.request(TargetState.PAUSED)
        while lifecycle.is_pausing and not lifecycle.is_cancelled and not self.ready():
            if not self._wait_change(deadline):
                return False
        return lifecycle.is_pausing and lifecycle.is_cancelled and not self.ready()

    def interrupt(self, message_id: str | Message) -> bool:
        """Interrupt the handler of one message.  Never switches.

        :class:`~greenconn.worker.Interrupted`, which is not a subclass of ``Exception``, is raised in
        the handler at the point where it waits.  The interrupt counts as a failure and is not retried:
        ``on_error`` decides what happens to the message, or to the whole batch with ``batch_size``.

        Arguments:
            message_id: the ``message_id`` property with which the message was published, or the message.

        Returns:
            False if no handler of this consumer runs with that message, else True.
        """
        self._hub_affinity.check(self, REMEDY)
        return self.lifecycle.dispatcher.interrupt_one(message_id)

    def resume(self) -> None:
        """Resume consuming after :meth:`pause`.  Never switches; see :meth:`wait_ready`."""
        self._hub_affinity.check(self, REMEDY)
        self.lifecycle.resume()

    def join(self, timeout: Seconds | None = None) -> None:
        """Wait until the consumer has ended, as ``gevent.Greenlet.join`` does.  May switch.

        Arguments:
            timeout: maximum seconds to wait.  None waits without limit.
        """
        self._hub_affinity.check(self, REMEDY)
        super().join(in_seconds(timeout))

    def get(self, block: bool = True, timeout: Seconds | None = None) -> ConsumerStats:
        """Return the final :meth:`stats`, as ``gevent.Greenlet.get`` does.  May switch.

        Arguments:
            block: whether to wait until the consumer has ended.
            timeout: maximum seconds to wait.  None waits without limit.

        Raises:
            BaseException: the broker refused the consumer for good; the error is the broker's.
        """
        self._hub_affinity.check(self, REMEDY)
        result: ConsumerStats = super().get(block, in_seconds(timeout))
        return result

    def kill(
        self,
        exception: Any = GreenletExit,
        block: bool = True,
        timeout: Seconds | None = None,
    ) -> None:
        """End the consumer at once, as ``gevent.Greenlet.kill`` does.  May switch."""
        self._hub_affinity.check(self, REMEDY)
        if self._has_begun or self.ready():
            super().kill(exception, block, in_seconds(timeout))
            return
        self.throw(*exception) if isinstance(exception, tuple) else self.throw(exception)
        if block:
            super().join(in_seconds(timeout))

    def __exit__(self, *exc_info: Any) -> None:
        """Stop the consumer at the end of a ``with`` block, as :meth:`stop` does.  May switch.

        ``gevent.Greenlet`` waits there until the greenlet ends by itself, which a consumer never does.
        If the block fails, its exception is raised in the consumer, which is killed.
        """
        if exc_info[0] is None:
            self.stop()
        else:
            super().__exit__(*exc_info)

    def throw(self, *args: Any) -> Any:
        """Raise an exception in the greenlet, as ``gevent.Greenlet.throw`` does: the consumer ends."""
        self._hub_affinity.check(self, REMEDY)
        if self._has_begun or self.ready():
            return super().throw(*args)
        if self._killed_by is None:
            self._killed_by = _exception_of(*args)
            self.lifecycle.kill()
        return None

    def _maybe_kill_before_start(self, exception: Any) -> bool:
        # Called by gevent.killall(): no greenlet has begun, but the consumer has, so throw() ends it.
        return self.ready()

    def stats(self) -> ConsumerStats:
        """Return the state and the counters of the consumer, a :class:`ConsumerStats`."""
        lifecycle = self.lifecycle
        handling, dispatcher = lifecycle.handling, lifecycle.dispatcher
        return {
            "state": lifecycle.state.value,
            "received": dispatcher.received,
            "handled": handling.handled,
            "failed": handling.failed,
            "discarded": handling.discarded,
            "retried": handling.retried,
            "rejected": handling.rejected,
            "requeued": handling.requeued,
            "dropped": handling.dropped,
            "deferred": handling.deferred,
            "skipped": handling.skipped,
            "in_flight": dispatcher.in_flight,
            "concurrency": lifecycle.options.concurrency,
            "prefetch_count": lifecycle.options.prefetch,
            "last_delivery_age": None
            if dispatcher.last_at is None
            else monotonic() - dispatcher.last_at,
        }


def _exception_of(
    kind: Any = GreenletExit, value: Any = None, traceback: Any = None
) -> BaseException:
    """Return what ``throw(kind, value, traceback)`` raises."""
    if isinstance(kind, type):
        error = value if isinstance(value, kind) else kind() if value is None else kind(value)
    else:
        error = kind
    assert isinstance(error, BaseException)
    return error.with_traceback(traceback)


def _without_our_frames(error: BaseException) -> BaseException:
    """Remove our own frames where the text says all: gevent and callers of get() print it."""
    is_foreseen = isinstance(error, (OSError, AMQPError, KombuError, ImportError))
    return error.with_traceback(None) if is_foreseen else error


def _on_end(consumer: ConsumerGreenlet) -> None:
    # In the hub.
    consumer.lifecycle.note_end()
    _registry.get().note_end(consumer)


class ConsumerFailure:
    """A record of a consumer that the broker refused for good.

    Attributes:
        at: time of the failure, as returned by ``time.time()``.
        error: class and text of the error.  The traceback is omitted, because it would keep many objects
            alive.
        stats: the final :meth:`ConsumerGreenlet.stats`.
        addresses: addresses of the broker; see ``Broker.addresses``.
    """

    def __init__(self, error: str, stats: ConsumerStats, addresses: Hashable, at: float) -> None:
        self.error = error
        self.stats = stats
        self.addresses = addresses
        self.at = at


class _Registry:
    """The consumers of one thread: those that run, and those that the broker refused for good."""

    def __init__(self) -> None:
        self.running: set[ConsumerGreenlet] = set()
        #: By the name of the consumer.
        self.failures: dict[str, ConsumerFailure] = {}

    def note_end(self, consumer: ConsumerGreenlet) -> None:
        # In the hub.
        self.running.discard(consumer)
        lifecycle = consumer.lifecycle
        if lifecycle.state is ConsumerState.FAILED:
            error = lifecycle.error
            self.failures[lifecycle.options.name or ""] = ConsumerFailure(
                error_summary(error),
                consumer.stats(),
                lifecycle.addresses,
                lifecycle.changed_at,
            )
            while len(self.failures) > FAILURES_KEPT:
                del self.failures[next(iter(self.failures))]


_registry: Final[PerHub[_Registry]] = PerHub(_Registry)


def _register(consumer: ConsumerGreenlet) -> None:
    """Add *consumer* until it ends, and forget an earlier failure under its name.  Never switches."""
    registry = _registry.get()
    registry.running.add(consumer)
    registry.failures.pop(consumer.lifecycle.options.name or "", None)


def running_consumers() -> list[ConsumerGreenlet]:
    """Return the consumers of this thread that have not ended.  Never switches."""
    return list(_registry.get().running)


def failures() -> dict[str, ConsumerFailure]:
    """Return the failures of this thread's consumers, by name of the consumer.  Never switches.

    A failure is recorded when the broker refuses a consumer for good.
    """
    return dict(_registry.get().failures)


def forget_failures(addresses: Hashable) -> None:
    """Forget the failures of consumers of the broker at *addresses*.  Never switches."""
    registry = _registry.get()
    kept = {name: each for name, each in registry.failures.items() if each.addresses != addresses}
    registry.failures = kept


# Of a handler that does not say what its message holds, as a lambda, the body may be anything.
@overload
def spawn_consumer(
    queue: QueueLike | Iterable[QueueLike],
    handler: Callable[[Any, Message[Undeclared]], Returned],
    *,
    schema: object = None,
    connection: Connection | str | None = None,
    **consumer_args: Unpack[ConsumerArguments],
) -> ConsumerGreenlet: ...


@overload
def spawn_consumer(
    queue: QueueLike | Iterable[QueueLike],
    handler: Callable[[list[Any], list[Message[Undeclared]]], Returned],
    *,
    schema: object = None,
    connection: Connection | str | None = None,
    **consumer_args: Unpack[BatchArguments],
) -> ConsumerGreenlet: ...


@overload
def spawn_consumer(
    queue: QueueLike | Iterable[QueueLike],
    handler: Callable[[Any, Message[Undeclared], Any], Returned],
    *,
    schema: object = None,
    connection: Connection | str | None = None,
    **consumer_args: Unpack[TransactionArguments],
) -> ConsumerGreenlet: ...


@overload
def spawn_consumer(
    queue: QueueLike | Iterable[QueueLike],
    handler: Callable[[T, Message[T]], Returned],
    *,
    schema: object = None,
    connection: Connection | str | None = None,
    **consumer_args: Unpack[ConsumerArguments],
) -> ConsumerGreenlet: ...


@overload
def spawn_consumer(
    queue: QueueLike | Iterable[QueueLike],
    handler: Callable[[list[T], list[Message[T]]], Returned],
    *,
    schema: object = None,
    connection: Connection | str | None = None,
    **consumer_args: Unpack[BatchArguments],
) -> ConsumerGreenlet: ...


@shows(AllArguments, defaults=option_defaults)
def spawn_consumer(
    queue: QueueLike | Iterable[QueueLike],
    handler: Handler,
    *,
    schema: Any = None,
    connection: Connection | str | None = None,
    concurrency: int = 1,
    prefetch_count: int | None = None,
    no_ack: bool = False,
    accept: Iterable[str] | None = None,
    on_error: OnError = "dead_letter",
    retry: Retry | Mapping[str, Any] | None = None,
    name: str | None = None,
    **consumer_args: Any,
) -> ConsumerGreenlet:
    """Start a consumer, which calls *handler* with each message of a queue.  Returns at once.

    The consumer recovers from lost connections and restarts of the broker, and the program does not have
    to drain events.  A message is acknowledged after its handler returns.  If the handler raises,
    *retry* decides whether it is called again; after the last attempt *on_error* decides what happens to
    the message.  A message that the handler has acknowledged or rejected itself is not settled again.

    ``Exception`` and ``gevent.Timeout`` are failures.  ``GreenletExit`` requeues the message.
    ``SystemExit`` and ``KeyboardInterrupt`` also requeue it, stop the consumer and end the program.
    Handlers may publish, declare, spawn consumers, and stop their own consumer.

    Delivery is at least once, except with *no_ack*: a message whose handler runs when the connection is
    lost is redelivered.  Handlers must be idempotent.

    Arguments:
        queue: the queue to consume from: a name, a ``Queue``, a ``Broadcast``, or a list of them.  A
            ``Queue`` is declared.  A ``Broadcast`` gets a queue of its own.  A queue given by name
            is used as it is; if it does not exist, it is declared as a durable queue, unless
            ``configure(declare_by_name=False)`` was called.
        handler: function that is called as ``handler(body, message)``.  It runs in a greenlet that
            handles many messages, each in a copy of the context (``contextvars``) of this call.
        schema: type to which decoded bodies are converted.  None uses the annotation of the handler's
            first parameter (with ``batch_size``, that of its items) if it contains a dataclass, a
            TypedDict, a ``msgspec.Struct`` or a pydantic model; other annotations have no effect.  All
            types but pydantic models require the extra ``msgspec``.  ``object`` leaves bodies
            unconverted.
        connection: a ``Connection``, which is shared and never closed by the consumer, or a URL.  None
            uses the default connection.
        concurrency: maximum number of handlers that run at the same time.
        prefetch_count: maximum number of unacknowledged messages over all queues.  None uses max(10, 2 x
            *concurrency*, number of queues), or more if full batches need it.  0 sets no limit.  A
            consumer with 0 or with *no_ack* gets a connection of its own.
        no_ack: whether the broker deletes a message as soon as it has sent it (at most once).
        accept: names of serializers or content types to accept.  None accepts all that are not disabled.
        on_error: action for a message whose handler failed after all retries.  ``'dead_letter'`` keeps
            it: in the queue that *dead_letter* names; else by the dead-letter exchange of the queue, if
            the queue is known to have one; else in the queue ``<queue>.dead``, which is declared when
            the first message fails.  ``'reject'`` rejects it: it goes to the dead-letter exchange of
            the queue, and is lost if there is none.  ``'requeue'`` returns it to the queue.
            ``'discard'`` deletes it.  A callable is called as ``(message, exc)``; a message that it
            leaves unacknowledged becomes a dead letter.
        retry: the policy for handlers that fail: a :class:`~greenconn.options.Retry`, or a dict of its
            arguments.  None does not retry.  For delays of 1 s and more the broker holds the message if
            it can; otherwise the message waits in this process, unacknowledged.  A message that waits
            does not count towards *concurrency*.
        name: name of the consumer for logs and its greenlet.  None uses the names of the queues.
        consumer_args: further options.

            ``on_decode_error``: function that is called as ``(message, exc)`` for a body that cannot be
            decoded, is not accepted or does not fit the schema.  Default: None, which makes a dead
            letter of the message, unless *on_error* is ``'reject'`` or ``'discard'``.

            ``dead_letter``: queue for messages that are given up, whatever dead-letter exchange their
            queue has.  True uses the queue ``<queue>.dead``, a string the queue of that name.  Default:
            None; see *on_error*.

            ``blocking_threshold``: seconds that a handler may run without switching to other greenlets
            before this is logged, once.  Default: 0.5.  None never logs it.

            ``handler_timeout``: maximum seconds for one call of the handler.  A handler that exceeds it
            is interrupted, which counts as a failure.  Default: None, no limit.

            ``batch_size``: maximum number of messages in a batch.  The handler is called with a list of
            bodies and a list of messages, and the batch is settled as one.  A smaller batch is handled
            after ``batch_interval`` seconds (default: 1).  Default: None, no batches.

            ``limit``: a :class:`~greenconn.options.Limit`, the maximum number of handlers that run at
            the same time in all processes, for the queue or for each key.  ``rate``: a
            :class:`~greenconn.options.Rate`, the maximum number of handlers that start in a period.  A
            message that must wait goes back to the broker, if that can delay messages, which counts as
            no attempt.  Default: None, no limits.

            ``exclusive``, ``priority``, ``arguments``, ``tag_prefix``: properties of the consumer at the
            broker.

            ``passive``: whether the queue must exist and is never declared.

            ``offset``: position in a stream to start from: ``'first'``, ``'last'``, ``'next'``, the
            number of a message, a datetime, or an interval such as ``'1h'``.  After a reconnect the
            consumer resumes with the first message that it has not handled.

            ``offsets``: store in which the position in a stream outlives the program:
            :class:`~greenconn.FileOffsets`, :class:`~greenconn.QueueOffsets`, or an object with their
            methods.  The reader called *name* resumes from the stored position; if none is stored, it
            starts at ``offset``, by default ``'first'``.  The position is stored every ``store_every``
            messages (default: 1000) or ``store_interval`` seconds (default: 5), and when the consumer
            ends.

            ``single_active``: whether only one of the readers called *name*, in all programs, reads each
            stream.  When it ends, another one resumes.  Requires ``offsets``.

            ``transaction``: with a broker in PostgreSQL, the same database: the alias of a database of
            Django, an ``Engine`` or a ``sessionmaker`` of SQLAlchemy, or a pool of psycopg.  Each call
            of the handler is a transaction, in which its message is acknowledged: what it writes happens
            exactly once.  The handler gets the session or connection as a third argument, but for
            Django.

    Returns:
        The running consumer.

    Raises:
        TypeError: an option is unknown, or a value has the wrong type.
        ValueError: a value is out of range, or two options exclude each other.
        MissingExtra: the library that converts bodies to the schema is not installed.
        WrongHub: the connection belongs to another thread.
    """
    given = {
        "handler": handler,
        "schema": schema,
        "concurrency": concurrency,
        "prefetch_count": prefetch_count,
        "no_ack": no_ack,
        "accept": accept,
        "on_error": on_error,
        "retry": retry,
        "name": name,
        "declares_names": declare_by_name() is not False,
    }
    options = checked_options(queue, given, consumer_args, starts=True)
    connection = consuming_connection(connection)
    _check_broadcasts(options, connection)
    if options.transaction is not None:
        connection.session.broker.check_transactions("use greenconn.contrib.idempotency")
    consumer = ConsumerGreenlet(options, connection)
    consumer.start()
    return consumer


def _check_broadcasts(options: ConsumerOptions, connection: Connection) -> None:
    """Check that the broker can broadcast, and that no other consumer of this thread has such a queue.

    Raises:
        ValueError: it cannot; or two consumers would share what each of them is to get.
    """
    own = [each for each in options.queues if isinstance(each, Broadcast)]
    if not own:
        return
    taken = {
        queue.name
        for each in running_consumers()
        if each.state is not ConsumerState.STOPPING
        for queue in each.lifecycle.options.queues
        if isinstance(queue, Broadcast)
    }
    for queue in own:
        connection.session.broker.check_broadcast(is_kept=queue.keep is not None)
        if queue.name in taken:
            raise ValueError(
                f"queue {queue.name!r} of broadcast {queue.alias!r} has another consumer in this "
                f"process, so that each would get part of the messages: give each another queue="
            )
        taken.add(queue.name)


def check_consumer(
    queue: Any, handler: Any, options: Mapping[str, Any], called: str = "spawn_consumer"
) -> None:
    """Check the arguments of :func:`spawn_consumer`.  Never switches.

    Arguments:
        called: the function that the program has called, for errors.

    Raises:
        TypeError, ValueError: an argument is invalid.
    """
    check_keywords(called, options, CONSUMER_OPTIONS)
    given = {**keyword_defaults(spawn_consumer), "handler": handler}
    del given["connection"]
    further: dict[str, Any] = {}
    for name, value in options.items():
        (given if name in given else further)[name] = value
    checked_options(queue, given, further)


def stop_consumers(timeout: Seconds | None = None) -> bool:
    """Shut down all consumers of this thread gracefully and concurrently.  May switch.

    A call from a handler does not wait for that handler's own consumer.

    Arguments:
        timeout: maximum seconds to wait for all consumers together.  None waits without limit.

    Returns:
        True if all consumers have ended, not counting that of a calling handler.  False if the timeout
        passed: the remaining handlers were interrupted and their messages requeued.
    """
    return stop_all(running_consumers(), Deadline(timeout))


def stop_all(consumers: list[ConsumerGreenlet], deadline: Deadline) -> bool:
    """Shut down *consumers* gracefully and concurrently; see :func:`stop_consumers`.  May switch."""
    for consumer in consumers:
        consumer.lifecycle.request(TargetState.STOPPED)
    others = [each for each in consumers if not each.runs_here]
    gevent.joinall(others, timeout=deadline.left())
    late = [each for each in others if not each.ready()]
    for consumer in late:
        consumer.lifecycle.request(TargetState.ABORTED)
    gevent.joinall(late, timeout=GRACE)
    return not late
