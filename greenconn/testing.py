"""Test support for programs: an in-memory broker, and a clock that the test controls.

The consumers of a test run as in production: in greenlets, over the transport ``memory://``.  Only the
time is the test's.  Retries, delays, schedules, expirations, batches, rate limits, time limits of
handlers, and what a handler sleeps, go by a clock that stands still while code runs.
:meth:`MemoryBroker.run_until_idle` and :meth:`MemoryBroker.advance` move it from one due time to the
next, and let all that is due run before they move it again.  So a test waits for nothing, and the same
test has the same order each time.

If a test waits for something itself instead, for example for an ``Event``, time passes as in production.

With pytest, load this module as a plugin in ``conftest.py`` and request the fixture::

    pytest_plugins = ["greenconn.testing"]

    def test_mail_is_sent(greenconn_broker):
        greenconn.spawn_consumer("mail", send_mail)
        greenconn.publish("mail", {"to": "ada@example.org"})
        greenconn_broker.run_until_idle()
        ...

Without pytest, use :class:`MemoryBroker` as a context manager.  To test an application, use
:meth:`greenconn.App.testing`.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context, ContextVar, copy_context
from enum import Enum
from functools import partial
from heapq import heappop, heappush
from itertools import count
from random import Random
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import gevent
from gevent import Greenlet, Timeout, get_hub

from greenconn import defaults
from greenconn.checks import Seconds, in_seconds
from greenconn.clocks import CLOCK
from greenconn.common import Broadcast
from greenconn.connection import Connection
from greenconn.entity.queue import ShardedQueue
from greenconn.green.supervisor import spawn
from greenconn.identity import note_slot, process_place, uuid
from greenconn.listeners import (
    LISTENERS,
    DeadLetterEvent,
    DeliverEvent,
    HandledEvent,
    Listener,
    RetryEvent,
)
from greenconn.message import Message
from greenconn.transport import memory
from greenconn.transport.memory.broker import Message as DeliveredMessage
from greenconn.worker import stop_consumers
from greenconn.worker.consumer import ConsumerGreenlet, forget_failures, running_consumers
from greenconn.worker.failures import attempts_of
from greenconn.worker.handling import FAILURES
from greenconn.worker.lifecycle import ConsumerState

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenconn.connection import ConnectionArguments
    from greenconn.worker.options import QueueLike

__all__ = ["Delivery", "MemoryBroker"]

#: What the messages of a test are asked for by.
TestedQueue: TypeAlias = "QueueLike | ShardedQueue"
#: Maximum seconds for handlers to finish when a broker is closed.
STOPPING: float = 10.0
#: Seconds by which a timer of the hub may go off too early.
EARLY: Final = 0.001
#: Defaults of :meth:`MemoryBroker.run_until_idle`: seconds by its clock, deliveries, and real seconds.
YEAR: Final = 366 * 86_400.0
DELIVERIES: Final = 10_000
PATIENCE: Final = 10.0
#: Beginning of the names of the queues of schedules (:mod:`greenconn.service.periodic`).
PERIODIC: Final = "greenconn.periodic."
#: Consumers and queues that an error lists.
LISTED: Final = 10

#: In the context of a handler under test: the clock that the handler's own timers go by.
_clock_of_handler: ContextVar[ManualClock | None] = ContextVar("greenconn.testing", default=None)


class Kind(Enum):
    """The waits for timers."""

    MESSAGE = "a message"
    #: A handler that sleeps, or has a time limit: it counts while a handler runs.
    HANDLER = "a handler"
    #: A schedule, or a queue without use, which wait for ever.
    OTHER = "a schedule"


class ManualTimer:
    """A timer of a :class:`ManualClock`, with the methods of one of gevent's.

    Arguments:
        is_direct: it is called at once, instead of by the hub.
    """

    __slots__ = ("_clock", "_is_direct", "_seconds", "call", "kind", "real_at")

    def __init__(
        self, clock: ManualClock, seconds: float, kind: Kind, *, is_direct: bool = False
    ) -> None:
        self._clock = clock
        self._seconds = seconds
        self._is_direct = is_direct
        self.kind = kind
        #: What it calls; None while it is not started.
        self.call: Callable[[], Any] | None = None
        #: When it is due by the system's clock.
        self.real_at = 0.0

    def __enter__(self) -> ManualTimer:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    @property
    def active(self) -> bool:
        """Whether it is started."""
        return self.call is not None

    pending = False
    """Never: its call begins when it is due."""

    def start(self, callback: Callable[..., Any], *args: Any, update: bool = False) -> None:
        """Have *callback* called with *args* when it is due.  Never switches."""
        self.stop()
        self.call = partial(callback, *args)
        self.real_at = monotonic() + self._seconds
        self._clock.add(self, self._seconds)

    def stop(self) -> None:
        """Call no more.  Never switches."""
        if self.call is not None:
            self.call = None
            self._clock.armed_by_kind[self.kind] -= 1

    close = stop

    def fire(self) -> None:
        """Make the call.  Never switches, but for one that is direct."""
        call = self.call
        assert call is not None
        self.stop()
        if self._is_direct:
            call()
        else:
            get_hub().loop.run_callback(call)


class ManualClock:
    """A clock that stands still until it is moved.

    Attributes:
        armed_by_kind: the number of pending timers of each kind.
    """

    def __init__(self) -> None:
        self._now = 1000.0
        #: (when it is due, number, timer), a heap; of those that were stopped, too.
        self._timers: list[tuple[float, int, ManualTimer]] = []
        self._numbers = count()
        self.armed_by_kind: Counter[Kind] = Counter()
        #: The loop whose timer moves the clock as real time passes; None: it stands still.
        self._loop: Any = None
        self._real_timer: Any = None

    @property
    def armed(self) -> int:
        """The number of pending timers."""
        return self.armed_by_kind.total()

    def now(self) -> float:
        """Return the time in seconds: since an arbitrary start, and for schedules since 1970."""
        return self._now

    def call_later(self, delay: float, function: Callable[[], Any]) -> Callable[[], Any]:
        """Call *function* when the clock has advanced by *delay* seconds.

        Returns:
            A function that cancels the call.
        """
        timer = ManualTimer(self, delay, Kind.OTHER, is_direct=True)
        timer.start(function)
        return timer.stop

    def timer(self, seconds: float, *, ref: bool = True) -> ManualTimer:
        """Return a timer that is not started, which has its function called by the hub.

        Arguments:
            ref: whether a message waits for it.
        """
        return ManualTimer(self, seconds, Kind.MESSAGE if ref else Kind.OTHER)

    def sleep(self, seconds: float) -> None:
        """Wait until the clock has advanced by *seconds*.  May switch."""
        hub: Any = get_hub()
        with ManualTimer(self, seconds, Kind.HANDLER) as timer:
            hub.wait(timer)

    def timeout(self, seconds: float) -> Timeout:
        """Return a ``gevent.Timeout`` that goes by this clock."""
        timeout: Any = Timeout(seconds)
        timeout.timer.close()
        timeout.timer = ManualTimer(self, seconds, Kind.HANDLER)
        made: Timeout = timeout
        return made

    def add(self, timer: ManualTimer, seconds: float) -> None:
        """Note that *timer* was started."""
        self.armed_by_kind[timer.kind] += 1
        heappush(self._timers, (self._now + max(seconds, 0.0), next(self._numbers), timer))
        if self._loop is not None and self._timers[0][2] is timer:
            self._watch()

    def next_at(self) -> float | None:
        """Return when the next timer is due; None if there is none."""
        while self._timers and self._timers[0][2].call is None:
            heappop(self._timers)
        return self._timers[0][0] if self._timers else None

    def run_next(self) -> None:
        """Move the clock to the next timer, and run it.  There must be one."""
        at, _, timer = heappop(self._timers)
        self._now = max(self._now, at)
        timer.fire()

    def move(self, seconds: Seconds) -> None:
        """Advance the clock, and run the timers that become due, in order, before returning.

        Arguments:
            seconds: the seconds to advance by, at least 0, or a timedelta.

        Raises:
            ValueError: *seconds* is negative.
        """
        end = self._now + checked_seconds(seconds)
        while (at := self.next_at()) is not None and at <= end:
            self.run_next()
        self._now = end

    # Without the test

    def follow(self, loop: Any) -> None:
        """Let real time pass for what waits, by timers of *loop*; None: stand still."""
        self._loop = loop
        self._watch()

    def _watch(self) -> None:
        if self._real_timer is not None:
            self._real_timer.close()
            self._real_timer = None
        if self._loop is not None and self.next_at() is not None:
            left = max(self._timers[0][2].real_at - monotonic(), 0.0)
            self._real_timer = self._loop.timer(left)
            self._real_timer.start(self._on_time, update=True)

    def _on_time(self) -> None:
        # In the hub.  The first one may have been stopped, or the timer early.
        if self.next_at() is not None and self._timers[0][2].real_at <= monotonic() + EARLY:
            self.run_next()
        self._watch()


def checked_seconds(seconds: Seconds) -> float:
    """Return *seconds* to advance by as a number.

    Raises:
        ValueError: it is negative.
    """
    number = in_seconds(seconds)
    if not number >= 0:
        raise ValueError(f"seconds must be at least 0, got {number!r}")
    return number


class HandlersLoop:
    """The loop of a hub, with timers for handlers under test that go by the clock of their test.

    gevent makes such a timer for ``gevent.sleep``, ``gevent.Timeout`` and each wait with a timeout.

    Arguments:
        loop: the loop, which all else is left to.
    """

    def __init__(self, loop: Any) -> None:
        self.__dict__["real"] = loop

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.real, name, value)

    def timer(self, after: float, repeat: float = 0.0, *args: Any, **kwargs: Any) -> Any:
        """Return a timer."""
        clock = _clock_here()
        if clock is None or after <= 0 or repeat or _is_ours(sys._getframe(1)):
            return self.real.timer(after, repeat, *args, **kwargs)
        return ManualTimer(clock, after, Kind.HANDLER)


def _clock_here() -> ManualClock | None:
    """Return the clock of the handler that runs here, or that has spawned this greenlet."""
    greenlet: Any = gevent.getcurrent()
    clock = _clock_of_handler.get()
    while clock is None and greenlet is not None:
        spawner = getattr(greenlet, "spawning_greenlet", None)
        greenlet = None if spawner is None else spawner()
        context = getattr(greenlet, "gr_context", None)
        if context is not None:
            clock = context.get(_clock_of_handler)
    return clock


def _is_ours(frame: Any) -> bool:
    """Return whether a timer is greenconn's own, which counts its time by the system's clock."""
    while frame is not None and frame.f_globals.get("__name__", "").startswith("gevent."):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__", "").startswith("greenconn.")


#: The brokers that are open, the current one last.
_open: Final[list[MemoryBroker]] = []


def _use_clock_of_last() -> None:
    """Have greenconn's parts go by the clock of the broker that was opened last, if any is open."""
    hub: Any = get_hub()
    CLOCK.reset()
    if not _open:
        if isinstance(hub.loop, HandlersLoop):
            hub.loop = hub.loop.real
        return
    if not isinstance(hub.loop, HandlersLoop):
        hub.loop = HandlersLoop(hub.loop)
    clock = _open[-1].clock

    def here(of_test: Callable[..., Any], of_system: Callable[..., Any]) -> Callable[..., Any]:
        # Other threads have other hubs, and go by the system's clock.
        return lambda *args, **kwargs: (of_test if get_hub() is hub else of_system)(*args, **kwargs)

    def context() -> Context:
        made = copy_context()
        made.run(_clock_of_handler.set, clock)
        return made

    CLOCK.monotonic = here(clock.now, CLOCK.monotonic)
    CLOCK.timer = here(clock.timer, CLOCK.timer)
    CLOCK.sleep = here(clock.sleep, CLOCK.sleep)
    CLOCK.timeout = here(clock.timeout, CLOCK.timeout)
    CLOCK.context = here(context, CLOCK.context)
    CLOCK.jitter = here(Random(0).random, CLOCK.jitter)
    # How fast the machine is makes no difference: greenlets give the hub a turn whenever they may.
    CLOCK.pace = -1.0


class Delivery(DeliveredMessage):
    """A message that a handler was called with.

    It has the attributes of each message, such as ``payload``, ``headers`` and ``properties``.  The
    payload is the one that was published, whatever the handler has made of it.

    Attributes:
        queue: the name of the queue that it was consumed from.
        attempts: how often the handler has been called with the message, this call included; 0 if the
            body could not be decoded.
        error: the exception of the handler; None if it succeeded.
    """

    def __init__(
        self, message: DeliveredMessage, queue: str, attempts: int, error: BaseException | None
    ) -> None:
        super().__init__(None, message.delivery_tag, message.entry)
        self.queue = queue
        self.attempts = attempts
        self.error = error

    def __repr__(self) -> str:
        ended = "handled" if self.error is None else f"failed with {self.error!r}"
        return f"<Delivery of {self.queue!r}: {ended} in attempt {self.attempts}>"


class Recorder(Listener):
    """Records what handlers were called with, in the order in which their calls ended.

    Periodic calls are not recorded.

    Arguments:
        name: of the broker, by which its events are known.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._failed: Counter[Message] = Counter()
        #: The last call of a handler that failed, for each message.
        self._last: dict[Message, Delivery] = {}
        self.ended: list[Delivery] = []
        self.dead: list[Delivery] = []
        #: Queues whose failures the test has asked for.
        self.asked: list[TestedQueue] = []
        #: How many messages handlers may still be called with, and what is done beyond that.
        self.left = 0
        self.on_excess: Callable[[], object] | None = None

    def _is_meant(self, event: DeliverEvent | DeadLetterEvent) -> bool:
        return self._name in event.connection and not event.queue.startswith(PERIODIC)

    def on_deliver(self, event: DeliverEvent) -> None:
        """Count the messages."""
        if self._is_meant(event) and event.handler is not None:
            self.left -= len(event.messages)
            if self.left < 0 and self.on_excess is not None:
                on_excess, self.on_excess = self.on_excess, None
                on_excess()

    def on_handled(self, event: HandledEvent) -> None:
        """Record how the call ended, unless it was interrupted."""
        delivery, error = event.delivery, event.error
        if not self._is_meant(delivery):
            return
        if error is not None and not isinstance(error, FAILURES):
            return
        for message in delivery.messages:
            attempts = attempts_of(message) + self._failed[message] + 1
            if error is not None:
                self._failed[message] += 1
            assert isinstance(message, DeliveredMessage)
            recorded = Delivery(message, delivery.queue, attempts, error)
            self.ended.append(recorded)
            if error is not None:
                self._last[message] = recorded

    def on_retry(self, event: RetryEvent) -> None:
        """Record the error that the program gets: a time limit has a class of its own."""
        if event.message in self._last:
            self._last.pop(event.message).error = event.error

    def on_dead_letter(self, event: DeadLetterEvent) -> None:
        """Record a message that was given up."""
        if self._is_meant(event):
            message = event.message
            if message in self._last:
                self._last.pop(message).error = event.error
            assert isinstance(message, DeliveredMessage)
            self.dead.append(Delivery(message, event.queue, event.attempts, event.error))


class HeldRecords(logging.Handler):
    """Holds what is logged of failures, where the program has not set up logging.

    Python would print it to stderr, between the dots of a test runner.  Failures that the test expects
    are not printed.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._records: list[logging.LogRecord] = []
        self._logger = logging.getLogger("greenconn.worker")
        self._is_added = not self._logger.hasHandlers()
        if self._is_added:
            self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Hold *record*."""
        self._records.append(record)

    def end(self, *, is_printed: bool) -> None:
        """Hold no more, and print what was held if *is_printed*."""
        if self._is_added:
            self._logger.removeHandler(self)
            self._is_added = False
        records, self._records = self._records, []
        if is_printed and logging.lastResort is not None:
            for record in records:
                logging.lastResort.handle(record)


class TooManyDeliveries(Exception):
    """Handlers were called with more messages than one run may have."""


class MemoryBroker:
    """An empty in-memory broker, private to a test, which the default connections use.

    Consumers, the broker and schedules go by the clock of the broker; see :mod:`greenconn.testing`.
    Closing the broker stops all consumers, and the default connections use the environment's broker
    again.

    Arguments:
        declare_by_name: as in :func:`greenconn.configure`.  The default True declares the queue when a
            program publishes to a queue by its name, so that :meth:`messages` returns the message even
            if no consumer has declared the queue.
        raise_errors: whether :meth:`run_until_idle` and :meth:`advance` raise the exception of a handler
            whose message was given up, after its last attempt.  The default False only records it.

    Attributes:
        url: the URL of the broker.
        clock: the clock of the broker; ``clock.now()`` returns its time in seconds.
        services: services of the application; with a method ``unsettled``, which returns how much they
            have to do, :meth:`run_until_idle` waits until that is 0.
    """

    def __init__(self, *, declare_by_name: bool | None = True, raise_errors: bool = False) -> None:
        self.clock = ManualClock()
        self._name = f"testing-{uuid()}"
        self.url = f"memory:///{self._name}"
        self._raise_errors = raise_errors
        self._broker = memory.broker_of(self._name, clock=self.clock)
        defaults.configure(self.url, declare_by_name=declare_by_name)
        self._addresses = self.connection().session.broker.addresses
        self._hub: Any = get_hub()
        self._recorder = Recorder(self._name)
        LISTENERS.add(self._recorder)
        self._held = HeldRecords()
        self._is_running = False
        self.services: Iterable[Any] = ()
        #: Dead letters whose errors were raised or are not to be.
        self._raised = 0
        self._is_numbered = "{slot}" not in process_place()
        if self._is_numbered:
            note_slot(0)
        _open.append(self)
        _use_clock_of_last()
        proxy: Any = self._hub.loop
        self._loop: Any = proxy.real
        #: What was waited for while no handler ran: more of it is what handlers wait for.
        self._watched = self._waits()
        self.clock.follow(self._loop)

    def __repr__(self) -> str:
        return f"<MemoryBroker: {self.url}>"

    def __enter__(self) -> MemoryBroker:
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *exc_info: object) -> None:
        self._close(has_failed=exc_type is not None)

    def close(self) -> None:
        """Stop all consumers, close the default connections and drop the broker's contents.  May switch.

        Raises:
            TimeoutError: handlers did not finish within 10 seconds and were interrupted.
        """
        self._close(has_failed=False)

    def _close(self, *, has_failed: bool) -> None:
        stopping = spawn("testing-stop", stop_consumers)
        try:
            self._run(partial(self._step_to_end, stopping), sys.maxsize, STOPPING)
            ended = True
        except TimeoutError:
            stopping.kill()
            ended = stop_consumers(timeout=0)
        forget_failures(self._addresses)
        defaults.reset()
        memory.reset(self._name)
        LISTENERS.remove(self._recorder)
        if self._is_numbered:
            note_slot(None)
        self.clock.follow(None)
        if self in _open:
            _open.remove(self)
            _use_clock_of_last()
        asked = self._recorder.asked
        unexpected = [
            each for each in self._recorder.dead if not any(_is_of(each, queue) for queue in asked)
        ]
        self._held.end(is_printed=has_failed or bool(unexpected) or not ended)
        if not ended:
            raise TimeoutError(
                f"handlers of consumers of {self.url} did not end within {STOPPING:g} s"
            )

    def connection(self, **kwargs: Unpack[ConnectionArguments]) -> Connection:
        """Return a new connection to this broker.

        Arguments:
            kwargs: the arguments of :class:`greenconn.Connection` except the URL.
        """
        return Connection(self.url, **kwargs)

    # What the queues hold

    def count(self, queue: str) -> int:
        """Return the number of messages that are ready in a queue; 0 if the queue does not exist."""
        found = self._broker.queues.get(queue)
        return 0 if found is None else len(found)

    def messages(self, queue: str) -> list[Message]:
        """Return the messages that are ready in a queue, the next one first, without consuming them.

        Raises:
            KeyError: the queue does not exist.
        """
        if queue not in self._broker.queues:
            known = sorted(self._broker.queues)
            raise KeyError(f"queue {queue!r} does not exist; known: {known}")
        return [DeliveredMessage(None, 0, entry) for entry in self._broker.queues[queue].store]

    def bodies(self, queue: str) -> list[Any]:
        """Return the decoded bodies of the messages that :meth:`messages` returns."""
        return [message.decode() for message in self.messages(queue)]

    def restart(self) -> None:
        """Simulate a restart of the broker: drop all connections and everything that is not durable."""
        memory.restart(self._name)

    # What handlers have done

    def handled(self, queue: TestedQueue) -> list[Delivery]:
        """Return the messages of *queue* that a handler handled without an error, in that order.

        Arguments:
            queue: a queue or its name; a sharded queue for all of its shards; a ``Broadcast`` for the
                queues of all its consumers, whose names were made up.
        """
        return [each for each in self._recorder.ended if _is_of(each, queue) and each.error is None]

    def failures(self, queue: TestedQueue) -> list[Delivery]:
        """Return the failed calls of handlers with messages of *queue*, in their order.

        One message is listed once for each attempt that failed; ``error`` is the exception.

        Arguments:
            queue: as for :meth:`handled`.
        """
        self._recorder.asked.append(queue)
        return [each for each in self._recorder.ended if _is_of(each, queue) and each.error]

    def dead_letters(self, queue: TestedQueue) -> list[Delivery]:
        """Return the messages of *queue* that were given up, after their last attempt, in that order.

        These are dead letters, wherever they are stored, and messages that were rejected or discarded.
        Messages that the broker gives up, since they expire or their queue is full, are in their
        dead-letter queue: see :meth:`messages`.

        Arguments:
            queue: as for :meth:`handled`.
        """
        self._recorder.asked.append(queue)
        return [each for each in self._recorder.dead if _is_of(each, queue)]

    # Time

    def run_until_idle(
        self,
        *,
        max_seconds: Seconds = YEAR,
        max_deliveries: int = DELIVERIES,
        timeout: Seconds = PATIENCE,
    ) -> None:
        """Run until no message waits: not for a handler, a retry, a delay or its expiry.  May switch.

        Moves the clock to one due time after the other.  A schedule has no end: its calls that become
        due meanwhile are made, but do not keep this method running; see :meth:`advance`.  What a handler
        waits for in reality, such as the reply of a database, is waited for.

        Arguments:
            max_seconds: the maximum by which the clock is moved.
            max_deliveries: the maximum number of messages that handlers are called with.
            timeout: the maximum of real seconds.

        Raises:
            TimeoutError: messages were left at one of these bounds; the text lists what they wait for.
            Exception: that of a handler, with ``raise_errors``.
        """
        last = self.clock.now() + checked_seconds(max_seconds)
        self._run(partial(self._step_to_idle, last), max_deliveries, timeout)
        self._raise_error()

    def advance(
        self, seconds: Seconds, *, max_deliveries: int = DELIVERIES, timeout: Seconds = PATIENCE
    ) -> None:
        """Move the clock by *seconds*, and run all that becomes due, in order.  May switch.

        Arguments:
            seconds: the seconds, at least 0, or a timedelta.
            max_deliveries, timeout: as for :meth:`run_until_idle`.

        Raises:
            ValueError: *seconds* is negative.
            TimeoutError, Exception: as for :meth:`run_until_idle`.
        """
        end = self.clock.now() + checked_seconds(seconds)
        self._run(partial(self._step_to, end), max_deliveries, timeout)
        self._raise_error()

    def _run(self, step: Callable[[], bool], max_deliveries: int, timeout: Seconds) -> None:
        """Call *step* until it returns False."""
        if self._is_running:
            raise RuntimeError(
                "run_until_idle() or advance() is running: call it from the test, not from a handler"
            )
        recorder = self._recorder
        recorder.left = max_deliveries
        recorder.on_excess = partial(
            self._loop.run_callback,
            gevent.getcurrent().throw,
            TooManyDeliveries(f"after max_deliveries={max_deliveries} messages"),
        )
        self._is_running = True
        self.clock.follow(None)
        patience = in_seconds(timeout)
        limit = Timeout(patience, ref=False)
        limit.start()
        try:
            while step():
                pass
        except TooManyDeliveries as exc:
            raise self._not_idle(str(exc)) from None
        except Timeout as exc:
            if exc is not limit:
                raise
            raise self._not_idle(f"within timeout={patience:g} real seconds") from None
        finally:
            limit.close()
            recorder.on_excess = None
            self._is_running = False
            if self in _open:
                self.clock.follow(self._loop)

    def _raise_error(self) -> None:
        """With ``raise_errors``, raise why the first message was given up since the last call."""
        dead = self._recorder.dead[self._raised :]
        self._raised += len(dead)
        if self._raise_errors and dead:
            assert dead[0].error is not None
            raise dead[0].error

    def _step_to_end(self, stopping: Greenlet[..., bool]) -> bool:
        """Let handlers that sleep by the clock end, as a graceful shutdown waits for them."""
        if self._settle():
            return True
        if stopping.ready():
            return False
        if self.clock.armed_by_kind[Kind.HANDLER] and any(map(_running, self._consumers())):
            self.clock.run_next()
        else:
            self._wait_for_loop()
        return True

    def _step_to(self, end: float) -> bool:
        if self._settle():
            return True
        at = self.clock.next_at()
        if at is None or at > end:
            self.clock.move(max(end - self.clock.now(), 0.0))
            return False
        self.clock.run_next()
        return True

    def _step_to_idle(self, last: float) -> bool:
        if self._settle():
            return True
        if self._is_waited_for():
            at = self.clock.next_at()
            assert at is not None
            if at > last:
                self.clock.move(max(last - self.clock.now(), 0.0))
                raise self._not_idle("after max_seconds by the clock")
            self.clock.run_next()
        elif self._left() or self._busy_services():
            self._wait_for_loop()  # for what no time helps
        else:
            return False
        return True

    def _settle(self) -> bool:
        """Run what can run at this time.  Return True if more may run after some real time."""
        self._wait_for(self._loop.idle(priority=self._loop.MINPRI))
        while self._loop._callbacks:  # libuv is idle too soon
            self._wait_for(self._loop.idle(priority=self._loop.MINPRI))
        consumers = self._consumers()
        if not any(_running(each) for each in consumers):
            self._watched = self._waits()
        elif self._waits() > self._watched:
            self._wait_for_loop()  # a handler waits for a socket or for a thread
            return True
        if any(each.state in _CONNECTING for each in consumers):
            self._wait_for_loop()
            return True
        return False

    def _waits(self) -> int:
        """Return the number of sockets, threads and timers that are waited for in this hub."""
        timeouts = getattr(self._hub, "greenconn_timeouts", None)
        # The deadline of a call of greenconn, whose answer comes from a handler.
        is_call = timeouts is not None and bool(timeouts.waiting)
        return int(self._loop.activecnt) - is_call

    def _wait_for_loop(self) -> None:
        """Wait until the loop has got something."""
        self._wait_for(self._loop.check(priority=self._loop.MINPRI))

    def _wait_for(self, watcher: Any) -> None:
        try:
            self._hub.wait(watcher)
        finally:
            watcher.close()

    def _is_waited_for(self) -> bool:
        """Return whether moving the clock leads to something that a message waits for."""
        armed = self.clock.armed_by_kind
        return bool(
            armed[Kind.MESSAGE]
            or any(queue.has_timed for queue in self._broker.queues.values())
            or (armed[Kind.HANDLER] and any(map(_running, self._consumers())))
        )

    def _consumers(self) -> list[ConsumerGreenlet]:
        return [each for each in running_consumers() if each.lifecycle.addresses == self._addresses]

    def _busy_services(self) -> list[object]:
        return [each for each in self.services if hasattr(each, "unsettled") and each.unsettled()]

    def _left(self) -> list[str]:
        """Return a description of the unhandled messages of each consumer, and of delayed ones."""
        left = []
        for consumer in self._consumers():
            options, unsettled = consumer.lifecycle.options, consumer.unsettled()
            is_paused = consumer.state is ConsumerState.PAUSED
            waiting = 0 if is_paused else sum(self.count(_name_of(each)) for each in options.queues)
            if unsettled or waiting:
                left.append(f"consumer {options.name}: {waiting} waiting, {unsettled} in handlers")
        return left

    def _not_idle(self, bound: str) -> TimeoutError:
        left, ended = sorted(self._left()), self._recorder.ended
        left += [f"service {each!r} has something to do" for each in self._busy_services()]
        left += [
            f"queue {name}: {queue.delayed} delayed"
            for name, queue in self._broker.queues.items()
            if queue.delayed
        ]
        # Of each queue, the last failure and the number of them.
        failed = {each.queue: each for each in ended if each.error is not None}
        left += [
            f"handler of {name} failed {len(self.failures(name))} times, at last with {each.error!r}"
            for name, each in failed.items()
        ]
        return TimeoutError(f"not idle {bound}: {'; '.join(left[:LISTED]) or 'no message is left'}")


_CONNECTING: Final = frozenset({ConsumerState.STARTING, ConsumerState.RECOVERING})


def _running(consumer: ConsumerGreenlet) -> int:
    """Return the number of handlers of *consumer* that run; of calls, if it makes periodic ones."""
    return min(consumer.unsettled(), consumer.lifecycle.dispatcher.running)


def _is_of(delivery: Delivery, queue: TestedQueue) -> bool:
    """Return whether a message was consumed from *queue*."""
    if isinstance(queue, ShardedQueue):
        return any(delivery.queue == each.name for each in queue)
    if isinstance(queue, Broadcast) and queue.is_made_up:
        # The queue of each consumer has a name of its own.
        assert queue.exchange is not None
        is_own = delivery.queue.startswith(f"{queue._prefix}.")
        return is_own and delivery.delivery_info["exchange"] == queue.exchange.name
    return delivery.queue == _name_of(queue)


def _name_of(queue: QueueLike) -> str:
    return queue if isinstance(queue, str) else str(queue.name)


try:
    import pytest
except ImportError:  # pragma: no cover - programs may test with something else
    pass
else:

    @pytest.fixture
    def greenconn_broker() -> Iterator[MemoryBroker]:
        """Yield an in-memory broker for one test."""
        with MemoryBroker() as broker:
            yield broker
