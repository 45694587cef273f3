"""A channel over a store."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from amqp.protocol import queue_declare_ok_t

from greenconn.transport.leased.delivering import DeliveringMethods
from greenconn.transport.leased.link import LeasedLink
from greenconn.transport.leased.publishing import PublishingToStore
from greenconn.transport.virtual.consuming import generated_name
from greenconn.transport.virtual.declaration import Declaration
from greenconn.transport.virtual.entities import EntityMethods
from greenconn.transport.virtual.life import closes_channel
from greenconn.transport.virtual.publishing import UndeliverableWarning
from greenconn.transport.virtual.refusal import Method, in_use, no_exchange, not_empty
from greenconn.transport.virtual.state import Binding, BrokerState, Exchange

__all__ = ["LeasedChannel"]


class LeasedChannel(EntityMethods, DeliveringMethods, PublishingToStore):
    """A channel.  Any greenlet of its connection's hub may call any method at any time.

    Arguments:
        connection: the link.
    """

    connection: LeasedLink

    def __init__(self, connection: LeasedLink, channel_id: int | None = None) -> None:
        super().__init__(connection, channel_id)
        self._last_queue = ""
        self._init_answers()

    @property
    def state(self) -> BrokerState:
        """The exchanges and bindings as this process knows them."""
        return self.connection.state

    def _queue_name(self, name: str) -> str:
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
        link = self.connection
        name = exchange or f"amq.{type or 'direct'}"
        link.catch_up()  # it may be about to go with the last queue that is bound to it
        link.routing.learn(name)
        super().exchange_declare(exchange, type, passive, durable, auto_delete, nowait, arguments)
        if not passive and link.store.shares_bindings:
            link.ask("declaring an exchange", link.store.note_exchange, self.state.exchanges[name])

    @closes_channel
    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange and its bindings; one that is not there is no error.  May switch.

        Raises:
            PreconditionFailed: *if_unused*, and something is bound to it.
            AccessRefused: it is one of the ready-made exchanges.
        """
        link = self.connection
        link.routing.learn(exchange)
        super().exchange_delete(exchange, if_unused, nowait)
        if link.store.shares_bindings:
            link.ask("deleting an exchange", link.store.drop_exchange, exchange)

    def _bind(self, binding: Binding, method: Method) -> None:
        self._exchange(binding.source, method)
        if binding.to_exchange:
            self._exchange(binding.destination, method)
        link = self.connection
        row = link.routing.row(binding)
        if row is not None:
            link.ask("binding", link.store.bind, binding.source, row)
        if binding.source in self.state.exchanges:
            self.state.bind(binding)

    def _unbind(self, binding: Binding) -> None:
        link = self.connection
        link.routing.learn(binding.source)
        row = link.routing.row(binding)
        if row is not None:
            link.ask("unbinding", link.store.unbind, binding.source, row)
        was_there = binding.source in self.state.exchanges
        self.state.unbind(binding)
        is_gone = was_there and binding.source not in self.state.exchanges
        if is_gone and link.store.shares_bindings:
            # It was to be deleted with its last binding.
            link.ask("deleting an exchange", link.store.drop_exchange, binding.source)

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
            arguments: ``x-message-ttl`` and the like, as far as the broker has them.

        Returns:
            its name, how many messages wait, how many consumers it has.

        Raises:
            NotFound: passive, and it does not exist.
            PreconditionFailed: it differs from the existing one, or an argument cannot be.
            ResourceLocked: it is exclusive to another connection.
        """
        link = self.connection
        name = queue or generated_name("amq.gen-")
        link.catch_up()
        if passive:
            link.directory.check(name, Method.QUEUE_DECLARE)
        else:
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
        link = self.connection
        link.catch_up()
        name = self._check_queue(queue, Method.QUEUE_PURGE)
        return int(link.ask("purging a queue", link.store.purge, name))

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
        link = self.connection
        method = Method.QUEUE_DELETE
        name = self._queue_name(queue)
        link.catch_up()
        if link.directory.find(name) is None:
            self.state.queue_bindings_delete(name)
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

    def _last_resort(self, exchange: str, routing_key: str, queue: str) -> str:
        warnings.warn(
            UndeliverableWarning(
                f"no queue of exchange {exchange!r} for routing key {routing_key!r}: the message "
                f"went to {queue!r}"
            ),
            stacklevel=5,
        )
        if not self.connection.directory.is_there(queue):
            self.connection.directory.declare(queue, Declaration(durable=True))
        return queue
