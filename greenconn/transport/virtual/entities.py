"""The channel methods that declare, bind and delete exchanges and bindings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

from greenconn.encoding import plain_text
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
from greenconn.transport.virtual.exchange import ROUTERS, Router
from greenconn.transport.virtual.life import ChannelLife, closes_channel
from greenconn.transport.virtual.matching import X_MATCH
from greenconn.transport.virtual.state import Binding, BrokerState, Exchange

__all__ = ["PREDECLARED", "EntityMethods"]

#: The exchanges that every virtual host has, by name.
PREDECLARED: Mapping[str, str] = {
    "amq.direct": "direct",
    "amq.fanout": "fanout",
    "amq.headers": "headers",
    "amq.match": "headers",
    "amq.topic": "topic",
}


class EntityMethods(ChannelLife):
    """Exchanges and bindings, kept in the ``state`` that channels of one broker share."""

    #: Exchange arguments that a second declaration must repeat.
    compared_exchange_arguments: ClassVar[frozenset[str]] = frozenset({"alternate-exchange"})

    @property
    def state(self) -> BrokerState:
        """The exchanges and bindings."""
        raise NotImplementedError

    def _router_factory(self, exchange: str, type: str) -> Callable[[], Router] | None:
        """What makes the router of a new exchange; None: there is no such type."""
        return ROUTERS.get(type)

    def _check_queue(self, queue: str, method: Method) -> str:
        """Return the name of the queue that *queue* means ('' is the one last declared).

        Raises:
            NotFound, ResourceLocked: it is not there, or not for this connection.
        """
        raise NotImplementedError

    def _bound(self, binding: Binding) -> None:
        """A binding was made.  May switch."""

    # -- exchanges

    def _exchange(self, name: str, method: Method) -> Exchange:
        try:
            return self.state.exchanges[name]
        except KeyError:
            raise no_exchange(name, self.virtual_host, method) from None

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
        """Make an exchange, or check that the existing one is the same.

        Arguments:
            exchange: its name; empty means the ready-made one of that type, ``amq.<type>``.
            passive: only check that it exists.

        Raises:
            NotFound: passive, and it does not exist.
            PreconditionFailed: it differs from the existing one, or there is no such type.
            AccessRefused: the name is reserved.
        """
        exchange, type = plain_text(exchange), plain_text(type)
        method = Method.EXCHANGE_DECLARE
        kind = type or "direct"
        name = exchange or f"amq.{kind}"
        current = self.state.exchanges.get(name)
        if passive:
            self._exchange(name, method)
            return
        self.warn_of_unsupported(ArgumentOf.EXCHANGE, name, arguments)
        if current is not None:
            check_equivalent(
                "exchange",
                name,
                self.virtual_host,
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

    @closes_channel
    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange and its bindings; one that is not there is no error.

        Raises:
            PreconditionFailed: *if_unused*, and something is bound to it.
            AccessRefused: it is one of the ready-made exchanges.
        """
        exchange = plain_text(exchange)
        method = Method.EXCHANGE_DELETE
        if not exchange or exchange in PREDECLARED:
            raise refused(f"exchange '{exchange}' cannot be deleted", method)
        current = self.state.exchanges.get(exchange)
        if current is None:
            return
        if if_unused and current.bindings:
            raise in_use("exchange", exchange, self.virtual_host, method)
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

    @closes_channel
    def exchange_bind(
        self,
        destination: str,
        source: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Bind exchange *destination* to exchange *source*; again: changes nothing.

        Raises:
            NotFound: one of the exchanges does not exist.
            AccessRefused: one of them is the default exchange.
        """
        destination, source, routing_key = (
            plain_text(destination),
            plain_text(source),
            plain_text(routing_key),
        )
        method = Method.EXCHANGE_BIND
        binding = self._binding(source, destination, routing_key, arguments, True, method)
        self._bind(binding, method)

    @closes_channel
    def exchange_unbind(
        self,
        destination: str,
        source: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Remove a binding between exchanges; one that is not there is no error."""
        destination, source, routing_key = (
            plain_text(destination),
            plain_text(source),
            plain_text(routing_key),
        )
        method = Method.EXCHANGE_UNBIND
        self._unbind(self._binding(source, destination, routing_key, arguments, True, method))

    @closes_channel
    def queue_bind(
        self,
        queue: str = "",
        exchange: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Bind a queue to an exchange; again: changes nothing.

        Raises:
            NotFound: the queue or the exchange does not exist.
            AccessRefused: the exchange is the default one.
        """
        queue, exchange, routing_key = (
            plain_text(queue),
            plain_text(exchange),
            plain_text(routing_key),
        )
        method = Method.QUEUE_BIND
        name = self._check_queue(queue, method)
        self._bind(self._binding(exchange, name, routing_key, arguments, False, method), method)

    @closes_channel
    def queue_unbind(
        self,
        queue: str = "",
        exchange: str = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Remove a binding of a queue; one that is not there is no error."""
        queue, exchange, routing_key = (
            plain_text(queue),
            plain_text(exchange),
            plain_text(routing_key),
        )
        self._unbind(
            self._binding(exchange, queue, routing_key, arguments, False, Method.QUEUE_UNBIND)
        )

    def list_bindings(self) -> Iterator[tuple[str, str, str]]:
        """``(queue, exchange, routing key)`` of every binding to a queue."""
        for each in self.state.all_bindings():
            if not each.to_exchange:
                yield each.destination, each.source, each.routing_key

    def get_bindings(self) -> list[dict[str, str]]:
        """Every binding to a queue: ``destination``, ``source``, ``routing_key``."""
        return [
            {"destination": queue, "source": exchange, "routing_key": key}
            for queue, exchange, key in self.list_bindings()
        ]
