"""Consumers: greenlets that call a handler with each message of a queue; those of this thread."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from inspect import signature
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import gevent
from gevent import Greenlet, GreenletExit, getcurrent

from greenconn.connection import Connection
from greenconn.defaults import consuming_connection, declare_by_name
from greenconn.exceptions import AMQPError, KombuError
from greenconn.green.deadline import Deadline
from greenconn.green.hub import HubAffinity
from greenconn.green.perhub import PerHub
from greenconn.options import Retry
from greenconn.worker.lifecycle import ConsumerLifecycle, ConsumerState, TargetState
from greenconn.worker.options import ConsumerOptions, Handler, OnError, QueueLike, checked_options

__all__ = [
    "ConsumerFailure",
    "ConsumerGreenlet",
    "check_consumer",
    "failures",
    "forget_failures",
    "running_consumers",
    "spawn_consumer",
    "stop_all",
    "stop_consumers",
]

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenconn.message import Message
    from greenconn.worker.options import BatchArguments, ConsumerArguments

    T = TypeVar("T")

    class Undeclared(Any):  # type: ignore[misc]  # it fits everywhere
        """The body of a handler that declares none."""

    _Greenlet = Greenlet[..., dict[str, Any]]
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


class ConsumerGreenlet(_Greenlet):
    """A running consumer, made by :func:`~greenconn.worker.spawn_consumer`.

    It is a ``gevent.Greenlet``: ``join``, ``get``, ``link``, ``kill``, ``dead`` and ``ready()`` mean
    what they always mean.  ``get()`` returns the final :meth:`stats` after :meth:`stop`, and raises
    what the broker refused it for.  ``kill()`` loses nothing that needs an ack: handlers are
    interrupted and their messages go back to the queue; with ``no_ack`` what waits is dropped.

    When its connection is closed it stops: running handlers finish, the rest is redelivered.

    All methods belong to the thread that spawned it; in another one they raise
    :class:`~greenconn.exceptions.WrongHub`.  Only :attr:`state` and :meth:`stats` may be read there.
    """

    __slots__ = ("_hub_affinity", "answers_calls", "lifecycle", "unsettled")

    def __init__(self, options: ConsumerOptions, connection: Connection) -> None:
        super().__init__(None)  # type: ignore[arg-type]  # it runs _run
        self.name = f"greenconn:consumer:{options.name}"
        self._hub_affinity = HubAffinity()
        #: Whether callers wait for its messages to be handled: a server of ``rpc``.
        self.answers_calls = False
        #: For the library.
        self.lifecycle = ConsumerLifecycle(options, connection)
        #: Returns the number of messages that its handlers have to do.
        self.unsettled: Callable[[], int] = self.lifecycle.dispatcher.unsettled
        self.rawlink(_on_end)

    def _run(self) -> dict[str, Any]:
        lifecycle = self.lifecycle
        lifecycle.run()
        if lifecycle.error is not None:
            raise _without_our_frames(lifecycle.error)
        return self.stats()

    @property
    def state(self) -> ConsumerState:
        """State of the consumer."""
        return self.lifecycle.state

    @property
    def runs_here(self) -> bool:
        """Whether one of its handlers is the caller."""
        return self.lifecycle.dispatcher.runs_in(getcurrent())

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Wait until the broker has confirmed the consumer.  May switch.

        A broker that is away is waited for.

        Arguments:
            timeout: seconds; None waits.

        Returns:
            False: the time is up, or the consumer has ended.

        Raises:
            ChannelError, ConnectionError: the broker refuses it for good.
        """
        self._hub_affinity.check(self, REMEDY)
        lifecycle, deadline = self.lifecycle, Deadline(timeout)
        while not lifecycle.is_confirmed:
            if lifecycle.error is not None:
                raise _without_our_frames(lifecycle.error)
            if self.ready():
                return False
            try:
                lifecycle.changed.wait(deadline)
            except TimeoutError:
                if not deadline.has_ended:
                    raise  # not the timeout of this call
                return False
        return True

    def stop(self, timeout: float | None = None) -> bool:
        """End the consumer in good order.  May switch.

        The broker is asked to send no more; what no handler has begun is requeued at once; running
        handlers finish.  With ``no_ack`` nothing can be requeued: what was received is handled.
        Called by one of its own handlers it returns at once, since that has to finish first.

        Arguments:
            timeout: seconds; None waits.

        Returns:
            False: the time was up; the handlers that were left were interrupted, and their messages
            requeued.
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

    def pause(self, timeout: float | None = None) -> bool:
        """Take no more messages, and requeue those that no handler has begun.  May switch.

        Running handlers go on.  With ``no_ack`` what was received is kept for :meth:`resume`.

        Arguments:
            timeout: seconds to wait until that is done; None waits.

        Returns:
            Whether it is paused.
        """
        self._hub_affinity.check(self, REMEDY)
        lifecycle, deadline = self.lifecycle, Deadline(timeout)
        lifecycle.request(TargetState.PAUSED)
        while lifecycle.is_pausing and not lifecycle.is_cancelled and not self.ready():
            try:
                lifecycle.changed.wait(deadline)
            except TimeoutError:
                if not deadline.has_ended:
                    raise  # not the timeout of this call
                return False
        return lifecycle.is_pausing and lifecycle.is_cancelled and not self.ready()

    def interrupt(self, message_id: str) -> bool:
        """Interrupt the handler of one message.  Never switches.

        :class:`~greenconn.worker.Interrupted`, which is no ``Exception``, is raised where the handler
        waits.  That is a failure without a retry: ``on_error`` decides what becomes of the message
        (of the whole batch, with ``batch_size``).

        Arguments:
            message_id: what it was published with.

        Returns:
            False: no handler of it runs here.
        """
        self._hub_affinity.check(self, REMEDY)
        return self.lifecycle.dispatcher.interrupt_one(message_id)

    def resume(self) -> None:
        """Take messages again after :meth:`pause`.  Never switches; see :meth:`wait_ready`."""
        self._hub_affinity.check(self, REMEDY)
        self.lifecycle.resume()

    def join(self, timeout: float | None = None) -> None:
        """Wait for its end, as ``gevent.Greenlet.join`` does.  May switch."""
        self._hub_affinity.check(self, REMEDY)
        super().join(timeout)

    def get(self, block: bool = True, timeout: float | None = None) -> dict[str, Any]:
        """Return the final :meth:`stats`, as ``gevent.Greenlet.get`` does.  May switch.

        Raises:
            BaseException: what the broker refused it for.
        """
        self._hub_affinity.check(self, REMEDY)
        result: dict[str, Any] = super().get(block, timeout)
        return result

    def kill(
        self,
        exception: Any = GreenletExit,
        block: bool = True,
        timeout: float | None = None,
    ) -> None:
        """End it at once, as ``gevent.Greenlet.kill`` does.  May switch."""
        self._hub_affinity.check(self, REMEDY)
        super().kill(exception, block, timeout)

    def stats(self) -> dict[str, Any]:
        """Return numbers of now and since the beginning.

        Returns:
            ``state``; messages: ``received``, ``handled``, ``failed`` (handlers that raised, and bodies
            that could not be decoded), ``retried``, ``rejected``, ``requeued``, ``dropped`` (with
            ``no_ack``: received and never handled), ``in_flight`` (begun and not settled);
            ``concurrency``; ``prefetch_count``; ``last_delivery_age`` (seconds; None before the first).
        """
        lifecycle = self.lifecycle
        handling, dispatcher = lifecycle.handling, lifecycle.dispatcher
        return {
            "state": lifecycle.state.value,
            "received": dispatcher.received,
            "handled": handling.handled,
            "failed": handling.failed,
            "retried": handling.retried,
            "rejected": handling.rejected,
            "requeued": handling.requeued,
            "dropped": handling.dropped,
            "in_flight": dispatcher.in_flight,
            "concurrency": lifecycle.options.concurrency,
            "prefetch_count": lifecycle.options.prefetch,
            "last_delivery_age": None
            if dispatcher.last_at is None
            else monotonic() - dispatcher.last_at,
        }


def _without_our_frames(error: BaseException) -> BaseException:
    """Remove our own frames where the text says all: gevent and callers of get() print it."""
    is_foreseen = isinstance(error, (OSError, AMQPError, KombuError, ImportError))
    return error.with_traceback(None) if is_foreseen else error


def _on_end(consumer: ConsumerGreenlet) -> None:
    # In the hub.
    consumer.lifecycle.note_end()


class ConsumerFailure:
    """A consumer that the broker refused for good.

    Attributes:
        at: when (``time.time()``).
        error: class and text of the error, without its traceback, which would hold much.
        stats: what it had done until then.
        addresses: see ``Broker.addresses``.
    """

    __slots__ = ("addresses", "at", "error", "stats")

    def __init__(self, error: str, stats: dict[str, Any], addresses: Hashable, at: float) -> None:
        self.error = error
        self.stats = stats
        self.addresses = addresses
        self.at = at


class _Registry:
    """The consumers of one thread: those that run, and those that the broker refused."""

    __slots__ = ("failures", "running")

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
                f"{type(error).__name__}: {error}",
                consumer.stats(),
                lifecycle.addresses,
                lifecycle.changed_at,
            )
            while len(self.failures) > FAILURES_KEPT:
                del self.failures[next(iter(self.failures))]


_registry: Final[PerHub[_Registry]] = PerHub(_Registry)


def _register(consumer: ConsumerGreenlet) -> None:
    """Add *consumer* until it ends, and forget a failure of its namesake.  Never switches."""
    registry = _registry.get()
    registry.running.add(consumer)
    registry.failures.pop(consumer.lifecycle.options.name or "", None)
    consumer.rawlink(registry.note_end)


def running_consumers() -> list[ConsumerGreenlet]:
    """Return the consumers of this thread that have not ended.  Never switches."""
    return list(_registry.get().running)


def failures() -> dict[str, ConsumerFailure]:
    """Return the consumers of this thread that the broker refused for good, by name.  Never switches."""
    return dict(_registry.get().failures)


def forget_failures(addresses: Hashable) -> None:
    """Forget the failures of the broker at *addresses*, which is gone.  Never switches."""
    registry = _registry.get()
    kept = {name: each for name, each in registry.failures.items() if each.addresses != addresses}
    registry.failures = kept


# Of a handler that does not say what its message holds, as a lambda, the body may be anything.
@overload
def spawn_consumer(
    queue: QueueLike | Iterable[QueueLike],
    handler: Callable[[Any, Message[Undeclared]], object],
    *,
    schema: object = None,
    connection: Connection | str | None = None,
    **consumer_args: Unpack[ConsumerArguments],
) -> ConsumerGreenlet: ...


@overload
def spawn_consumer(
    queue: QueueLike | Iterable[QueueLike],
    handler: Callable[[list[Any], list[Message[Undeclared]]], object],
    *,
    schema: object = None,
    connection: Connection | str | None = None,
    **consumer_args: Unpack[BatchArguments],
) -> ConsumerGreenlet: ...


@overload
def spawn_consumer(
    queue: QueueLike | Iterable[QueueLike],
    handler: Callable[[T, Message[T]], object],
    *,
    schema: object = None,
    connection: Connection | str | None = None,
    **consumer_args: Unpack[ConsumerArguments],
) -> ConsumerGreenlet: ...


@overload
def spawn_consumer(
    queue: QueueLike | Iterable[QueueLike],
    handler: Callable[[list[T], list[Message[T]]], object],
    *,
    schema: object = None,
    connection: Connection | str | None = None,
    **consumer_args: Unpack[BatchArguments],
) -> ConsumerGreenlet: ...


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
    on_error: OnError = "reject",
    retry: Retry | Mapping[str, Any] | None = None,
    name: str | None = None,
    **consumer_args: Any,
) -> ConsumerGreenlet:
    """Have *handler* called with each message of a queue.  Returns at once.

    The consumer survives reconnects and restarts of the broker, and the program need not drain
    events.  When the handler returns, its message is acked.  When it raises, first
    *retry*, then *on_error* decides.  A handler that acked or rejected the message itself is left
    alone.  ``Exception`` and ``gevent.Timeout`` are failures; ``GreenletExit`` puts the message back
    into the queue; ``SystemExit`` and ``KeyboardInterrupt`` do so, stop the consumer and end the
    program.  Handlers may publish, declare, spawn consumers, and stop their own.

    Messages that are handled when the connection is lost are redelivered: handlers must bear being
    called twice with one message.

    Arguments:
        queue: a name (looked up and used as it is; declared as a durable queue if it does not exist,
            unless ``configure(declare_by_name=False)`` was said), a ``Queue`` (declared), or a list
            of them.
        handler: called as ``handler(body, message)``, in a greenlet that serves many messages, each
            in a copy of the context (``contextvars``) of this call.
        schema: the type that decoded bodies are converted to.  None: the annotation of the handler's
            first parameter (of its items, with ``batch_size``), if a dataclass, a TypedDict, a
            ``msgspec.Struct`` or a pydantic model is in it; other annotations change nothing.  All but
            models need the extra ``msgspec``.  ``object`` leaves bodies as they are.
        connection: shared and never closed by us; a URL; None is the default one.
        concurrency: handlers that run at once.
        prefetch_count: messages that may be unacked, over all queues; default max(10,
            2 x concurrency, number of queues).  0 is no limit: such a consumer, and one with
            *no_ack*, gets a connection of its own.
        no_ack: the broker forgets a message when it sends it.
        accept: names of serializers or content types; None: all that are not disabled.
        on_error: ``'reject'``: the message goes where *dead_letter* says, else to the queue's
            dead-letter exchange, *and is gone if there is none*; ``'requeue'``; or a callable
            ``(message, exc)``, after which a message that it left unacknowledged is rejected.
        retry: :class:`~greenconn.options.Retry`, or a dict of its arguments.  The broker holds the
            message for delays of 1 s and more, if it can; else it waits in this process,
            unacknowledged.  The handler's place is free meanwhile.
        name: for logs; default: the names of the queues.
        consumer_args:
            ``on_decode_error``: called as ``(message, exc)`` for a body that cannot be decoded, is not
            accepted or does not fit the schema; default: it is rejected.
            ``dead_letter``: where a message goes that is given up, with the reason in its headers:
            True is the queue ``<queue>.dead``, text the name of one; it is declared when it is needed.
            ``blocking_threshold``: a handler that ran for longer without letting others run is logged,
            once (0.5 s; None: never).
            ``handler_timeout``: seconds after which a handler is interrupted: a failure.
            ``batch_size``: the handler gets lists of so many bodies and messages, which are settled
            as one; fewer after ``batch_interval`` (1 s).
            ``exclusive``, ``priority``, ``arguments``, ``tag_prefix``: of the consumer at the broker.
            ``passive``: the queue must exist.
            ``offset``: where to begin in a stream: ``'first'``, ``'last'``, ``'next'``, a number, a
            datetime, or an interval such as ``'1h'``.  After a reconnect it goes on with the first
            message that was not handled.
            ``offsets``: a store (:class:`~greenconn.offsets.FileOffsets`,
            :class:`~greenconn.offsets.QueueOffsets`, or an object with their methods) from which
            the reader of that *name* goes on in its next program; ``offset``, else ``'first'``, is
            for its first one.  Stored every ``store_every`` messages (1000) or ``store_interval``
            seconds (5), and at the end.
            ``single_active``: of all readers of that *name*, in all programs, one reads each stream,
            and another goes on when it ends.

    Raises:
        TypeError: an option that is not known, or a value of another type.
        ValueError: a value out of range, or options that exclude each other.
        MissingExtra: the library that converts to the schema is not installed.
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
    options = checked_options(queue, given, consumer_args)
    of_program = consuming_connection(connection)
    _ = of_program.session.ready_life  # raises if it was opened in another thread
    consumer = ConsumerGreenlet(options, of_program)
    _register(consumer)
    consumer.start()
    return consumer


def check_consumer(queue: Any, handler: Any, options: Mapping[str, Any]) -> None:
    """Check the arguments of :func:`spawn_consumer`.  Never switches.

    Raises:
        TypeError, ValueError: one of them is wrong.
    """
    call = signature(spawn_consumer).bind(queue, handler, **options)
    call.apply_defaults()
    given = call.arguments
    further = given.pop("consumer_args")
    del given["connection"]
    checked_options(given.pop("queue"), given, further)


def stop_consumers(timeout: float | None = None) -> bool:
    """Stop all consumers of this thread in good order, together.  May switch.

    Called by a handler it does not wait for that handler's own consumer.

    Arguments:
        timeout: seconds for all of them; None waits.

    Returns:
        False: the time was up; the handlers that were left were interrupted, and their messages given
        back.
    """
    return stop_all(running_consumers(), Deadline(timeout))


def stop_all(consumers: list[ConsumerGreenlet], deadline: Deadline) -> bool:
    """Stop *consumers* in good order, together; see :func:`stop_consumers`.  May switch."""
    for consumer in consumers:
        consumer.lifecycle.request(TargetState.STOPPED)
    others = [each for each in consumers if not each.runs_here]
    gevent.joinall(others, timeout=deadline.left())
    late = [each for each in others if not each.ready()]
    for consumer in late:
        consumer.lifecycle.request(TargetState.ABORTED)
    gevent.joinall(late, timeout=GRACE)
    return not late
