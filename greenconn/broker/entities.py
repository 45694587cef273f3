"""Exchanges and queues that many processes share.

What is known of them belongs to the link: its directory knows the queues, its routing the exchanges and
their bindings.  Both ask the broker where that is due.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from amqp.protocol import queue_declare_ok_t

from greenconn.broker.base_link import BrokerLink
from greenconn.transport.refusal import Method, in_use, no_exchange, not_empty
from greenconn.transport.virtual.arguments import ArgumentOf
from greenconn.transport.virtual.declaration import Declaration
from greenconn.transport.virtual.entities import PREDECLARED, Entities
from greenconn.transport.virtual.exchange import Router
from greenconn.transport.virtual.names import generated_name
from greenconn.transport.virtual.state import Binding, BrokerState, Exchange

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel


T = TypeVar("T")


class SharedEntities(Entities):
    """Exchanges, queues and bindings over a :class:`BrokerLink`.  All of it may switch.

    Arguments:
        channel: of such a link.
    """

    def __init__(self, channel: StoreChannel[Any]) -> None:
        super().__init__(channel)
        assert isinstance(channel.connection, BrokerLink)
        self._link = channel.connection

    @property
    def state(self) -> BrokerState:
        """The exchanges and bindings as this process knows them."""
        return self._link.state

    def check_queue(self, queue: str, method: Method) -> str:
        """Return the name of the queue that *queue* means.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        name = self.queue_name(queue)
        self._link.directory.check(name, method)
        return name

    def _router_factory(self, exchange: str, type: str) -> Callable[[], Router] | None:
        return self._link.router_of(exchange, type) or super()._router_factory(exchange, type)

    # -- exchanges

    def _exchange(self, name: str, method: Method) -> Exchange:
        known = self._link.routing.find(name)
        if known is None:
            raise no_exchange(name, self._channel.virtual_host, method)
        return known

    def declare_exchange(
        self,
        exchange: str,
        type: str,
        *,
        passive: bool,
        durable: bool,
        auto_delete: bool,
        arguments: Mapping[str, Any] | None,
    ) -> None:
        """Make an exchange, or check that the existing one is the same."""
        link = self._link
        name = exchange or f"amq.{type or 'direct'}"
        link.directory.settle()  # it may be about to go with the last queue that is bound to it
        known = link.routing.find(name)
        if known is not None and known.is_guess and not passive:
            link.routing.forget(name)  # what it is like is said only now
        super().declare_exchange(
            exchange,
            type,
            passive=passive,
            durable=durable,
            auto_delete=auto_delete,
            arguments=arguments,
        )
        if not passive:
            # Each time: the broker may have lost what it knew.
            link.routing.note(self.state.exchanges[name])

    def delete_exchange(self, exchange: str, if_unused: bool) -> None:
        """Delete an exchange and its bindings; one that is not there is no error."""
        routing = self._link.routing
        if if_unused and exchange not in PREDECLARED and routing.is_used(exchange):
            vhost = self._channel.virtual_host
            raise in_use("exchange", exchange, vhost, Method.EXCHANGE_DELETE)
        super().delete_exchange(exchange, if_unused)
        routing.drop(exchange)

    def _bind(self, binding: Binding, method: Method) -> None:
        self._exchange(binding.source, method)
        if binding.to_exchange:
            self._exchange(binding.destination, method)
        # Each time, as above; the broker has it once.
        self._link.routing.bind(binding)

    def _unbind(self, binding: Binding) -> None:
        self._link.routing.unbind(binding)

    # -- queues

    def declare_queue(
        self,
        queue: str,
        *,
        passive: bool,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: Mapping[str, Any] | None,
    ) -> queue_declare_ok_t:
        """Make a queue, or check that the existing one is the same."""
        link = self._link
        name = queue or (self.last_queue if passive else "") or generated_name("amq.gen-")
        link.directory.settle()
        if passive:
            link.directory.declare_passively(name)
        else:
            self._channel.warn_of_unsupported(ArgumentOf.QUEUE, name, arguments)
            link.directory.declare(
                name,
                Declaration(
                    durable=bool(durable),
                    auto_delete=bool(auto_delete),
                    owner=link.owner if exclusive else None,
                    arguments=dict(arguments or {}),
                ),
            )
        self.last_queue = name
        return queue_declare_ok_t(name, *link.directory.counts(name))

    def purge_queue(self, queue: str) -> int:
        """Drop the messages that wait in a queue and return how many there were."""
        directory = self._link.directory
        directory.settle()
        return directory.purge(self.check_queue(queue, Method.QUEUE_PURGE))

    def delete_queue(self, queue: str, if_unused: bool, if_empty: bool) -> int:
        """Delete a queue and its bindings; return how many messages it had."""
        link = self._link
        method = Method.QUEUE_DELETE
        name = self.queue_name(queue)
        link.directory.check_name(name, method)
        link.directory.settle()
        if link.directory.find(name) is None:
            link.routing.forget_queue(name)
            return 0
        link.directory.check(name, method)
        if if_unused or if_empty:
            messages, consumed = link.directory.counts(name)
            if if_unused and consumed:
                raise in_use("queue", name, self._channel.virtual_host, method)
            if if_empty and messages:
                raise not_empty(name, self._channel.virtual_host, method)
        feed = link.feeds.get(name)
        for consumer in list(feed.consumers) if feed is not None else []:
            consumer.channel.cancelled_by_broker(consumer)
        return link.directory.drop(name)
