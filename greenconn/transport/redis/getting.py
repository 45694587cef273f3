"""Taking one message from a queue by hand."""

from __future__ import annotations

from typing import Any

from redis.exceptions import NoScriptError

from greenconn.encoding import plain_text
from greenconn.green.slot import Slot
from greenconn.transport.redis.clock import mark
from greenconn.transport.redis.delivering import DeliveringMethods
from greenconn.transport.redis.message import Delivery
from greenconn.transport.redis.pipeline import ENDLESS
from greenconn.transport.redis.returning import unseen
from greenconn.transport.redis.scripts import CLAIM, CLAIM_BYTES, entry_suffix
from greenconn.transport.refusal import Method
from greenconn.transport.virtual.life import closes_channel
from greenconn.wire.resp import pack

__all__ = ["GettingMethods"]


class GettingMethods(DeliveringMethods):
    """``basic_get``."""

    @closes_channel
    def basic_get(self, queue: str = "", no_ack: bool = False) -> Delivery | None:
        """Take the next message of a queue; None when none waits.  May switch.

        Raises:
            NotFound: there is no such queue.
        """
        queue = plain_text(queue)
        link = self.connection
        name = self._queue_name(queue)
        link.directory.check(name, Method.BASIC_GET)
        link.lease.begin(ENDLESS)
        number = link.take_numbers(1)
        field = f"{link.prefix}{number}"
        link.gets.add(number)
        try:
            try:
                raw, waiting = self._take(name, number, field)
            except NoScriptError:
                link.scripts.forget()  # somebody has flushed them
                raw, waiting = self._take(name, number, field)
        finally:
            link.gets.discard(number)
        if raw is None:
            return None
        delivery = Delivery(self, field, number, raw, name, waiting=waiting)
        if no_ack:
            link.answers.ack(field)
        else:
            self.unanswered[field] = delivery
            if self._forgets:
                self._let_go(delivery)
        return delivery

    def _take(self, queue: str, number: int, field: str) -> tuple[bytes | None, int]:
        """Claim one message; the message and how many are left.  May switch."""
        link = self.connection
        pipeline = link.pipeline
        if pipeline.writer.gate:
            pipeline.pass_gate(ENDLESS)
        link.answers.before_call()
        lists = link.keys.lists(queue)
        slot: Slot[Any] = Slot()

        def put(reply: Any) -> None:
            if not slot.offer(reply) and not isinstance(reply, Exception) and reply:
                link.answers.move(unseen(link.keys, number, field, queue, reply[0]))

        keys = (link.keys.unacked, link.keys.unacked_index, *lists)
        args = (link.prefix, number, 1, CLAIM_BYTES, entry_suffix(queue), mark())
        pipeline.post(link.scripts.call(CLAIM, keys, *args), put)
        sizes: list[Any] = []
        for key in lists[:-1]:
            pipeline.post(pack(b"LLEN", key), sizes.append)
        last: Slot[Any] = Slot()
        pipeline.post(pack(b"LLEN", lists[-1]), last.offer)
        link.directory.touch(queue)
        try:
            sizes.append(last.wait(ENDLESS))
            reply = slot.wait(ENDLESS)
        except BaseException:
            if slot.has_value and isinstance(slot.value, list) and slot.value:
                link.answers.move(unseen(link.keys, number, field, queue, slot.value[0]))
            elif not slot.is_filled:
                slot.fail(TimeoutError("nobody waits"))
            raise
        if isinstance(reply, Exception):
            raise pipeline.error(reply, f"taking from queue {queue!r}")
        return (reply[0] if reply else None), sum(n for n in sizes if isinstance(n, int))
