"""The hooks of a channel: what a transport over queues writes (kombu's ``AbstractChannel``)."""

from __future__ import annotations

from typing import Any

from greenconn.transport.virtual.cycle import FairCycle
from greenconn.transport.virtual.publishing import Envelope

__all__ = ["AbstractChannel"]


class AbstractChannel:
    """The hooks, which may all switch.  Transports inherit from ``Channel``, which is built on them."""

    def _get(self, queue: str, timeout: float | None = None) -> Envelope:
        """Take the next message of *queue*.

        Raises:
            Empty: there is none.
        """
        raise NotImplementedError(f"{type(self).__name__} has no _get")

    def _put(self, queue: str, message: Envelope, **kwargs: Any) -> None:
        """Append *message* to *queue*."""
        raise NotImplementedError(f"{type(self).__name__} has no _put")

    def _purge(self, queue: str) -> int | None:
        """Drop all messages of *queue* and return how many there were, if that is known."""
        raise NotImplementedError(f"{type(self).__name__} has no _purge")

    def _size(self, queue: str) -> int:
        """Return the number of messages that wait in *queue*; 0 where nobody can tell."""
        return 0

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        """Delete *queue*.

        Arguments:
            args: exchange, routing key, pattern and queue of a binding, for each that it had.
        """
        self._purge(queue)

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        """*queue* is declared, with the arguments *kwargs*: make it where that is needed."""

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        """Return whether *queue* exists; True where nobody can tell."""
        return True

    def _queue_bind(self, exchange: str, routing_key: str, pattern: Any, queue: str) -> None:
        """A queue was bound: note it where bindings are shared.  Asked with ``supports_fanout``."""

    def _put_fanout(
        self, exchange: str, message: Envelope, routing_key: str, **kwargs: Any
    ) -> None:
        """Broadcast *message*.  Asked with ``supports_fanout``."""
        raise NotImplementedError(f"{type(self).__name__} has no _put_fanout")

    def _get_and_deliver(self, queue: str, callback: Any) -> None:
        callback(self._get(queue), queue)

    def _poll(self, cycle: FairCycle[str], callback: Any, timeout: float | None = None) -> Any:
        """Take one message from any of the queues in *cycle*: ``callback(message, queue)``.

        Raises:
            Empty: none of them has any.
        """
        return cycle.get(callback)
