"""The channel as its link and its publisher see it, and the states of its life."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar

from gevent import get_hub

from greenconn.exceptions import ChannelError
from greenconn.green.state import State

if TYPE_CHECKING:
    from greenconn.broker.channel import StoreChannel


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
C = TypeVar("C", bound="StoreChannel[Any]")


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
