"""Objects of other packages that live as long as a session and serve all its users."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any, Literal, Protocol

from greenconn.transport.base import TransportState

if TYPE_CHECKING:
    from greenconn.connection import Connection
    from greenconn.green.deadline import Deadline


class ConsumerGroup(Protocol):
    """The consumers of a session (``worker.lifecycle``)."""

    def __len__(self) -> int:
        """Return the number of consumers that have not ended."""
        ...


class Publisher(Protocol):
    """Confirmed publishing over one channel (``publishing``)."""

    @property
    def label(self) -> str:
        """The broker's URL, password masked."""
        ...


class RpcClient(Protocol):
    """Calls, whose replies come over one channel (``rpc``)."""

    def call(self, request: Any, deadline: Deadline, /) -> Any:
        """Send *request* and return the reply.  May switch."""
        ...


class _Own(Enum):
    CONNECTION = "the connection itself"


#: Publishing needs no second connection.
OWN_CONNECTION: Literal[_Own.CONNECTION] = _Own.CONNECTION


class SessionServices:
    """One of each, over all lives of a session; after a fork the child begins with none.

    Who makes an object sets its attribute, and finds it there the next time.

    Attributes:
        consumers: set by the first consumer.
        publisher: set by the first confirmed publish.
        publishing_connection: the connection that publishes for this one, until this one is closed.
        rpc_client: set by the first call.
        transport_state: kept for transports.
    """

    def __init__(self) -> None:
        self.consumers: ConsumerGroup | None = None
        self.publisher: Publisher | None = None
        self.publishing_connection: Connection | Literal[_Own.CONNECTION] | None = None
        self.rpc_client: RpcClient | None = None
        self.transport_state = TransportState()
