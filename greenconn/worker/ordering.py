"""Order by key: the messages of a key are handled one after the other, their retries included.

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

from collections import deque
from collections.abc import Callable, Hashable
from contextlib import nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar

from gevent.lock import Semaphore

from greenconn.green.deadline import NEVER
from greenconn.green.hub import PerHub
from greenconn.green.slot import Slot
from greenconn.worker.dispatch import NotBegun, Parked

if TYPE_CHECKING:
    from greenconn.message import Message

    H = TypeVar("H", bound=Callable[..., Any])

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
