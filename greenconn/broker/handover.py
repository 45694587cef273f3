"""Hand-over of unsettled messages from one life of a connection to the next.

A connection may be lost between an ack and the broker's reply, between a claim and its messages, and
while handlers run.  The next life sends every ack and disposition again, which changes nothing where
the first had arrived.  It requeues the other messages at once, so that they need not wait for the end
of their lease; until then a handler may still ack them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from greenconn.broker.port import Settlement
from greenconn.broker.settlement_port import Disposition, HeldMessage

if TYPE_CHECKING:
    from greenconn.broker.leased_link import LeasedLink


class Handover:
    """Held messages of former lives, and their acks and dispositions."""

    def __init__(self) -> None:
        #: The life that was begun last, until it is over: a closed connection keeps nothing of it.
        self._successor: LeasedLink | None = None
        self._acks: list[Any] = []
        self._dispositions: list[Disposition] = []
        #: Claims without a reply may have taken these.
        self._unconfirmed: list[HeldMessage] = []
        #: Delivery tag -> message, until it is acked.
        self._held: dict[Any, HeldMessage] = {}
        #: Of those, the ones that no handler has begun with.
        self._unhandled: set[Any] = set()

    def take(self, link: LeasedLink) -> None:
        """Take what the life of *link*, which is over, has left.  Never switches."""
        if self._successor is link:
            self._successor = None
        if not link.settler.outlives_link:
            return
        acks, dispositions = link.settlements.unsettled()
        self._acks += acks
        self._dispositions += dispositions
        self._unconfirmed += link.settler.unconfirmed_claims()
        for each in link.held():
            if each.is_held:
                self._held[each.delivery_tag] = each.claimed

    def ack(self, tag: Any) -> None:
        """Acknowledge a message of a former life.  Never switches."""
        kept = self._held.pop(tag, None)
        if kept is not None:
            self._acks.append(kept.handle)
            self._unhandled.discard(tag)

    def note_unhandled(self, tags: Iterable[Any]) -> None:
        """Note that no handler has begun with messages of a former life.  Never switches."""
        self._unhandled.update(tag for tag in tags if tag in self._held)

    def add(
        self, link: LeasedLink, acks: Sequence[Any], dispositions: Sequence[Disposition]
    ) -> None:
        """Take what was settled when the life of *link* was over.  Never switches."""
        if link.is_inherited or not link.settler.outlives_link:
            return
        successor = self._successor
        if successor is not None:
            successor.settlements.take_over(acks, dispositions)
        else:
            self._acks += acks
            self._dispositions += dispositions

    def left(self) -> list[HeldMessage]:
        """Return the messages that the next life requeues.  Never switches."""
        back = [
            each.message for each in self._dispositions if each.settlement is Settlement.REQUEUE
        ]
        return [*back, *self._held.values(), *self._unconfirmed]

    def pass_on(self, link: LeasedLink) -> None:
        """Have *link* send and requeue everything.  May switch.

        What was not requeued when that fails stays for the next life.
        """
        self._successor = link
        acks, self._acks = self._acks, []
        dispositions, self._dispositions = self._dispositions, []
        if acks or dispositions:
            link.settlements.take_over(acks, dispositions)
        held, unconfirmed = dict(self._held), list(self._unconfirmed)
        if held or unconfirmed:
            begun = [each for tag, each in held.items() if tag not in self._unhandled]
            unhandled = [each for tag, each in held.items() if tag in self._unhandled]
            link.settler.reclaim(begun, unhandled, unconfirmed)
        for tag in held:
            self._held.pop(tag, None)
            self._unhandled.discard(tag)
        del self._unconfirmed[: len(unconfirmed)]
