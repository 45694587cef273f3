"""One exchange, queue or binding that was declared, with the arguments to declare it again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from greenconn.abc import Channel

__all__ = ["Declared", "DeclaredBinding", "DeclaredExchange", "DeclaredQueue"]

# Plain classes: to make a dataclass of each would take a tenth of the time that importing may take.


class Declared:
    """What can be declared again."""

    __slots__ = ("arguments", "strikes")

    def __init__(self, arguments: Any) -> None:
        self.arguments = dict(arguments) if arguments else arguments
        #: How often the broker has ended the whole connection for it.
        self.strikes = 0

    def declare(self, channel: Channel) -> str:
        """Declare it; return the name that it has then.  May switch."""
        raise NotImplementedError


class DeclaredExchange(Declared):
    """An exchange."""

    __slots__ = ("auto_delete", "durable", "name", "type")

    def __init__(
        self, name: str, type: str, durable: bool, auto_delete: bool, arguments: Any
    ) -> None:
        super().__init__(arguments)
        self.name = name
        self.type = type
        self.durable = durable
        self.auto_delete = auto_delete

    def __repr__(self) -> str:
        return f"<exchange {self.name!r} ({self.type})>"

    def declare(self, channel: Channel) -> str:
        channel.exchange_declare(
            exchange=self.name,
            type=self.type,
            durable=self.durable,
            auto_delete=self.auto_delete,
            arguments=self.arguments,
        )
        return self.name


class DeclaredQueue(Declared):
    """A queue; *is_servers*: the broker has chosen its name, and chooses a new one."""

    __slots__ = ("auto_delete", "consumers", "durable", "exclusive", "is_servers", "name")

    def __init__(
        self,
        name: str,
        durable: bool,
        exclusive: bool,
        auto_delete: bool,
        arguments: Any,
        is_servers: bool,
    ) -> None:
        super().__init__(arguments)
        self.name = name
        self.durable = durable
        self.exclusive = exclusive
        self.auto_delete = auto_delete
        self.is_servers = is_servers
        #: How many it had when it was declared again.
        self.consumers = 0

    def __repr__(self) -> str:
        return f"<queue {self.name!r}>"

    def declare(self, channel: Channel) -> str:
        reply = channel.queue_declare(
            queue="" if self.is_servers else self.name,
            durable=self.durable,
            exclusive=self.exclusive,
            auto_delete=self.auto_delete,
            arguments=self.arguments,
        )
        self.consumers = reply[2]
        return str(reply[0])


class DeclaredBinding(Declared):
    """A binding of a queue, or else of an exchange, to the exchange *source*."""

    __slots__ = ("destination", "is_queues", "routing_key", "source")

    def __init__(
        self, is_queues: bool, destination: str, source: str, routing_key: str, arguments: Any
    ) -> None:
        super().__init__(arguments)
        self.is_queues = is_queues
        self.destination = destination
        self.source = source
        self.routing_key = routing_key

    def __repr__(self) -> str:
        kind = "queue" if self.is_queues else "exchange"
        return f"<binding of {kind} {self.destination!r} to {self.source!r}: {self.routing_key!r}>"

    @property
    def place(self) -> tuple[bool, str]:
        """Its destination among both kinds."""
        return self.is_queues, self.destination

    @property
    def key(self) -> tuple[str, str, str]:
        """What tells it from others to the same destination."""
        arguments = repr(sorted((self.arguments or {}).items(), key=repr))
        return self.source, self.routing_key, arguments

    def declare(self, channel: Channel) -> str:
        if self.is_queues:
            channel.queue_bind(
                queue=self.destination,
                exchange=self.source,
                routing_key=self.routing_key,
                arguments=self.arguments,
            )
        else:
            channel.exchange_bind(
                destination=self.destination,
                source=self.source,
                routing_key=self.routing_key,
                arguments=self.arguments,
            )
        return self.destination
