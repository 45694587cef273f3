"""The channel methods whose arguments kombu's virtual channels take in another order than AMQP.

Transports that were written for kombu override these and call them by position.  The channels of our
own transports (AMQP, memory, Redis) take all arguments in AMQP's order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from amqp.protocol import queue_declare_ok_t

from greenconn.transport.virtual.envelope import Message
from greenconn.transport.virtual.polled import PolledConsuming
from greenconn.transport.virtual.publishing import Decided, PublishingMethods

__all__ = ["KombuOrder"]


class KombuOrder(PolledConsuming, PublishingMethods):
    """Declaring, binding, publishing and consuming, called as kombu calls them."""

    def exchange_declare(  # type: ignore[override]  # kombu's order
        self,
        exchange: str | None = None,
        type: str = "direct",
        durable: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        nowait: bool = False,
        passive: bool = False,
    ) -> None:
        """Make an exchange, or check that the existing one is the same."""
        super().exchange_declare(
            exchange or "", type or "direct", passive, durable, auto_delete, nowait, arguments
        )

    def queue_declare(  # type: ignore[override]  # kombu's order
        self, queue: str | None = None, passive: bool = False, **kwargs: Any
    ) -> queue_declare_ok_t:
        """Make a queue.  May switch.

        Arguments:
            kwargs: ``durable``, ``exclusive``, ``auto_delete``, ``nowait``, ``arguments``.
        """
        return super().queue_declare(queue or "", passive, **kwargs)

    def queue_delete(  # type: ignore[override]  # kombu's
        self, queue: str = "", if_unused: bool = False, if_empty: bool = False, **kwargs: Any
    ) -> int:
        """Delete a queue and its bindings; return how many messages it had.  May switch."""
        return super().queue_delete(queue, if_unused, if_empty)

    def queue_purge(self, queue: str = "", **kwargs: Any) -> int:  # type: ignore[override]
        """Drop the messages of a queue and return how many there were.  May switch."""
        return super().queue_purge(queue)

    def basic_get(self, queue: str = "", no_ack: bool = False, **kwargs: Any) -> Message | None:
        """Take the next message of a queue; None when there is none.  May switch."""
        return super().basic_get(queue, no_ack)

    def queue_bind(  # type: ignore[override]  # kombu's order
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Bind a queue to an exchange; again: changes nothing.

        Arguments:
            exchange: None or empty is ``amq.direct``.
        """
        super().queue_bind(queue, exchange or "amq.direct", routing_key, False, arguments)

    def queue_unbind(  # type: ignore[override]  # kombu's order
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Remove a binding of a queue; one that is not there is no error."""
        super().queue_unbind(queue, exchange or "amq.direct", routing_key, False, arguments)

    def basic_consume(  # type: ignore[override]  # kombu's order
        self,
        queue: str,
        no_ack: bool = False,
        callback: Callable[[Any], Any] | None = None,
        consumer_tag: str = "",
        **kwargs: Any,
    ) -> str:
        """Start a consumer and return its tag.

        Arguments:
            kwargs: ``exclusive``, ``arguments``, ``on_cancel``, ``sink``: as on channels of AMQP.
        """
        return super().basic_consume(
            queue, consumer_tag, no_ack=no_ack, callback=callback, **kwargs
        )

    def begin_publish(self, message: dict[str, Any], *args: Any, **kwargs: Any) -> Decided:
        """Publish *message*; the result's ``wait`` tells what became of it.  May switch."""
        if type(self).basic_publish is PublishingMethods.basic_publish:
            return super().begin_publish(message, *args, **kwargs)
        # What a transport has of its own must not be passed by.
        names = ("exchange", "routing_key", "mandatory", "immediate")
        given = {**dict(zip(names, args, strict=False)), **kwargs}
        given.pop("deadline", None)
        self.basic_publish(
            message, given.pop("exchange", ""), given.pop("routing_key", ""), **given
        )
        return Decided(None)

    def basic_publish_confirm(
        self,
        message: dict[str, Any],
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Publish *message* and return when the broker has it.  May switch."""
        super().begin_publish(message, exchange, routing_key, mandatory, immediate).wait()
