"""Publishing over one channel: a target, a message that goes there, and a result that waits.

Where a message goes and what becomes of it is decided here for all brokers; the form of its target, and
how it gets there, is written for each kind of them.

Messages that many greenlets publish to a store at the same time are stored together, and no greenlet
waits for another: the first message is sent at once, and those that come while that call is under way
make up the next call.  A killed caller leaves nothing behind: its message is dropped if it was not sent
yet, else it is stored.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from operator import itemgetter
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, NamedTuple, Protocol, TypeVar

from gevent import get_hub, sleep
from msgspec import Struct, to_builtins
from msgspec.structs import replace

from greenconn.broker.entities import ArgumentOf
from greenconn.broker.envelope import Envelope, check_headers, copied, encoded, prepared
from greenconn.broker.errors import Method
from greenconn.broker.port import Entry, HeldMessage, NoQueue, QueueFull, StaleRoute
from greenconn.broker.queues import Declaration
from greenconn.broker.settlements import carbon_copies, visible_headers
from greenconn.delays import delay_of
from greenconn.encoding import as_text
from greenconn.exceptions import (
    AMQPNotImplementedError,
    ChannelError,
    ContentTooLarge,
    PublishNacked,
    PublishTimeout,
    Unroutable,
)
from greenconn.green.deadline import NEVER, Deadline, TimeLimit
from greenconn.green.slot import Slot
from greenconn.green.supervisor import current, end_all, spawn
from greenconn.message import Message

if TYPE_CHECKING:
    from gevent import Greenlet

    from greenconn.broker.channel import StoreChannel
    from greenconn.broker.link import LeasedLink, StoreLink


class UndeliverableWarning(UserWarning):
    """A message had no queue to go to, and went to the queue of last resort."""


class PublishOutcome:
    """The confirm of a publish that was decided at once."""

    __slots__ = ("_error",)

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def wait(self, deadline: Deadline | None = None) -> None:
        """Return when the broker has the message.  Never switches.

        Raises:
            Unroutable, PublishNacked: it has not.
        """
        if self._error is not None:
            raise self._error


def warn_of_message(
    channel: StoreChannel[Any], message: Envelope, exchange: str, routing_key: str
) -> None:
    """Log what a message has that should count, and does not here.  Never switches."""
    properties, headers = message["properties"], message["headers"] or {}
    given = {name: properties.get(name) or None for name in ("priority", "expiration")}
    given.update((name, headers.get(name)) for name in ("x-delay", "CC", "BCC"))
    channel.warn_of_unsupported(ArgumentOf.MESSAGE, exchange or routing_key, given)


_DONE: Final = PublishOutcome(None)


class SynchronousPublisher(ABC):
    """The publisher of one channel whose publishes are decided when they return.

    Arguments:
        channel: of the publisher.
        is_confirming: every publish tells what became of it.
    """

    #: Makes a message to publish.
    prepare: Callable[..., Envelope] = staticmethod(prepared)

    def __init__(self, channel: StoreChannel[Any], is_confirming: bool = False) -> None:
        self._channel = channel
        self._is_confirming = is_confirming

    @abstractmethod
    def _decide(
        self, message: Envelope, exchange: str, routing_key: str, mandatory: bool, immediate: bool
    ) -> Exception | None:
        """Publish *message*, and return why the broker does not have it; None: it has.  May switch.

        Raises:
            ChannelError: the broker refuses.
        """

    def publish(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: Deadline | None,
    ) -> None:
        """Publish *message*.  May switch, before anything is published."""
        error = self._decide(message, exchange, routing_key, mandatory, immediate)
        if error is None:
            return
        if isinstance(error, Unroutable):
            if not self._is_confirming:
                return_message(self._channel, error, message)
                return
            if self.give_back(error, message):
                return
        if self._is_confirming:
            raise error

    def begin(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        deadline: Deadline | None,
    ) -> PublishOutcome:
        """Publish *message*; the result's ``wait`` tells what became of it.  May switch."""
        error = self._decide(message, exchange, routing_key, mandatory, immediate)
        return _DONE if error is None else PublishOutcome(error)

    def give_back(self, error: Unroutable, message: Envelope) -> bool:
        """Call the channel's handlers of returned messages; False: it has none.  May switch."""
        return call_handlers(self._channel, (error, message))

    def replacement(self, message: Envelope, queue: str) -> None:  # noqa: B027
        """Return None: the broker does not store a message in the place of a held one."""

    def flush(self, timeout: float | None) -> None:
        """Raise unless the channel can be used: the broker has all that was published.

        Never switches.
        """
        self._channel.check_open()

    def end(self) -> None:  # noqa: B027
        """Note that the channel has ended: nothing was begun that it would have to finish."""


def return_message(channel: StoreChannel[Any], error: Unroutable, message: Envelope) -> None:
    """Let an event give a mandatory message back that reached no queue.  Never switches."""
    channel.connection.put_return(
        partial(call_handlers, channel),
        (error, message),
        len(message["body"]),
        has_listener=bool(channel.events["basic_return"]),
    )


def call_handlers(channel: StoreChannel[Any], returned: tuple[Unroutable, Envelope]) -> bool:
    """Call the channel's handlers with a returned message; False: it has none.  May switch."""
    error, envelope = returned
    handlers: list[Callable[..., Any]] = list(channel.events["basic_return"])
    for handler in handlers:
        message = Message(
            body=as_text(envelope["body"], envelope["content-encoding"]),
            content_type=envelope["content-type"],
            content_encoding=envelope["content-encoding"],
            headers=copied(envelope["headers"]),
            properties=copied(envelope["properties"]),
            delivery_info={"exchange": error.exchange, "routing_key": error.routing_key},
        )
        handler(error, error.exchange, error.routing_key, message)
    return bool(handlers)


def unroutable(exchange: str, routing_key: str) -> Unroutable:
    return Unroutable(
        f"NO_ROUTE - no queue is bound to exchange {exchange!r} for routing key {routing_key!r}",
        exchange=exchange,
        routing_key=routing_key,
    )


def route_text(exchange: str, routing_key: str) -> str:
    """Return where a message was to go, for messages."""
    return f"exchange {exchange!r}, routing key {routing_key!r}" if exchange else routing_key


def queue_full(exchange: str, routing_key: str) -> PublishNacked:
    text = route_text(exchange, routing_key)
    return PublishNacked(f"a queue is full and refused the message ({text})")


def undeliverable(exchange: str, routing_key: str, queue: str) -> UndeliverableWarning:
    """Return the warning for a message that goes to *queue*, that of last resort."""
    return UndeliverableWarning(
        f"Message could not be delivered: no queue of exchange {exchange!r} for routing key "
        f"{routing_key!r}; it went to {queue!r}"
    )


def too_large(size: int, limit: int) -> ContentTooLarge:
    """Return the error of a body of *size* bytes where *limit* is the most."""
    return ContentTooLarge(f"body of {size} bytes is above max_message_size ({limit} bytes)")


def no_immediate() -> AMQPNotImplementedError:
    return AMQPNotImplementedError("NOT_IMPLEMENTED - immediate=True", Method.BASIC_PUBLISH.value)


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


class KnownRoutes:
    """The messages of one channel that were sent by what was known of the exchanges.

    Where that has changed, they are routed once more, in their order, and nothing that is published
    to an exchange over this channel overtakes them.
    """

    def __init__(self) -> None:
        #: Those of which it is not known whether that has changed, and the version by which they went.
        self._count = 0
        self._version = 0
        self._late: list[Callable[[], object]] = []
        self._is_routing = False
        self._waiting: list[Slot[None]] = []

    def must_wait(self, version: int) -> bool:
        """Return whether something was sent by another version, and is not where it belongs.

        Arguments:
            version: by which a message is to be sent; 0: by what was read for it.
        """
        return self._count > 0 and self._version != version

    def wait(self, version: int) -> None:
        """Return when :meth:`must_wait` is over.  May switch."""
        while self.must_wait(version):
            slot: Slot[None] = Slot()
            self._waiting.append(slot)
            slot.wait(NEVER)

    def begin(self, version: int) -> None:
        """Note that a message is sent.  Never switches."""
        self._count += 1
        self._version = version

    def end(self) -> None:
        """Note that a message is where it belongs.  Never switches."""
        self._count -= 1
        if not self._count:
            waiting, self._waiting = self._waiting, []
            for slot in waiting:
                slot.offer(None)

    def route_later(self, route: Callable[[], object]) -> None:
        """Call *route*, which may switch and ends a message, behind others.  Never switches itself."""
        self._late.append(route)
        if not self._is_routing:
            self._is_routing = True
            spawn("publish", self._route)

    def _route(self) -> None:
        try:
            while self._late:
                self._late.pop(0)()
        finally:
            self._is_routing = bool(self._late)
            if self._is_routing:  # this one was interrupted
                spawn("publish", self._route)


class RoutedOutcome:
    """The outcome of a message that was sent by what was known of the exchanges.

    Arguments:
        routes: of the channel.
        version: of what was known.
        is_stale: whether an outcome says that it has changed.
        again: routes the message once more and sends it; may switch.
        done: gets the outcome.
    """

    __slots__ = ("_again", "_done", "_is_stale", "_routes")

    def __init__(
        self,
        routes: KnownRoutes,
        version: int,
        is_stale: Callable[[Any], bool],
        again: Callable[[Completion], object],
        done: Completion,
    ) -> None:
        self._routes: KnownRoutes | None = routes
        routes.begin(version)
        self._is_stale = is_stale
        self._again = again
        self._done = done

    @property
    def has_left(self) -> bool:
        """Whether the message is not to be stored any more."""
        return self._done.has_left

    def offer(self, value: Any) -> bool:
        """Take the outcome.  Never switches."""
        if self._routes is not None and self._is_stale(value):
            self._routes.route_later(self._route)
            return True
        self._end()
        return self._done.offer(value)

    def _end(self) -> None:
        routes, self._routes = self._routes, None
        if routes is not None:
            routes.end()

    def __del__(self) -> None:
        # Its publisher was interrupted before it had sent it: others need not wait for it.
        self._end()

    def _route(self) -> None:
        try:
            self._again(self._done)
        except BaseException as exc:
            is_error = isinstance(exc, Exception)
            self._done.offer(exc if is_error else PublishNacked(f"interrupted by {exc!r}"))
            if not is_error:
                raise
        finally:
            self._end()


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
        self._is_confirming = link.options.confirm_publish
        self._known_routes = KnownRoutes()

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
            PublishNacked: the store accepts no messages now; with ``confirm_publish`` also: a full
                queue has refused it.
            Unroutable: with ``confirm_publish``: it is mandatory, and reached no queue, and the channel
                has no handler of returned messages.
        """
        result = self.begin(message, exchange, routing_key, mandatory, immediate, deadline)
        try:
            result.wait()
        except PublishNacked:
            # As in AMQP, only a caller that asks for a confirm learns that a queue is full.
            is_full = result.slot.has_value and isinstance(result.slot.value, QueueFull)
            if self._is_confirming or not is_full:
                raise
        except Unroutable as exc:
            if not self._is_confirming:
                return_message(self._channel, exc, self._shown(message))
            elif not self.give_back(exc, message):
                raise

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

    def give_back(self, error: Unroutable, message: M | Envelope) -> bool:
        """Call the channel's handlers of returned messages; False: it has none.  May switch."""
        return call_handlers(self._channel, (error, self._shown(message)))

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
        if get_hub() is not self._hub or self.link.lost is not None or channel.cause is not None:
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

    def _routed(
        self,
        message: M,
        size: int,
        headers: Mapping[str, Any],
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: Deadline | None,
        is_again: bool = False,
    ) -> T | None:
        """Return the target of a message that is not plain; None: it goes nowhere.  May switch.

        Arguments:
            size: of the body, in bytes.
            is_again: it was sent before, by what was known of the exchanges.

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
            queues = self._routes(exchange, routing_key, headers, mandatory)
            if not queues:
                last = link.options.deadletter_queue
                if mandatory or last is None:
                    return None
                warnings.warn(undeliverable(exchange, routing_key, last), stacklevel=5)
                self._begin_last_resort(last)
                queues = (last,)
            target = self._addressed(message, exchange, routing_key, queues)
        if exchange and not is_again:
            self._wait_in_order(0, deadline)
        self._channel.check_open()  # it may have been closed meanwhile
        return target

    def _wait_in_order(self, version: int, deadline: Deadline | None) -> None:
        """Wait for what was sent by another version of the exchanges.  May switch.

        Raises:
            TimeoutError: it was not where it belongs before the deadline.
        """
        if self._known_routes.must_wait(version):
            with TimeLimit(deadline or NEVER, f"publishing to {self.link.where}"):
                self._known_routes.wait(version)

    def _routes(
        self, exchange: str, routing_key: str, headers: Mapping[str, Any], mandatory: bool
    ) -> Sequence[str]:
        """Return the queues that a message goes to; see :meth:`Routing.routes`.  May switch."""
        return self.link.routing.routes(exchange, routing_key, headers, mandatory)


class CopyOutcomes:
    """The outcomes of the copies of one message, one for each queue that it goes to.

    It takes the outcome of each copy, as a :class:`Completion`.

    Arguments:
        count: copies.
        done: gets None, or why the message is not stored.

    Attributes:
        is_begun: one of them is on its way, so that the others are stored, too.
    """

    __slots__ = ("_done", "_error", "_is_stored", "_left", "is_begun")

    def __init__(self, count: int, done: Completion) -> None:
        self._done = done
        self.is_begun = False
        self._left = count
        self._is_stored = False
        self._error: Exception | None = None

    @property
    def has_left(self) -> bool:
        """Whether no copy is to be stored any more."""
        return self._done.has_left and not self.is_begun

    def offer(self, value: Any) -> bool:
        """Take the outcome of one copy: an Exception, or something else if it is stored.

        Never switches.
        """
        self._left -= 1
        if not isinstance(value, Exception):
            self._is_stored = True
        elif self._error is None or isinstance(self._error, NoQueue):
            self._error = value
        if self._left:
            return True
        error = self._error
        # Where others have it, it does not matter that one queue is not there.
        return self._done.offer(None if self._is_stored and isinstance(error, NoQueue) else error)


class StoredResult(Struct, eq=False):
    """A publish whose outcome is waited for.

    Attributes:
        slot: gets the outcome.
        limit: of the publish; a wait without an end ends then.  None: it has none.
    """

    publisher: ChannelPublisher[Any, Any, Any]
    slot: Slot[Any]
    exchange: str
    routing_key: str
    mandatory: bool
    limit: Deadline | None

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
            deadline = self.limit
        publisher, slot = self.publisher, self.slot
        exchange, routing_key = self.exchange, self.routing_key
        try:
            # Without a deadline it waits as long as the link lives, which watches its broker by itself.
            outcome = slot.wait(deadline or NEVER)
        except TimeoutError as exc:
            if deadline is None or deadline.timeout is None or not slot.has_expired:
                raise
            raise PublishTimeout(
                f"{publisher.link.where} did not confirm a publish to "
                f"{route_text(exchange, routing_key)} within {deadline.timeout:g} s: it may have the "
                f"message",
                maybe_delivered=True,
            ) from exc
        if not isinstance(outcome, Exception):
            return
        if isinstance(outcome, NoQueue):
            if self.mandatory:
                raise unroutable(exchange, routing_key)
        elif isinstance(outcome, QueueFull):
            raise queue_full(exchange, routing_key)
        else:
            raise publisher.error(outcome, f"publishing to {route_text(exchange, routing_key)}")


#: Kinds of messages that a channel remembers.
KEPT: Final = 1024
_ENTRY: Final = itemgetter(1)
#: Bytes that a message takes beside its body, about.
OVERHEAD: Final = 256


def _is_stale(outcome: Any) -> bool:
    return isinstance(outcome, StaleRoute)


class KnownRoute(NamedTuple):
    """The target of a message to an exchange whose bindings need not be read.

    Attributes:
        entry: the message in the one queue that it goes to.
        again: publishes it where they have changed.
    """

    entry: Entry
    again: Callable[[Completion], object]


class StorePublisher(ChannelPublisher["StoreLink", Envelope, "Sequence[Entry] | KnownRoute"]):
    """The publisher of one channel to a store."""

    #: Makes a message to publish.
    prepare = staticmethod(prepared)
    #: Whether a message may be stored by what is known of the exchanges, if the store agrees.
    uses_known_routes: ClassVar[bool] = True

    def __init__(self, channel: StoreChannel[Any], link: StoreLink) -> None:
        super().__init__(channel, link)
        self._keeps_body_apart = link.store.keeps_body_apart
        #: What messages that differ in their bodies only share, where the body is kept apart: their
        #: envelope, and the head of their entries.
        self._shared: dict[tuple[Any, ...], tuple[Envelope, str]] = {}

    def _put(
        self,
        target: Sequence[Entry] | KnownRoute,
        queue: str,
        done: Completion,
        deadline: Deadline | None,
    ) -> None:
        if isinstance(target, KnownRoute):
            routes, entry = self._known_routes, target.entry
            done = RoutedOutcome(routes, entry.version, _is_stale, target.again, done)
            target = (entry,)
        self.link.put_batcher.put(target, done)

    def _target(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: Deadline | None,
    ) -> Sequence[Entry] | KnownRoute | None:
        size, headers = len(message["body"]), message["headers"]
        if headers and not self._keeps_body_apart:
            check_headers(headers)  # here, since the store takes those of others along
        has_copies = headers and ("CC" in headers or "BCC" in headers)
        if (
            exchange
            or size > self._limit
            or has_copies
            or routing_key not in self.link.directory.declared
        ):
            if exchange and self.uses_known_routes and size <= self._limit and not has_copies:
                known = self._known_route(message, exchange, routing_key, mandatory, deadline)
                if known is not None:
                    return known
            return self._routed(message, size, headers, exchange, routing_key, mandatory, deadline)
        return self._addressed(message, "", routing_key, (routing_key,))

    def _known_route(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        deadline: Deadline | None,
    ) -> KnownRoute | None:
        """Return the target by what is known of the exchanges; None: ask the store.  May switch."""
        headers = message["headers"]
        queues, version = self.link.routing.known_routes(exchange, routing_key, headers)
        if len(queues) != 1:
            return None
        (entry,) = self._addressed(message, exchange, routing_key, queues)
        self._wait_in_order(version, deadline)
        self._channel.check_open()  # it may have been closed meanwhile
        again = partial(self._send_again, message, exchange, routing_key, mandatory)
        return KnownRoute(replace(entry, version=version), again)

    def _send_again(
        self,
        message: Envelope,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        done: Completion,
    ) -> None:
        size, headers = len(message["body"]), message["headers"]
        try:
            target = self._routed(
                message, size, headers, exchange, routing_key, mandatory, None, is_again=True
            )
        except ChannelError as exc:
            self._channel.fail(exc)
            raise
        if target is None:
            done.offer(_NO_QUEUE)
        else:
            self._put(target, routing_key, done, None)

    def replacement(self, message: Envelope, queue: str) -> Callable[[HeldMessage], object] | None:
        link = self.link
        if not link.store.replaces_at_once:
            return None
        entries = self._target(message, "", queue, True, None)
        if entries is None or len(entries) != 1 or isinstance(entries, KnownRoute):
            return None
        return partial(link.settlements.replace, entries) if entries[0].delay else None

    def _addressed(
        self, message: Envelope, exchange: str, routing_key: str, queues: Sequence[str]
    ) -> Sequence[Entry]:
        body, headers, encoding = message["body"], message["headers"], message["content-encoding"]
        link = self.link
        if isinstance(body, str):
            body = body.encode() if encoding == "utf-8" else encoded(body, encoding)
        content_type, properties = message["content-type"], message["properties"]
        kind: tuple[Any, ...] | None = None
        if self._keeps_body_apart and not headers and _is_usual(properties):
            own = properties["delivery_mode"], properties["priority"]
            kind = (exchange, routing_key, content_type, encoding, *own)
            if kind in self._shared:
                shared, head = self._shared[kind]
                return link.entries({**shared, "body": body}, queues, head=head)
        info = {"exchange": exchange, "routing_key": routing_key}
        given = properties.get("delivery_info")
        if given:  # of a message that is sent on
            info = {**given, **info}
            info.pop("redelivered", None)
        properties = {**properties, "delivery_info": info}
        if not self._keeps_body_apart:  # as kombu reads it
            stored_as = properties["body_encoding"] = link.store.body_encoding
            properties["delivery_tag"] = link.tags.next().decode()
            if stored_as:
                body = to_builtins(body)  # as text in base 64
        envelope = {
            "body": body,
            "content-encoding": encoding,
            "content-type": content_type,
            "headers": visible_headers(headers) if headers else headers,
            "properties": properties,
        }
        entries = link.entries(envelope, queues, delay_of(headers) if headers else 0.0)
        if kind is not None:
            if len(self._shared) >= KEPT:
                self._shared.clear()
            self._shared[kind] = {**envelope, "body": b""}, entries[0].head
        return entries

    def _begin_last_resort(self, queue: str) -> None:
        if not self.link.directory.is_there(queue):
            self.link.directory.declare(queue, Declaration(durable=True))


def _is_usual(properties: Mapping[str, Any]) -> bool:
    """Return whether there are a delivery mode and a priority, and nothing else."""
    return (
        len(properties) == 2
        and properties.get("delivery_mode").__class__ is int
        and properties.get("priority").__class__ is int
    )


class PutBatcher:
    """The messages that the channels of one link publish."""

    def __init__(self, link: StoreLink) -> None:
        self._link = link
        self._pending: deque[tuple[Completion, Entry]] = deque()
        #: What each greenlet is storing.
        self._batches: dict[Greenlet[..., Any], list[tuple[Completion, Entry]]] = {}
        #: Greenlets that have nothing to store, for now.
        self._lingering = 0

    def put(self, entries: Sequence[Entry], done: Completion) -> None:
        """Store the entries of one message; *done* gets None, or why it is not.  Never switches."""
        if len(entries) > 1:
            done = CopyOutcomes(len(entries), done)
        for entry in entries:
            self._pending.append((done, entry))
        is_awaited = len(self._pending) <= self._lingering
        if not is_awaited and len(self._batches) < self._link.store.put_calls:
            self._start()

    def _start(self) -> None:
        greenlet = spawn("put", self._run)
        self._batches[greenlet] = []
        greenlet.rawlink(self._ended)

    @property
    def is_busy(self) -> bool:
        """Whether something is not stored yet."""
        return bool(self._pending) or any(self._batches.values())

    def stop(self, exc: BaseException) -> None:
        """Stop, as the link has ended: no message is stored any more.  Never switches."""
        pending, self._pending = self._pending, deque()
        for batch in (*self._batches.values(), pending):
            for done, _ in batch:
                done.offer(exc)
        end_all(self._batches)

    def _ended(self, greenlet: Greenlet[..., Any]) -> None:
        # In the hub.  A signal may have ended it, also before it began.
        if greenlet.exception is not None and self._link.lost is None:
            self._link.end_unexpectedly(greenlet.exception, "storing messages")
        self._batches.pop(greenlet, None)

    def _take(self, batch: list[tuple[Completion, Entry]]) -> None:
        """Add to *batch* what one call may store; a publisher that has left wants nothing any more."""
        store, pending = self._link.store, self._pending
        size = 0
        while pending and len(batch) < store.put_limit:
            done, entry = pending[0]
            if done.has_left:
                pending.popleft()
                done.offer(None)
                continue
            size += len(entry.envelope["body"]) + OVERHEAD
            if batch and size > store.put_bytes:
                break
            if isinstance(done, CopyOutcomes):
                done.is_begun = True
            # Without a call, behind which a signal could be raised: it is in one of them.
            batch += (pending[0],)
            del pending[0]

    def _run(self) -> None:
        greenlet = current()
        batch = self._batches.setdefault(greenlet, [])
        while self._pending or self._is_continued():
            self._take(batch)
            if batch:
                self._store(batch)
                batch.clear()
        del self._batches[greenlet]

    def _is_continued(self) -> bool:
        """Return whether there is more once those have run who waited for what is stored now.

        One greenlet that publishes in a row needs no new greenlet for each message.
        """
        self._lingering += 1
        try:
            sleep(0)
        finally:
            self._lingering -= 1
        return bool(self._pending)

    def _store(self, batch: list[tuple[Completion, Entry]]) -> None:
        link = self._link
        watch: Any = None
        seconds = link.options.reply_timeout
        if seconds is not None:
            watch = get_hub().loop.timer(seconds)
            watch.start(link.no_reply, "storing messages", update=True)
        try:
            errors = link.store.put(list(map(_ENTRY, batch)))
        except BaseException as exc:
            failure = link.failed(exc, "storing messages", is_raised=True)
            for done, _ in batch:
                done.offer(failure)
            if not isinstance(exc, Exception):
                raise
            return
        finally:
            if watch is not None:
                watch.close()
        for (done, entry), error in zip(batch, errors, strict=True):
            done.offer(error)
            if error is None:
                if not entry.delay:
                    link.wake(entry.queue)
            elif isinstance(error, NoQueue):
                link.directory.forget(entry.queue)
