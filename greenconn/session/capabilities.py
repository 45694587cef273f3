"""What the transport of a connection says about itself."""

from __future__ import annotations

from typing import Any

from greenconn.session.pointing import Pointed

__all__ = ["Capabilities"]


class Capabilities(Pointed):
    """Errors and abilities of the transport of the broker that is meant now."""

    def supports_exchange_type(self, exchange_type: str) -> bool:
        """Whether the transport has exchanges of that type."""
        return exchange_type in self.transport.implements.exchange_type

    @property
    def supports_heartbeats(self) -> bool:
        """Whether the transport's protocol has heartbeats."""
        return bool(self.transport.implements.heartbeats)

    @property
    def is_evented(self) -> bool:
        """False: nobody has to drive the connection."""
        return False

    @property
    def qos_semantics_matches_spec(self) -> bool:
        """Whether ``basic_qos(apply_global=True)`` is about the whole connection.  May switch."""
        matches: bool = self.transport.qos_semantics_matches_spec(self.session.link())
        return matches

    @property
    def manager(self) -> Any:
        """What the transport can tell about its broker."""
        return self.transport.manager

    def get_manager(self, *args: Any, **kwargs: Any) -> Any:
        """What the transport can tell about its broker.

        Its methods raise NotImplementedError where the transport has no management interface.
        """
        return self.transport.get_manager(*args, **kwargs)

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """Errors that mean a lost connection."""
        return self.session.broker.connection_errors

    @property
    def channel_errors(self) -> tuple[type[BaseException], ...]:
        """Errors that mean a lost channel."""
        return self.session.broker.channel_errors

    @property
    def recoverable_connection_errors(self) -> tuple[type[BaseException], ...]:
        """Errors after which a new connection may help."""
        return self.session.broker.recoverable_connection_errors

    @property
    def recoverable_channel_errors(self) -> tuple[type[BaseException], ...]:
        """Errors after which a new channel may help."""
        return self.session.broker.recoverable_channel_errors
