"""Declaration of an entity, once in the life of a connection.

What was declared is noted in the connection's ``declared_entities``, which a new link begins empty.
Many greenlets that publish to the same exchange at first declare it once: the others wait for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from greenconn.abstract import MaybeChannelBound
from greenconn.checks import maybe_channel
from greenconn.exceptions import (
    ChannelError,
    RecoverableChannelError,
    RecoverableConnectionError,
)
from greenconn.green.single_flight import SingleFlight

if TYPE_CHECKING:
    from greenconn.abc import Channel, ChannelOrConnection

#: Declares an entity on a channel.  May switch.
Declare: TypeAlias = "Callable[[Any, Channel], object]"


def declaration_cached(entity: Any, channel: Channel) -> bool:
    """Return whether *entity* is known to be declared in this life of the channel's connection."""
    declared = channel.connection.client.declared_entities
    return declaration_key(entity) in declared or entity in declared


def declaration_key(entity: Any) -> Any:
    """Return how *entity* is noted in ``declared_entities``: with its arguments.

    So that the broker is asked about another one of the same name with other arguments, too.
    """
    find = getattr(type(entity), "declaration_key", None)
    return hash(entity) if find is None else find(entity)  # a program's own class may have none


def maybe_declare(
    entity: Any,
    channel: ChannelOrConnection | None = None,
    retry: bool = False,
    **retry_policy: Any,
) -> bool:
    """Declare *entity*, unless that was done in this life of the connection.  May switch.

    Greenlets that want the same entity at the same time cause one declaration and all wait for it.

    Arguments:
        entity: an Exchange or a Queue.
        channel: a channel or connection; may be left out when the entity is bound.
        retry: reconnect and try again when the connection is lost; with *retry_policy* as
            ``Connection.ensure`` takes it.

    Returns:
        False if it was known to be declared.

    Raises:
        ChannelError: neither *channel* nor a bound entity was given; or the broker refused.
        RecoverableConnectionError: the channel has no connection any more.
    """
    if channel is None and not entity.is_bound:
        raise ChannelError(
            f"cannot declare {entity!r}, which is not bound, as no channel was given"
        )
    used: Channel = entity.channel if channel is None else maybe_channel(channel)
    if not retry:
        return declare_once(entity, used, _declare)
    _check_connected(entity, used)
    again = _Redeclaration(entity, used)
    client = again.channel.connection.client
    return bool(client.ensure(again, again, **retry_policy)())


def _check_connected(entity: Any, channel: Channel) -> None:
    if getattr(channel, "connection", None) is None:
        raise RecoverableConnectionError(
            f"cannot declare {entity!r}: its channel has lost its connection"
        )


class _Redeclaration:
    """A declaration that ``Connection.ensure`` repeats.

    It leaves the entity as it is, unless that is bound to a channel that has no connection any more.
    """

    __name__ = "maybe_declare"

    def __init__(self, entity: Any, channel: Channel) -> None:
        self.entity = entity
        self.channel = channel

    def revive(self, channel: Channel) -> None:
        self.channel = channel

    def __call__(self) -> bool:
        entity = self.entity
        if entity.is_bound and getattr(entity.channel, "connection", None) is None:
            # A channel of a transport written for kombu; those of ours find their successors.
            entity.revive(self.channel)
        return declare_once(entity, self.channel, _declare)


def _declare(entity: Any, channel: Channel) -> None:
    if not (isinstance(entity, MaybeChannelBound) or entity.is_bound):
        # A program's own class may need it; ours are declared on any channel, bound or not.
        entity = entity.bind(channel)
    entity.declare(channel=channel)


def declare_once(entity: Any, channel: Channel, declare: Declare) -> bool:
    """Declare *entity* by *declare*; else as :func:`maybe_declare`.  May switch."""
    _check_connected(entity, channel)
    if not entity.can_cache_declaration or not entity.name:
        # Without a name each declaration makes another queue.
        declare(entity, channel)
        return True
    while True:
        declaration = _Declaration(entity, channel, declare)
        if declaration.is_known:
            return False
        try:
            declaration.run()
        except RecoverableChannelError:
            if declaration.has_begun or not getattr(channel, "is_open", True):
                raise
            # Another greenlet's channel was closed by something else while it declared for us too.
        else:
            return True


class _Declaration:
    """A declaration of an entity for one greenlet, in the life of *channel*."""

    __slots__ = ("_channel", "_declare", "_declared", "_entity", "_ident", "_link", "has_begun")

    def __init__(self, entity: Any, channel: Channel, declare: Declare) -> None:
        self._entity = entity
        self._channel = channel
        self._declare = declare
        self._link = channel.connection
        self._declared = self._link.client.declared_entities
        self._ident = declaration_key(entity)
        #: Whether this one was carried out, rather than another greenlet's of the same entity.
        self.has_begun = False

    @property
    def is_known(self) -> bool:
        return self._ident in self._declared

    def run(self) -> None:
        """Declare, or wait for who does.  May switch."""
        flight = getattr(self._link.client, "declare_flight", None)
        if isinstance(flight, SingleFlight):
            # With the link, which may be any object: a former life says nothing about this one.
            flight.run((id(self._link), self._ident), self)
        else:  # kombu's connection has none
            self()

    def __call__(self) -> None:
        self.has_begun = True
        self._declare(self._entity, self._channel)
        if getattr(self._link, "is_open", True):
            # Of a life that ended meanwhile nothing is known any more.
            self._declared.add(self._ident)
