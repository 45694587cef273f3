"""The channel as its link and its publisher see it, and the states of its life."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from gevent import get_hub

from greenconn.exceptions import ChannelError
from greenconn.green.state import State

if TYPE_CHECKING:
    from greenconn.transport.base import Link
    from greenconn.transport.virtual.arguments import ArgumentOf
    from greenconn.transport.virtual.consumer import Consumer, Prefetch
    from greenconn.transport.virtual.entities import Entities

__all__ = ["CHANNEL_MOVES", "ChannelPort", "ChannelState", "closes_channel"]


class ChannelPort(Protocol):
    """A channel of a broker that is not AMQP's."""

    channel_id: int
    events: Any
    consumers: dict[str, Consumer]
    prefetch: Prefetch
    state_of_life: ChannelState

    @property
    def connection(self) -> Link: ...
    @property
    def entities(self) -> Entities: ...
    @property
    def is_open(self) -> bool: ...
    @property
    def virtual_host(self) -> str: ...

    def check_open(self) -> None:
        """Raise unless it can be used here and now."""

    def fail(self, exc: BaseException) -> None:
        """Close it because the broker refused something.  Never switches."""

    def serve(self) -> None:
        """Let its consumers have what its bounds leave.  Never switches."""

    def requeue_unseen(self, delivery_tag: Any) -> None:
        """Requeue a delivery with which no handler has begun.  May switch."""

    def flush(self, timeout: float | None = None) -> None:
        """Return when the broker has all publishes and acks.  May switch."""

    def close(self) -> None:
        """Close it.  May switch."""

    def end(self, exc: BaseException) -> None:
        """End its life.  Never switches."""

    def forget(self, exc: BaseException) -> None:
        """Note that it is the parent's, in the child of a fork.  Never switches."""

    def cancelled_by_broker(self, consumer: Consumer) -> None:
        """End a consumer whose queue is gone.  Never switches."""

    def warn_of_unsupported(
        self, kind: ArgumentOf, name: str, arguments: Mapping[str, Any] | None
    ) -> None:
        """Log arguments without effect.  Never switches."""


class ChannelState(State):
    """The stages of a channel's life."""

    #: It can be used.
    OPEN = "open"
    #: It was closed by its user, by a refusal of the broker, or with its link.
    CLOSED = "closed"


CHANNEL_MOVES: Final[Mapping[ChannelState, frozenset[ChannelState]]] = {
    ChannelState.OPEN: frozenset({ChannelState.CLOSED}),
    ChannelState.CLOSED: frozenset(),
}

#: Asked for with each call, and to look up a member of an Enum costs more than all else in it.
_OPEN: Final = ChannelState.OPEN

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound="ChannelPort")


def closes_channel(
    method: Callable[Concatenate[C, P], R],
) -> Callable[Concatenate[C, P], R]:
    """Make *method* need an open channel, and close the channel when the broker refuses it."""

    @wraps(method)
    def checked(self: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        if self.state_of_life is not _OPEN or get_hub() is not self.connection.hub_affinity.hub:
            self.check_open()
        try:
            return method(self, *args, **kwargs)
        except ChannelError as exc:
            self.fail(exc)
            raise

    return checked
