"""Transports of kombu's hooks (``_get``, ``_put``, ``_size``...), as stores of :mod:`greenconn.broker`.

A broker that is only hooks knows lists to put into and to take out of: what was taken out is gone from
it, and no caller waits for it.  The channel keeps unacknowledged messages, and requeues what is
not handled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

from greenconn.broker.exchanges import PREDECLARED, BrokerState
from greenconn.broker.leases import Handover
from greenconn.broker.link import CHANNEL_MAX
from greenconn.broker.port import ConsumerRegistry
from greenconn.broker.transport import StoreOptions, StoreTransport
from greenconn.checks import in_seconds
from greenconn.exceptions import RecoverableChannelError, RecoverableConnectionError
from greenconn.green.deadline import Deadline
from greenconn.transport import base
from greenconn.transport.hooks.channel import Channel, FairCycle
from greenconn.transport.hooks.link import HookLink, HookStore
from greenconn.transport.hooks.message import UnreturnedMessages

#: Hooks take the time that they take; the transport options are the subclass's own.
_OPTIONS: Final = StoreOptions(reply_timeout=None)


class HookedTransport(StoreTransport):
    """Base of the transports whose store is hooks."""

    inner_schemes: ClassVar[frozenset[str] | None] = None
    default_port: int | None = None
    takes_any_property = True
    #: Seconds between two looks at a broker that had nothing; None and 0: the hooks wait themselves.
    polling_interval: float | None = 1.0
    connection_errors: tuple[type[BaseException], ...] = base.Transport.connection_errors
    recoverable_connection_errors: tuple[type[BaseException], ...] = (RecoverableConnectionError,)
    recoverable_channel_errors = (RecoverableChannelError,)
    implements = base.Transport.implements.extend()

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self._state = BrokerState()

    @property
    def state(self) -> BrokerState:
        """The exchanges and bindings that its channels know."""
        return self._state

    @state.setter
    def state(self, state: BrokerState) -> None:
        self._state = state

    @property
    def registry(self) -> ConsumerRegistry:
        """The consumers that one connection knows."""
        return ConsumerRegistry()

    @property
    def handover(self) -> Handover:
        """The hand-over from former lives of this connection."""
        handover = super().handover
        self.kept_state.get(UnreturnedMessages, self.place(), handover)
        return handover

    @property
    def options(self) -> StoreOptions:
        """The options that all transports over a store have."""
        return _OPTIONS

    def make_store(self, wake: Callable[[str | None], None]) -> HookStore:
        """Return the store of one link."""
        return HookStore(self.client, wake, self.polling_interval)


class Transport(HookedTransport):
    """Base of the transports whose ``Channel`` has the hooks (kombu's ``virtual.Transport``)."""

    Channel: ClassVar[type[Channel]] = Channel
    Cycle: ClassVar[type[FairCycle[Any]]] = FairCycle
    channel_max = CHANNEL_MAX
    #: Exchanges and bindings that all transports of a class share; None: each has its own.
    global_state: ClassVar[BrokerState | None] = None

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        if self.global_state is not None:
            self.state = self.global_state
        for name, kind in PREDECLARED.items():
            if name not in self.state.exchanges:
                self.state.declare(name, kind, durable=True)
        interval = (client.transport_options or {}).get("polling_interval")
        if interval is not None:
            self.polling_interval = float(in_seconds(interval))

    def establish_connection(self, deadline: Deadline | None = None) -> HookLink:
        """Open a link.  May switch in subclasses."""
        link = HookLink(self)
        link.open(deadline or Deadline())
        return link
