"""What a polled channel delivered and nobody has answered yet."""

from __future__ import annotations

import logging
from typing import Any, TextIO

__all__ = ["QoS"]

logger = logging.getLogger("greenconn.transport.virtual")


class QoS:
    """Unanswered deliveries of one channel, in order (kombu's).

    Arguments:
        channel: what is not answered is given back through it.
        prefetch_count: deliveries that may be unanswered at once; 0 is no limit.
    """

    prefetch_count = 0
    #: Whether what is left is given back when the channel closes.
    restore_at_shutdown = True

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        self.channel = channel
        self.prefetch_count = prefetch_count or 0
        self._delivered: dict[Any, Any] = {}

    def __len__(self) -> int:
        return len(self._delivered)

    def __contains__(self, delivery_tag: Any) -> bool:
        return delivery_tag in self._delivered

    def can_consume(self) -> bool:
        """Whether one more may be delivered."""
        return not self.prefetch_count or len(self._delivered) < self.prefetch_count

    def can_consume_max_estimate(self) -> int | None:
        """How many more may be delivered; None: no limit."""
        if not self.prefetch_count:
            return None
        return max(self.prefetch_count - len(self._delivered), 0)

    def append(self, message: Any, delivery_tag: Any) -> None:
        """Note a delivery."""
        self._delivered[delivery_tag] = message

    def get(self, delivery_tag: Any) -> Any:
        """Return an unanswered message.

        Raises:
            KeyError: there is none of that tag.
        """
        return self._delivered[delivery_tag]

    def up_to(self, delivery_tag: Any) -> list[Any]:
        """The tags of all deliveries up to this one."""
        tags = list(self._delivered)
        return tags[: tags.index(delivery_tag) + 1] if delivery_tag in self._delivered else []

    def ack(self, delivery_tag: Any) -> None:
        """A message is done; may switch in subclasses."""
        if self._delivered.pop(delivery_tag, None) is not None:
            self.channel._answered(delivery_tag)

    def reject(self, delivery_tag: Any, requeue: bool = False) -> None:
        """A message is refused; with *requeue* it is put back.  May switch."""
        if requeue:
            self.channel._restore_at_beginning(self._delivered[delivery_tag])
        self.ack(delivery_tag)

    def restore_unacked(self) -> list[tuple[Exception, Any]]:
        """Put everything back, and return what could not be, with the reasons.  May switch."""
        failed = []
        # Oldest first, so that their order holds; acks may come in between.
        for tag in list(self._delivered):
            message = self._delivered.pop(tag, None)
            if message is None:
                continue
            self.channel._answered(tag)
            try:
                self.channel._restore(message)
            except Exception as exc:
                failed.append((exc, message))
        return failed

    def restore_unacked_once(self, stderr: TextIO | None = None) -> None:
        """Put everything back when the channel closes.  May switch."""
        if not self._delivered or not self.restore_at_shutdown or not self.channel.do_restore:
            return
        logger.info("restoring %d unacknowledged message(s)", len(self._delivered))
        failed = self.restore_unacked()
        if failed:
            # Never the messages themselves: logs are no place for bodies.
            logger.error(
                "%d unacknowledged message(s) could not be restored: %r", len(failed), failed[0][0]
            )

    def restore_visible(self, *args: Any, **kwargs: Any) -> None:
        """For brokers with a visibility timeout: give back what others left.  Nothing here."""
