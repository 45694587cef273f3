"""The exchanges, queues and bindings of a channel: declaring, binding, deleting and listing.

RabbitMQ's arguments (``x-message-ttl``, ``x-max-length``...), properties (``expiration``, ``priority``)
and headers (``x-delay``, ``CC``) change what happens to messages.  A transport that ignores one of them
without a word confirms messages that never expire, or never arrive.  So each transport lists what it
implements, and the channel methods that take arguments compare; a warning in the log names the others.

What is known of shared entities belongs to the link: its directory knows the queues, its routing the
exchanges and their bindings.  Both ask the broker where that is due.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeVar

from amqp.protocol import queue_declare_ok_t

from greenconn.broker.errors import (
    Method,
    check_equivalent,
    in_use,
    invalid_argument,
    no_exchange,
    not_empty,
    refused,
    reserved_name,
)
from greenconn.broker.exchanges import (
    PREDECLARED,
    ROUTERS,
    X_MATCH,
    Binding,
    BrokerState,
    Exchange,
    ExchangeDeclaration,
    Router,
)
from greenconn.broker.queues import Declaration, generated_name
from greenconn.green.hub import PerHub
from greenconn.transport import base

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel
    from greenconn.broker.link import BrokerLink

logger = logging.getLogger("greenconn.transport.arguments")


class ArgumentOf(Enum):
    """The thing that an argument belongs to."""

    QUEUE = "queue"
    EXCHANGE = "exchange"
    CONSUMER = "consumer of queue"
    MESSAGE = "messages to"


#: RabbitMQ's arguments, and the properties and headers of messages, that change what a program sees.
#: Those that only say where and how RabbitMQ keeps a queue are not among them.
KNOWN: Final[Mapping[ArgumentOf, tuple[str, ...]]] = {
    ArgumentOf.QUEUE: (
        "x-consumer-timeout",
        "x-dead-letter-exchange",
        "x-dead-letter-routing-key",
        "x-dead-letter-strategy",
        "x-delayed-retry-max",
        "x-delayed-retry-min",
        "x-delayed-retry-type",
        "x-delivery-limit",
        "x-expires",
        "x-max-age",
        "x-max-length",
        "x-max-length-bytes",
        "x-max-priority",
        "x-message-ttl",
        "x-overflow",
        "x-queue-type",
        "x-single-active-consumer",
    ),
    ArgumentOf.EXCHANGE: ("alternate-exchange", "x-delayed-type"),
    ArgumentOf.CONSUMER: (
        "x-consumer-timeout",
        "x-priority",
        "x-stream-filter",
        "x-stream-match-unfiltered",
        "x-stream-offset",
    ),
    ArgumentOf.MESSAGE: ("priority", "expiration", "x-delay", "CC", "BCC"),
}

#: Values that say nothing but what each transport does.
_DEFAULTS: Final = {"x-queue-type": "classic", "x-dead-letter-strategy": "at-most-once"}

#: Names under which one argument is warned about, for one broker.
_MOST_NAMES: Final = 100

#: Begins the names that a broker makes up; all of them count as one.
_GENERATED: Final = "amq.gen-"


@dataclass(frozen=True, kw_only=True)
class SupportedArguments:
    """The arguments, of :data:`KNOWN`, that one transport implements.

    Attributes:
        queue: of ``queue_declare``.
        exchange: of ``exchange_declare``.
        consumer: of ``basic_consume``.
        message: properties and headers of published messages.
    """

    queue: frozenset[str] = frozenset()
    exchange: frozenset[str] = frozenset()
    consumer: frozenset[str] = frozenset()
    message: frozenset[str] = frozenset()

    def of(self, kind: ArgumentOf) -> frozenset[str]:
        """Return those of one kind."""
        if kind is ArgumentOf.QUEUE:
            return self.queue
        if kind is ArgumentOf.EXCHANGE:
            return self.exchange
        return self.consumer if kind is ArgumentOf.CONSUMER else self.message

    def missing(self, kind: ArgumentOf, arguments: Mapping[str, Any]) -> list[str]:
        """Return the names of those of *arguments* that are not implemented."""
        supported = self.of(kind)
        return [
            name
            for name in KNOWN[kind]
            if name not in supported
            and arguments.get(name) is not None
            and arguments[name] != _DEFAULTS.get(name)
        ]


class _Warned:
    """The warnings that were given."""

    def __init__(self) -> None:
        self._seen: set[tuple[str, ArgumentOf, str, str]] = set()
        self._counts: Counter[tuple[str, ArgumentOf, str]] = Counter()

    def note(self, where: str, kind: ArgumentOf, name: str, argument: str) -> bool:
        """Return whether a warning is due."""
        key = (where, kind, name, argument)
        if key in self._seen or self._counts[where, kind, argument] >= _MOST_NAMES:
            return False
        self._seen.add(key)
        self._counts[where, kind, argument] += 1
        return True


_warned_of: Final[PerHub[_Warned]] = PerHub(_Warned)


def warn_of_unsupported(
    supported: SupportedArguments,
    client: Any,
    kind: ArgumentOf,
    name: str,
    arguments: Mapping[str, Any] | None,
) -> None:
    """Log the arguments that are not implemented, once for each thing and argument.  Never switches.

    Arguments:
        supported: those of the transport.
        client: the ``Connection``, whose URL the warning names.
        name: of the queue, the exchange, or what messages go to.
        arguments: as they were given; of a message its properties and headers.
    """
    if not arguments:
        return
    missing = supported.missing(kind, arguments)
    if not missing:
        return
    warned, where = _warned_of.get(), client.as_uri()
    key = _GENERATED if name.startswith(_GENERATED) else name
    due = [each for each in missing if warned.note(where, kind, key, each)]
    if due:
        logger.warning(
            "%s: %s %r: arguments that this transport does not implement are ignored: %s "
            '(docs/transports.rst, "Arguments")',
            where,
            kind.value,
            name,
            ", ".join(f"{each}={arguments[each]!r}" for each in due),
        )


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
        self, queue: str, declared: Declaration, *, passive: bool, counted: bool = True
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
        self, exchange: str, declared: ExchangeDeclaration, *, passive: bool
    ) -> None:
        """Make an exchange, or check that the existing one is the same."""
        method = Method.EXCHANGE_DECLARE
        kind = declared.type
        name = exchange or f"amq.{kind}"
        current = self.state.exchanges.get(name)
        if passive:
            self._exchange(name, method)
            return
        self._channel.warn_of_unsupported(ArgumentOf.EXCHANGE, name, declared.arguments)
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
                    "durable": (declared.durable, current.durable),
                    "auto_delete": (declared.auto_delete, current.auto_delete),
                },
                arguments=(declared.arguments, current.arguments),
                compared=self.compared_exchange_arguments,
            )
            return
        if name.startswith("amq."):
            raise reserved_name("exchange", name, method)
        router = self._router_factory(name, kind)
        if router is None:
            text = f"unknown exchange type '{kind}' for exchange '{name}'"
            raise invalid_argument(text, method)
        self.state.declare(
            name,
            kind,
            durable=declared.durable,
            auto_delete=declared.auto_delete,
            arguments=declared.arguments,
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


T = TypeVar("T")


class SharedEntities(Entities):
    """Exchanges, queues and bindings over a :class:`BrokerLink`.  All of it may switch.

    Arguments:
        channel: of such a link.
    """

    def __init__(self, channel: StoreChannel[Any]) -> None:
        super().__init__(channel)
        self._link: BrokerLink = channel.connection

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
        self, exchange: str, declared: ExchangeDeclaration, *, passive: bool
    ) -> None:
        """Make an exchange, or check that the existing one is the same."""
        link = self._link
        name = exchange or f"amq.{declared.type}"
        link.directory.settle()  # it may be about to go with the last queue that is bound to it
        known = link.routing.find(name)
        if known is not None and known.is_guess and not passive:
            link.routing.forget(name)  # what it is like is said only now
        super().declare_exchange(exchange, declared, passive=passive)
        if not passive and (known is None or known.is_guess):
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
        # Each time: the broker may have lost what it knew, and has it once.
        self._link.routing.bind(binding)

    def _unbind(self, binding: Binding) -> None:
        self._link.routing.unbind(binding)

    # -- queues

    def declare_queue(
        self, queue: str, declared: Declaration, *, passive: bool, counted: bool = True
    ) -> queue_declare_ok_t:
        """Make a queue, or check that the existing one is the same."""
        link = self._link
        name = queue or (self.last_queue if passive else "") or generated_name("amq.gen-")
        link.directory.settle()
        if passive:
            link.directory.declare_passively(name)
        else:
            self._channel.warn_of_unsupported(ArgumentOf.QUEUE, name, declared.arguments)
            link.directory.declare(name, declared)
        self.last_queue = name
        return queue_declare_ok_t(
            name, *(link.directory.counts([name])[name] if counted else (0, 0))
        )

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
        declared = link.directory.find(name)
        if declared is None:
            link.routing.forget_queue(name)
            return 0
        link.directory.check_owner(name, declared, method)
        if if_unused or if_empty:
            messages, consumed = link.directory.counts([name])[name]
            if if_unused and consumed:
                raise in_use("queue", name, self._channel.virtual_host, method)
            if if_empty and messages:
                raise not_empty(name, self._channel.virtual_host, method)
        feed = link.feeds.get(name)
        for consumer in list(feed.consumers) if feed is not None else []:
            consumer.channel.cancelled_by_broker(consumer)
        return link.directory.drop(name)
