"""Publisher confirms: matching of acks, nacks and returns to the publishes.

RabbitMQ numbers the publishes of a channel from 1 after ``confirm.select`` and confirms each number
once, singly or with ``multiple`` for all up to it.  A return precedes the ack of its message but has no
number: it is matched to the oldest outstanding mandatory publish with the same exchange, routing key,
raw property block and body, and if none has all four (the broker strips ``BCC``), to the oldest
mandatory one with the same exchange and routing key.

A number is taken before its message is written.  So the writer notices an exception that is raised
between the two (``KeyboardInterrupt``, a signal handler that raises), and no two messages ever get the
same number.
"""

from __future__ import annotations

from typing import Generic, Protocol, TypeVar


class Outstanding(Protocol):
    """A publish that the broker has not confirmed, as far as returns are matched to it."""

    exchange: str
    routing_key: str
    mandatory: bool
    #: The property block.
    properties: bytes
    body: bytes
    #: ``(code, text)`` of the broker's return, or None.
    returned: tuple[int, str] | None


P = TypeVar("P", bound=Outstanding)


class ConfirmSequencer(Generic[P]):
    """The outstanding publishes of one channel in confirm mode, by number."""

    __slots__ = ("_confirmed", "_skipped", "last", "outstanding")

    def __init__(self) -> None:
        #: The number of the last publish.
        self.last = 0
        self._skipped = 0  # the last number whose confirm is not awaited
        self._confirmed = 0  # the highest number that the broker has confirmed
        self.outstanding: dict[int, P] = {}

    def expect(self, publish: P) -> int:
        """Assign the next number to a publish whose confirm is awaited."""
        self.last = tag = self.last + 1
        self.outstanding[tag] = publish
        return tag

    def skip(self) -> None:
        """Assign the next number to a publish whose confirm is not awaited."""
        self._skipped = self.last = self.last + 1

    @property
    def all_are_awaited(self) -> bool:
        """Whether the confirm of each publish is awaited that the broker may not have processed yet.

        It processes them in order, whatever the order of its confirms.
        """
        return self._skipped <= self._confirmed

    def settle(self, tag: int, multiple: bool) -> list[P]:
        """Remove and return the publishes that an ack or nack of the broker is for, oldest first."""
        outstanding = self.outstanding
        if tag > self._confirmed:
            self._confirmed = tag
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
        """Remove and return all publishes, as the channel has ended."""
        left = list(self.outstanding.values())
        self.outstanding.clear()
        return left

    def match_return(
        self, exchange: str, routing_key: str, properties: bytes, body: bytes
    ) -> P | None:
        """Return the outstanding publish that a return is for, or None."""
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
