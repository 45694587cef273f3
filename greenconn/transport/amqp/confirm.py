"""A publish that the broker has not answered yet, and the wait for its answer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from greenconn.exceptions import PublishNacked, PublishTimeout, Unroutable
from greenconn.green.deadline import Deadline
from greenconn.green.slot import Slot
from greenconn.transport.amqp.properties import text_of
from greenconn.wire.confirms import Outstanding

if TYPE_CHECKING:
    from greenconn.transport.amqp.connection import AmqpLink

__all__ = ["PendingConfirm"]


class PendingConfirm(Outstanding):
    """What ``begin_publish`` returns: one greenlet calls ``wait``, once."""

    __slots__ = ("is_awaited", "link", "slot")

    def __init__(
        self,
        link: AmqpLink,
        exchange: str | bytes,
        routing_key: str | bytes,
        mandatory: bool,
        properties: bytes,
        body: bytes,
    ) -> None:
        # A return names them as text.
        if isinstance(exchange, bytes):
            exchange = text_of(exchange)
        if isinstance(routing_key, bytes):
            routing_key = text_of(routing_key)
        super().__init__(exchange, routing_key, mandatory, properties, body)
        self.link = link
        #: Whether anybody is told by ``wait`` what became of it.
        self.is_awaited = True
        #: Filled with True for an ack, False for a nack.
        self.slot: Slot[bool] = Slot()

    def wait(self, deadline: Deadline) -> None:
        """Wait until the broker has taken the message over.  May switch.

        Arguments:
            deadline: one without an end is the connection's ``confirm_timeout``.

        Raises:
            PublishNacked, Unroutable, PublishTimeout, ChannelError, ConnectionError: see
                ``Channel.basic_publish_confirm``.
        """
        slot, budget = self.slot, self.link.budget
        if deadline.timeout is None:
            deadline = Deadline(self.link.options.confirm_timeout)
        budget.begin_wait()
        try:
            is_taken = slot.wait(deadline)
        except TimeoutError:
            if not slot.has_left:
                raise
            raise PublishTimeout(
                f"{self.link.where} did not confirm {self._what()} within {deadline.timeout:g} s: "
                f"it may have the message",
                maybe_delivered=True,
            ) from None
        finally:
            budget.end_wait()
        if self.returned is not None:
            code, text = self.returned
            raise Unroutable(
                f"{text}: no queue takes {self._what()}",
                code=code,
                exchange=self.exchange,
                routing_key=self.routing_key,
            )
        if not is_taken:
            raise PublishNacked(f"{self.link.where} refused (nack) {self._what()}")

    def _what(self) -> str:
        return f"a message to exchange {self.exchange!r} with routing key {self.routing_key!r}"
