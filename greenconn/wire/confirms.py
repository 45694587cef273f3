"""Publisher confirms: matching acks, nacks and returns to the publishes.

RabbitMQ counts the publishes of a channel from 1 after ``confirm.select`` and answers each count once,
singly or with ``multiple`` for all up to it.  A return precedes the ack of its message but carries no
count: it is matched to the oldest outstanding mandatory publish with the same exchange, routing key,
raw property block and body, and if none has all four (the broker strips ``BCC``), to the oldest
mandatory one with the same exchange and routing key.

A count is taken before its message is written.  So an exception that comes between the two from outside
(``KeyboardInterrupt``, a signal handler that raises) can be noticed by whoever writes, and no count is
ever given to a message that another one has.
"""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["ConfirmSequencer", "Outstanding"]


class Outstanding:
    """A publish that the broker has not answered.

    Attributes:
        returned: what the broker returned it with, ``(code, text)``, or None.
    """

    __slots__ = ("body", "exchange", "mandatory", "properties", "returned", "routing_key")

    def __init__(
        self, exchange: str, routing_key: str, mandatory: bool, properties: bytes, body: bytes
    ) -> None:
        self.exchange = exchange
        self.routing_key = routing_key
        self.mandatory = mandatory
        self.properties = properties
        self.body = body
        self.returned: tuple[int, str] | None = None


P = TypeVar("P", bound=Outstanding)


class ConfirmSequencer(Generic[P]):
    """The outstanding publishes of one channel in confirm mode, by publish count."""

    __slots__ = ("_answered", "_skipped", "last", "outstanding")

    def __init__(self) -> None:
        #: The count of the last publish.
        self.last = 0
        self._skipped = 0  # the last count that nobody waits for
        self._answered = 0  # the highest that the broker has answered
        self.outstanding: dict[int, P] = {}

    def expect(self, publish: P) -> int:
        """Count a publish whose confirm somebody waits for."""
        self.last = tag = self.last + 1
        self.outstanding[tag] = publish
        return tag

    def skip(self) -> None:
        """Count a publish whose confirm nobody waits for."""
        self._skipped = self.last = self.last + 1

    @property
    def all_are_awaited(self) -> bool:
        """Whether somebody waits for each publish that the broker may not have looked at yet.

        It looks at them in their order, whatever the order of its answers.
        """
        return self._skipped <= self._answered

    def settle(self, tag: int, multiple: bool) -> list[P]:
        """Take the publishes out that an ack or nack of the broker is about, oldest first."""
        outstanding = self.outstanding
        if tag > self._answered:
            self._answered = tag
        if not multiple:
            publish = outstanding.pop(tag, None)
            return [] if publish is None else [publish]
        tags = []
        for each in outstanding:
            if tag and each > tag:
                break
            tags.append(each)
        return [outstanding.pop(each) for each in tags]

    def give_up(self) -> list[P]:
        """Take everything out: the channel is gone."""
        left = list(self.outstanding.values())
        self.outstanding.clear()
        return left

    def match_return(
        self, exchange: str, routing_key: str, properties: bytes, body: bytes
    ) -> P | None:
        """Return the publish that a return is about, or None if it is none of the outstanding."""
        similar = None
        for publish in self.outstanding.values():
            if (
                publish.mandatory
                and publish.returned is None
                and publish.exchange == exchange
                and publish.routing_key == routing_key
            ):
                if publish.properties == properties and publish.body == body:
                    return publish
                if similar is None:
                    similar = publish
        return similar
