"""The declarations of exchanges and of bindings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypedDict

from greenconn.abstract import MaybeChannelBound, Object
from greenconn.checks import (
    EXCHANGE_ARGUMENTS,
    check_argument_names,
    check_exchange_type,
    check_keywords,
    check_names,
    check_tables,
    shows,
)
from greenconn.encoding import plain_text

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from greenconn.abc import Channel, ChannelOrConnection


class ExchangeArguments(TypedDict, total=False):
    """The further arguments of :class:`Exchange`."""

    arguments: dict[str, Any] | None
    auto_delete: bool | None
    delivery_mode: int | str | None
    durable: bool | None
    no_declare: bool | None
    passive: bool | None


TRANSIENT_DELIVERY_MODE: Final = 1
PERSISTENT_DELIVERY_MODE: Final = 2
DELIVERY_MODES: Final = {
    "transient": TRANSIENT_DELIVERY_MODE,
    "persistent": PERSISTENT_DELIVERY_MODE,
}
#: Exchanges of these names are the broker's own: they exist, and declaring them is refused.
INTERNAL_EXCHANGE_PREFIX: Final = ("amq.",)


def maybe_delivery_mode(
    v: Any, modes: dict[str, int] | None = None, default: int = PERSISTENT_DELIVERY_MODE
) -> Any:
    """Return a delivery mode as a number.

    Arguments:
        v: a number or a name; nothing means *default*.

    Raises:
        KeyError: an unknown name.
    """
    if not v:
        return default
    return v if isinstance(v, int) else (modes or DELIVERY_MODES)[v]


class Exchange(MaybeChannelBound):
    """An exchange, as it is to be declared.

    Arguments:
        name: '' is the default exchange, which exists on every broker.
        type: ``direct``, ``topic``, ``fanout``, ``headers`` or one that a plug-in adds.
        channel: a channel or connection to bind to.
        durable: it outlives a restart of the broker (default True).
        auto_delete: it is deleted when its last binding goes (default False).
        delivery_mode: of messages published to it: 1 or ``transient``, 2 or ``persistent``;
            None is persistent.
        arguments: of the declaration.
        passive: only check that it exists.
        no_declare: never declare it.

    Raises:
        TypeError: an argument is unknown, or is of the wrong type.
        ValueError: the type, or a name in *arguments*, is a misspelled one of RabbitMQ's.
    """

    TRANSIENT_DELIVERY_MODE: ClassVar[int] = TRANSIENT_DELIVERY_MODE
    PERSISTENT_DELIVERY_MODE: ClassVar[int] = PERSISTENT_DELIVERY_MODE

    name: str = ""
    type: str = "direct"
    arguments: dict[str, Any] | None
    durable: bool = True
    auto_delete: bool = False
    passive: bool = False
    delivery_mode: Any = None
    no_declare: bool = False

    attrs: tuple[tuple[str, Callable[[Any], Any] | None], ...] = (
        ("name", None),
        ("type", None),
        ("arguments", None),
        ("durable", bool),
        ("passive", bool),
        ("auto_delete", bool),
        ("delivery_mode", lambda mode: DELIVERY_MODES.get(mode) or mode),
        ("no_declare", bool),
    )

    @shows(ExchangeArguments, defaults=lambda: vars(Exchange))
    def __init__(
        self,
        name: str | None = "",
        type: str | None = "",
        channel: ChannelOrConnection | None = None,
        **kwargs: Unpack[ExchangeArguments],
    ) -> None:
        super().__init__(**kwargs)
        check_names(self, name=name, type=type)
        check_tables(self, "arguments")
        self.name = plain_text(name or self.name)
        self.type = plain_text(type or self.type)
        check_exchange_type(self)
        check_argument_names(self, "arguments", EXCHANGE_ARGUMENTS)
        self.maybe_bind(channel)

    def __hash__(self) -> int:
        return hash(f"E|{self.name}")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Exchange):
            return NotImplemented
        return (
            self.name == other.name
            and self.type == other.type
            and self.arguments == other.arguments
            and self.durable == other.durable
            and self.auto_delete == other.auto_delete
            and self.delivery_mode == other.delivery_mode
        )

    def _can_declare(self) -> bool:
        return bool(
            self.name and not self.no_declare and not self.name.startswith(INTERNAL_EXCHANGE_PREFIX)
        )

    @property
    def can_cache_declaration(self) -> bool:  # type: ignore[override]  # computed here
        """Whether it stays once it was declared."""
        return not self.auto_delete

    def declaration_key(self) -> str:
        """Return a key that only exchanges which are declared in the same way have in common.

        It is kept for the next publish: what is changed afterwards, but for the name, is not noticed.
        """
        kept = self.declared_as
        if kept is not None and kept[0] == self.name:
            return kept[1]
        ways = (
            self.type,
            self.durable,
            self.passive,
            self.no_declare,
            repr(self.arguments or None),
        )
        key = f"E|{self.name}|{hash(ways)}"
        self.declared_as = (self.name, key)
        return key

    def declare(
        self,
        nowait: bool = False,
        passive: bool | None = None,
        channel: Channel | None = None,
    ) -> Any:
        """Declare the exchange, unless it is the broker's own.  May switch.

        Arguments:
            nowait: do not wait for the broker's reply.
            passive: only check that it exists; None is what the exchange says.
        """
        if not self._can_declare():
            return None
        return (self.channel if channel is None else channel).exchange_declare(
            exchange=self.name,
            type=self.type,
            durable=self.durable,
            auto_delete=self.auto_delete,
            arguments=self.arguments,
            nowait=nowait,
            passive=self.passive if passive is None else passive,
        )

    def bind_to(
        self,
        exchange: Any = "",
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        nowait: bool = False,
        channel: Channel | None = None,
        **kwargs: Any,
    ) -> Any:
        """Have messages of *exchange* (an Exchange or a name) come here too.  May switch."""
        check_keywords("Exchange.bind_to", kwargs, _BIND_TO, is_kombus=True)
        return (self.channel if channel is None else channel).exchange_bind(
            destination=self.name,
            source=name_of(exchange),
            routing_key=routing_key,
            nowait=nowait,
            arguments=arguments,
        )

    def unbind_from(
        self,
        source: Any = "",
        routing_key: str = "",
        nowait: bool = False,
        arguments: dict[str, Any] | None = None,
        channel: Channel | None = None,
    ) -> Any:
        """Undo :meth:`bind_to`.  May switch."""
        return (self.channel if channel is None else channel).exchange_unbind(
            destination=self.name,
            source=name_of(source),
            routing_key=routing_key,
            nowait=nowait,
            arguments=arguments,
        )

    def Message(  # noqa: N802 - kombu's name
        self,
        body: Any,
        delivery_mode: Any = None,
        properties: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Make a message for :meth:`publish`; the body is sent as it is.

        Arguments:
            delivery_mode: None is the exchange's.
            properties: AMQP properties.
            kwargs: ``priority``, ``content_type``, ``content_encoding``, ``headers``.
        """
        properties = {
            **(properties or {}),
            "delivery_mode": maybe_delivery_mode(delivery_mode or self.delivery_mode),
        }
        if isinstance(body, str) and properties.get("content_encoding") is None:
            kwargs["content_encoding"] = kwargs.get("content_encoding") or "utf-8"
        return self.channel.prepare_message(body, properties=properties, **kwargs)

    def publish(
        self,
        message: Any,
        routing_key: str | None = None,
        mandatory: bool = False,
        immediate: bool = False,
        exchange: str | None = None,
    ) -> Any:
        """Publish a message of :meth:`Message`, text or bytes.  May switch."""
        if isinstance(message, (str, bytes)):
            message = self.Message(message)
        return self.channel.basic_publish(
            message,
            exchange=exchange or self.name,
            routing_key=routing_key or "",
            mandatory=mandatory,
            immediate=immediate,
        )

    def delete(self, if_unused: bool = False, nowait: bool = False) -> Any:
        """Delete the exchange.  May switch.

        Arguments:
            if_unused: only if nothing is bound to it.
        """
        return self.channel.exchange_delete(exchange=self.name, if_unused=if_unused, nowait=nowait)

    def binding(
        self,
        routing_key: str = "",
        arguments: dict[str, Any] | None = None,
        unbind_arguments: dict[str, Any] | None = None,
    ) -> binding:
        """Return a :class:`~greenconn.entity.binding` to this exchange."""
        return binding(self, routing_key, arguments, unbind_arguments)

    def __repr__(self) -> str:
        return self._repr_entity(self)

    def __str__(self) -> str:
        return f"Exchange {shown(self.name) or repr('')}({self.type})"


#: The arguments of ``Exchange.bind_to``.
_BIND_TO: Final = ("exchange", "routing_key", "arguments", "nowait", "channel")


def name_of(exchange: Any) -> Any:
    """Return the name of an Exchange; anything else as it is."""
    return exchange.name if isinstance(exchange, Exchange) else exchange


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
