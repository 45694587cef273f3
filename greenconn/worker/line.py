"""The way of a message from the reader to a handler: one deque, and the workers that serve it.

The reader appends and, if fewer handlers run than may, calls for a worker.  A worker takes messages
until there are none.  Before it runs a handler it calls for one more, if messages are left, none is
on its way and *limit* allows: so as many run as have work, and a message costs no switch while they do.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from gevent import GreenletExit, get_hub

from greenconn.worker.pool import Worker, WorkerPool

if TYPE_CHECKING:
    from greenconn.abc import Channel
    from greenconn.message import Message

__all__ = ["Interrupted", "Line"]

#: Messages that a worker handles before the clock is looked at, and seconds before the hub has a turn.
STREAK: Final = 16
PACE: Final = 0.005


class Interrupted(GreenletExit):
    """Raised in a handler whose message the program has cancelled."""


class Line:
    """Messages that wait for a handler, and the workers that run it.

    The reader calls ``put`` and ``drop``.  Nothing here switches but ``work``.

    Arguments:
        pool: lends workers.
        run: handles one load, whatever happens; raises only what ends the worker.
        limit: handlers at once.

    Attributes:
        inbox: messages that no handler has begun.
        is_held: no handler begins.
        received: messages that came.
        last_at: when the last one came, on the monotonic clock; None before.
        on_idle: called when no handler runs any more.
    """

    __slots__ = (
        "_is_called",
        "_pool",
        "_run",
        "_waiting",
        "_workers",
        "inbox",
        "is_held",
        "last_at",
        "limit",
        "on_idle",
        "received",
    )

    def __init__(self, pool: WorkerPool, run: Callable[[Any], None], limit: int) -> None:
        self._pool = pool
        self._run = run
        self.limit = limit
        self.inbox: deque[Any] = deque()
        self._workers: set[Worker] = set()
        #: A worker was called for and has not begun.
        self._is_called = False
        #: What waits to be handled again, with its timer.
        self._waiting: dict[Any, Any] = {}
        self.is_held = False
        self.received = 0
        self.last_at: float | None = None
        self.on_idle: Callable[[], None] | None = None

    def put(self, message: Any) -> None:
        """Take a message over.  In the reader."""
        self.inbox.append(message)
        self.received += 1
        self.last_at = monotonic()
        if not self._is_called and len(self._workers) < self.limit and not self.is_held:
            self._is_called = True
            self._pool.send(self)

    # Workers

    def work(self, worker: Worker) -> None:
        """Handle messages until there are none.  In the greenlet of *worker*.  May switch."""
        self._is_called = False
        self._workers.add(worker)
        inbox, run = self.inbox, self._run
        try:
            while self._has_work():
                worker.load = load = self._take()
                if inbox and not self._is_called and len(self._workers) < self.limit:
                    self.stir()
                run(load)
                worker.load = None
                worker.streak += 1
                if worker.streak == STREAK:
                    # Handlers that never wait would keep the hub from the broker.
                    worker.streak = 0
                    if monotonic() - worker.looked_at > PACE:
                        self._pool.turn()
                        worker.looked_at = monotonic()
        finally:
            self.lost_worker(worker)

    def lost_worker(self, worker: Worker) -> None:
        """A worker is done here, or has ended.  Again: does nothing."""
        worker.load = None
        if worker not in self._workers:
            return
        self._workers.discard(worker)
        self.stir()
        if self.on_idle is not None and self.is_idle:
            self.on_idle()

    def stir(self) -> None:
        """Call for a worker if there is something to do for one more."""
        if not self._is_called and len(self._workers) < self.limit and self._has_work():
            self._is_called = True
            self._pool.send(self)

    def _has_work(self) -> bool:
        return bool(self.inbox) and not self.is_held

    def _take(self) -> Any:
        return self.inbox.popleft()

    @property
    def is_idle(self) -> bool:
        """Whether no handler runs or is about to."""
        return not self._workers and not self._waiting and not self._has_work()

    @property
    def in_flight(self) -> int:
        """Messages that a handler has begun and that were not answered."""
        loads = [each.load for each in self._workers if each.load is not None]
        return sum(self._size(load) for load in (*loads, *self._waiting))

    def unanswered(self) -> Iterator[tuple[Any, bool]]:
        """All messages that are here, and whether a handler has begun with them.  Never switches."""
        begun = [each.load for each in self._workers if each.load is not None]
        for load in (*begun, *self._waiting):
            yield from ((message, True) for message in self._messages_of(load))
        yield from ((message, False) for message in self.inbox)

    def _messages_of(self, load: Any) -> Iterable[Any]:
        return (load,)

    def _size(self, load: Any) -> int:
        return 1

    def runs_in(self, greenlet: object) -> bool:
        """Whether *greenlet* is one of those that run handlers."""
        return any(worker.greenlet is greenlet for worker in self._workers)

    def interrupt(self) -> None:
        """Interrupt all handlers; ``on_idle`` is called when they have ended."""
        for worker in list(self._workers):
            worker.interrupt()

    def interrupt_one(self, message_id: str) -> bool:
        """Interrupt the handler of a message; False when none runs.  Never switches."""
        for worker in self._workers:
            load = worker.load
            if load is not None and any(
                each.properties.get("message_id") == message_id for each in self._messages_of(load)
            ):
                get_hub().loop.run_callback(_strike, worker, load, message_id)
                return True
        return False

    # Handling again

    def put_again(self, load: Any, delay: float) -> None:
        """Have *load* handled again.

        Arguments:
            delay: seconds.
        """
        timer = get_hub().loop.timer(delay)
        self._waiting[load] = timer
        timer.start(self._on_time, load, update=True)

    def _on_time(self, load: Any) -> None:
        # In the hub.
        timer = self._waiting.pop(load, None)
        if timer is not None:
            timer.close()
            self._put_first(load)
            self.stir()

    def _put_first(self, load: Any) -> None:
        self.inbox.appendleft(load)

    # Ending

    def hurry(self) -> None:
        """Let no message wait for others."""

    def recall(self) -> None:
        """Put what waits to be handled again among those that no handler has begun."""
        waiting, self._waiting = self._waiting, {}
        for load, timer in waiting.items():
            timer.close()
            self._put_first(load)

    def drop(self, channel: Channel, tag: str | None = None) -> list[tuple[Any, bool]]:
        """Take out and return what came on *channel* and waits for a handler.

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
            *((message, False) for message in self._drop_from_inbox(is_meant)),
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

    def put_dropped(self, messages: Iterable[Any]) -> None:
        """Have handled, after all, what was dropped."""
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
        """After a fork, in the child: the messages are the parent's."""
        self.is_held = True
        for timer in self._waiting.values():
            timer.close()
        self._waiting = {}
        self.inbox.clear()
        self._workers = set()
        self._is_called = False


def _strike(worker: Worker, load: Any, message_id: str) -> None:
    # In the hub, where it is certain that the handler still runs: the next one is not meant.
    if worker.load is load:
        worker.greenlet.throw(Interrupted(f"message {message_id!r} was cancelled"))
