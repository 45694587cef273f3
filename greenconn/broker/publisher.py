"""Publishing over one channel: a target, a message that goes there, and a result that waits.

Where a message goes, and how it gets there, is written for each kind of broker; what is the same for all
of them is here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Generic, Protocol, TypeVar

from gevent import get_hub

from greenconn.abc import DeadlineLike
from greenconn.broker.port import NoQueue, QueueFull
from greenconn.exceptions import PublishNacked, PublishTimeout, Unroutable
from greenconn.green.deadline import NEVER, Deadline
from greenconn.green.slot import Slot
from greenconn.transport.virtual.life import ChannelState
from greenconn.transport.virtual.port import ChannelPort
from greenconn.transport.virtual.publishing import (
    Decided,
    Envelope,
    no_immediate,
    return_message,
    unroutable,
)

__all__ = ["ChannelPublisher", "CopyOutcomes", "PublishingLink", "StoredResult"]

_OPEN = ChannelState.OPEN

M = TypeVar("M")
T = TypeVar("T")


class PublishingOptions(Protocol):
    """The options of a publisher."""

    @property
    def confirm_timeout(self) -> float | None: ...


class PublishingLink(Protocol):
    """The link of a publisher."""

    @property
    def options(self) -> PublishingOptions: ...
    @property
    def where(self) -> str: ...
    @property
    def lost(self) -> BaseException | None: ...


class ChannelPublisher(ABC, Generic[M, T]):
    """The publisher of one channel: messages of the type *M*, to targets of the type *T*.

    Arguments:
        channel: is closed by what the broker refuses.
        link: stores the messages.
    """

    def __init__(self, channel: ChannelPort, link: PublishingLink) -> None:
        self._channel = channel
        self.link = link
        self._hub = channel.connection.home.hub
        #: Seconds that a publish may take where its caller gives no time; None: no limit.
        self.confirm_timeout = link.options.confirm_timeout

    # -- what each kind of broker writes

    @abstractmethod
    def _target(
        self,
        message: M | Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: DeadlineLike | None,
    ) -> T | None:
        """Return where a message goes, and in which form; None: nowhere.  May switch.

        Raises:
            ChannelError: the broker refuses; the channel is closed.
        """

    @abstractmethod
    def _send(self, target: T, routing_key: str, slot: Slot[Any]) -> None:
        """Send a message; *slot* gets an Exception, or something else when the broker has it.

        :class:`NoQueue` and :class:`QueueFull` are understood.  May switch for a large one.
        """

    @abstractmethod
    def error(self, outcome: Exception, what: str) -> BaseException:
        """Return the exception that an outcome stands for; what ends the link ends it."""

    @abstractmethod
    def flush(self, timeout: float | None) -> None:
        """Return when the broker has all that was published and answered.  May switch."""

    @abstractmethod
    def end(self) -> None:
        """Note that the channel has ended.  Never switches."""

    def _shown(self, message: M | Envelope) -> Envelope:
        """Return kombu's form of a message that comes back."""
        return message  # type: ignore[return-value]

    # -- publishing

    def limited(self, deadline: DeadlineLike | None) -> DeadlineLike | None:
        """Return *deadline*, or the connection's ``confirm_timeout`` where it has no end."""
        if deadline is not None and deadline.timeout is not None:
            return deadline
        limit = self.confirm_timeout
        return None if limit is None else Deadline(limit)

    def publish(
        self,
        message: M | Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: Deadline | None,
    ) -> None:
        """Publish *message* and return when it is stored.  May switch."""
        result = self.begin(message, exchange, routing_key, mandatory, immediate, deadline)
        try:
            result.wait(deadline)
        except PublishNacked:
            pass  # only a caller that asks for a confirm gets it
        except Unroutable:
            return_message(self._channel, self._shown(message), exchange, routing_key)

    def begin(
        self,
        message: M | Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: DeadlineLike | None,
    ) -> StoredResult | Decided:
        """Publish *message*; the result's ``wait`` tells what became of it.  May switch."""
        channel = self._channel
        if (
            get_hub() is not self._hub
            or self.link.lost is not None
            or channel.state_of_life is not _OPEN
        ):
            channel.check_open()
        if immediate:
            raise no_immediate()
        if self.confirm_timeout is not None:
            deadline = self.limited(deadline)
        target = self._target(message, exchange, routing_key, mandatory, deadline)
        if target is None:
            return Decided(unroutable(exchange, routing_key) if mandatory else None)
        slot: Slot[Any] = Slot()
        self._send(target, routing_key, slot)
        return StoredResult(self, slot, exchange, routing_key, mandatory, deadline)


class CopyOutcomes:
    """The outcomes of the copies of one message, one for each queue that it goes to.

    Arguments:
        count: copies.
        slot: gets None, or why the message is not stored.

    Attributes:
        is_begun: one of them is on its way.
    """

    __slots__ = ("_error", "_is_stored", "_left", "is_begun", "slot")

    def __init__(self, count: int, slot: Slot[Any]) -> None:
        self.slot = slot
        self.is_begun = False
        self._left = count
        self._is_stored = False
        self._error: Exception | None = None

    def note(self, error: Exception | None) -> None:
        """Note why one copy is not stored; None: it is.  Never switches."""
        self._left -= 1
        if error is None:
            self._is_stored = True
        elif self._error is None or isinstance(self._error, NoQueue):
            self._error = error
        if not self._left:
            error = self._error
            # Where others have it, it does not matter that one queue is not there.
            self.slot.offer(None if self._is_stored and isinstance(error, NoQueue) else error)


class StoredResult:
    """A publish whose outcome is waited for.

    Arguments:
        slot: gets the outcome.
        limit: of the publish; a wait without an end ends then.  None: it has none.
    """

    __slots__ = ("_exchange", "_limit", "_mandatory", "_publisher", "_routing_key", "_slot")

    def __init__(
        self,
        publisher: ChannelPublisher[Any, Any],
        slot: Slot[Any],
        exchange: str,
        routing_key: str,
        mandatory: bool,
        limit: DeadlineLike | None,
    ) -> None:
        self._publisher = publisher
        self._limit = limit
        self._slot = slot
        self._exchange = exchange
        self._routing_key = routing_key
        self._mandatory = mandatory

    def wait(self, deadline: DeadlineLike | None = None) -> None:
        """Return when the broker has the message.  May switch.

        Arguments:
            deadline: None, or one without an end, is that of the publish: the connection's
                ``confirm_timeout`` from its beginning, where its caller gave no time either.

        Raises:
            Unroutable: it was mandatory, and reached no queue.
            PublishNacked: a queue is full and refuses more.
            PublishTimeout: nothing was heard before the deadline; the broker may have it.
            RecoverableConnectionError: the connection went first; the broker may have it.
            Exception: the broker refused it.
        """
        publisher = self._publisher
        # Without an end it waits as long as the link lives, which watches its broker by itself.
        if deadline is None or deadline.timeout is None:
            deadline = self._limit
        try:
            outcome = self._slot.wait(deadline or NEVER)  # type: ignore[arg-type]
        except TimeoutError as exc:
            if deadline is None or deadline.timeout is None or not self._slot.has_left:
                raise
            raise PublishTimeout(
                f"{publisher.link.where} did not confirm a publish to {self._what()} within "
                f"{deadline.timeout:g} s: it may have the message",
                maybe_delivered=True,
            ) from exc
        if not isinstance(outcome, Exception):
            return
        if isinstance(outcome, NoQueue):
            if self._mandatory:
                raise unroutable(self._exchange, self._routing_key)
        elif isinstance(outcome, QueueFull):
            raise PublishNacked(f"a queue is full and refused the message ({self._what()})")
        else:
            raise publisher.error(outcome, f"publishing to {self._what()}")

    def _what(self) -> str:
        if not self._exchange:
            return self._routing_key
        return f"exchange {self._exchange!r}, routing key {self._routing_key!r}"
