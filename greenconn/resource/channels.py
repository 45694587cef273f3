"""A pool of channels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from greenconn import exceptions
from greenconn.resource.base import Resource, known

if TYPE_CHECKING:
    from greenconn.abc import Connection

__all__ = ["ChannelPool"]


class ChannelPool(Resource):
    """Channels of one connection.

    It follows the connection over a reconnect: a channel that is closed is not lent again, a new one
    is opened in its place.

    Arguments:
        connection: whose channels.
        limit: channels at most, those being opened included; None or 0 is unlimited.
        preload: channels to open at once (may switch).
    """

    LimitExceeded: ClassVar[type[exceptions.LimitExceeded]] = exceptions.ChannelLimitExceeded
    close_after_fork = True

    def __init__(self, connection: Connection, limit: int | None = None, **kwargs: Any) -> None:
        self.connection = connection
        super().__init__(limit=limit, **known(type(self), kwargs))

    def new(self) -> Any:
        """A new channel.  May switch."""
        return self.connection.channel()

    def is_alive(self, resource: Any) -> bool:
        """Whether it is open."""
        return bool(getattr(resource, "is_open", True))

    def collect_resource(self, resource: Any) -> None:
        """Close the channel."""
        resource.close()

    def _describe(self) -> str:
        return f"channels of {self.connection.as_uri()}"
