"""The messages that a broker holds for one link, and how they are settled.

A message is held from its claim until it is settled.  Nothing waits for the reply to an ack: a callback
runs when the broker has it.  The parts that are the same for all brokers (settlements, leases,
dead letters, the hand-over to the next life) know a broker as a :class:`MessageSettler`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from greenconn.broker.port import Entry, Settlement
from greenconn.transport.virtual.publishing import Envelope


class HeldMessage(Protocol):
    """A message that the broker holds.

    Attributes:
        queue: where it was taken from.
        handle: what the broker knows it by.
        raw: as it was stored, where the broker keeps bytes.
        envelope: kombu's form; None where it cannot be read.
        deliveries: how often it was delivered before this time, as far as the broker can tell.
    """

    @property
    def queue(self) -> str: ...
    @property
    def handle(self) -> Any: ...
    @property
    def raw(self) -> bytes: ...
    @property
    def envelope(self) -> Envelope | None: ...
    @property
    def deliveries(self) -> int: ...


class HeldDelivery(HeldMessage, Protocol):
    """A held message that a channel has delivered.

    Attributes:
        claimed: what stays of it when its link is gone.
        is_held: the broker holds it still.
    """

    is_held: bool

    @property
    def claimed(self) -> HeldMessage: ...

    @property
    def delivery_tag(self) -> Any: ...


class Disposition(NamedTuple):
    """The disposition of one held message.

    Attributes:
        delay: seconds before it may be claimed again, for REQUEUE.
        entries: stored before the message is removed, at once with it where the broker can: its copies
            for dead-letter queues, or the one that is delivered after a delay.  One with an empty
            envelope is the message as it is.
        is_unseen: no handler has seen it, for REQUEUE: as if it had never been claimed.
        is_unhandled: a consumer was given it, and no handler has begun with it, for REQUEUE: it is
            redelivered, but this delivery of it does not count.
    """

    message: HeldMessage
    settlement: Settlement
    delay: float = 0.0
    entries: Sequence[Entry] = ()
    is_unseen: bool = False
    is_unhandled: bool = False


#: Takes the broker's reply to acks or dispositions: None, the number of messages that it did not hold
#: any more, or an Exception.  Never switches.
Done = Callable[[Any], object]


class MessageSettler(Protocol):
    """The commands of one link about messages that it holds.

    Nothing here switches but :meth:`reclaim`.  *done* is called once, for acks in the order in which
    they were given; not when the broker is lost: what was sent then is sent again by the next life,
    which changes nothing where it had arrived.

    Attributes:
        ack_limit: handles that one call may have.
        lease: seconds that a message is held without renewal; None: as long as the link lives.
        outlives_link: the next life of a connection can settle what this one has claimed.
        renewal_interval: seconds between two renewals; None: there is nothing to renew.
    """

    @property
    def lease(self) -> float | None: ...
    @property
    def renewal_interval(self) -> float | None: ...
    @property
    def ack_limit(self) -> int: ...
    @property
    def outlives_link(self) -> bool: ...

    def ack(self, handles: Sequence[Any], done: Done) -> None:
        """Acknowledge messages."""

    def parts(self, dispositions: Sequence[Disposition]) -> Iterable[Sequence[Disposition]]:
        """Cut what one turn has brought into what :meth:`settle` takes, in the order for it."""

    def settle(self, dispositions: Sequence[Disposition], done: Done) -> None:
        """Put messages where they belong now, and wake those who wait for them."""

    def return_unheld(self, delivery: Any) -> None:
        """Requeue a delivery that is not held, where that can be done."""

    def unread(self, message: HeldMessage) -> Envelope:
        """Return the envelope of a dead letter that cannot be read; an empty one: it moves as it is."""

    def postpone(self, message: HeldMessage) -> Disposition | None:
        """Return what becomes of a message that cannot become a dead letter now.

        None: it stays held, and it is tried again when the leases are renewed.
        """

    def renew(self, handles: Sequence[Any], done: Done) -> None:
        """Begin the leases of these messages anew, and say that the link lives, also with none.

        *done* gets the handles whose leases had ended, None, or an Exception.
        """

    def unconfirmed_claims(self) -> Iterable[HeldMessage]:
        """Return messages that claims without a reply may have taken; only their handles count.

        Asked for when the link ends.
        """

    def reclaim(
        self,
        held: Sequence[HeldMessage],
        unhandled: Sequence[HeldMessage],
        unconfirmed: Sequence[HeldMessage],
    ) -> None:
        """Requeue what former lives held, and what they may have claimed.  May switch."""

    def at_turn_end(self, callback: Callable[[], None]) -> None:
        """Call *callback* when all that can run now has run."""

    def error(self, outcome: Exception, what: str) -> BaseException:
        """Return the exception that an outcome stands for; what ends the link ends it."""

    def interrupted(self, exc: BaseException) -> None:
        """End the link, since the outcome of what was sent is unknown."""
