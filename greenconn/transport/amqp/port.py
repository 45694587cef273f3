"""Protocols of the channel and of its link, as the parts of a channel see them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from greenconn.green.deadline import Deadline
    from greenconn.green.hub import HubAffinity
    from greenconn.green.inbox import Inbox
    from greenconn.green.slot import Slot
    from greenconn.green.writer import Writer
    from greenconn.options import AmqpOptions
    from greenconn.transport.amqp.flow import FlowControl, InboxBudget
    from greenconn.transport.amqp.methods import Reply
    from greenconn.transport.amqp.queues import KnownQueues

__all__ = ["ChannelPort", "LinkPort"]


class ChannelPort(Protocol):
    """A channel, as its parts see it."""

    channel_id: int
    #: Why it can no longer be used; None while it can.
    cause: BaseException | None
    #: Handlers of returned messages, under ``"basic_return"``.
    events: dict[str, set[Any]]
    #: What takes returned messages in place of the handlers; it must not switch.
    return_sink: Callable[..., object] | None

    def check_hub(self) -> None: ...

    def check_open(self) -> None: ...

    def abort(self, cause: BaseException) -> None: ...

    def interrupted(self, what: str, exc: BaseException) -> None: ...


class LinkPort(Protocol):
    """One life of a connection, as the parts of its channels see it."""

    where: str
    options: AmqpOptions
    hub_affinity: HubAffinity
    flow_control: FlowControl
    budget: InboxBudget
    events: Inbox[tuple[Callable[[Any], Any], Any]]
    queues: KnownQueues
    server_version: tuple[int, int] | None
    frame_max: int
    confirm_publish: bool
    #: Why the link is no longer open; None while it is.
    lost: BaseException | None
    #: Called for exchanges, queues and bindings that were made or deleted; None: nothing is called.
    topology: Any
    client: Any

    @property
    def server_properties(self) -> dict[str, Any]: ...

    @property
    def writer(self) -> Writer: ...

    def ack_later(self, flush: Callable[[], None]) -> None: ...

    def check_size(self, size: int) -> None: ...

    def consumer_ended(self, queue: str) -> None: ...

    def drain_writer(self, timeout: float | Deadline | None) -> None: ...

    def end(self, exc: BaseException, *, closed: bool = ...) -> None: ...

    def put_return(
        self, callback: Callable[[Any], object], returned: Any, size: int, *, has_listener: bool
    ) -> None: ...

    def qos_is_for_channel(self, prefetch_count: int) -> bool: ...

    def unexpected_method(self, channel_id: int, ids: int) -> None: ...

    def wait_reply(self, slot: Slot[Reply], channel_id: int, timeout: float | None) -> Reply: ...
