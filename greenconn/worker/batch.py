"""Messages for handlers that take several at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from gevent import get_hub

from greenconn.worker.line import Line
from greenconn.worker.pool import WorkerPool

if TYPE_CHECKING:
    pass

__all__ = ["Batch", "BatchLine"]

#: Seconds by which a timer may go off too early.
EARLY: Final = 0.001


class Batch:
    """Messages that are handled, answered and handled again as one.

    Attributes:
        delays: seconds until each further call of the handler; None before the first failure.
    """

    __slots__ = ("delays", "messages")

    def __init__(self, messages: list[Any]) -> None:
        self.messages = messages
        self.delays: Iterator[float] | None = None


class BatchLine(Line):
    """A line that gives its workers batches.

    A batch is due when it is full, or when its oldest message has waited long enough.

    Arguments:
        size: messages of a full batch.
        interval: seconds that the oldest one waits.
    """

    __slots__ = ("_arrivals", "_interval", "_ready", "_size_of_batch", "_timer")

    def __init__(
        self,
        pool: WorkerPool,
        run: Callable[[Any], None],
        limit: int,
        size: int,
        interval: float,
    ) -> None:
        super().__init__(pool, run, limit)
        self._size_of_batch = size
        self._interval = interval
        #: When each message of the inbox came.
        self._arrivals: deque[float] = deque()
        #: Batches that shall be handled again now.
        self._ready: deque[Batch] = deque()
        self._timer: Any = None

    def put(self, message: Any) -> None:
        """Take a message over.  In the reader."""
        self.received += 1
        self.last_at = now = monotonic()
        self.inbox.append(message)
        self._arrivals.append(now)
        if len(self.inbox) >= self._size_of_batch:
            self.stir()
        elif self._timer is None and not self.is_held:
            self._start_timer(self._interval)

    def stir(self) -> None:
        """Call for a worker if a batch is due, else look again when one may be."""
        super().stir()
        if self._arrivals and self._timer is None and not self.is_held and not self._is_called:
            left = self._arrivals[0] + self._interval - monotonic()
            if left > 0.0:
                self._start_timer(left)

    def _start_timer(self, seconds: float) -> None:
        self._timer = get_hub().loop.timer(seconds)
        self._timer.start(self._on_due, update=True)

    def _on_due(self) -> None:
        # In the hub.
        self._stop_timer()
        self.stir()

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
        return bool(arrivals) and monotonic() >= arrivals[0] + self._interval - EARLY

    def _take(self) -> Any:
        if self._ready:
            return self._ready.popleft()
        count = min(len(self.inbox), self._size_of_batch)
        batch = Batch([self.inbox.popleft() for _ in range(count)])
        for _ in range(count):
            self._arrivals.popleft()
        self._stop_timer()
        return batch

    def unanswered(self) -> Iterator[tuple[Any, bool]]:
        """All messages that are here, and whether a handler has begun with them.  Never switches."""
        yield from super().unanswered()
        for batch in self._ready:
            yield from ((message, True) for message in batch.messages)

    def _messages_of(self, load: Batch) -> list[Any]:
        return load.messages

    def _size(self, load: Batch) -> int:
        return len(load.messages)

    def _put_first(self, load: Batch) -> None:
        self._ready.append(load)

    def hurry(self) -> None:
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
        self._ready = deque(each for each in self._ready if each.messages)
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
        self.recall()
        while self._ready:
            messages = self._ready[0].messages
            while messages:
                yield messages.pop(0), True
            self._ready.popleft()
        while self.inbox:
            self._arrivals.popleft()
            yield self.inbox.popleft(), False

    def forget(self) -> None:
        """After a fork, in the child: the messages are the parent's."""
        super().forget()
        self._stop_timer()
        self._ready.clear()
        self._arrivals.clear()
