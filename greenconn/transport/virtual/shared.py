"""The channel methods for exchanges and queues that a broker keeps for several processes.

What is known of them belongs to the link: its directory knows the queues, its routing the exchanges and
their bindings.  Both ask the broker where that is due.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from amqp.protocol import queue_declare_ok_t

from greenconn.encoding import plain_text
from greenconn.transport.refusal import Method, in_use, no_exchange, not_empty
from greenconn.transport.virtual.arguments import ArgumentOf
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.declaration import Declaration
from greenconn.transport.virtual.directory import Directory
from greenconn.transport.virtual.entities import PREDECLARED, EntityMethods
from greenconn.transport.virtual.life import closes_channel
from greenconn.transport.virtual.link import VirtualLink
from greenconn.transport.virtual.names import generated_name
from greenconn.transport.virtual.state import Binding, BrokerState, Exchange

__all__ = ["Routing", "SharedEntityMethods", "SharingLink"]


class Routing(Protocol):
    """The exchanges and bindings as one link knows them.  All of it may switch."""

    def learn(self, name: str) -> Exchange | None:
        """Return an exchange as it is now; None: there is none."""

    def is_used(self, name: str) -> bool:
        """Whether something is bound to an exchange, by whatever process."""

    def note(self, exchange: Exchange) -> None:
        """Tell the broker of an exchange."""

    def drop(self, name: str) -> None:
        """An exchange was deleted: tell the broker."""

    def bind(self, binding: Binding) -> None:
        """Make a binding, here and at the broker; again: only tells the broker."""

    def unbind(self, binding: Binding) -> None:
        """Remove a binding, here and at the broker."""

    def unbind_queue(self, name: str) -> None:
        """A queue is gone: so are its bindings, as far as they are known here."""


class _Feed(Protocol):
    """Where the consumers of one queue are listed."""

    @property
    def consumers(self) -> Iterable[Consumer]: ...


class SharingLink(VirtualLink):
    """A link with a directory and a routing.

    Attributes:
        owner: under which this life has exclusive queues; nobody else has the same.
        feeds: queue -> what serves its consumers of this link.
    """

    owner: str
    state: BrokerState
    directory: Directory
    routing: Routing
    feeds: Mapping[str, _Feed]


class SharedEntityMethods(EntityMethods):
    """Exchanges, queues and bindings over a :class:`SharingLink`."""

    connection: SharingLink

    _last_queue = ""

    @property
    def state(self) -> BrokerState:
        """The exchanges and bindings as this process knows them."""
        return self.connection.state

    def _queue_name(self, name: str) -> str:
        """Return the queue that *name* means; '' is the one this channel declared last."""
        return name or self._last_queue

    def _check_queue(self, queue: str, method: Method) -> str:
        name = self._queue_name(queue)
        self.connection.directory.check(name, method)
        return name

    # -- exchanges

    def _exchange(self, name: str, method: Method) -> Exchange:
        known = self.connection.routing.learn(name)
        if known is None:
            raise no_exchange(name, self.virtual_host, method)
        return known

    @closes_channel
    def exchange_declare(
        self,
        exchange: str = "",
        type: str = "direct",
        passive: bool = False,
        durable: bool = False,
        auto_delete: bool = False,
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Make an exchange, or check that the existing one is the same.  May switch.

        Raises:
            NotFound: passive, and it does not exist.
            PreconditionFailed: it differs from the existing one, or there is no such type.
            AccessRefused: the name is reserved.
        """
        exchange, type = plain_text(exchange), plain_text(type)
        link = self.connection
        name = exchange or f"amq.{type or 'direct'}"
        link.directory.settle()  # it may be about to go with the last queue that is bound to it
        link.routing.learn(name)
        super().exchange_declare(exchange, type, passive, durable, auto_delete, nowait, arguments)
        if not passive:
            # Each time: the broker may have lost what it knew.
            link.routing.note(self.state.exchanges[name])

    @closes_channel
    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange and its bindings; one that is not there is no error.  May switch.

        Raises:
            PreconditionFailed: *if_unused*, and something is bound to it.
            AccessRefused: it is one of the ready-made exchanges.
        """
        exchange = plain_text(exchange)
        routing = self.connection.routing
        if if_unused and exchange not in PREDECLARED and routing.is_used(exchange):
            raise in_use("exchange", exchange, self.virtual_host, Method.EXCHANGE_DELETE)
        super().exchange_delete(exchange, if_unused, nowait)
        routing.drop(exchange)

    def _bind(self, binding: Binding, method: Method) -> None:
        self._exchange(binding.source, method)
        if binding.to_exchange:
            self._exchange(binding.destination, method)
        # Each time, as above; the broker has it once.
        self.connection.routing.bind(binding)

    # -- queues

    @closes_channel
    def queue_declare(
        self,
        queue: str = "",
        passive: bool = False,
        durable: bool = False,
        exclusive: bool = False,
        auto_delete: bool = False,
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> queue_declare_ok_t:
        """Make a queue, or check that the existing one is the same.  May switch.

        Arguments:
            queue: its name; empty makes one up.
            passive: only check that it exists.
            exclusive: for this connection only, and deleted with it.
            auto_delete: deleted when its last consumer leaves.
            arguments: ``x-message-ttl`` and the like; the page of the transport lists those that
                count there.

        Returns:
            its name, how many messages wait, how many consumers it has.

        Raises:
            NotFound: passive, and it does not exist.
            PreconditionFailed: it differs from the existing one, or an argument cannot be.
            ResourceLocked: it is exclusive to another connection.
        """
        queue = plain_text(queue)
        link = self.connection
        name = queue or generated_name("amq.gen-")
        link.directory.settle()
        if passive:
            link.directory.declare_passively(name)
        else:
            self.warn_of_unsupported(ArgumentOf.QUEUE, name, arguments)
            link.directory.declare(
                name,
                Declaration(
                    durable=bool(durable),
                    auto_delete=bool(auto_delete),
                    owner=link.owner if exclusive else None,
                    arguments=dict(arguments or {}),
                ),
            )
        self._last_queue = name
        return queue_declare_ok_t(name, *link.directory.counts(name))

    @closes_channel
    def queue_purge(self, queue: str = "", nowait: bool = False) -> int:
        """Drop the messages that wait in a queue and return how many there were.  May switch."""
        queue = plain_text(queue)
        directory = self.connection.directory
        directory.settle()
        return directory.purge(self._check_queue(queue, Method.QUEUE_PURGE))

    @closes_channel
    def queue_delete(
        self,
        queue: str = "",
        if_unused: bool = False,
        if_empty: bool = False,
        nowait: bool = False,
    ) -> int:
        """Delete a queue and its bindings; return how many messages it had.  May switch.

        Raises:
            PreconditionFailed: *if_unused*, and somebody consumes from it; *if_empty*, and it is not.
            ResourceLocked: it is exclusive to another connection.
        """
        queue = plain_text(queue)
        link = self.connection
        method = Method.QUEUE_DELETE
        name = self._queue_name(queue)
        link.directory.settle()
        if link.directory.find(name) is None:
            link.routing.unbind_queue(name)
            return 0
        link.directory.check(name, method)
        if if_unused or if_empty:
            messages, consumed = link.directory.counts(name)
            if if_unused and consumed:
                raise in_use("queue", name, self.virtual_host, method)
            if if_empty and messages:
                raise not_empty(name, self.virtual_host, method)
        feed = link.feeds.get(name)
        for consumer in list(feed.consumers) if feed is not None else []:
            consumer.channel.cancelled_by_broker(consumer)
        return link.directory.drop(name)

    def after_reply_message_received(self, queue: str) -> None:
        """Nothing to do: a reply queue lives until its owner deletes it."""
