"""The base of entities: attributes by table, copies, and a channel that they follow.

An entity is bound to a channel or to a connection.  Bound to a connection it uses the default
channel, whichever that is when it is needed, and nothing is opened before.  Bound to a channel it
uses that one until its connection is lost, then the one with which the session replaced it.  A
channel that was closed, by the program or by an error of its own, is not replaced: its calls raise
the reason.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from greenconn.checks import check_keywords, in_seconds, is_connection
from greenconn.exceptions import NotBoundError, error_text

if TYPE_CHECKING:
    from typing_extensions import Self

    from greenconn.abc import Channel, ChannelOrConnection
    from greenconn.connection import Connection

__all__ = [
    "ChannelPromise",
    "DefaultChannel",
    "MaybeChannelBound",
    "Object",
    "current_channel",
    "unpickle_dict",
]

T = TypeVar("T")


class ChannelPromise:
    """A placeholder for a channel that is opened when it is first used.

    Arguments:
        contract: returns the channel.  May switch.
    """

    __slots__ = ("_contract",)

    #: Never open, so that the one check that every user of a channel makes finds it too.
    is_open: ClassVar[bool] = False

    def __init__(self, contract: Callable[[], Channel]) -> None:
        self._contract = contract

    def __call__(self) -> Channel:
        """Return the channel.  May switch."""
        return self._contract()

    def __repr__(self) -> str:
        return "<promise of a channel>"


class DefaultChannel(ChannelPromise):
    """The promise of the default channel of *connection*.

    Arguments:
        connection: opened when the channel is needed.
    """

    __slots__ = ("_connection",)

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __call__(self) -> Channel:
        """Return the channel.  May switch."""
        channel: Channel = self._connection.default_channel
        return channel


def current_channel(
    channel: Channel | ChannelPromise, connection: Connection | None = None
) -> Channel:
    """Return the channel to use where *channel* was used so far.  May switch.

    Arguments:
        channel: a channel, or the promise of one.
        connection: given when its default channel is meant.
    """
    if not isinstance(channel, ChannelPromise) and getattr(channel, "is_open", True):
        return channel
    if connection is not None:
        default: Channel = connection.default_channel
        return default
    if isinstance(channel, ChannelPromise):
        return channel()
    link = channel.connection
    if getattr(link, "is_open", True):
        return channel  # closed by itself: its calls raise the reason
    session = getattr(getattr(link, "client", None), "session", None)
    return channel if session is None else session.successor(channel)


def unpickle_dict(cls: Callable[..., T], kwargs: dict[str, Any]) -> T:
    """Make the object that was pickled as its ``as_dict()``."""
    return cls(**kwargs)


class Object:
    """Something whose attributes stand in a table.

    Attributes:
        attrs: pairs of a name and a function that converts what is given for it (or None).

    Raises:
        TypeError: a keyword is not in the table.
    """

    attrs: tuple[tuple[str, Callable[[Any], Any] | None], ...] = ()
    #: Further keywords, which are not in the table.
    _keywords: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        known = {name for name, _ in self.attrs}.union(self._keywords)
        if not kwargs.keys() <= known:
            # Its arguments too, for the hint: not all of them are attributes.
            known.update(signature(type(self)).parameters.keys() - {"args", "kwargs"})
            check_keywords(type(self).__name__, kwargs, known, is_kombus=True)
        for name, convert in self.attrs:
            value = kwargs.get(name)
            if value is not None:
                setattr(self, name, self._converted(name, convert, value) if convert else value)
            elif not hasattr(self, name):
                setattr(self, name, None)

    def _converted(self, name: str, convert: Callable[[Any], Any], value: Any) -> Any:
        if convert is float:
            value = in_seconds(value)  # all of them are times
        try:
            return convert(value)
        except (TypeError, ValueError) as exc:
            kind = TypeError if isinstance(exc, TypeError) else ValueError
            raise kind(f"{name} of {type(self).__name__} is {value!r}: {error_text(exc)}") from exc

    def as_dict(self, recurse: bool = False) -> dict[str, Any]:
        """Return the attributes of the table.

        Arguments:
            recurse: turn attributes that are objects of this kind into dicts too.
        """

        def plain(value: Any, convert: Callable[[Any], Any] | None) -> Any:
            if recurse and isinstance(value, Object):
                return value.as_dict(recurse=True)
            return convert(value) if convert and value is not None else value

        return {name: plain(getattr(self, name), convert) for name, convert in self.attrs}

    def __reduce__(self) -> tuple[Any, ...]:
        return unpickle_dict, (self.__class__, self.as_dict())

    def __copy__(self) -> Self:
        return self.__class__(**self.as_dict())


#: What a copy of a bound object does not have.
_BINDING = ("_channel", "_connection", "_is_bound")


class MaybeChannelBound(Object):
    """An object that may be bound to a channel; bound ones are copies."""

    #: A channel, the promise of one, or None.  Replaced without a switch after it was looked up.
    _channel: Channel | ChannelPromise | None = None
    #: The connection whose default channel is meant, or None.
    _connection: Connection | None = None
    _is_bound: bool = False
    #: The name with which :meth:`declaration_key` was asked for, and the key.
    declared_as: tuple[str, str] | None = None

    #: Whether ``maybe_declare`` may take a declaration for done for the life of a connection.
    can_cache_declaration: bool = False

    def __copy__(self) -> Self:
        # Attribute by attribute: every producer binds an exchange, and calling __init__ costs 6 us.
        cls = self.__class__
        new = cls.__new__(cls)
        attributes = new.__dict__ = self.__dict__.copy()
        if "_channel" in attributes:
            for name in _BINDING:
                attributes.pop(name, None)
        attributes.pop("declared_as", None)  # it may be changed before it is used
        return new

    def __call__(self, channel: ChannelOrConnection | ChannelPromise | None) -> Self:
        """Same as :meth:`bind`."""
        return self.bind(channel)

    def bind(self, channel: ChannelOrConnection | ChannelPromise | None) -> Self:
        """Return a copy that is bound to *channel* (a channel or a connection).  Never switches."""
        new = self.__copy__()
        if channel is not None:
            new._bind(channel)
        return new

    def maybe_bind(self, channel: ChannelOrConnection | ChannelPromise | None) -> Self:
        """Bind this object to *channel* (a channel or a connection) unless it is bound already."""
        if channel is not None and not self.is_bound:
            self._bind(channel)
        return self

    def revive(self, channel: ChannelOrConnection | ChannelPromise) -> None:
        """Use another channel from now on, if bound; for programs that replace channels by hand."""
        if self.is_bound:
            self._use(channel)
            self.when_bound()

    def _bind(self, channel: ChannelOrConnection | ChannelPromise) -> None:
        self._use(channel)
        self.when_bound()
        self._is_bound = True

    def _use(self, channel: ChannelOrConnection | ChannelPromise) -> None:
        if is_connection(channel):
            self._connection, self._channel = channel, DefaultChannel(channel)
        else:
            self._connection, self._channel = None, channel

    def when_bound(self) -> None:
        """Called when the object was bound to a channel, or to another one."""

    @property
    def is_bound(self) -> bool:
        """Whether there is a channel to use."""
        return self._is_bound and self._channel is not None

    @property
    def channel(self) -> Channel:
        """The channel to use now.  May switch, when there was none yet or it was lost.

        Raises:
            NotBoundError: the object is not bound.
        """
        channel = self._channel
        if channel is None:
            raise NotBoundError(
                f"this {type(self).__name__} is not bound: bind it to a channel or a connection "
                f"first, as in {type(self).__name__.lower()}(channel)"
            )
        if isinstance(channel, ChannelPromise) or not getattr(channel, "is_open", True):
            channel = self._channel = current_channel(channel, self._connection)
        return channel

    def __repr__(self) -> str:
        return self._repr_entity(type(self).__name__)

    def _repr_entity(self, item: object = "") -> str:
        item = item or type(self).__name__
        if not self.is_bound:
            return f"<unbound {item}>"
        return f"<{item} bound to chan:{getattr(self._channel, 'channel_id', '?')}>"
