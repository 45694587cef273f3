"""The exchanges, queues and bindings of a channel: declaring, binding, deleting and listing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from amqp.protocol import queue_declare_ok_t

from greenconn.transport import base
from greenconn.transport.refusal import (
    Method,
    check_equivalent,
    in_use,
    invalid_argument,
    no_exchange,
    refused,
    reserved_name,
)
from greenconn.transport.virtual.arguments import ArgumentOf
from greenconn.transport.virtual.exchange import ROUTERS, X_MATCH, Router
from greenconn.transport.virtual.state import Binding, BrokerState, Exchange

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel


#: The exchanges that every virtual host has, by name.
PREDECLARED: Mapping[str, str] = {
    "amq.direct": "direct",
    "amq.fanout": "fanout",
    "amq.headers": "headers",
    "amq.match": "headers",
    "amq.topic": "topic",
}


class Entities:
    """Exchanges and bindings, kept in the ``state`` that channels of one broker share.

    A refusal is raised as a ``ChannelError``; the channel, whose methods say more, then closes.

    Arguments:
        channel: warns of arguments.

    Attributes:
        last_queue: the queue that this channel has declared last.
    """

    #: Exchange arguments that a second declaration must repeat.
    compared_exchange_arguments: ClassVar[frozenset[str]] = frozenset({"alternate-exchange"})

    def __init__(self, channel: StoreChannel[Any]) -> None:
        self._channel = channel
        self.last_queue = ""

    # -- what a transport writes

    @property
    def state(self) -> BrokerState:
        """The exchanges and bindings."""
        raise NotImplementedError

    def _router_factory(self, exchange: str, type: str) -> Callable[[], Router] | None:
        """Return what makes the router of a new exchange; None: there is no such type."""
        return ROUTERS.get(type)

    def _bound(self, binding: Binding) -> None:
        """Note a new binding.  May switch."""

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
        """Make a queue, or check that the existing one is the same.  May switch."""
        raise NotImplementedError

    def purge_queue(self, queue: str) -> int:
        """Drop the messages that wait in a queue and return how many there were.  May switch."""
        raise NotImplementedError

    def delete_queue(self, queue: str, if_unused: bool, if_empty: bool) -> int:
        """Delete a queue and its bindings; return how many messages it had.  May switch."""
        raise NotImplementedError

    def queue_name(self, name: str) -> str:
        """Return the queue that *name* means; '' is the one this channel declared last."""
        return name or self.last_queue

    def check_queue(self, queue: str, method: Method) -> str:
        """Return the name of the queue that *queue* means.  May switch.

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        return self.queue_name(queue)

    # -- exchanges

    def _exchange(self, name: str, method: Method) -> Exchange:
        try:
            return self.state.exchanges[name]
        except KeyError:
            raise no_exchange(name, self._channel.virtual_host, method) from None

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
        method = Method.EXCHANGE_DECLARE
        kind = type or "direct"
        name = exchange or f"amq.{kind}"
        current = self.state.exchanges.get(name)
        if passive:
            self._exchange(name, method)
            return
        self._channel.warn_of_unsupported(ArgumentOf.EXCHANGE, name, arguments)
        if current is not None:
            check_equivalent(
                "exchange",
                name,
                self._channel.virtual_host,
                method,
                # A ready-made exchange is what it is: kombu declares it without its settings.
                fields={"type": (kind, current.type)}
                if name in PREDECLARED
                else {
                    "type": (kind, current.type),
                    "durable": (bool(durable), current.durable),
                    "auto_delete": (bool(auto_delete), current.auto_delete),
                },
                arguments=(arguments or {}, current.arguments),
                compared=self.compared_exchange_arguments,
            )
        else:
            self._declare_exchange(name, kind, durable, auto_delete, arguments)

    def _declare_exchange(
        self,
        name: str,
        kind: str,
        durable: bool,
        auto_delete: bool,
        arguments: Mapping[str, Any] | None,
    ) -> None:
        if name.startswith("amq."):
            raise reserved_name("exchange", name, Method.EXCHANGE_DECLARE)
        router = self._router_factory(name, kind)
        if router is None:
            raise invalid_argument(
                f"unknown exchange type '{kind}' for exchange '{name}'", Method.EXCHANGE_DECLARE
            )
        self.state.declare(
            name,
            kind,
            durable=bool(durable),
            auto_delete=bool(auto_delete),
            arguments=arguments,
            router=router,
        )

    def delete_exchange(self, exchange: str, if_unused: bool) -> None:
        """Delete an exchange and its bindings; one that is not there is no error."""
        method = Method.EXCHANGE_DELETE
        if not exchange or exchange in PREDECLARED:
            raise refused(f"exchange '{exchange}' cannot be deleted", method)
        current = self.state.exchanges.get(exchange)
        if current is None:
            return
        if if_unused and current.bindings:
            raise in_use("exchange", exchange, self._channel.virtual_host, method)
        self.state.delete(exchange)

    # -- bindings

    def _binding(
        self,
        source: str,
        destination: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
        to_exchange: bool,
        method: Method,
    ) -> Binding:
        if not source or (to_exchange and not destination):
            raise refused("operation not permitted on the default exchange", method)
        how = (arguments or {}).get("x-match", "all")
        if how not in X_MATCH:
            raise invalid_argument(
                f"invalid x-match {how!r}: one of {', '.join(sorted(X_MATCH))} is expected", method
            )
        return Binding(source, destination, routing_key or "", arguments, to_exchange=to_exchange)

    def _bind(self, binding: Binding, method: Method) -> None:
        self._exchange(binding.source, method)
        if binding.to_exchange:
            self._exchange(binding.destination, method)
        if self.state.bind(binding):
            self._bound(binding)

    def _unbind(self, binding: Binding) -> None:
        self.state.unbind(binding)

    def bind_exchange(
        self,
        destination: str,
        source: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
    ) -> None:
        """Bind exchange *destination* to exchange *source*; again: changes nothing."""
        method = Method.EXCHANGE_BIND
        self._bind(self._binding(source, destination, routing_key, arguments, True, method), method)

    def unbind_exchange(
        self,
        destination: str,
        source: str,
        routing_key: str,
        arguments: Mapping[str, Any] | None,
    ) -> None:
        """Remove a binding between exchanges; one that is not there is no error."""
        method = Method.EXCHANGE_UNBIND
        self._unbind(self._binding(source, destination, routing_key, arguments, True, method))

    def bind_queue(
        self, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any] | None
    ) -> None:
        """Bind a queue to an exchange; again: changes nothing."""
        method = Method.QUEUE_BIND
        name = self.check_queue(queue, method)
        self._bind(self._binding(exchange, name, routing_key, arguments, False, method), method)

    def unbind_queue(
        self, queue: str, exchange: str, routing_key: str, arguments: Mapping[str, Any] | None
    ) -> None:
        """Remove a binding of a queue; one that is not there is no error."""
        method = Method.QUEUE_UNBIND
        self._unbind(self._binding(exchange, queue, routing_key, arguments, False, method))

    def list_bindings(self) -> Iterator[tuple[str, str, str]]:
        """``(queue, exchange, routing key)`` of every binding to a queue."""
        for each in self.state.all_bindings():
            if not each.to_exchange:
                yield each.destination, each.source, each.routing_key


class Management(base.Management):
    """The bindings of the virtual host, through a channel of its own."""

    def __init__(self, transport: base.Transport[Any]) -> None:
        super().__init__(transport)
        self.channel = transport.client.channel()

    def get_bindings(self) -> Any:
        """Every binding to a queue: ``destination``, ``source``, ``routing_key``."""
        return self.channel.get_bindings()

    def close(self) -> None:
        """Close the channel.  May switch."""
        self.channel.close()
