"""The consumer of kombu's API, whose callbacks run in the greenlet that drains the connection.

Theory
------
A delivery becomes an event of the connection, and the greenlet that drains it decodes the body and
calls the callbacks.  These may switch.  With a ``sink`` the connection's reader hands each message to
the sink instead, which never switches.

Any greenlet may call ``consume``, ``cancel``, ``add_queue`` or ``revive``, and the session restores
the consumer when the connection was lost.  All of these may wait for the broker, so they may overlap.
They stay correct since what is consumed is kept apart from where (:class:`Subscriptions`):

- A tag says that a queue is to be consumed.  It is the same on each channel, until it is cancelled.
- ``placed`` names the channel that was asked for a queue, and is set before the request is sent.  A
  queue is requested only if ``placed`` does not name the present channel, so nothing is requested
  twice there.
- Before each request the channel is compared with the present one; a greenlet whose channel was
  replaced stops, and leaves the rest to the one that replaced it.
- A request that was cancelled while it was on its way is cancelled at the broker when it returns.

Queues are declared once on each channel, unless ``auto_declare`` is false, and the prefetch is set
before anything is consumed.  The prefetch and the requests that it is meant for are sent under a lock
of the channel.

Recovery: the broker may accept the new connection before it has closed the old one, and what is deleted
with the old one is deleted while it is declared again: an auto-delete queue with its last consumer, an
exchange with its last binding.  So declarations are repeated here where a program, which sees one
connection after the other, would not have to.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from itertools import count
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Final
from weakref import WeakKeyDictionary

import gevent

from greenconn.abstract import current_channel
from greenconn.checks import check_has_run, check_runs, is_connection, maybe_channel
from greenconn.entity import Queue
from greenconn.entity.declaration import Declarations
from greenconn.exceptions import (
    AMQPError,
    ConsumerCancelled,
    ContentDisallowed,
    NotBoundError,
    NotFound,
    OperationalError,
    RecoverableChannelError,
)
from greenconn.green.deadline import NEVER, Deadline, TimeLimit, is_thrown
from greenconn.green.hub import check_hub
from greenconn.green.inbox import Inbox, take_any
from greenconn.green.retry import attempts
from greenconn.green.supervisor import HANDLERS, name_of
from greenconn.listeners import LISTENERS, DeliverEvent, Observation, Observers, url_of
from greenconn.message import Message
from greenconn.serialization import prepare_accept_content
from greenconn.session.topology import GONE_MEANWHILE
from greenconn.streams import OFFSET, StreamPosition, offset_of
from greenconn.transport.base import is_open

if TYPE_CHECKING:
    from gevent.lock import BoundedSemaphore
    from typing_extensions import Self

    from greenconn.abc import Channel, ChannelOrConnection, Sink
    from greenconn.session.session import Session
    from greenconn.transport.base import Link


_numbers: Final = count(1)
#: Seconds that consumers of the former connection are waited for, and seconds between two checks.
FORMER_TIMEOUT: Final = 1.0
CHECK_INTERVAL: Final = 0.02

#: When the waiting ends, by link: all that is restored on one shares it.
_former_deadlines: Final[WeakKeyDictionary[Any, Deadline]] = WeakKeyDictionary()

#: The prefetch of a channel holds for the consumers that are started after it, so the two requests
#: of one consumer must not be parted by those of another.
_starting: Final[WeakKeyDictionary[Any, BoundedSemaphore]] = WeakKeyDictionary()


def start_lock(channel: Channel) -> BoundedSemaphore:
    """Return the lock to hold over ``basic_qos`` and the ``basic_consume`` that it is meant for.

    No user code runs under it.
    """
    lock = _starting.get(channel)
    if lock is None:
        # When something is consumed: it takes a few milliseconds that publishers can do without.
        from gevent.lock import BoundedSemaphore

        lock = _starting[channel] = BoundedSemaphore(1)
    return lock


class Subscriptions:
    """The queues, by name, that one consumer consumes from.

    Attributes:
        tags: consumer tag by queue name.
        no_ack: whether its messages need no ack, by queue name.
        placed: by queue name, the channel that has been asked, set before the request is sent.
        positions: of the streams among them, by queue name.
    """

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}
        self.no_ack: dict[str, bool] = {}
        self.placed: dict[str, Any] = {}
        self.positions: dict[str, StreamPosition] = {}

    def add(self, name: str, no_ack: bool, prefix: str | None) -> None:
        """Want messages of queue *name*."""
        self.tags[name] = f"{'consumer-' if prefix is None else prefix}{next(_numbers)}"
        self.no_ack[name] = no_ack

    def is_missing(self, name: str, channel: Channel) -> bool:
        """Return whether queue *name* is wanted and *channel* does not serve it.

        A closed channel has no consumers: using it raises the reason why it was closed.
        """
        return name in self.tags and (self.placed.get(name) is not channel or not is_open(channel))

    def are_placed_on(self, channel: Channel) -> bool:
        """Return whether something is wanted, and all of it has been asked of *channel*."""
        return bool(self.tags) and not any(self.is_missing(name, channel) for name in self.tags)

    def arguments_of(self, queue: Any, target: dict[str, Any]) -> Any:
        """Return the arguments with which to consume from *queue*.

        A stream that was read before is read on.

        Arguments:
            target: where messages go; its callback is made to take note of their offsets.
        """
        arguments, offset = queue.consumer_arguments, offset_of(queue)
        if offset is None or "callback" not in target:
            return arguments
        position = self.positions.get(queue.name)
        if position is None:
            position = self.positions[queue.name] = StreamPosition(offset)
        target["callback"] = position.watching(target["callback"])
        return {**(arguments or {}), OFFSET: position.restart()}

    def start(self, name: str, channel: Channel, consume: Callable[[str, bool], Any]) -> None:
        """Ask *channel* for the messages of queue *name*.  May switch.

        Arguments:
            consume: sends the request, given the tag and whether messages need no ack.
        """
        tag = self.tags[name]
        self.placed[name] = channel
        try:
            consume(tag, self.no_ack[name])
        except BaseException:
            if self.placed.get(name) is channel:
                del self.placed[name]
            raise
        if name in self.positions:
            self.positions[name].note_begin()
        if self.tags.get(name) != tag or self.placed.get(name) is not channel:
            # Cancelled meanwhile, perhaps before the request was written.
            channel.basic_cancel(tag)

    def leave_others(self, channel: Channel) -> None:
        """Cancel what was asked of other channels.  May switch."""
        left = [name for name, other in self.placed.items() if other is not channel]
        self._cancel_all([(self.placed.pop(name), self.tags[name]) for name in left])

    def lose(self, tag: str) -> None:
        """Note that the broker cancelled *tag*, whose queue is still to be consumed."""
        for name, each in self.tags.items():
            if each == tag:
                self.placed.pop(name, None)
                # A stream that was deleted begins anew; who consumes again says where.
                self.positions.pop(name, None)

    def rename(self, old: str, new: str) -> None:
        """Follow a queue that the broker has renamed."""
        tables: tuple[dict[str, Any], ...] = (self.tags, self.no_ack, self.placed)
        for table in tables:
            if old in table:
                table[new] = table.pop(old)

    def forget(self, name: str) -> None:
        """Want no messages of queue *name*, of which none was asked for."""
        self.tags.pop(name, None)
        self.no_ack.pop(name, None)
        self.positions.pop(name, None)

    def cancel(self, names: Iterable[str]) -> None:
        """Want no more messages of the queues *names*, and tell the broker.  May switch.

        Nothing is sent where the channel is gone.
        """
        ends = []
        for name in names:
            tag = self.tags.pop(name, None)
            self.no_ack.pop(name, None)
            self.positions.pop(name, None)
            channel = self.placed.pop(name, None)
            if tag is not None and channel is not None:
                ends.append((channel, tag))
        self._cancel_all(ends)

    def _cancel_all(self, ends: list[tuple[Any, str]]) -> None:
        while ends:
            channel, tag = ends.pop(0)
            if not is_open(channel):
                continue
            try:
                channel.basic_cancel(tag)
            except BaseException as exc:
                if isinstance(exc, Exception) and not (is_open(channel) or is_thrown(exc)):
                    continue  # it was lost, and the consumer with it
                for other, other_tag in ends:
                    # Killed, or refused: what is left is sent without waiting for replies.
                    with suppress(Exception):
                        other.basic_cancel(other_tag, nowait=True)
                raise


class Consumer:
    """A consumer of one or more queues.

    Its callbacks are called in the greenlets that call ``drain_events``.  Any greenlet may consume,
    cancel, add queues or drain, and each message goes to one of those that drain.  When the connection
    was lost, its session restores the consumer with the same tags; without a session call
    :meth:`revive`.

    Arguments:
        channel: a channel, or a connection, whose default channel is used.
        queues: a Queue or several.
        no_ack: whether messages are delivered without the need of an ack; None: as each queue says.
        auto_declare: whether to declare the queues at once.
        callbacks: called in order as ``callback(body, message)``.
        on_decode_error: called as ``on_decode_error(message, exc)`` when a body cannot be decoded;
            without it ``drain_events`` raises the error.
        on_message: called as ``on_message(message)`` instead of the callbacks, without decoding.
        accept: names of serializers or content types; None accepts all that are not disabled.
        prefetch_count: unacknowledged messages that the broker delivers at most, for each queue.
        tag_prefix: the beginning of the consumer tags.

    Attributes:
        sink: gets the messages instead of the callbacks, without ``drain_events``.
    """

    ContentDisallowed: ClassVar[type[ContentDisallowed]] = ContentDisallowed

    callbacks: Any = None
    on_message: Callable[[Any], Any] | None = None
    on_decode_error: Callable[[Any, Exception], Any] | None = None
    accept: Any = None
    no_ack: bool | None = None
    auto_declare: bool = True
    prefetch_count: int | None = None
    sink: Sink | None = None

    _channel: Any = None
    _connection: Any = None
    #: The channel on which the queues were declared.  (Auto-delete queues may go with the consumers of
    #: a channel, so the next channel declares them again.)
    _declared_on: Any = None
    #: The arguments of the last :meth:`qos`, to repeat it on the next link.
    _asked_qos: tuple[int, int, bool] | None = None

    def __init__(
        self,
        channel: ChannelOrConnection | None,
        queues: Queue | Iterable[Queue] | None = None,
        no_ack: bool | None = None,
        auto_declare: bool | None = None,
        callbacks: list[Callable[..., Any]] | None = None,
        on_decode_error: Callable[[Any, Exception], Any] | None = None,
        on_message: Callable[[Any], Any] | None = None,
        accept: Iterable[str] | None = None,
        prefetch_count: int | None = None,
        tag_prefix: str | None = None,
    ) -> None:
        self._subscriptions = Subscriptions()
        self._recovery = ConsumerRecovery(self)
        #: By name; those without one by identity, until the broker has named them.
        self._queues: dict[Any, Any] = {}
        self.queues = _listed(queues)
        self.no_ack = self.no_ack if no_ack is None else no_ack
        self.callbacks = list(self.callbacks or ()) if callbacks is None else callbacks
        self.on_message = on_message
        self.on_decode_error = on_decode_error or self.on_decode_error
        if auto_declare is not None:
            self.auto_declare = auto_declare
        self.accept = prepare_accept_content(accept)
        self.prefetch_count = prefetch_count
        self.tag_prefix = tag_prefix
        self.check_callbacks()
        if channel is not None:
            self.revive(channel)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.queues}>"

    @property
    def queues(self) -> list[Any]:
        """The queues, bound to the channel."""
        return list(self._queues.values())

    @queues.setter
    def queues(self, queues: Iterable[Any]) -> None:
        self._queues = {queue.name or id(queue): queue for queue in queues}

    @property
    def _active_tags(self) -> dict[str, str]:
        return self._subscriptions.tags

    @_active_tags.setter
    def _active_tags(self, tags: dict[str, str]) -> None:
        self._subscriptions.tags = tags

    @property
    def _active_queue_no_ack(self) -> dict[str, bool]:
        return self._subscriptions.no_ack

    @property
    def channel(self) -> Any:
        """The open channel to use; None without one.  May switch."""
        channel = self._channel
        if channel is None or is_open(channel):
            return channel
        self._adopt(current_channel(channel, self._connection))
        return self._channel

    @channel.setter
    def channel(self, channel: Channel) -> None:
        self._channel = channel

    @property
    def connection(self) -> Any:
        """The connection; None without one."""
        return getattr(getattr(self._channel, "connection", None), "client", None)

    # Where

    def revive(self, channel: ChannelOrConnection) -> None:
        """Move to *channel*, a channel or a connection.  May switch.

        The queues are declared there, and those that were consumed are consumed with the same tags.
        This does nothing if recovery has done it already.

        Raises:
            ChannelError, ConnectionError: the broker refused, or the connection was lost.
        """
        connection = channel if is_connection(channel) else None
        channel = maybe_channel(channel)
        if self._recovery.has_restored_beside(channel):
            return
        self._connection = connection
        self._channel = channel
        self._declared_on = None
        queues = [queue(channel) for queue in self.queues]
        self.queues = queues
        self._settle(channel)

    def _adopt(self, channel: Channel) -> None:
        """Use *channel* from now on.  Never switches."""
        if channel is not self._channel:
            self._channel = channel
            for queue in self.queues:
                queue.revive(channel)

    def _settle(self, channel: Channel, declare: Callable[[], Any] | None = None) -> None:
        """Declare the queues on *channel*, set the prefetch and consume.  May switch.

        Arguments:
            declare: called instead of declaring the queues.
        """
        self._adopt(channel)
        if self._declared_on is not channel:
            if declare is None and self.auto_declare:
                declare = partial(self._recovery.declare_beside, channel)
            if declare is not None:
                declare()
                if self._channel is not channel:
                    return  # moved on while a reply was waited for
            self._declared_on = channel
            if self.prefetch_count is not None:
                channel.basic_qos(0, self.prefetch_count, False)
            if self._asked_qos is not None:
                channel.basic_qos(*self._asked_qos)
        self._subscriptions.leave_others(channel)
        self._start(channel)

    def _start(self, channel: Channel) -> None:
        """Consume on *channel* the queues that are to be consumed and are not yet.  May switch."""
        subscriptions = self._subscriptions
        lacking = [queue for queue in self.queues if subscriptions.is_missing(queue.name, channel)]
        if not lacking:
            return
        self._recovery.join(channel)
        if self.prefetch_count is None:
            self._start_all(lacking, channel)
            return
        with start_lock(channel):
            channel.basic_qos(0, self.prefetch_count, False)
            self._start_all(lacking, channel)

    def _start_all(self, queues: list[Any], channel: Channel) -> None:
        for queue in queues:
            # Checked each time: another greenlet may have consumed it, or moved the consumer.
            if self._channel is channel and self._subscriptions.is_missing(queue.name, channel):
                # Only the last one waits: replies come in order, and a refusal ends the channel.
                self._start_one(queue, channel, nowait=queue is not queues[-1])

    def _start_one(self, queue: Any, channel: Channel, nowait: bool) -> None:
        if self.sink is None:
            target: dict[str, Any] = {
                "callback": self._receive_callback,
                "on_cancel": self._on_cancel,
            }
        else:
            target = {"sink": self.sink}

        arguments = self._subscriptions.arguments_of(queue, target)

        def consume(tag: str, no_ack: bool) -> None:
            # Not queue.consume(), which would look for another channel if this one has just died.
            channel.basic_consume(
                queue=queue.name,
                consumer_tag=tag,
                no_ack=no_ack,
                nowait=nowait,
                arguments=arguments,
                **target,
            )

        self._subscriptions.start(queue.name, channel, consume)

    # What

    def declare(self) -> None:
        """Declare the queues, with their exchanges and bindings.  May switch."""
        self._declare_through(None)

    def _declare_through(self, channel: Channel | None) -> None:
        """Declare the queues on another channel; on their own if that is None.  May switch."""
        with Declarations(channel) as declarations:
            for key, queue in list(self._queues.items()):
                # A queue that another greenlet has declared meanwhile may have its new name already.
                name = key if isinstance(key, str) else queue.name
                declarations.declare(queue)
                if queue.name != name and key in self._queues:
                    # The broker has chosen the name.  The order of the queues stays.
                    self._subscriptions.rename(name, queue.name)
                    self.queues = self.queues
            declarations.finish()

    def add_queue(self, queue: Queue) -> Queue:
        """Add a queue, which the next :meth:`consume` consumes.  May switch.

        Returns:
            A copy of the queue that is bound to the channel.
        """
        bound = queue(self.channel)
        if self.auto_declare:
            bound.declare()
        self._queues[bound.name or id(bound)] = bound
        return bound

    def consume(self, no_ack: bool | None = None) -> None:
        """Consume all queues that are not consumed yet.  May switch.

        Arguments:
            no_ack: whether messages are delivered without the need of an ack; None: as the consumer
                says, else as each queue says.

        Raises:
            NotBoundError: the consumer has no channel.
            ChannelError, ConnectionError: the broker refused, or the connection was lost.
            TypeError: a callback is ``async def`` or a generator: a call would not run its body.
        """
        self.check_callbacks()
        check_hub(self._channel)
        channel = self.channel
        if channel is None:
            if self._queues:
                raise NotBoundError("this consumer has no channel: call revive(channel) first")
            return
        no_ack = self.no_ack if no_ack is None else no_ack
        subscriptions = self._subscriptions
        new = [queue for queue in self.queues if queue.name not in subscriptions.tags]
        for queue in new:
            chosen = queue.no_ack if no_ack is None else no_ack
            subscriptions.add(queue.name, chosen, self.tag_prefix)
        try:
            if self._declared_on is channel:
                self._start(channel)
            else:
                self._settle(channel)
        except BaseException:
            for queue in new:
                if queue.name not in subscriptions.placed:
                    subscriptions.forget(queue.name)
            if not subscriptions.tags:
                self._recovery.leave()
            raise

    def consuming_from(self, queue: Queue | str) -> bool:
        """Return whether *queue*, a Queue or a name, is consumed."""
        return _name_of(queue) in self._subscriptions.tags

    # Receiving

    def register_callback(self, callback: Callable[..., Any]) -> None:
        """Append *callback*, called as ``callback(body, message)``.

        Raises:
            TypeError: it is ``async def`` or a generator: a call would not run its body.
        """
        check_runs("callback", callback)
        self.callbacks.append(callback)

    def check_callbacks(self) -> None:
        """Check that a call of each callback runs its body.

        Raises:
            TypeError: one is ``async def`` or a generator.
        """
        for callback in self.callbacks or ():
            check_runs("callback", callback)
        for name in ("on_message", "on_decode_error", "receive"):
            check_runs(name, getattr(self, name))

    def receive(self, body: Any, message: Message) -> None:
        """Call the callbacks.

        Raises:
            NotImplementedError: there are none.
        """
        if not self.callbacks:
            raise NotImplementedError(
                "this consumer has no callback: call register_callback() or set on_message"
            )
        for callback in self.callbacks:
            if HANDLERS.handler is not callback:
                HANDLERS.change(callback, name_of(callback))
            result = callback(body, message)
            if result is not None:
                check_has_run("a callback", result)

    def _receive_callback(self, message: Message) -> Any:
        """Take one delivery; in the greenlet that drains."""
        on_message: Any = self.on_message
        body = None
        try:
            if not isinstance(message, Message):
                # A raw one, of a channel of another library.
                to_python = getattr(  # type: ignore[unreachable]  # for types, only ours come here
                    self._channel, "message_to_python", None
                )
                if to_python is not None:
                    message = to_python(message)
                if message.errors:
                    message._reraise_error()
            if self.accept is not None:
                message.accept = self.accept
            if on_message is None:
                body = message.decode()  # raises its errors, too
            elif message.errors:
                message._reraise_error()
        except Exception as exc:
            if (observers := LISTENERS.handling) is not None:
                self._observe(observers, message).end(exc)
            if self.on_decode_error is None:
                raise
            return self.on_decode_error(message, exc)
        run = None
        if (observers := LISTENERS.handling) is not None:
            run = self._observe(observers, message).run
        if on_message is None:
            # A subclass may return something.
            result: object = (
                self.receive(body, message)  # type: ignore[func-returns-value]
                if run is None
                else run(self.receive, body, message)
            )
            if result is not None:
                check_has_run("receive", result)
            return result
        if HANDLERS.handler != on_message:  # a bound method is a new object each time
            HANDLERS.change(on_message, name_of(on_message))
        result = on_message(message) if run is None else run(on_message, message)
        if result is not None:
            check_has_run("on_message", result)
        return result

    def _observe(
        self, observers: Observers[DeliverEvent], message: Message
    ) -> Observation[DeliverEvent]:
        """Notify the listeners that *message* is about to be handled.  Never switches."""
        tag = message.delivery_info.get("consumer_tag")
        if tag is None:  # a simple queue has asked for it
            queue = self.queues[0].name
        else:
            queue = next((name for name, each in self._active_tags.items() if each == tag), "")
        handler = self.on_message or next(iter(self.callbacks or ()), self.receive)
        # Of what comes by a sink the program takes the messages by itself.
        name = name_of(handler) if self.sink is None else None
        event = DeliverEvent(url_of(message.channel), queue, (message,), name)
        observation = observers.begin(event)
        if name is None:
            observation.forget()
        return observation

    # Ending

    def cancel(self) -> None:
        """Cancel the consumption of all queues.  May switch.

        Messages that were delivered can still be acknowledged.

        Raises:
            WrongHub: the channel belongs to another thread.
        """
        check_hub(self._channel)
        self._end()

    def _end(self) -> None:
        self._recovery.leave()
        self._subscriptions.cancel(list(self._subscriptions.tags))

    def close(self) -> None:
        """Call :meth:`cancel`."""
        self.cancel()

    def cancel_by_queue(self, queue: Queue | str) -> None:
        """Cancel the consumption of *queue*, a Queue or a name, and remove it.  May switch."""
        check_hub(self._channel)
        name = _name_of(queue)
        self._queues.pop(name, None)
        if self._subscriptions.tags.keys() == {name}:
            self._recovery.leave()
        self._subscriptions.cancel([name])

    def __enter__(self) -> Self:
        self.consume()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        connection = self.connection
        errors = getattr(connection, "connection_errors", ())
        # Also after the loss of the connection, since recovery may have restored the consumer; but
        # without an overridden cancel(), which kombu does not call then.
        end = self._end if exc is not None and isinstance(exc, errors) else self.cancel
        # Errors of the broker and the network do not matter any more.  Those that were thrown in do:
        # one may be a timeout of the program's.
        channel_errors = getattr(connection, "channel_errors", ())
        try:
            end()
        except (*errors, *channel_errors, AMQPError, OSError, OperationalError) as error:
            if is_thrown(error):
                raise

    # Requests to the channel

    def purge(self) -> int:
        """Purge all queues and return the number of messages that were deleted.  May switch."""
        self.channel  # noqa: B018 - the queues follow it
        return sum(queue.purge() for queue in self.queues)

    def flow(self, active: bool) -> None:
        """Have the broker pause or resume deliveries on this channel.  May switch."""
        self.channel.flow(active)

    def qos(
        self, prefetch_size: int = 0, prefetch_count: int = 0, apply_global: bool = False
    ) -> Any:
        """Limit the unacknowledged messages on this channel.  May switch.

        Arguments:
            prefetch_size: bytes; 0 is no limit (RabbitMQ supports no other value).
            prefetch_count: messages; 0 is no limit.
            apply_global: whether for the whole channel; else for each consumer that starts from now on.
        """
        self._asked_qos = (prefetch_size, prefetch_count, apply_global)
        return self.channel.basic_qos(prefetch_size, prefetch_count, apply_global)

    def recover(self, requeue: bool = False) -> Any:
        """Have the broker redeliver all unacknowledged messages of this channel.  May switch.

        Arguments:
            requeue: to any consumer; else to the same consumers (RabbitMQ refuses that).
        """
        return self.channel.basic_recover(requeue=requeue)

    def _on_cancel(self, tag: str) -> None:
        """Handle that the broker cancelled *tag*, in the greenlet that drains."""
        self._subscriptions.lose(tag)
        raise ConsumerCancelled(f"the broker cancelled consumer {tag!r} of {self!r}", (60, 30))


def _listed(queues: Any) -> list[Any]:
    if queues is None:
        return []
    if isinstance(queues, str) or not isinstance(queues, Iterable):
        queues = [queues]
    listed = list(queues)
    for each in listed:
        if isinstance(each, str):
            raise TypeError(f"queues must be Queue objects, got {each!r}: use Queue({each!r})")
    return listed


def _name_of(queue: Queue | str) -> str:
    return queue.name if isinstance(queue, Queue) else queue


class ConsumerRecovery:
    """A consumer's place among the members of its session.

    It is not the consumer itself, whose ``recover()`` is AMQP's ``basic.recover``.

    Arguments:
        consumer: the consumer to recover.
    """

    def __init__(self, consumer: Consumer) -> None:
        self._consumer = consumer
        self._session: Any = None
        #: The channel on which recovery has restored the consumer.
        self._restored_on: Any = None
        #: Restoring has failed and is tried again.
        self._has_failed = False
        #: The queues were there a moment ago.
        self._has_declared = False

    def __repr__(self) -> str:
        return f"<recovery of {self._consumer!r}>"

    def join(self, channel: Channel) -> None:
        """Register for recovery after the loss of the connection of *channel*, if it has a session."""
        session = _session_of(channel)
        if session is not self._session:
            self.leave()
        if session is not None:
            # Again and again: a session that was closed has forgotten its members.
            session.add(self)
            self._session = session

    def declare_beside(self, channel: Channel) -> None:
        """Declare for a program that does not leave it to recovery, on its *channel*.  May switch.

        A program that rebuilds itself may be as quick as recovery, and so meet what is about to go.
        """
        consumer, session = self._consumer, _session_of(channel)
        # One that consumes has been through that, or moves, and its own consumer is not a former one.
        consumes = any(map(is_open, consumer._subscriptions.placed.values()))
        generation = getattr(session, "generation", 0)
        is_later = isinstance(generation, int) and generation > 1  # programs' tests have stand-ins
        if is_later and not consumes:
            _wait_for_former_consumers(consumer.queues, channel)
            if consumer._channel is not channel:
                return  # moved on: who moved it declares
        consumer.declare()

    def leave(self) -> None:
        """Unregister."""
        session, self._session = self._session, None
        self._restored_on = None
        if session is not None:
            session.discard(self)

    def has_restored_beside(self, channel: Channel) -> bool:
        """Return whether all is consumed again on the connection of *channel*, thanks to recovery."""
        own = self._restored_on
        return (
            own is not None
            and own is self._consumer._channel
            and is_open(own)
            and own.connection is channel.connection
            and self._consumer._subscriptions.are_placed_on(own)
        )

    def recover(self, deadline: Deadline) -> None:
        """Declare and consume again on the connection's new life.  May switch.

        Raises:
            TimeoutError: the deadline ended first.
            ChannelError, ConnectionError: the broker or the network refused.
        """
        consumer, session = self._consumer, self._session
        old = consumer._channel
        if session is None:
            return
        if not self._has_failed and _ended_by_itself(old):
            # The program closed it, or got the error that closed it: there is nothing to recover.
            self.leave()
            return
        self._has_failed = True
        within = Deadline(deadline.left())
        with TimeLimit(within, f"recovering {consumer!r}"):
            channel = session.successor(old)
            self._has_declared = False
            try:
                consumer._settle(channel, lambda: self._declare(session, within))
            except NotFound as exc:
                if self._has_declared and consumer.auto_declare:
                    raise RecoverableChannelError(
                        f"the channel was closed during its recovery: {exc}"
                    ) from exc
                raise
        self._has_failed = False
        if self._session is not None:
            self._restored_on = channel

    def _declare(self, session: Session, deadline: Deadline) -> None:
        """Declare the queues, or see that they are there.  May switch.

        That goes through a channel apart, since what the broker refuses costs its channel, and on
        the consumer's own others consume again.
        """
        for attempt in attempts(GONE_MEANWHILE, NEVER, lambda exc: isinstance(exc, NotFound)):
            with attempt:
                session.utility.run(self._declare_through, deadline)
                break
        self._has_declared = True

    def _declare_through(self, channel: Channel) -> None:
        consumer = self._consumer
        if not consumer.auto_declare:
            _declare_queues(consumer.queues, channel, passive=True)
            return
        _wait_for_former_consumers(consumer.queues, channel)
        consumer._declare_through(channel)


def _wait_for_former_consumers(queues: Iterable[Any], channel: Channel) -> None:
    """Wait until the former connection's consumers have left the auto-delete queues.  May switch.

    Queues that others consume from are waited for only once for each link.
    """
    consumed = [
        queue
        for queue in queues
        if queue.name and queue.auto_delete and not queue.exclusive and not queue.no_declare
    ]
    if not consumed:
        return
    deadline = _former_deadlines.setdefault(channel.connection, Deadline(FORMER_TIMEOUT))
    while True:
        replies = _declare_queues(consumed, channel)
        consumed = [queue for queue, reply in zip(consumed, replies, strict=True) if reply[2]]
        if not consumed or deadline.has_ended:
            return
        gevent.sleep(CHECK_INTERVAL)


def _declare_queues(queues: list[Any], channel: Channel, **how: bool) -> list[Any]:
    """Declare the queues, without their bindings.  May switch.

    Arguments:
        how: arguments of ``Queue.queue_declare``.

    Returns:
        For each queue: name, number of messages and of consumers.
    """
    with Declarations(channel) as declarations:
        for queue in queues:
            declarations.queue_declare(queue, **how)
        declarations.finish()
        return declarations.replies


def _session_of(channel: Channel) -> Any:
    return getattr(getattr(channel.connection, "client", None), "session", None)


def _ended_by_itself(channel: Channel) -> bool:
    """Return whether a channel was closed before its connection was lost."""
    cause = getattr(channel, "cause", None)
    return cause is not None and cause is not getattr(channel.connection, "lost", None)


class ConsumerInbox:
    """The messages that were delivered and not taken yet (a :class:`~greenconn.abc.Sink`).

    Deliveries come straight here, not by way of ``drain_events``, so that no other greenlet which
    drains the same connection takes them out of the reach of who waits for them.

    Arguments:
        consumer: whose deliveries they are; it must not have begun to consume.
        no_ack: they need no ack, so they are never redelivered.
    """

    def __init__(self, consumer: Consumer, no_ack: bool) -> None:
        self.inbox: Inbox[Any] = Inbox()
        self.taken: Callable[[Any], None] | None = None
        #: Why no more will come, until it was raised.
        self.over: BaseException | None = None
        #: A message that came by a ``basic.get``: the consumer has not counted it.
        self._asked: Message | None = None
        self._consumer = consumer
        self._no_ack = no_ack

    def deliver(self, message: Message) -> None:
        # In the reader: nothing here may switch.
        self.inbox.put(message)

    def deliver_asked(self, message: Message) -> None:
        """Take one message that was asked for, and came without a consumer.  Never switches."""
        self._asked = message
        self.inbox.put(message)

    def cancelled(self, exc: BaseException) -> None:
        # In the reader: nothing here may switch.
        if isinstance(exc, ConsumerCancelled):
            self._consumer._subscriptions.placed.clear()
        elif not self._no_ack:
            # They are requeued, and could not be acked any more; but no handler has seen them.
            for message in self.inbox.clear():
                self._took(message)
                with suppress(Exception):
                    message.put_back()
        channel = self._consumer._channel
        is_recovered = getattr(channel.connection, "lost", None) is not None
        if not is_recovered and not self.inbox.waiting:
            self.over = exc
        self.inbox.fail(exc)

    def forget(self) -> None:
        """After a fork, in the child: what came is the parent's, and so are those who wait."""
        self.inbox = Inbox()
        self.taken = self.over = None

    def check(self) -> None:
        """Raise, once, why no more will come, if all that came was taken.

        Raises:
            ConnectionError, ChannelError: what ended the consumer.
        """
        if self.over is not None and not len(self.inbox):
            exc, self.over = self.over, None
            raise exc

    def next_event(self, link: Link, deadline: Deadline) -> Callable[[], Any]:
        """Wait for a message or another event of *link*, and return what handles it.  May switch.

        Callbacks of other consumers run meanwhile, as they do in ``drain_events``.

        Raises:
            TimeoutError: nothing came before the deadline.
            ConnectionError, ChannelError: what ended the link or the consumer.
        """
        inbox, item = take_any((self.inbox, link.events), deadline)
        if inbox is self.inbox:
            return partial(self._hand_over, item)
        function, argument = item
        return partial(function, argument)

    def hand_over_next(self) -> bool:
        """Have the consumer take the oldest message; whether there was one.  May switch."""
        if not len(self.inbox):
            return False
        self._hand_over(self.inbox.get(Deadline(0.0)))
        return True

    def requeue_unseen(self) -> None:
        """Requeue the messages that were not taken.  May switch.

        Messages that need no ack cannot be requeued; they are dropped.  A broker that lends
        messages requeues them when the channel closes, since they were not taken.
        """
        while len(self.inbox):
            message = self.inbox.get(Deadline(0.0))
            if not self._no_ack:
                self._took(message)
                with suppress(Exception):
                    message.put_back()

    def _hand_over(self, message: Message) -> None:
        """Have the consumer decode *message* and call its callbacks."""
        self._took(message)
        self._consumer._receive_callback(message)

    def _took(self, message: Message) -> None:
        if message is self._asked:
            self._asked = None
        elif self.taken is not None:
            self.taken(message)
