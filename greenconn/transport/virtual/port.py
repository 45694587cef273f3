"""The channel as the parts of its link and its publisher see it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from greenconn.transport.virtual.arguments import ArgumentOf
    from greenconn.transport.virtual.consumer import Consumer
    from greenconn.transport.virtual.entities import Entities
    from greenconn.transport.virtual.life import ChannelState
    from greenconn.transport.virtual.link import VirtualLink
    from greenconn.transport.virtual.prefetch import Prefetch

__all__ = ["ChannelPort"]


class ChannelPort(Protocol):
    """A channel of a broker that is not AMQP's."""

    channel_id: int
    events: Any
    consumers: dict[str, Consumer]
    prefetch: Prefetch
    state_of_life: ChannelState

    @property
    def connection(self) -> VirtualLink: ...
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

    def flush(self, timeout: float | None = None) -> None:
        """Return when the broker has what was published and answered.  May switch."""

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
