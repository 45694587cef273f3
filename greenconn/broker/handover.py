"""What one life of a connection leaves to the next.

A connection may be lost between an answer and the store's word, between a claim and the messages that
it brings, and with messages in the hands of handlers.  What was answered is answered again in the
next life, which changes nothing where it had arrived; what was not goes back to its queue at once,
instead of waiting for the end of its lease.  Until then an answer may still come.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from greenconn.broker.port import Answer, Settlement

if TYPE_CHECKING:
    from greenconn.broker.link import StoreLink

__all__ = ["Handover"]


class Handover:
    """Held messages of former lives, and what was answered.  Nothing here switches."""

    __slots__ = ("_answers", "_held", "_successor")

    def __init__(self) -> None:
        #: The life that was begun last.
        self._successor: StoreLink | None = None
        self._answers: list[tuple[str, Answer]] = []
        #: Delivery tag -> queue and answer, as long as nobody gives another.
        self._held: dict[str, tuple[str, Answer]] = {}

    def take(self, link: StoreLink) -> None:
        """The life of *link* is over."""
        if not link.store.outlives_link:
            return
        self._answers += link.answers.unsettled()
        for queue, handle in link.store.doubtful():
            self._answers.append((queue, Answer(handle, Settlement.BACK, is_unseen=True)))
        for each in link.held():
            if each.is_held:
                answer = Answer(each.handle, Settlement.BACK)
                self._held[each.delivery_tag] = (each.queue, answer)

    def ack(self, tag: str) -> None:
        """A message of a former life is done after all."""
        kept = self._held.pop(tag, None)
        if kept is not None:
            queue, answer = kept
            self._answers.append((queue, answer._replace(settlement=Settlement.DONE)))

    def add(self, link: StoreLink, queue: str, answer: Answer) -> None:
        """This was answered, or given back unseen, when the life of *link* was over."""
        if link.is_parents or not link.store.outlives_link:
            return
        successor = self._successor
        if successor is not None and successor.lost is None:
            successor.answers.add(queue, answer)
        else:
            self._answers.append((queue, answer))

    def pass_on(self, link: StoreLink) -> None:
        """Let *link* answer and give back everything."""
        self._successor = link
        answers, self._answers = self._answers, []
        held, self._held = self._held, {}
        for queue, answer in (*answers, *held.values()):
            link.answers.add(queue, answer)
