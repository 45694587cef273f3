"""Publisher confirms: which publish an ack, a nack or a return of the broker is about.

RabbitMQ counts the publishes of a channel from 1 after ``confirm.select`` and answers each count once,
singly or with ``multiple`` for all up to it.  A return precedes the ack of its message but carries no
count: it is matched to the oldest outstanding mandatory publish with the same exchange, routing key,
raw property block and body, and if none has all four (the broker strips ``BCC``), to the oldest
mandatory one with the same exchange and routing key.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

__all__ = ["ConfirmSequencer", "Outstanding"]

T = TypeVar("T")


@dataclass(slots=True)
class Outstanding(Generic[T]):
    """A publish that the broker has not answered."""

    waiter: T
    exchange: str
    routing_key: str
    mandatory: bool
    properties: bytes
    body: Any
    #: What the broker returned it with: ``(code, text)``.
    returned: tuple[int, str] | None = None


class ConfirmSequencer(Generic[T]):
    """The outstanding publishes of one channel in confirm mode, by publish count."""

    __slots__ = ("_last", "outstanding")

    def __init__(self) -> None:
        self._last = 0
        self.outstanding: dict[int, Outstanding[T]] = {}

    @property
    def last(self) -> int:
        """The count of the last publish."""
        return self._last

    def expect(self, publish: Outstanding[T]) -> int:
        """Count a publish whose confirm somebody waits for."""
        self._last = tag = self._last + 1
        self.outstanding[tag] = publish
        return tag

    def skip(self) -> None:
        """Count a publish whose confirm nobody waits for."""
        self._last += 1

    def settle(self, tag: int, multiple: bool) -> list[Outstanding[T]]:
        """Take the publishes out that an ack or nack of the broker is about, oldest first."""
        outstanding = self.outstanding
        if not multiple:
            publish = outstanding.pop(tag, None)
            return [] if publish is None else [publish]
        settled = []
        for each in list(outstanding):
            if tag and each > tag:
                break
            settled.append(outstanding.pop(each))
        return settled

    def give_up(self) -> list[Outstanding[T]]:
        """Take everything out: the channel is gone."""
        left = list(self.outstanding.values())
        self.outstanding.clear()
        return left

    def match_return(
        self, exchange: str, routing_key: str, properties: bytes, body: bytes
    ) -> Outstanding[T] | None:
        """The publish that a return is about, or None if it is none of the outstanding."""
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
