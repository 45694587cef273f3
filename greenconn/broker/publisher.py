"""Publishing over one channel: a target, a message that goes there, and a result that waits.

Where a message goes and what becomes of it is decided here for all brokers; the form of its target, and
how it gets there, is written for each kind of them.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from gevent import get_hub

from greenconn.broker.dead_letters import carbon_copies
from greenconn.broker.port import NoQueue, QueueFull
from greenconn.broker.settlement_port import HeldMessage
from greenconn.exceptions import (
    ChannelError,
    ContentTooLarge,
    PublishNacked,
    PublishTimeout,
    Unroutable,
)
from greenconn.green.deadline import NEVER, Deadline, TimeLimit
from greenconn.green.slot import Slot
from greenconn.transport.refusal import Method
from greenconn.transport.virtual.channel import ChannelState
from greenconn.transport.virtual.publishing import (
    Envelope,
    no_immediate,
    queue_full,
    return_message,
    route_text,
    too_large,
    undeliverable,
    unroutable,
)

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel
    from greenconn.broker.leased_link import LeasedLink


_OPEN = ChannelState.OPEN
_NO_QUEUE = NoQueue()

M = TypeVar("M")
T = TypeVar("T")


L = TypeVar("L", bound="LeasedLink")


class Completion(Protocol):
    """The receiver of the outcome of a message."""

    @property
    def has_left(self) -> bool:
        """Whether the message is not to be stored any more, if it was not sent yet."""

    def offer(self, value: Any) -> bool:
        """Take an Exception, or something else when the broker has the message.  Never switches.

        :class:`NoQueue` and :class:`QueueFull` are understood.
        """


class ChannelPublisher(ABC, Generic[L, M, T]):
    """The publisher of one channel: messages of the type *M*, to targets of the type *T*.

    Arguments:
        channel: is closed by what the broker refuses.
        link: stores the messages.
    """

    def __init__(self, channel: StoreChannel[Any], link: L) -> None:
        self._channel = channel
        self.link = link
        self._hub = channel.connection.hub_affinity.hub
        #: Seconds that a publish may take where its caller gives no time; None: no limit.
        self.confirm_timeout = link.options.confirm_timeout
        #: Bytes of a body, at most.
        self._limit = link.options.max_message_size

    # -- what each kind of broker writes

    @abstractmethod
    def _target(
        self,
        message: M | Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: Deadline | None,
    ) -> T | None:
        """Return where a message goes, and in which form; None: nowhere.  May switch.

        What is not plain is left to :meth:`_routed`.

        Raises:
            ChannelError: the broker refuses.
        """

    @abstractmethod
    def _addressed(self, message: M, exchange: str, routing_key: str, queues: Sequence[str]) -> T:
        """Return the target that stores a message in *queues*.  May switch.

        Raises:
            ChannelError: the broker refuses.
        """

    @abstractmethod
    def _put(self, target: T, queue: str, done: Completion, deadline: Deadline | None) -> None:
        """Send a message; *done* gets the outcome.  May switch for a large one.

        Arguments:
            queue: where a plain message goes.
            deadline: when it returns at the latest; None: the link watches its broker.
        """

    def replacement(
        self, message: M | Envelope, queue: str
    ) -> Callable[[HeldMessage], object] | None:
        """Return what stores *message* in the place of a held one of *queue*.  May switch.

        None: the broker cannot do both in one step.  What is returned never switches.

        Raises:
            ChannelError: the broker refuses.
        """
        return None

    def flush(self, timeout: float | None) -> None:
        """Return when the broker has the acks.  (A publish returns when it has the message.)

        May switch.

        Raises:
            TimeoutError: it was not within *timeout* seconds, or ``reply_timeout``.
        """
        self._channel.check_open()
        self.link.flush_settlements(Deadline(timeout))

    def end(self) -> None:
        """Note that the channel has ended.  Never switches."""

    def error(self, outcome: Exception, what: str) -> BaseException:
        """Return the exception that an outcome stands for; what ends the link ends it."""
        return outcome

    def _begin_last_resort(self, queue: str) -> None:
        """See that the queue for messages without another one exists.  May switch."""

    def _shown(self, message: M | Envelope) -> Envelope:
        """Return kombu's form of a message that comes back."""
        return message  # type: ignore[return-value]

    # -- publishing

    def limited(self, deadline: Deadline | None) -> Deadline | None:
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
        """Publish *message* and return when it is stored, or a full queue has refused it.  May switch.

        Raises:
            PublishNacked: the store accepts no messages now.
        """
        slot: Slot[Any] = Slot()
        limit = self.send(message, exchange, routing_key, mandatory, immediate, deadline, slot)
        try:
            self.wait_stored(slot, exchange, routing_key, mandatory, limit)
        except PublishNacked:
            # As in AMQP, only a caller that asks for a confirm learns that a queue is full.
            if not (slot.has_value and isinstance(slot.value, QueueFull)):
                raise
        except Unroutable:
            return_message(self._channel, self._shown(message), exchange, routing_key)

    def begin(
        self,
        message: M | Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: Deadline | None,
    ) -> StoredResult:
        """Publish *message*; the result's ``wait`` tells what became of it.  May switch."""
        slot: Slot[Any] = Slot()
        limit = self.send(message, exchange, routing_key, mandatory, immediate, deadline, slot)
        return StoredResult(self, slot, exchange, routing_key, mandatory, limit)

    def send(
        self,
        message: M | Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: Deadline | None,
        done: Completion,
    ) -> Deadline | None:
        """Send *message*; *done* gets the outcome.  May switch.

        Returns:
            The deadline of the publish: *deadline*, or the connection's ``confirm_timeout`` from now on.
        """
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
        try:
            target = self._target(message, exchange, routing_key, mandatory, deadline)
        except ContentTooLarge:
            raise  # nothing was sent
        except ChannelError as exc:
            channel.fail(exc)
            raise
        if target is None:
            done.offer(_NO_QUEUE)
        else:
            self._put(target, routing_key, done, deadline)
        return deadline

    def wait_stored(
        self,
        slot: Slot[Any],
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: Deadline | None,
    ) -> None:
        """Return when the broker has a message.  May switch.

        Arguments:
            slot: gets the outcome.
            deadline: None: it waits as long as the link lives, which watches its broker by itself.

        Raises:
            Exception: see :meth:`StoredResult.wait`.
        """
        try:
            outcome = slot.wait(deadline or NEVER)
        except TimeoutError as exc:
            if deadline is None or deadline.timeout is None or not slot.has_left:
                raise
            raise PublishTimeout(
                f"{self.link.where} did not confirm a publish to {route_text(exchange, routing_key)} "
                f"within {deadline.timeout:g} s: it may have the message",
                maybe_delivered=True,
            ) from exc
        if not isinstance(outcome, Exception):
            return
        if isinstance(outcome, NoQueue):
            if mandatory:
                raise unroutable(exchange, routing_key)
        elif isinstance(outcome, QueueFull):
            raise queue_full(exchange, routing_key)
        else:
            raise self.error(outcome, f"publishing to {route_text(exchange, routing_key)}")

    def _routed(
        self,
        message: M,
        size: int,
        headers: Mapping[str, Any],
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: Deadline | None,
    ) -> T | None:
        """Return the target of a message that is not plain; None: it goes nowhere.  May switch.

        Arguments:
            size: of the body, in bytes.

        Raises:
            ContentTooLarge: the body is above ``max_message_size``.
            ChannelError: the broker refuses.
            TimeoutError: the broker did not reply to a request before the deadline.
        """
        if size > self._limit:
            raise too_large(size, self._limit)
        link = self.link
        if not exchange:
            for key in (routing_key, *carbon_copies(headers, "CC", "BCC")):
                link.directory.check_name(key, Method.BASIC_PUBLISH)
        with TimeLimit(deadline or NEVER, f"publishing to {link.where}"):
            queues = link.routing.routes(exchange, routing_key, headers, mandatory)
            if not queues:
                last = link.options.deadletter_queue
                if mandatory or last is None:
                    return None
                warnings.warn(undeliverable(exchange, routing_key, last), stacklevel=5)
                self._begin_last_resort(last)
                queues = (last,)
            target = self._addressed(message, exchange, routing_key, queues)
        self._channel.check_open()  # it may have been closed meanwhile
        return target


class CopyOutcomes:
    """The outcomes of the copies of one message, one for each queue that it goes to.

    Arguments:
        count: copies.
        done: gets None, or why the message is not stored.

    Attributes:
        is_begun: one of them is on its way.
    """

    __slots__ = ("_error", "_is_stored", "_left", "done", "is_begun")

    def __init__(self, count: int, done: Completion) -> None:
        self.done = done
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
            self.done.offer(None if self._is_stored and isinstance(error, NoQueue) else error)


class StoredResult:
    """A publish whose outcome is waited for.

    Arguments:
        slot: gets the outcome.
        limit: of the publish; a wait without an end ends then.  None: it has none.
    """

    __slots__ = ("_exchange", "_limit", "_mandatory", "_publisher", "_routing_key", "_slot")

    def __init__(
        self,
        publisher: ChannelPublisher[Any, Any, Any],
        slot: Slot[Any],
        exchange: str,
        routing_key: str,
        mandatory: bool,
        limit: Deadline | None,
    ) -> None:
        self._publisher = publisher
        self._limit = limit
        self._slot = slot
        self._exchange = exchange
        self._routing_key = routing_key
        self._mandatory = mandatory

    def wait(self, deadline: Deadline | None = None) -> None:
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
        if deadline is None or deadline.timeout is None:
            deadline = self._limit
        self._publisher.wait_stored(
            self._slot, self._exchange, self._routing_key, self._mandatory, deadline
        )
