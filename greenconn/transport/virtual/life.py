"""The life of a channel that has no broker's channel behind it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from enum import Enum
from functools import wraps
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar

from gevent import get_hub

from greenconn.exceptions import ChannelError, RecoverableChannelError
from greenconn.transport.base import StdChannel
from greenconn.transport.virtual.arguments import (
    ArgumentOf,
    SupportedArguments,
    warn_of_unsupported,
)
from greenconn.transport.virtual.consumer import Consumer
from greenconn.transport.virtual.link import VirtualLink

__all__ = ["ChannelLife", "ChannelState", "closes_channel"]

P = ParamSpec("P")
R = TypeVar("R")
C = TypeVar("C", bound="ChannelLife")


class ChannelState(Enum):
    """A channel is open, then closed; there is no way back."""

    OPEN = "open"
    CLOSED = "closed"


_OPEN = ChannelState.OPEN  # to look up a member of an Enum costs more than all else in check_open


def closes_channel(
    method: Callable[Concatenate[C, P], R],
) -> Callable[Concatenate[C, P], R]:
    """Make *method* need an open channel, and close the channel when the broker refuses it."""

    @wraps(method)
    def checked(self: C, /, *args: P.args, **kwargs: P.kwargs) -> R:
        self.check_open()
        try:
            return method(self, *args, **kwargs)
        except ChannelError as exc:
            self.fail(exc)
            raise

    return checked


class ChannelLife(StdChannel):
    """Open until it is closed by its user, by a refusal of the broker, or with its link.

    Arguments:
        connection: the link.
        channel_id: its number on the link; None takes a free one.

    Attributes:
        connection: the link.
        events: event name (``basic_return``, ``basic_ack``) -> handlers.
        no_ack_consumers: tags of the consumers whose messages need no answer.
    """

    #: The arguments that this transport implements; the log warns of others.
    supported_arguments: ClassVar[SupportedArguments] = SupportedArguments()

    def __init__(self, connection: VirtualLink, channel_id: int | None = None) -> None:
        self.connection = connection
        self.channel_id = connection.admit(self, channel_id)
        self.events: defaultdict[str, set[Callable[..., Any]]] = defaultdict(set)
        self.no_ack_consumers: set[str] = set()
        #: Active consumers by tag, in the order in which they were started.
        self.consumers: dict[str, Consumer] = {}
        self.state_of_life = ChannelState.OPEN
        #: Why it is closed.
        self.cause: BaseException | None = None

    def __repr__(self) -> str:
        state = self.state_of_life.value
        return f"<{type(self).__name__} {self.channel_id}: {state} at {id(self):#x}>"

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self.state_of_life is ChannelState.OPEN

    @property
    def closed(self) -> bool:
        """Whether it cannot be used any more (kombu's name)."""
        return not self.is_open

    @property
    def virtual_host(self) -> str:
        """For messages."""
        return getattr(self.connection.client, "virtual_host", None) or "/"

    def check_hub(self) -> None:
        """Raise if the caller is in another thread than the link.

        Raises:
            WrongHub: names both threads and the remedy.
        """
        self.connection.home.check(self.connection)

    def check_open(self) -> None:
        """Raise unless it can be used here and now.

        Raises:
            RecoverableConnectionError: its link is closed or lost.
            RecoverableChannelError: it was closed; ``__cause__`` is why.
            WrongHub: called from another thread.
        """
        home = self.connection.home
        if get_hub() is not home.hub:
            home.check(self.connection)
        if self.state_of_life is not _OPEN:
            self.connection.check_open()
            raise RecoverableChannelError(
                f"channel {self.channel_id} is closed ({self.cause})"
            ) from self.cause

    def warn_of_unsupported(
        self, kind: ArgumentOf, name: str, arguments: Mapping[str, Any] | None
    ) -> None:
        """Log those of *arguments* that this transport does not implement.  Never switches.

        Arguments:
            name: of the queue or exchange, or what messages go to.
        """
        if arguments:
            client = self.connection.client
            warn_of_unsupported(self.supported_arguments, client, kind, name, arguments)

    def flush(self, timeout: float | None = None) -> None:
        """Raise unless it can be used: the broker has all when a call returns.

        Arguments:
            timeout: of no use here.

        Raises:
            RecoverableConnectionError, RecoverableChannelError: it is gone.
        """
        self.check_open()

    def close(self) -> None:
        """Close it: consumers end, and what was not answered goes back to its queues.

        Again: does nothing.

        Raises:
            WrongHub: called from another thread.
        """
        if self.state_of_life is _OPEN:
            self.check_open()
            self.end(RecoverableChannelError(f"channel {self.channel_id} was closed"))

    def fail(self, exc: BaseException) -> None:
        """Close it because the broker refused something.

        Consumers of callbacks have no other way to learn of it than the connection's events.
        """
        if self.state_of_life is not ChannelState.OPEN:
            return
        is_drained = any(each.sink is None for each in self.consumers.values())
        self.end(exc)
        if is_drained:
            told = RecoverableChannelError(f"channel {self.channel_id} is closed ({exc})")
            told.__cause__ = exc
            self.connection.events.put((_raise, told))

    def end(self, exc: BaseException) -> None:
        """End its life for the reason *exc*.  Never switches.  Again: does nothing."""
        if self.state_of_life is not ChannelState.OPEN:
            return
        self.state_of_life = ChannelState.CLOSED
        self.cause = exc
        self.connection.dismiss(self)
        consumers = list(self.consumers.values())
        self._release(consumers)
        self.consumers.clear()
        self.no_ack_consumers.clear()
        for consumer in consumers:
            consumer.lose(exc)

    def forget(self, exc: BaseException) -> None:
        """In the child of a fork: it is the parent's.  Tells nobody; never switches."""
        self.state_of_life = ChannelState.CLOSED
        self.cause = exc
        for consumer in self.consumers.values():
            consumer.is_active = False
        self.consumers.clear()

    def cancelled_by_broker(self, consumer: Consumer) -> None:
        """The queue of a consumer of this channel is gone.  Never switches."""
        raise NotImplementedError

    def _release(self, consumers: list[Consumer]) -> None:
        """Stop *consumers* and give back whatever this channel still holds.  Never switches."""
        raise NotImplementedError


def _raise(exc: BaseException) -> None:
    raise exc
