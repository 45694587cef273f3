"""Dispatch of messages to handlers: a queue for each consumer, and the greenlets that run handlers.

The reader appends a message to its consumer's dispatcher and, if fewer handlers run than may, calls for
a worker.  A worker takes messages until there are none.  Before it runs a handler it calls for one more,
if messages are left, none is on its way and *limit* allows: so as many run as have work, and a message
costs no switch while they do.

All consumers of a connection share their workers.  Dispatchers that have something to do stand in one
queue, and a worker serves them one after the other.  Only one worker is woken at a time: before it
begins with a dispatcher it wakes the next, if more of them wait and none is on its way.  So a thousand
dispatchers that get a message each cost one switch if no handler waits, and as many as there are
handlers that do.

In a handler that computes, or that waits in a library which gevent does not know, nothing else of the
process runs: no other handler, no request, no heartbeat.  To read the clock for each message would cost
more than may be spent on it, so the hub is sampled: while a worker has something to do, a timer measures
its own delay.  What caused it were the handlers that were called meanwhile, or the one that was called
last before (see :mod:`greenconn.green.supervisor`).  While no worker has work there is no timer.

Order by key: the messages of a key are handled one after the other, their retries included.

::

    from greenconn import in_order

    @app.consumer("orders", concurrency=200, retry={"tries": 5})
    @in_order(lambda body, message: body["customer"], running=10)
    def ship(body, message):
        ...

A message that must wait for its turn waits in a greenlet of its own, unacknowledged.  ``concurrency``
therefore limits the number of messages that wait or run, and should be far higher than the number of
handlers that run.  While a message waits for its retry, the later ones of its key wait behind it.

The broker's queue is the record of the order: what waits or is retried keeps its place there, so that it
comes first again after a crash.  For this the messages of a consumer that ends go back all at once, with
its channel, when its handlers have ended.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import nullcontext
from functools import wraps
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from gevent import Greenlet, GreenletExit, Timeout, get_hub, getcurrent
from gevent.lock import Semaphore

from greenconn.clocks import CLOCK
from greenconn.green.deadline import NEVER
from greenconn.green.hub import PerHub, yield_to_hub
from greenconn.green.slot import Slot
from greenconn.green.supervisor import HANDLERS, name_of, spawn

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

    from greenconn.abc import Channel
    from greenconn.message import Message
    from greenconn.worker.lifecycle import ConsumerLifecycle

    H = TypeVar("H", bound=Callable[..., Any])


logger = logging.getLogger("greenconn.worker")

#: Messages that a worker handles before the clock is looked at.
STREAK: Final = 16
#: Seconds by which a timer may go off too early.
EARLY: Final = 0.001
#: Seconds until a message is handled whose worker ended before it began.
LOST_WORKER_PAUSE: Final = 0.01
#: Idle workers that are kept, however few handlers may run at once.
KEPT: Final = 16
#: Seconds between two samples of the hub.  A block is measured too short by this at most.
SAMPLING_INTERVAL: Final = 0.1
#: Handlers that are logged in the life of a process because they block the hub.
LOGGED_HANDLERS: Final = 1000

#: The inbox of a consumer without messages yet: an empty deque of its own takes 760 bytes.
_NO_MESSAGES: Final[deque[Any]] = deque(maxlen=0)
#: Names of handlers that were logged.
_logged: Final[set[str]] = set()

#: Messages whose handlers wait, each with its wait.
_parked: Final[dict[Message, Parked]] = {}


class Interrupted(GreenletExit):
    """Raised in a handler whose message the program has cancelled."""


class Dispatcher:
    """The messages of one consumer that wait for its handler, and the workers that run it.

    The reader calls ``put`` and ``drop``.  Nothing here switches but ``work``.

    Arguments:
        consumer: its ``handling`` runs the handler.  Its ``note_change`` is called when no handler
            runs any more while it ``is_ending``.

    Attributes:
        limit: number of handlers that may run at once.
        inbox: messages that no handler has begun.
        is_held: while True no handler begins.
        received: number of messages that came.
        last_at: time of the last one on the monotonic clock; None before.
    """

    __slots__ = (
        "_consumer",
        "_is_called",
        "_pool",
        "_ready",
        "_run",
        "_waiting",
        "_workers",
        "inbox",
        "is_held",
        "last_at",
        "limit",
        "received",
    )

    def __init__(self, consumer: ConsumerLifecycle) -> None:
        self._consumer = consumer
        self._pool = consumer.group.pool
        self._run = consumer.handling.run
        self.limit = consumer.options.concurrency
        self.inbox = _NO_MESSAGES
        #: What can be handled as it is: the messages of the inbox.
        self._ready = self.inbox
        #: A dict, since an empty set is three times as large.
        self._workers: dict[Worker, None] = {}
        #: A worker was called for and has not begun.
        self._is_called = False
        #: What waits to be handled again, with its timer.
        self._waiting: dict[Any, Any] = {}
        self.is_held = False
        self.received = 0
        self.last_at: float | None = None

    def put(self, message: Any) -> None:
        """Take *message* over.  Called by the reader."""
        if self.last_at is None:
            self.inbox = self._ready = deque()
        self.inbox.append(message)
        self.received += 1
        self.last_at = monotonic()
        if not self._is_called and len(self._workers) < self.limit and not self.is_held:
            self._pool.submit(self)
            self._is_called = True  # behind it: what a signal interrupts is called for again

    # Workers

    def work(self, worker: Worker) -> None:
        """Handle messages until there are none.  In the greenlet of *worker*.  May switch.

        Raises:
            BaseException: what ends the greenlet; :meth:`lose_worker` must follow.
        """
        self._is_called = False
        if len(self._workers) >= self.limit:
            return  # called for twice
        self._workers[worker] = None
        inbox, ready, run = self.inbox, self._ready, self._run
        while True:
            if ready and not self.is_held:
                # Without a call, behind which a signal could be raised: a message is in one place.
                worker.load = load = ready[0]
                del ready[0]
            elif not inbox or (load := self._next_load(worker)) is None:
                break
            if inbox and not self._is_called and len(self._workers) < self.limit:
                self.call_worker()
            run(load)
            worker.load = None
            worker.streak += 1
            if worker.streak == STREAK:
                # Handlers that never wait would keep the hub from the broker.
                worker.streak = 0
                if monotonic() - worker.looked_at > CLOCK.pace:
                    self._pool.turn()
                    worker.looked_at = monotonic()
        self._release_worker(worker)

    def lose_worker(self, worker: Worker) -> None:
        """Note that *worker* has ended, perhaps before it began, or before its message was handled."""
        load, worker.load = worker.load, None
        if load is not None and self._is_unhandled(load):
            self.retry_later(load, LOST_WORKER_PAUSE)
        self._is_called = False
        self._release_worker(worker)

    def _is_unhandled(self, load: Any) -> bool:
        """Return whether *load* is still to be handled here, though its worker has ended."""
        if self._consumer.is_ending or self.will_retry(load):
            return False
        handling = self._consumer.handling
        return any(handling.is_unsettled(each) for each in self._messages_of(load))

    def _release_worker(self, worker: Worker) -> None:
        self._workers.pop(worker, None)
        if self.inbox or self._ready:
            self.call_worker()
        if self._consumer.is_ending and self.is_idle:
            self._consumer.note_change()

    def call_worker(self) -> None:
        """Call for a worker if there is something to do for one more."""
        if not self._is_called and len(self._workers) < self.limit and self._has_work():
            self._pool.submit(self)
            self._is_called = True

    def _has_work(self) -> bool:
        return bool(self.inbox) and not self.is_held

    def _next_load(self, worker: Worker) -> Any:
        """Give *worker* what is to be handled next, though no load is ready; None: there is nothing."""
        return None

    @property
    def is_idle(self) -> bool:
        """Whether no handler runs or is about to."""
        return not self._workers and not self._waiting and not self._has_work()

    @property
    def running(self) -> int:
        """Number of handlers that run, or are about to."""
        return len(self._workers) + self._is_called

    @property
    def in_flight(self) -> int:
        """Number of messages that a handler has begun and that are not settled."""
        loads = [each.load for each in self._workers if each.load is not None]
        return sum(self._size(load) for load in (*loads, *self._waiting))

    def unacked(self) -> Iterator[tuple[Any, bool]]:
        """Yield the messages that are here, and whether a handler has begun with each."""
        begun = [each.load for each in self._workers if each.load is not None]
        for load in (*begun, *self._waiting):
            yield from ((message, True) for message in self._messages_of(load))
        yield from ((message, False) for message in self.inbox)

    def unsettled(self) -> int:
        """Return the number of messages that are here."""
        return sum(1 for _ in self.unacked())

    def _messages_of(self, load: Any) -> Iterable[Any]:
        return (load,)

    def _size(self, load: Any) -> int:
        return 1

    def runs_in(self, greenlet: object) -> bool:
        """Return whether *greenlet* is one of those that run handlers."""
        return any(worker.greenlet is greenlet for worker in self._workers)

    def runs_of(self, channel: Channel) -> bool:
        """Return whether a handler runs with a message of *channel*."""
        loads = [each.load for each in self._workers if each.load is not None]
        return any(each.channel is channel for load in loads for each in self._messages_of(load))

    def interrupt(self) -> None:
        """Interrupt all handlers; ``note_change`` of the consumer is called when they have ended."""
        for worker in list(self._workers):
            worker.interrupt()

    def interrupt_one(self, meant: str | Message) -> bool:
        """Interrupt the handler of a message; False when none runs.  Never switches.

        Arguments:
            meant: its ``message_id``, or the message.
        """
        for worker in self._workers:
            load = worker.load
            if load is not None and any(
                each is meant or each.properties.get("message_id") == meant
                for each in self._messages_of(load)
            ):
                name = meant if isinstance(meant, str) else meant.properties.get("message_id")
                get_hub().loop.run_callback(_interrupt_handler, worker, load, name)
                return True
        return False

    # Handling again

    def retry_later(self, load: Any, delay: float) -> None:
        """Have *load* handled again in *delay* seconds."""
        timer = CLOCK.timer(delay)
        self._waiting[load] = timer
        timer.start(self._on_time, load, update=True)

    def will_retry(self, load: Any) -> bool:
        """Return whether *load* waits to be handled again."""
        return load in self._waiting

    def _on_time(self, load: Any) -> None:
        # In the hub.
        timer = self._waiting.pop(load, None)
        if timer is not None:
            timer.close()
            self._put_first(load)
            self.call_worker()

    def _put_first(self, load: Any) -> None:
        self.inbox.appendleft(load)

    # Ending

    def stop_batching(self) -> None:
        """Let no message wait for others."""

    def drop(self, channel: Channel, tag: str | None = None) -> list[tuple[Any, bool]]:
        """Take out and return what came on *channel* and waits for a handler, or in one for its turn.

        Arguments:
            tag: only what came to this consumer.

        Returns:
            Messages, and whether a handler has begun with each before.
        """

        def is_meant(message: Message) -> bool:
            return message.channel is channel and (
                tag is None or message.delivery_info.get("consumer_tag") == tag
            )

        return [
            *((message, True) for message in self._drop_waiting(is_meant)),
            *((message, False) for message in self._drop_parked(is_meant)),
            *((message, False) for message in self._drop_from_inbox(is_meant)),
        ]

    def _drop_parked(self, is_meant: Callable[[Any], bool]) -> list[Any]:
        loads = [each.load for each in self._workers if each.load is not None]
        return [
            message
            for load in loads
            for message in self._messages_of(load)
            if is_meant(message) and drop_parked(message)
        ]

    def _drop_waiting(self, is_meant: Callable[[Any], bool]) -> list[Any]:
        dropped = [each for each in self._waiting if is_meant(each)]
        for message in dropped:
            self._waiting.pop(message).close()
        return dropped

    def _drop_from_inbox(self, is_meant: Callable[[Any], bool]) -> list[Any]:
        dropped = [each for each in self.inbox if is_meant(each)]
        if dropped:
            kept = [each for each in self.inbox if not is_meant(each)]
            self.inbox.clear()
            self.inbox.extend(kept)
        return dropped

    def take_back(self) -> None:
        """Take what waits in a handler for its turn back to those that no handler has begun."""
        # Each has its place in the queue: among those here the order does not matter.
        self.inbox.extend(self._drop_parked(lambda message: True))

    def stop_retries(self) -> None:
        """Have no message handled again, and count those that waited for it as begun no more."""
        for load, timer in self._waiting.items():
            timer.close()
            self.inbox.append(load)
        self._waiting = {}

    def put_dropped(self, messages: Iterable[Any]) -> None:
        """Have *messages*, which were dropped, handled after all."""
        for message in messages:
            self.put(message)
            self.received -= 1  # it was counted when it came

    def take_all(self) -> Iterator[tuple[Any, bool]]:
        """Take out all that waits for a handler, the oldest first, one by one.

        With each message: whether a handler has begun with it before.
        """
        while self._waiting:
            message, timer = next(iter(self._waiting.items()))
            del self._waiting[message]
            timer.close()
            yield message, True
        while self.inbox:
            yield self.inbox.popleft(), False

    def forget(self) -> None:
        """Drop all after a fork, in the child: the messages are the parent's."""
        self.is_held = True
        for timer in self._waiting.values():
            timer.close()
        self._waiting = {}
        self.inbox.clear()
        self._workers = {}
        self._is_called = False


def _interrupt_handler(worker: Worker, load: Any, message_id: str | None) -> None:
    # In the hub, where it is certain that the handler still runs: the next one is not meant.
    if worker.load is load:
        worker.greenlet.throw(Interrupted(f"message {message_id!r} was cancelled"))


class MessageBatch:
    """Messages that are handled, settled and retried as one.

    Attributes:
        delays: seconds until each further call of the handler; None before the first failure.
        failures: how often its handler has failed.
    """

    __slots__ = ("delays", "failures", "messages")

    def __init__(self, messages: list[Any]) -> None:
        self.messages = messages
        self.delays: Iterator[float] | None = None
        self.failures = 0


class BatchDispatcher(Dispatcher):
    """A dispatcher that gives its workers batches.

    A batch is due when it is full, or when its oldest message has waited long enough.
    """

    __slots__ = ("_arrivals", "_interval", "_size_of_batch", "_timer")

    def __init__(self, consumer: ConsumerLifecycle) -> None:
        super().__init__(consumer)
        options = consumer.options
        assert options.batch_size is not None
        assert options.batch_interval is not None
        self._size_of_batch = options.batch_size
        self._interval = options.batch_interval
        #: When each message of the inbox came.
        self._arrivals: deque[float] = deque()
        #: Batches that are due to be handled again.
        self._ready: deque[MessageBatch] = deque()
        self._timer: Any = None

    def put(self, message: Any) -> None:
        """Take *message* over.  Called by the reader."""
        if self.last_at is None:
            self.inbox = deque()
        self.received += 1
        self.last_at = monotonic()
        now = CLOCK.monotonic()
        # Without a call between them, behind which a signal could be raised.
        self.inbox += (message,)
        self._arrivals += (now,)
        if len(self.inbox) >= self._size_of_batch:
            self.call_worker()
        elif self._timer is None and not self.is_held:
            self._start_timer(self._interval)

    def call_worker(self) -> None:
        """Call for a worker if a batch is due, else look again when one may be."""
        super().call_worker()
        if self._arrivals and self._timer is None and not self.is_held and not self._is_called:
            left = self._arrivals[0] + self._interval - CLOCK.monotonic()
            if left > 0.0:
                self._start_timer(left)

    def _start_timer(self, seconds: float) -> None:
        self._timer = CLOCK.timer(seconds)
        self._timer.start(self._on_due, update=True)

    def _on_due(self) -> None:
        # In the hub.
        self._stop_timer()
        self.call_worker()

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def _has_work(self) -> bool:
        if self.is_held:
            return False
        if self._ready or len(self.inbox) >= self._size_of_batch:
            return True
        arrivals = self._arrivals
        return bool(arrivals) and CLOCK.monotonic() >= arrivals[0] + self._interval - EARLY

    def _next_load(self, worker: Worker) -> MessageBatch | None:
        if not self._has_work():
            return None
        batch = worker.load = MessageBatch([])
        left = min(len(self.inbox), self._size_of_batch)
        while left:
            # Without a call, as in ``work``.
            batch.messages += (self.inbox[0],)
            del self.inbox[0], self._arrivals[0]
            left -= 1
        self._stop_timer()
        return batch

    def unacked(self) -> Iterator[tuple[Any, bool]]:
        """Yield the messages that are here, and whether a handler has begun with each."""
        yield from super().unacked()
        for batch in self._ready:
            yield from ((message, True) for message in batch.messages)

    def _messages_of(self, load: MessageBatch) -> list[Any]:
        return load.messages

    def _size(self, load: MessageBatch) -> int:
        return len(load.messages)

    def _put_first(self, load: MessageBatch) -> None:
        self._ready.append(load)

    def stop_batching(self) -> None:
        """Let no message wait for others."""
        self._interval = 0.0
        self._stop_timer()

    def _drop_waiting(self, is_meant: Callable[[Any], bool]) -> list[Any]:
        dropped: list[Any] = []
        for batch in (*self._waiting, *self._ready):
            dropped += [each for each in batch.messages if is_meant(each)]
            batch.messages = [each for each in batch.messages if not is_meant(each)]
        for batch in [each for each in self._waiting if not each.messages]:
            self._waiting.pop(batch).close()
        kept = [each for each in self._ready if each.messages]
        self._ready.clear()
        self._ready.extend(kept)
        return dropped

    def _drop_from_inbox(self, is_meant: Callable[[Any], bool]) -> list[Any]:
        pairs = list(zip(self.inbox, self._arrivals, strict=True))
        dropped = super()._drop_from_inbox(is_meant)
        if dropped:
            self._arrivals = deque(at for message, at in pairs if not is_meant(message))
        return dropped

    def take_all(self) -> Iterator[tuple[Any, bool]]:
        """Take out all that waits for a handler, the oldest first, one by one.

        With each message: whether a handler has begun with it before.
        """
        self._stop_timer()
        waiting, self._waiting = self._waiting, {}
        for load, timer in waiting.items():
            timer.close()
            self._put_first(load)
        while self._ready:
            messages = self._ready[0].messages
            while messages:
                yield messages.pop(0), True
            self._ready.popleft()
        while self.inbox:
            self._arrivals.popleft()
            yield self.inbox.popleft(), False

    def forget(self) -> None:
        """Drop all after a fork, in the child: the messages are the parent's."""
        super().forget()
        self._stop_timer()
        self._ready.clear()
        self._arrivals.clear()


class Worker:
    """One greenlet that runs handlers: of one dispatcher until that is empty, then of the next.

    Attributes:
        greenlet: the worker's.
        dispatcher: its messages are being handled; None between two dispatchers.
        load: handled now; None between two messages.
        streak: number of messages since it looked at the clock.
        looked_at: time of the hub's last turn, as far as this worker knows.
    """

    __slots__ = ("_is_dismissed", "_pool", "dispatcher", "greenlet", "load", "looked_at", "streak")

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._is_dismissed = False
        self.dispatcher: Dispatcher | None = None
        self.load: Any = None
        self.streak = 0
        self.looked_at = monotonic()
        self.greenlet: Greenlet[..., Any] = spawn("worker", self._run)
        # Also called if it ends before it runs.
        self.greenlet.rawlink(self._ended)

    def _run(self) -> None:
        pool = self._pool
        try:
            while not self._is_dismissed:
                dispatcher = pool.next_dispatcher(self)
                if dispatcher is not None:
                    dispatcher.work(self)
                    self.dispatcher = None
                elif pool.park(self):
                    get_hub().switch()
                    self.looked_at = monotonic()
                else:
                    return
        except Timeout:
            # Of a handler that started one and left it running.
            logger.warning("a gevent.Timeout of a handler expired after the handler had returned")
        finally:
            dispatcher, self.dispatcher = self.dispatcher, None
            if dispatcher is not None:
                dispatcher.lose_worker(self)

    def _ended(self, _greenlet: object) -> None:
        # In the hub.
        self._pool.forget(self)

    def interrupt(self) -> None:
        """Interrupt the handler, and work no more.  Never switches."""
        # The kill is on its way, and not meant for a handler of another dispatcher.
        self._is_dismissed = True
        self.greenlet.kill(block=False)


class WorkerPool:
    """The dispatchers that wait for a worker, and the workers that wait for a dispatcher.

    Invariant: while dispatchers wait a worker is on its way, or one that gives the hub a turn is to be
    back.

    Attributes:
        limit: number of idle workers that are kept.
        monitor: finds handlers that block the hub.
    """

    __slots__ = ("_coming", "_count", "_dispatchers", "_idle", "_turning", "limit", "monitor")

    def __init__(self) -> None:
        #: In the order in which they called.
        self._dispatchers: deque[Dispatcher] = deque()
        self._idle: list[Worker] = []
        #: The worker that was woken and has not run yet.
        self._coming: Worker | None = None
        #: Number of workers that give the hub a turn.
        self._turning = 0
        #: Number of workers that have not ended.
        self._count = 0
        self.limit = KEPT
        self.monitor = BlockingMonitor(self)

    @property
    def has_work(self) -> bool:
        """Whether a worker has something to do."""
        return self._count > len(self._idle)

    def submit(self, dispatcher: Dispatcher) -> None:
        """Have a worker work on *dispatcher* soon.  Never switches."""
        self._dispatchers.append(dispatcher)
        if not self._turning and (self._coming is None or self._coming.greenlet.ready()):
            self._wake()

    def turn(self) -> None:
        """Let the hub turn, and no worker begin with a dispatcher meanwhile.  May switch.

        Else each would go on where the one before it gave way, and the hub would have to wait for all.
        """
        self._turning += 1
        try:
            yield_to_hub()
        finally:
            self._turning -= 1
            self._wake_next()

    def _wake_next(self) -> None:
        if self._dispatchers and self._coming is None and not self._turning:
            self._wake()

    def _wake(self) -> None:
        if self._idle:
            wake = get_hub().loop.run_callback
            worker = self._idle[-1]
            del self._idle[-1]  # no call comes before it is woken, behind which a signal is raised
            wake(worker.greenlet.switch)
            self._coming = worker
        else:
            self._count += 1
            self._coming = Worker(self)
        if not self.monitor.is_running:
            self.monitor.start()

    def next_dispatcher(self, worker: Worker) -> Dispatcher | None:
        """Give *worker* the dispatcher that has waited longest, and wake another for the others."""
        if self._coming is worker:
            self._coming = None
        if not self._dispatchers or self._turning:
            return None
        worker.dispatcher = dispatcher = self._dispatchers[0]
        del self._dispatchers[0]
        if self._dispatchers and self._coming is None:
            self._wake()
        return dispatcher

    def park(self, worker: Worker) -> bool:
        """Keep an idle worker; return False when there are enough."""
        if len(self._idle) >= self.limit:
            return False
        self._idle.append(worker)
        return True

    def forget(self, worker: Worker) -> None:
        """Note that *worker* has ended."""
        self._count -= 1
        if worker in self._idle:
            self._idle.remove(worker)
        if self._coming is worker:
            self._coming = None
        self._wake_next()

    def resize(self, limit: int) -> None:
        """Keep as many idle workers as *limit* handlers need, and end the others."""
        if not limit:
            self.monitor.stop()
        self.limit = max(KEPT, limit) if limit else 0
        excess, self._idle = self._idle[self.limit :], self._idle[: self.limit]
        for worker in excess:
            get_hub().loop.run_callback(worker.greenlet.switch)  # it finds no place to park


class BlockingMonitor:
    """Finds the handlers of one connection that block the hub.

    Arguments:
        pool: their workers.

    Attributes:
        is_running: whether it samples the hub.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        #: Handlers by their names -> seconds, and the queue.
        self._thresholds: dict[str, tuple[float, str]] = {}
        self._timer: Any = None
        self._sampled_at = 0.0
        self.is_running = False

    def watch(self, handler: object, threshold: float | None, queue: str) -> None:
        """Watch a handler.  Never switches.

        Arguments:
            threshold: seconds; None ends that.
            queue: for the log.
        """
        if threshold is None:
            self._thresholds.pop(name_of(handler), None)
        else:
            self._thresholds[name_of(handler)] = (threshold, queue)

    def start(self) -> None:
        """Sample the hub until the pool has no work.  Never switches."""
        if not self._thresholds:
            return
        self.is_running = True
        self._sampled_at = monotonic()
        self._timer = get_hub().loop.timer(SAMPLING_INTERVAL, SAMPLING_INTERVAL, ref=False)
        self._timer.start(self._sample)

    def stop(self) -> None:
        """Stop sampling.  Never switches.  A second call does nothing."""
        self.is_running = False
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.close()

    def _sample(self) -> None:
        # In the hub.
        before, self._sampled_at = self._sampled_at, monotonic()
        blocked = self._sampled_at - before - SAMPLING_INTERVAL
        if blocked >= SAMPLING_INTERVAL:
            HANDLERS.tell_blocked(self._sampled_at - blocked, self._sampled_at)
            self._report(self._sampled_at - blocked)
        if not self._pool.has_work:
            self.stop()

    def _report(self, since: float) -> None:
        for name, seconds in HANDLERS.shares_within(since, self._sampled_at).items():
            threshold, queue = self._thresholds.get(name, (None, ""))
            if (
                threshold is None
                or seconds < threshold
                or name in _logged
                or len(_logged) >= LOGGED_HANDLERS
            ):
                continue
            _logged.add(name)
            spawn("log", _log_blocking, name, queue, seconds)


def _log_blocking(name: str, queue: str, seconds: float) -> None:
    from gevent.monkey import is_module_patched  # loaded already where it has patched something

    if is_module_patched("time") and is_module_patched("socket"):
        cause = (
            "The process is monkey-patched, so the handler computes, or calls a C library that blocks: "
            "run that in gevent's threadpool"
        )
    else:
        cause = (
            "The process is not monkey-patched: call gevent.monkey.patch_all() first, or use "
            "gevent.sleep and other functions of gevent"
        )
    logger.warning(
        "handler %s of queue %r blocked the hub for %.1f s (with one message or several in a "
        "row): no other handler, request or heartbeat could run. %s (logged once for each handler)",
        name,
        queue,
        seconds,
        cause,
        extra={"queue": queue, "consumer": queue},
    )


class NotBegun(GreenletExit):
    """Raised where a handler waits for its turn, when its message was dropped."""


class Parked:
    """The wait of the current greenlet for its turn with *message*.

    A decorator of handlers that waits before it calls the handler says so::

        with Parked(message) as parked:
            wait_for_the_turn()
            parked.begin()
            return handler(body, message)

    To the consumer, such a message is one that no handler has begun: when its channel is lost, or the
    broker takes its messages back, the message is dropped here, as the broker redelivers it, and the
    wait ends at once by :class:`NotBegun`.
    """

    __slots__ = ("_greenlet", "_is_dropped", "_message")

    def __init__(self, message: Message) -> None:
        self._message = message
        self._greenlet: Any = getcurrent()
        self._is_dropped = False

    def __enter__(self) -> Self:
        _parked[self._message] = self
        return self

    def begin(self) -> None:
        """End the wait.  Never switches.

        Raises:
            NotBegun: the message was dropped.
        """
        if self._is_dropped:
            raise NotBegun
        _parked.pop(self._message, None)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._greenlet = None
        if self._is_dropped:
            # A failure at the same moment is not the message's: that is elsewhere already.
            if exc is None or isinstance(exc, (Exception, Timeout)):
                raise NotBegun from None
        elif _parked.get(self._message) is self:
            del _parked[self._message]

    def drop(self) -> None:
        """Note that the message was dropped, and end the wait soon.  Never switches."""
        self._is_dropped = True
        get_hub().loop.run_callback(self._end)

    def _end(self) -> None:
        # In the hub; the turn may have come meanwhile.
        if self._greenlet is not None:
            self._greenlet.throw(NotBegun())


def drop_parked(message: Message) -> bool:
    """End the wait for the turn of *message*; False: no handler waits with it.  Never switches."""
    parked = _parked.pop(message, None)
    if parked is None:
        return False
    parked.drop()
    return True


def is_parked(message: Message) -> bool:
    """Return whether a handler waits for the turn of *message*.  Never switches."""
    return message in _parked


#: The key of a message, of its decoded body and itself.
Key = Callable[[Any, Any], Hashable]

#: What a message that failed does to the later ones of its key.
ON_FAILURE: Final = ("wait", "skip")
_MARK: Final = "__greenconn_order__"

#: Messages that failed and keep their key, each with what lets the next one of the key begin.
_keeping: Final[dict[Any, Callable[[], None]]] = {}


def in_order(
    key: Key, *, on_failure: Literal["wait", "skip"] = "wait", running: int | None = None
) -> Callable[[H], H]:
    """Return a decorator that makes a handler process the messages of each key one after the other.

    Messages with the same key are handled in the order of their delivery, others concurrently.  The
    order holds for all consumers of a process that have this handler.  Over several processes it needs
    a queue with one active consumer: :meth:`Queue.sharded <greenconn.Queue.sharded>`, or
    ``x-single-active-consumer``.

    Arguments:
        key: a function that takes the decoded body and the message and returns the key.
        on_failure: what the later messages of a key do while one that failed waits for its retry.
            ``"wait"``: they wait, until it was handled or given up.  It waits in this process,
            unacknowledged and in its place in the queue, whatever ``Retry(hold=)`` says.  ``"skip"``:
            they are handled, and the retry comes after them.
        running: the maximum number of handlers that run concurrently, for all keys together.  None sets
            no limit beside ``concurrency``.

    Raises:
        TypeError: *key* cannot be called.
        ValueError: another argument is out of range.
    """
    if not callable(key):
        raise TypeError(f"key of in_order must be a callable, got {key!r}")
    if on_failure not in ON_FAILURE:
        raise ValueError(f"on_failure of in_order must be 'wait' or 'skip', got {on_failure!r}")
    if running is not None and (
        isinstance(running, bool) or not isinstance(running, int) or running < 1
    ):
        raise ValueError(
            f"running of in_order must be a positive integer, or None, got {running!r}"
        )
    order = Order(key, on_failure == "wait", running)

    def mark(handler: H) -> H:
        if order_of(handler) is not None:
            raise TypeError(f"handler must have in_order once, got {handler!r}")
        try:
            setattr(handler, _MARK, order)
        except AttributeError:  # a method, or a function in C

            @wraps(handler)
            def marked(*args: Any) -> Any:
                return handler(*args)

            setattr(marked, _MARK, order)
            return marked  # type: ignore[return-value]
        return handler

    return mark


def order_of(handler: object) -> Order | None:
    """Return the order that ``in_order`` has given to *handler*; None: it has not."""
    return getattr(handler, _MARK, None)


class Order:
    """The keys of a handler that are being handled, and the messages that wait for them.

    Arguments:
        key: gives the key of a message.
        waits: a key waits for the retry of a message that failed.
        running: the most handlers that run at once; None: no limit.
    """

    __slots__ = ("_key", "_lines", "_places", "waits")

    def __init__(self, key: Key, waits: bool, running: int | None = None) -> None:
        self._key = key
        self.waits = waits
        self._lines = PerHub(Lines)
        self._places: PerHub[Any] = PerHub(
            lambda: nullcontext() if running is None else Semaphore(running)
        )

    def ordered(self, handler: Callable[..., Any]) -> Callable[..., Any]:
        """Return *handler* as a consumer calls it."""
        waits = self.waits

        @wraps(handler)
        def handle(body: Any, message: Message) -> Any:
            key, lines = self._key(body, message), self._lines.get()
            _keeping.pop(message, None)  # its retry
            with Parked(message) as parked:
                lines.enter(key, message)
                try:
                    with self._places.get():
                        parked.begin()
                        result = handler(body, message)
                except NotBegun:
                    lines.leave(key)
                    raise
                except BaseException:
                    if waits:
                        _keeping[message] = lambda: lines.leave(key)
                    else:
                        lines.leave(key)
                    raise
            if waits and message._state == "REQUEUED":
                _keeping[message] = lambda: lines.leave(key)  # for the pause until it comes back
            else:
                lines.leave(key)
            return result

        return handle


def keeps_key(message: object) -> bool:
    """Return whether the later messages of its key wait for *message*, which has failed."""
    return message in _keeping


def let_next_begin(message: object) -> None:
    """Let the next message of its key begin, as *message* is not handled again here.  Never switches.

    For a message that keeps no key it does nothing.
    """
    leave = _keeping.pop(message, None)
    if leave is not None:
        leave()


class Lines:
    """The messages that are handled, one for each key, and those that wait behind them."""

    __slots__ = ("_first", "_waiting")

    def __init__(self) -> None:
        #: Key -> the message that is handled, or waits for its retry.
        self._first: dict[Hashable, object] = {}
        #: The messages behind it.
        self._waiting: dict[Hashable, deque[tuple[object, Slot[None]]]] = {}

    def enter(self, key: Hashable, message: object) -> None:
        """Wait until *message* is the first one of its key.  May switch."""
        first = self._first.setdefault(key, message)
        if first is message:
            return
        slot: Slot[None] = Slot()
        self._waiting.setdefault(key, deque()).append((message, slot))
        try:
            slot.wait(NEVER)
        except BaseException:
            # Interrupted; the turn may have come at the same moment.
            if slot.is_filled:
                self.leave(key)
            raise

    def leave(self, key: Hashable) -> None:
        """Let the next waiting message of this key be handled.  Never switches."""
        waiting = self._waiting.get(key)
        while waiting:
            message, slot = waiting.popleft()
            if slot.offer(None):
                self._first[key] = message
                return
        self._waiting.pop(key, None)
        del self._first[key]
