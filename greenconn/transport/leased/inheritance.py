"""What one life of a connection leaves to the next.

A connection may be lost between an answer and the store's word, between a claim and the messages that
it brings, and with messages in the hands of handlers.  What was answered is answered again in the
next life, which changes nothing where it had arrived; what was not goes back to its queue at once,
instead of waiting for the end of its lease.  Until then an answer may still come.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from greenconn.transport.leased.store import Answer, Claimed, Settlement

if TYPE_CHECKING:
    from greenconn.transport.leased.link import LeasedLink

__all__ = ["Inheritance"]


class Inheritance:
    """Held messages of former lives, and what was answered.  Nothing here switches."""

    __slots__ = ("_answers", "_held")

    def __init__(self) -> None:
        self._answers: list[tuple[str, Answer]] = []
        #: Delivery tag -> queue and answer, as long as nobody gives another.
        self._held: dict[str, tuple[str, Answer]] = {}

    def take(self, link: LeasedLink) -> None:
        """The life of *link* is over."""
        if not link.store.outlives_link:
            return
        self._answers += link.settling.unsettled()
        for queue, handle in link.store.doubtful():
            self._answers.append((queue, Answer(handle, Settlement.BACK, is_unseen=True)))
        for each in link.held():
            if each.is_held:
                answer = Answer(each.handle, Settlement.BACK)
                self._held[each.delivery_tag] = (each.queue, answer)

    def leave(self, link: LeasedLink, claimed: Sequence[Claimed]) -> None:
        """These came when the life of *link* was over: nobody has seen them."""
        if link.is_parents or not link.store.outlives_link:
            return
        for each in claimed:
            answer = Answer(each.handle, Settlement.BACK, is_unseen=True)
            self._answers.append((each.queue, answer))

    def ack(self, tag: str) -> None:
        """A message of a former life is done after all."""
        kept = self._held.pop(tag, None)
        if kept is not None:
            queue, answer = kept
            self._answers.append((queue, answer._replace(settlement=Settlement.DONE)))

    def pass_on(self, link: LeasedLink) -> None:
        """Let *link* answer and give back everything."""
        answers, self._answers = self._answers, []
        held, self._held = self._held, {}
        for queue, answer in (*answers, *held.values()):
            link.settling.add(queue, answer)
