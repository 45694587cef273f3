"""The memory transport: a broker inside this process, with RabbitMQ's semantics.

Here are the connections to it: their queues, consumers, publishers and channels.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ClassVar, Final, TypeVar

from gevent import get_hub

from greenconn.broker.channel import StoreChannel
from greenconn.broker.consuming import Consumer
from greenconn.broker.entities import Management, SupportedArguments
from greenconn.broker.envelope import Envelope
from greenconn.broker.errors import Method, in_exclusive_use
from greenconn.broker.exchanges import Routing
from greenconn.broker.link import BrokerLink
from greenconn.broker.publishing import (
    SynchronousPublisher,
    no_immediate,
    queue_full,
    too_large,
    undeliverable,
    unroutable,
)
from greenconn.broker.queues import (
    Declaration,
    Directory,
    KnownQueues,
    QueuePolicy,
    QueueStore,
    new_owner,
)
from greenconn.delays import DELAY, delay_of
from greenconn.exceptions import ChannelError, RecoverableChannelError, RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.options import MemoryOptions, known_options
from greenconn.transport import base
from greenconn.transport.memory.broker import (
    ROUTED,
    Broker,
    Clock,
    Entry,
    Message,
    Outcome,
    Queue,
    Queues,
)

__all__ = ["Channel", "Transport", "broker_of", "reset", "restart"]

logger = logging.getLogger("greenconn.transport.memory")
_brokers: dict[str, Broker] = {}

T = TypeVar("T")


class MemoryLink(BrokerLink):
    """A link to *broker*: open until it is closed, or the broker ends it."""

    def __init__(self, client: Any, broker: Broker, options: MemoryOptions | None = None) -> None:
        options = options or MemoryOptions()
        super().__init__(client)
        self.broker = broker
        self.options = options
        self.owner = new_owner()
        self.state = broker.state
        self.topology = None
        self.directory = Directory(self, MemoryQueues(broker), KnownQueues())
        self.routing = Routing(self)
        self.settlements = Settlements(broker)
        self.subscriptions = MemorySubscriptions(broker, self.directory)
        self.feeds = {}  # queues serve their consumers themselves
        broker.links[self] = None

    @property
    def place(self) -> object:
        """The broker that this link leads to; two links to one broker have equal places."""
        return self.broker

    def ask(self, what: str, function: Callable[..., T], *args: Any) -> T:
        """Return ``function(*args)``.  Never switches."""
        return function(*args)

    def publisher(self, channel: StoreChannel[Any]) -> MemoryPublisher:
        """Return what *channel* publishes with."""
        return MemoryPublisher(channel, self.broker, self.options)

    def flush_acks(self) -> None:
        """Do nothing: an ack takes effect at once."""

    def end(self, exc: BaseException, *, closed: bool = False) -> None:
        """End this life: what its channels hold goes back, its exclusive queues go.

        Never switches.
        """
        if self.lost is None:
            self._requeue_all()
        super().end(exc, closed=closed)
        self.broker.left(self)

    def _requeue_all(self) -> None:
        """Requeue what its channels hold; none of it comes to them again."""
        channels = [each for each in self.channels.values() if isinstance(each, StoreChannel)]
        for channel in channels:
            for consumer in channel.consumers.values():
                consumer.stop()
        for channel in channels:
            channel.deliveries.release(())


class Channel(StoreChannel[MemoryLink]):
    """A channel.  Its calls take effect at once; only publishing may switch.

    Arguments:
        connection: the link.
    """

    supported_arguments = SupportedArguments(
        queue=QueuePolicy.ARGUMENTS,
        exchange=frozenset({"alternate-exchange"}),
        consumer=frozenset({"x-priority"}),
        message=frozenset({"priority", "expiration", DELAY, "CC", "BCC"}),
    )

    @property
    def queues(self) -> Queues:
        """The queues of the virtual host by their names; ``clear`` deletes them."""
        return Queues(self.connection.broker)

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        # kombu's private method, which tests of programs call (oslo.messaging's).
        self.queue_declare(queue)


class Transport(base.Transport[MemoryLink]):
    """``memory://``: one broker for each process and virtual host.

    All connections with the same virtual host share its exchanges and queues; closing the last
    keeps them.  A broker belongs to the thread that used it first (``WrongHub`` otherwise).
    """

    Channel = Channel
    Management = Management
    driver_type = "memory"
    driver_name = "memory"
    default_port = None
    inner_schemes: ClassVar[frozenset[str] | None] = frozenset()

    @property
    def default_connection_params(self) -> dict[str, Any]:
        return {"hostname": "localhost", "port": self.default_port}

    @property
    def recoverable_connection_errors(self) -> tuple[type[BaseException], ...]:
        return (RecoverableConnectionError,)

    @property
    def recoverable_channel_errors(self) -> tuple[type[BaseException], ...]:
        return (RecoverableChannelError,)

    def establish_connection(self, deadline: Deadline | None = None) -> MemoryLink:
        """Open a link.  Never waits.

        Raises:
            ValueError: a transport option has a value that cannot be.
            WrongHub: the broker belongs to another thread.
        """
        client = self.client
        options = known_options(MemoryOptions, client.transport_options, "memory broker", logger)
        return MemoryLink(client, broker_of(client.virtual_host), options)

    def create_channel(self, connection: MemoryLink) -> StoreChannel[MemoryLink]:
        """Open a channel."""
        return self.Channel(connection)

    def qos_semantics_matches_spec(self, connection: MemoryLink) -> bool:
        """``apply_global`` means the channel, as RabbitMQ has it."""
        return False


def broker_of(virtual_host: str = "/", clock: Clock | None = None) -> Broker:
    """Return the broker of a virtual host of this process; the first call makes it.

    It belongs to the hub (the thread) that made it, until :func:`reset`.

    Arguments:
        clock: what expiry goes by, if this call makes the broker; None is the hub's clock.

    Raises:
        WrongHub: it belongs to another thread.
    """
    name = virtual_host or "/"
    broker = _brokers.get(name)
    # After a fork the child begins with an empty one: the parent's messages are the parent's.
    if broker is None or broker.pid != os.getpid() or broker.hub_affinity.hub.dead:
        broker = _brokers[name] = Broker(name, clock)
    broker.hub_affinity.check(broker, "use another virtual host in each thread")
    return broker


def reset(virtual_host: str | None = None) -> None:
    """Empty the brokers of this process (or that of one virtual host): all that they hold is gone.

    Connections to them are closed, and open anew when they are next used.  Brokers that belong to
    other threads are forgotten: what is connected to them stays with them.
    """
    for name in [virtual_host] if virtual_host is not None else list(_brokers):
        broker = _brokers.pop(name, None)
        if broker is not None and broker.is_here:
            broker.clear()


def restart(virtual_host: str | None = None) -> None:
    """Do to the brokers of this thread what a restart does: for tests of recovery.

    All connections are lost.  Durable exchanges and queues stay, and persistent messages in them.
    """
    for name in [virtual_host] if virtual_host is not None else list(_brokers):
        broker = _brokers.get(name)
        if broker is not None and broker.is_here:
            broker.restart()


class MemoryQueues(QueueStore):
    """The queues of the virtual host.  Nothing is remembered: the broker is this process'."""

    ends_exclusive = True

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def find(self, name: str) -> Declaration | None:
        queue = self._broker.queues.get(name)
        return None if queue is None else queue.declared

    def make(self, name: str, declared: Declaration) -> Declaration:
        return self._broker.add_queue(name, declared).declared

    def names(self) -> Collection[str]:
        return self._broker.queues.keys()

    def touch(self, name: str) -> None:
        self._broker.queues[name].touch()

    def counts(self, names: Collection[str]) -> Mapping[str, tuple[int, int]]:
        counts = dict.fromkeys(names, (0, 0))
        for name in counts.keys() & self._broker.queues.keys():
            queue = self._broker.queues[name]
            counts[name] = len(queue), len(queue.consumers)
        return counts

    def purge(self, name: str) -> int:
        return self._broker.queues[name].purge()

    def drop(self, name: str) -> int:
        return self._broker.delete_queue(name)


#: Classes whose values can be headers, whatever they are.
_SENT: Final = frozenset({str, bool, bytes, type(None)})


class MemoryPublisher(SynchronousPublisher):
    """The publisher of one channel: a message is in its queues when the call returns.

    Arguments:
        channel: is closed by what the broker refuses.
        broker: has the queues.
        options: of the link.
    """

    def __init__(self, channel: StoreChannel[Any], broker: Broker, options: MemoryOptions) -> None:
        super().__init__(channel, options.confirm_publish)
        self._broker = broker
        self._hub = channel.connection.hub_affinity.hub
        self._max_size = options.max_message_size
        self._last_queue = options.deadletter_queue

    def _decide(
        self, message: Envelope, exchange: str, routing_key: str, mandatory: bool, immediate: bool
    ) -> Exception | None:
        if immediate:
            raise no_immediate()
        self._broker.yield_if_due()
        if get_hub() is not self._hub or self._channel.cause is not None:
            self._channel.check_open()
        if len(message["body"]) > self._max_size:
            raise too_large(len(message["body"]), self._max_size)
        headers, delay = message["headers"], 0.0
        if headers:
            _check_headers(headers)
            delay = delay_of(headers)
        try:
            outcome = self._broker.publish(message, exchange, routing_key, delay)
        except ChannelError as exc:
            self._channel.fail(exc)
            raise
        if outcome is ROUTED:
            return None
        if outcome is Outcome.UNROUTED and self._last_queue:
            outcome = self._last_resort(message, exchange, routing_key, self._last_queue)
        if outcome is Outcome.REFUSED:
            return queue_full(exchange, routing_key)
        if mandatory and outcome is Outcome.UNROUTED:
            return unroutable(exchange, routing_key)
        return None

    def _last_resort(
        self, message: Envelope, exchange: str, routing_key: str, queue: str
    ) -> Outcome:
        """Put a message that has no queue to go to into that one."""
        warnings.warn(undeliverable(exchange, routing_key, queue), stacklevel=5)
        if queue not in self._broker.queues:
            self._broker.add_queue(queue, Declaration(durable=True))
        return self._broker.publish(message, "", queue)


def _check_headers(headers: Mapping[Any, Any]) -> None:
    """Refuse headers that RabbitMQ could not be sent, so that tests find them.

    Raises:
        ValueError: names the header.
    """
    for name, value in headers.items():
        if name.__class__ is not str or value.__class__ not in _SENT:
            from greenconn.wire.amqp import header_error  # for who has others

            if (error := header_error(headers)) is not None:
                raise ValueError(error)
            return


class Settlements:
    """See :class:`~greenconn.broker.deliveries.Acknowledger`.

    A delivered message is in its channel only, so an ack needs no work of the broker.
    """

    def __init__(self, broker: Broker) -> None:
        self._broker = broker

    def ack(self, delivery: Message) -> None:
        """Do nothing: the message is gone with its delivery."""

    def ack_late(self, tag: Any) -> None:
        """Do nothing: the message went back to its queue when the link ended."""

    def unhandled_late(self, tags: Iterable[Any]) -> None:
        """Do nothing: the messages went back to their queues when the link ended."""

    def requeue(self, deliveries: Iterable[Message], unhandled: Collection[Any] = ()) -> None:
        """Requeue *deliveries* at their places in their queues.  Nothing here counts them."""
        by_queue: dict[Queue, list[Entry]] = {}
        for each in deliveries:
            by_queue.setdefault(each.entry.queue, []).append(each.entry)
        for queue, entries in by_queue.items():
            queue.put_back(entries)
        for queue in by_queue:
            queue.settle()

    def requeue_unseen(self, delivery: Message) -> None:
        """Requeue a delivery that no handler has seen."""
        self.requeue([delivery])

    def dead_letter(self, deliveries: Iterable[Message], reason: str) -> None:
        """Make dead letters of *deliveries*, or drop them."""
        for each in deliveries:
            self._broker.dead_letter(each.entry, reason)


class MemorySubscriptions:
    """See :class:`~greenconn.broker.consuming.Subscriptions`.

    Arguments:
        broker: has the queues.
        directory: knows which of them the link may use.
    """

    def __init__(self, broker: Broker, directory: Directory) -> None:
        self._broker = broker
        self._directory = directory

    def feed(self, queue: str, method: Method) -> Queue:
        """Return the queue, which gives its messages to its consumers itself.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        found = self._broker.queues.get(queue)
        if found is None or found.declared.owner is not None:
            self._directory.check(queue, method)
            found = self._broker.queues[queue]
        return found

    def start(self, consumer: Consumer) -> None:
        """Let *consumer* have messages.

        Raises:
            AccessRefused: it may not consume beside another one.
        """
        queue = _queue_of(consumer)
        if queue.has_exclusive_consumer or (
            consumer.exclusive and (queue.consumers or queue.policy.is_single_active)
        ):
            raise in_exclusive_use(queue.name, self._broker.virtual_host)
        queue.join(consumer)

    def left(self, consumer: Consumer) -> None:
        """Forget a consumer: its queue may be of no use any more."""
        _queue_of(consumer).leave(consumer)

    def ended(self, consumer: Consumer) -> None:
        """Forget a consumer whose queue is gone: so the queue did itself."""

    def serve(self, consumer: Consumer) -> None:
        """Do nothing: where a consumer has room that is not parked, nothing waits."""

    def get(self, channel: StoreChannel[Any], queue: str) -> Message | None:
        """Take one message for *channel*; None when none waits.

        Raises:
            NotFound: there is no such queue.
        """
        found = self.feed(queue, Method.BASIC_GET)
        entry = found.take()
        if entry is None:
            return None
        return Message(channel, next(self._broker.tags), entry, waiting=found.store.count)


def _queue_of(consumer: Consumer) -> Queue:
    assert isinstance(consumer.feed, Queue)
    return consumer.feed
