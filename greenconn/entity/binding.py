"""A binding of a queue or exchange to an exchange."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from greenconn.abstract import Object

if TYPE_CHECKING:
    from greenconn.abc import Channel


def shown(text: object) -> str:
    """Return a name as ``repr`` shows it, without the quotes."""
    return repr(text)[1:-1]


def pretty_bindings(bindings: Iterable[object]) -> str:
    """Show bindings in one line."""
    return f"[{', '.join(map(str, bindings))}]"


class binding(Object):  # noqa: N801 - kombu's name
    """A binding, not yet of any queue.

    Arguments:
        exchange: the source, an :class:`~greenconn.entity.Exchange`.
        routing_key: key or pattern.
        arguments: of the bind (a headers exchange matches by them).
        unbind_arguments: of the unbind.
    """

    exchange: Any
    routing_key: str
    arguments: dict[str, Any] | None
    unbind_arguments: dict[str, Any] | None

    attrs: tuple[tuple[str, Callable[[Any], Any] | None], ...] = (
        ("exchange", None),
        ("routing_key", None),
        ("arguments", None),
        ("unbind_arguments", None),
    )

    def __init__(
        self,
        exchange: Any = None,
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        unbind_arguments: dict[str, Any] | None = None,
    ) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.arguments = arguments
        self.unbind_arguments = unbind_arguments

    def declaration_key(self) -> tuple[Any, ...]:
        """Return a key that only bindings which are made in the same way have in common."""
        exchange = self.exchange
        source = getattr(exchange, "declaration_key", exchange.__repr__)()
        return source, self.routing_key, repr(self.arguments or None)

    def declare(self, channel: Channel, nowait: bool = False) -> None:
        """Declare the exchange.  May switch."""
        if self.exchange and self.exchange.name:
            self.exchange.declare(channel=channel, nowait=nowait)

    def bind(self, entity: Any, nowait: bool = False, channel: Channel | None = None) -> None:
        """Bind *entity* (a queue or an exchange) to the exchange.  May switch."""
        entity.bind_to(
            exchange=self.exchange,
            routing_key=self.routing_key,
            arguments=self.arguments,
            nowait=nowait,
            channel=channel,
        )

    def unbind(self, entity: Any, nowait: bool = False, channel: Channel | None = None) -> None:
        """Undo :meth:`bind`.  May switch."""
        entity.unbind_from(
            self.exchange,
            routing_key=self.routing_key,
            arguments=self.unbind_arguments,
            nowait=nowait,
            channel=channel,
        )

    def __repr__(self) -> str:
        return f"<binding: {self}>"

    def __str__(self) -> str:
        return f"{shown(getattr(self.exchange, 'name', ''))}->{shown(self.routing_key)}"
